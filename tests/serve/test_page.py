"""The page's files, the preview of images, and the records that the server keeps for a while."""

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from PIL import Image
from pydicom import examples

from tests.kit import masks
from tests.kit.images import noise
from tests.kit.rollout import BLIND
from tests.kit.served import MODEL, Served, load, serving
from tests.kit.trajectories import make_trajectory
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.episodes.trajectory_files import read_trajectories
from vitar_jax.processing.files import open_image
from vitar_jax.rollout.player import Player
from vitar_jax.runtime.endpoint import data_url
from vitar_jax.serve.kept import MOST, KeptEpisodes
from vitar_jax.serve.page import page_files

HTTP = urllib3.PoolManager(retries=False)
KEY = {"Authorization": "Bearer opensesame"}


@pytest.fixture(scope="module")
def player(checkpoint: Path) -> Player:
    return dataclasses.replace(load(checkpoint), protocol=BLIND, protocols={"blind": BLIND})


@pytest.fixture(scope="module")
def served(player: Player) -> Iterator[Served]:
    with serving(player, key="opensesame", image_pixels=10_000, body_bytes=200_000) as running:
        yield running


def preview(served: Served, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    given = {"Content-Type": "application/octet-stream", **KEY} | {k.replace("_", "-"): v for k, v in headers.items()}
    response = HTTP.request("POST", f"{served.url}/page/preview", body=body, headers=given)
    return response.status, json.loads(response.data)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_every_file_of_the_page_is_served_with_its_policy_and_names_no_other_host(served: Served) -> None:
    index = HTTP.request("GET", f"{served.url}/")
    assert index.status == 200 and index.headers["Content-Type"].startswith("text/html")
    for name, (content, kind) in page_files().items():
        response = HTTP.request("GET", f"{served.url}/page/{name}")
        assert response.data == content and response.headers["Content-Type"].startswith(kind)
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert b"https:" not in content and b"//cdn" not in content
        assert name == "index.html" or f'"page/{name}"'.encode() in index.data
    for name in ("app.py", "..%2fapp.py", "%2e%2e/app.py", ""):
        assert HTTP.request("GET", f"{served.url}/page/{name}").status in (404, 405)


def test_a_preview_is_the_image_as_the_server_opens_it(served: Served) -> None:
    dicom = Path(examples.get_path("mr")).read_bytes()
    for content in (png(noise(60, 50)), dicom):
        status, body = preview(served, content)
        expected = open_image(content)
        assert status == 200 and (body["width"], body["height"]) == expected.size
        np.testing.assert_array_equal(open_image(body["image_url"]), expected)


def test_a_large_preview_is_reduced(player: Player) -> None:
    with serving(player) as served:
        status, body = preview(served, png(Image.new("L", (3000, 1000))))
    assert status == 200 and (body["width"], body["height"]) == (3000, 1000)
    assert open_image(body["image_url"]).size == (1024, 341)


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (b"", {}, 400, "not an image"),
        (png(noise(60, 50))[:300], {}, 400, "damaged"),
        (png(Image.new("L", (101, 100))), {}, 400, "101x100 pixels"),
        (b" " * 200_001, {}, 413, "the 200000 bytes allowed"),
        (b"x", {"Content_Type": "application/json"}, 415, "application/octet-stream"),
        (b"x", {"Authorization": ""}, 401, "no valid key"),
    ],
)
def test_a_preview_is_refused(served: Served, body: bytes, headers: dict[str, str], status: int, text: str) -> None:
    got, said = preview(served, body, **headers)
    assert got == status and text in said["error"]["message"] and "\n" not in said["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_stored_episode_can_be_saved_and_reported(player: Player, served: Served, stream: bool, tmp_path: Path) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": data_url(noise(60, 50))}},
        {"type": "text", "text": "Which <b>texture</b>?"},
    ]
    values: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 1.0, "n": 2}
    more: dict[str, Any] = {"store": True, "seed": 2, "stream": stream, "extra_body": {"protocol": "blind"}}
    reply = served.client.chat.completions.create(**values, **more)
    if stream:
        chunks = list(reply)
        found = [chunk.model_extra["event"] for chunk in chunks if chunk.model_extra]
        (name,) = {chunk.id for chunk in chunks}
    else:
        name, found = reply.id, [event for choice in reply.choices for event in choice.model_extra["events"]]
    ends = [event for event in found if event["type"] == "end"]
    archive = HTTP.request("GET", f"{served.url}/episodes/{name}/trajectories.zip")
    zipfile.ZipFile(io.BytesIO(archive.data)).extractall(tmp_path)
    saved = list(read_trajectories(tmp_path))
    assert len(saved) == len(ends) == 2 and {record.member for record in saved} == {0, 1}
    for end, record in zip(ends, saved, strict=True):
        assert end["episode"]["question"] == record.question == "Which <b>texture</b>?"
        assert [turn["text"] for turn in end["episode"]["turns"]] == [turn.text for turn in record.turns]
        assert len(end["episode"]["images"]) == len(record.images)
    report = HTTP.request("GET", f"{served.url}/episodes/{name}/report")
    assert report.status == 200 and report.headers["Content-Type"].startswith("text/html")
    assert b"<b>texture" not in report.data and report.data.count(b"data:image/png;base64,") >= 1
    assert b"right or wrong" not in report.data  # nothing marks these answers


@pytest.mark.slow
def test_masks_come_with_the_end_of_a_turn_and_of_an_episode() -> None:
    """They are those that the player makes."""
    player = Player(masks.engine(), masks.MARKING, masks.view, Sampling(1.0), protocols={"marking": masks.MARKING})
    drawing = (dataclasses.replace(player, sampling=Sampling(1.0, seed=seed)) for seed in range(20))
    played = (one.record(one.finish(one.begin(Sample("question", "Which?", (noise(60, 50),), "")))) for one in drawing)
    expected = next(record for record in played if any(turn.masks for turn in record.turns))
    content = [{"type": "image_url", "image_url": {"url": data_url(noise(60, 50))}}, {"type": "text", "text": "Which?"}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "protocol": "marking", "store": True}
    with serving(player) as served:
        url = f"{served.url}/v1/chat/completions"
        answer = HTTP.request("POST", url, json=body | {"temperature": 1, "seed": expected.sampling.seed})
    *events, end = json.loads(answer.data)["choices"][0]["events"]
    made = [[mask.mask and mask.mask.counts.decode() for mask in turn.masks] for turn in expected.turns]
    assert [[mask["counts"] for mask in turn["masks"]] for turn in end["episode"]["turns"]] == made and any(made)
    turns = [event for event in events if event["type"] == "turn"]
    assert [turn.get("shown_masks", []) for turn in turns] == [turn["masks"] for turn in end["episode"]["turns"]]


def test_an_episode_is_kept_only_if_a_request_asks(served: Served) -> None:
    values: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    reply = served.client.chat.completions.create(**values, extra_body={"protocol": "blind"})
    assert reply.choices[0].model_extra and "episode" not in reply.choices[0].model_extra["events"][-1]
    for name in (reply.id, "x"):
        for kind in ("trajectories.zip", "report"):
            assert HTTP.request("GET", f"{served.url}/episodes/{name}/{kind}").status == 404


def test_the_oldest_records_are_dropped() -> None:
    kept, record = KeptEpisodes(10**9), make_trajectory()
    for number in range(MOST + 2):
        kept.add(str(number), record)
    assert [bool(kept.find(str(number))) for number in range(4)] == [False, False, True, True]
    area = sum(image.pixels.width * image.pixels.height for image in record.images)
    small = KeptEpisodes(2 * area)
    for number in (0, 1, 1, 1):
        small.add(str(number), record)
    assert not small.find("0") and len(small.find("1")) == 3
