"""The models that `curate` asks: their requests, good replies, and the flags that name them."""

import base64
import hashlib
import io
import json
from typing import Any

import numpy as np
from PIL import Image


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][1]["content"][1]["text"]


def file_of(body: dict[str, Any]) -> Image.Image:
    url = body["messages"][1]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def image_of(body: dict[str, Any]) -> np.ndarray:
    return np.asarray(file_of(body))


def name_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def well(body: dict[str, Any], _: int = 0) -> str:
    """What good models say: the writer's answers are always B, the verifier agrees but on quadrants."""
    text = text_of(body)
    if text.startswith("Its annotation") and "Write both thoughts" in text:
        return '{"thought": "I look in the middle.", "rethought": "There it is."}'
    if text.startswith("Its annotation"):
        kind = "quadrant" if "quadrant" in text else "presence" if "Yes and No" in text else "place"
        options = ["A) No", "B) Yes", "C) Perhaps"]
        said = {"question": f"A {kind}, {name_of(body)[:8]}?", "options": options, "answer": "b"}
        return f"Here you are:\n```json\n{json.dumps(said)}\n```"
    return '{"answer": "C"}' if text.startswith("A quadrant") else '{"answer": "B."}'


def flags(url: str, verifier: str = "") -> list[str]:
    named = [f"--endpoint={url}", "--model=writer", "--verifier_model=verifier", "--retries=1", "--timeout=2"]
    return named + ([f"--verifier_endpoint={verifier}"] if verifier else [])
