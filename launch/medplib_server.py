"""Serves MedPLIB (arXiv 2412.09278) as the `endpoint` expert of `python -m data_prep.gaze`, by chat completions.

Runs in MedPLIB's own environment (Python 3.9, torch 2.1, transformers 4.31), which needs scipy too, from a checkout of
github.com/ShawnHuang497/MedPLIB:

  python launch/medplib_server.py --medplib=MedPLIB --model=Huangxs/MedPLIB-7b-2e --clip=CLIP --sam=sam-med2d_b.pth --port=8000

THIS HAS NOT RUN WITH THE WEIGHTS. It was written from MedPLIB's code at 5ab54bc. Only what it does with masks, requests and
replies is tested.

MedPLIB answers a question with one mask at most, and has no score of its own. Here a scan's regions are the connected parts of
that mask, and the mean probability of a part's pixels is its confidence. To drill into a region, MedPLIB is asked for the
abnormality in <region></region>. MedPLIB reads the region from a mask that is passed beside the text, at that place between the
tags. Coordinates between them, as MedEyes' published code writes, would be text to it.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import numpy as np
from PIL import Image
from scipy import ndimage

THRESHOLD = 0.1  # probability from which a pixel belongs to a mask, as in MedPLIB's evaluation
SMALLEST = 1e-3  # smallest part of a mask that is a region, as a share of the image (ours)
MOST_REGIONS = 5  # as in MedEyes' published code
CLIP_SIDE, CLIP_PATCH, SAM_SIDE = 336, 14, 256
CLIP_MEAN = (122, 116, 104)  # grey values of the padding
SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

# How the requests of `data_prep/gaze/asked.py` begin, and where they name a region and the image's size.
SCAN, DRILL = "Please locate all abnormal regions", "Is any abnormality in this region?"
REGION = re.compile(r"\nRegion: (\[[^\]]*\])")
NOT_OF_THE_QUESTION = re.compile(r"\n(?:The second image shows the region|The image has \d+ x \d+ pixels).*", re.DOTALL)

# What MedPLIB is asked.
FIND = "Please segment all abnormal regions in this image."
EXAMINE = "Please segment the abnormality in this region <region></region>."
DESCRIBE = "Can you describe what is seen at this region <region></region>?"


class Model(Protocol):
    """What the server needs of MedPLIB."""

    def ask(self, image: Image.Image, text: str, region: np.ndarray | None = None) -> tuple[str, np.ndarray | None]:
        """Returns the reply, and the probabilities (height, width) of its mask if it has one.

        Args:
          region: Mask (height, width) of the region that stands at `<region></region>` in the text.
        """
        ...


# --- masks --------------------------------------------------------------------------------------------


def regions(probabilities: np.ndarray) -> list[dict[str, Any]]:
    """Returns the connected parts of a mask as {"box": [x1, y1, x2, y2], "confidence": ...}, most confident first.

    Args:
      probabilities: (height, width), of the pixels of the image.
    """
    parts, count = ndimage.label(probabilities >= THRESHOLD, structure=np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    sizes, means = ndimage.sum_labels(parts > 0, parts, numbers), ndimage.mean(probabilities, parts, numbers)
    found = [
        {"box": [columns.start, rows.start, columns.stop, rows.stop], "confidence": float(means[number])}
        for number, (rows, columns) in enumerate(ndimage.find_objects(parts))
        if sizes[number] >= SMALLEST * probabilities.size
    ]
    return sorted(found, key=lambda region: -region["confidence"])[:MOST_REGIONS]


def confidence_in(probabilities: np.ndarray, box: list[float]) -> float:
    """Returns the mean probability of a mask's pixels inside a box; 0 without such pixels."""
    inside = probabilities * region_mask(box, probabilities.shape)
    masked = inside[inside >= THRESHOLD]
    return float(masked.mean()) if masked.size else 0.0


def region_mask(box: list[float], shape: tuple[int, int]) -> np.ndarray:
    """Returns the mask of a box, (height, width) uint8: all pixels that the box touches, and one at least."""
    x1, y1, x2, y2 = box
    mask = np.zeros(shape, np.uint8)
    left, top = min(max(math.floor(x1), 0), shape[1] - 1), min(max(math.floor(y1), 0), shape[0] - 1)
    mask[top : max(math.ceil(y2), top + 1), left : max(math.ceil(x2), left + 1)] = 1
    return mask


def clip_mask(mask: np.ndarray) -> np.ndarray:
    """Returns a region's mask at MedPLIB's size, (24, 24): the image's longest side fills it, the rest is padding.

    A region smaller than a patch stays one patch.
    """
    side = CLIP_SIDE // CLIP_PATCH
    scale = side / max(mask.shape)
    pad = [(side - max(1, round(length * scale))) // 2 for length in mask.shape]
    rows, columns = np.nonzero(mask)
    found = np.zeros((side, side), np.uint8)
    found[(rows * scale).astype(int) + pad[0], (columns * scale).astype(int) + pad[1]] = 1
    return found


# --- requests -----------------------------------------------------------------------------------------


def reply(messages: Sequence[Mapping[str, Any]], model: Model) -> dict[str, Any]:
    """Returns the JSON object that answers a request: the regions of a scan, the finding of a drill, or an answer.

    Raises:
      ValueError: If the request has no image, or a drill no region. The message says what is missing.
    """
    parts = messages[-1]["content"]
    if isinstance(parts, str) or not any(part["type"] == "image_url" for part in parts):
        raise ValueError("messages: the last one has no image")
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    image = _image(next(part["image_url"]["url"] for part in parts if part["type"] == "image_url"))
    if text.startswith(SCAN):
        _, found = model.ask(image, FIND)
        return {"regions": [] if found is None else regions(found)}
    if text.startswith(DRILL):
        named = REGION.search(text, len(DRILL))
        if named is None:
            raise ValueError("messages: got a drill without a line `Region: [left, upper, right, lower]`")
        box = json.loads(named[1])
        mask = region_mask(box, (image.height, image.width))
        _, found = model.ask(image, EXAMINE, mask)
        said, _ = model.ask(image, DESCRIBE, mask)
        return {"confidence": 0.0 if found is None else confidence_in(found, box), "finding": said}
    # The region of a question is left out: MedPLIB was trained on such questions about whole images.
    said, _ = model.ask(image, NOT_OF_THE_QUESTION.sub("", text))
    return {"answer": said}


def _image(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise ValueError("messages: got an image URL, expected a data URL in base64")
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def make_server(model: Model, name: str, port: int, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """Returns a server of POST /v1/chat/completions. Requests wait for each other. Port 0 takes a free port."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/chat/completions":
                self.respond(404, {"error": {"message": f"got {self.path}, expected /v1/chat/completions"}})
                return
            try:
                with lock:
                    said = reply(json.loads(body)["messages"], model)
            except (ValueError, LookupError, TypeError, OSError) as error:  # OSError: not an image
                self.respond(400, {"error": {"message": f"{type(error).__name__}: {error}"}})
                return
            message = {"role": "assistant", "content": json.dumps(said)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.respond(200, {"object": "chat.completion", "model": name, "choices": [choice]})

        def respond(self, status: int, value: dict[str, Any]) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return ThreadingHTTPServer((host, port), Handler)


# --- MedPLIB ------------------------------------------------------------------------------------------


class MedPLIB:
    """MedPLIB's own code with its weights, on one GPU, in bf16.

    Args:
      code: Checkout of MedPLIB.
      weights: Directory of its weights, or their name on the Hugging Face hub.
      clip, sam: Weights of the two vision towers, which its loader asks for.
    """

    def __init__(self, code: str, weights: str, clip: str, sam: str):
        sys.path.insert(0, code)
        import torch
        import transformers
        from datasets.LazySupervisedDataset import tokenizer_image_token  # this one knows <region></region>
        from model.MedPLIB import MedPLIBForCausalLM
        from model.medplib import conversation

        self._torch, self._encode = torch, tokenizer_image_token
        self._conversation = conversation.conv_templates["v1"]
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(
            weights, model_max_length=2048, padding_side="right", use_fast=False, legacy=True
        )
        # As its inference script passes them: dense mixture of two experts, one of them per token.
        settings = dict(
            seg_token_idx=self._tokenizer("<SEG>", add_special_tokens=False).input_ids[0],
            vision_tower=clip,
            vision_pretrained=sam,
            out_dim=256,
            use_mm_start_end=True,
            region_fea_adapter=True,
            region_geo_sampler=False,
            max_sample_point=512,
            moe_enable=True,
            test_only=True,
        )
        self._model = MedPLIBForCausalLM.from_pretrained(
            weights, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, ignore_mismatched_sizes=True, **settings
        )
        for name in ("eos", "bos", "pad"):
            setattr(self._model.config, f"{name}_token_id", getattr(self._tokenizer, f"{name}_token_id"))
        self._model.resize_token_embeddings(len(self._tokenizer))
        self._model.to(device="cuda").eval()
        self._clip = self._model.get_model().get_vision_tower().image_processor

    def ask(self, image: Image.Image, text: str, region: np.ndarray | None = None) -> tuple[str, np.ndarray | None]:
        torch = self._torch
        torch.manual_seed(0)  # it samples points of a region; the same question must have the same answer
        talk = self._conversation.copy()
        talk.messages = []
        talk.append_message(talk.roles[0], f"<im_start><image><im_end>\n{text}")
        talk.append_message(talk.roles[1], None)
        ids = self._encode(talk.get_prompt(), self._tokenizer, return_tensors="pt").unsqueeze(0).cuda()
        square = padded(image, CLIP_SIDE, CLIP_MEAN)
        seen = self._clip.preprocess(square, return_tensors="pt")["pixel_values"].to("cuda", torch.bfloat16)
        resized = resize_longest(image, SAM_SIDE)
        normal = (np.asarray(resized, np.float32) - SAM_MEAN) / SAM_STD
        pixels = torch.from_numpy(_in_the_middle(normal, SAM_SIDE, (0.0, 0.0, 0.0)).transpose(2, 0, 1).copy())
        prompt: dict[str, Any] = {}
        if region is not None:
            mask = torch.from_numpy(clip_mask(region)).float().unsqueeze(0).cuda()
            prompt = {"region_masks": [mask], "valid_region_masks_bool": [[torch.ones(1).bool()]]}
        out, masks = self._model.evaluate(
            seen,
            pixels.unsqueeze(0).to("cuda", torch.bfloat16),
            ids,
            [(resized.height, resized.width)],
            [np.empty((image.height, image.width))],  # only its shape is read
            max_new_tokens=512,
            tokenizer=self._tokenizer,
            inference_demo=True,  # no mask without <SEG>
            **prompt,
        )
        said = self._tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).replace("<SEG>", "").strip()
        return said, torch.sigmoid(masks[0][0].float()).cpu().numpy() if masks else None


def resize_longest(image: Image.Image, side: int) -> Image.Image:
    """Returns the image with a longest side of `side` pixels."""
    scale = side / max(image.size)
    width, height = (max(1, int(length * scale + 0.5)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def padded(image: Image.Image, side: int, grey: tuple[int, int, int]) -> np.ndarray:
    """Returns a square of (side, side, 3) uint8 with the image in its middle."""
    return _in_the_middle(np.asarray(resize_longest(image.convert("RGB"), side)), side, grey)


def _in_the_middle(pixels: np.ndarray, side: int, value: tuple[float, float, float]) -> np.ndarray:
    height, width = pixels.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    square = np.empty((side, side, 3), pixels.dtype)
    square[:] = value
    square[top : top + height, left : left + width] = pixels
    return square


def main() -> None:
    """Serves MedPLIB to `python -m data_prep.gaze --expert=endpoint`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--medplib", required=True, help="checkout of github.com/ShawnHuang497/MedPLIB")
    parser.add_argument("--model", required=True, help="weights: a directory or a name on the Hugging Face hub")
    parser.add_argument("--clip", required=True, help="weights of clip-vit-large-patch14-336")
    parser.add_argument("--sam", required=True, help="weights of SAM-Med2D, sam-med2d_b.pth")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    given = parser.parse_args()
    server = make_server(MedPLIB(given.medplib, given.model, given.clip, given.sam), given.model, given.port, given.host)
    print("This server has not been tested with MedPLIB's weights. Check some regions before you use them.")
    print(f"Serving {given.model} at http://{given.host}:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
