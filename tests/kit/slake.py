"""SLAKE in its published form, with three questions."""

import json
from pathlib import Path
from typing import Any

from tests.kit.files import write_files
from tests.kit.images import picture

FILES = ("train.json", "validate.json", "test.json")
RECORD: dict[str, Any] = {
    "img_id": 1,
    "img_name": "xmlab1/source.jpg",
    "question": "What modality is used to take this image?",
    "answer": "MRI",
    "q_lang": "en",
    "location": "Abdomen",
    "modality": "MRI",
    "answer_type": "OPEN",
    "base_type": "vqa",
    "content_type": "Modality",
    "triple": ["vhead", "_", "_"],
    "qid": 0,
}


def published(folder: Path, change: dict[str, Any] | None = None, answer: str = "MRI") -> Path:
    """Writes three questions to a folder and returns the folder. `change` applies to the last question."""
    records = [RECORD | {"qid": n, "answer": answer} for n in range(3)]
    records[2] |= change or {}
    files = {name: json.dumps([record]) for name, record in zip(FILES, records, strict=True)}
    return write_files(folder, {**files, "imgs/xmlab1/source.jpg": picture(1)})
