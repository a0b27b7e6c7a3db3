"""A server of chat completions over transformers' `generate`: the peer of `bench serve` where `transformers serve` cannot run.

    python -m vitar_jax.bench.generate_server CHECKPOINT PORT THREADS

As in `transformers serve` with a vision-language model, requests are decoded one after another on one thread, and stream their
text token by token. It differs in its processor (`processing/hf_prompt.py`), which does without torchvision.
"""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, TextIteratorStreamer

from vitar_jax.processing.files import open_image
from vitar_jax.processing.hf_prompt import hf_prompt


class GenerateServer:
    """A server of one checkpoint, in fp32 on the CPU or the GPU."""

    def __init__(self, checkpoint: Path):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        self.images: Any = AutoImageProcessor.from_pretrained(checkpoint)
        model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
        self.model = model.to(self.device).eval()
        self._decoding = ThreadPoolExecutor(1)
        routes = [Route("/v1/chat/completions", self._chat, methods=["POST"]), Route("/health", self._health)]
        self.app = Starlette(routes=routes)

    async def _health(self, _: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def _chat(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self._events(await request.json()), media_type="text/event-stream")

    def _events(self, body: dict[str, Any]) -> Iterator[str]:
        messages: list[dict[str, Any]] = []
        pictures: list[Image.Image] = []
        for message in body["messages"]:
            content = message["content"]
            parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
            pictures += [open_image(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
            shown = [{"type": "image"} if part["type"] == "image_url" else part for part in parts]
            messages.append({"role": message["role"], "content": shown})
        pad = self.model.config.image_token_id
        prompt, seen = hf_prompt(self.tokenizer, self.images, pad, messages, pictures)
        ids = torch.tensor([prompt], device=self.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == pad).int()}
        inputs |= {name: value.to(self.device) for name, value in seen.items()}
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, timeout=600)
        made: list[int] = []

        @torch.inference_mode()
        def generate() -> None:
            try:
                found = self.model.generate(
                    **inputs, streamer=streamer, do_sample=False, max_new_tokens=body["max_tokens"], use_cache=True
                )
                made.append(found.shape[1] - len(prompt))
            finally:
                streamer.end()

        done = self._decoding.submit(generate)
        for text in streamer:
            yield _event({"choices": [{"index": 0, "delta": {"content": text}}]})
        done.result()
        usage = {"prompt_tokens": len(prompt), "completion_tokens": made[0]}
        yield _event({"choices": [], "usage": usage}) + "data: [DONE]\n\n"


def _event(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    uvicorn.run(GenerateServer(Path(sys.argv[1])).app, port=int(sys.argv[2]), log_level="error")
