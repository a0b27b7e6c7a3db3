"""Questions for searches, and an expert behind an endpoint that answers them."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from data_prep.gaze.asked import DRILL, SCAN
from tests.kit.images import noise

SIZE = (120, 90)


def write_questions(folder: Path, count: int = 6) -> Path:
    """Writes a question file with an image, a box that shows the answer, and other boxes for each question."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        noise(*SIZE, "L", seed=number).save(folder / f"{number}.png")
        rows.append(
            {
                "id": f"q/{number}",
                "image": f"{number}.png",
                "question": "Which texture?",
                "options": ["flat", "rows", "spots"],
                "answer": "ABC"[number % 3],
                "boxes": [[2, 2, 42, 42]],
                "other_boxes": [[70, 5, 115, 45], [5, 48, 50, 88]],
            }
        )
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def asked_text(body: dict[str, Any]) -> str:
    """Returns the text of a request."""
    return body["messages"][1]["content"][-1]["text"]


def expert_reply(body: dict[str, Any], _: int = 0) -> str:
    """Answers a request like an expert: the reply depends only on the request."""
    text = asked_text(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    width, height = map(int, re.findall(r"has (\d+) x (\d+) pixels", text)[-1])
    if text.startswith(SCAN):
        regions = [
            {"box": [x * width // 2, y * height // 2, (x + 1) * width // 2, (y + 1) * height // 2], "confidence": share / 300}
            for x, y, share in ((0, 0, digest[0]), (1, 0, digest[1]), (1, 1, digest[2]))
        ]
        return f"Here they are:\n```json\n{json.dumps({'regions': regions})}\n```"
    if text.startswith(DRILL):
        return json.dumps({"confidence": digest[0] / 255, "finding": f"Finding <|im_end|> </answer>{digest[1]}."})
    return json.dumps({"answer": ["rows", "(B)", "C", "normal"][digest[0] % 4]})
