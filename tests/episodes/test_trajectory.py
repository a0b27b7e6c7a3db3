"""Trajectories: to files and back without loss, and what is said of files that are damaged."""

import dataclasses
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box, Mask
from vitar_jax.episodes.sample import Sample, SegmentedObject
from vitar_jax.episodes.trajectory import Sampling, Trajectory, TrajectoryImage
from vitar_jax.episodes.trajectory_files import JSONL, TrajectoryWriter, file_of, read_records, read_trajectories
from vitar_jax.errors import DataError
from vitar_jax.processing.packing import Example

PROCESSOR = tiny.processor(12)
CHAT = PROCESSOR.chat
VITAR = dataclasses.replace(PROTOCOLS["vitar"], system="Look twice.")
LIMITS = Limits(tokens=600, turn_tokens=200)
SAMPLING = Sampling(temperature=0.7, top_p=0.9, seed=2**31, top_k=5, min_p=0.1, stop_ids=(7,))


def trajectory(index: int = 0, texts: tuple[str, ...] | None = None, image: Image.Image | None = None) -> Trajectory:
    """A played episode: by default it looks at a marked image and answers."""
    sample = Sample(
        sample_id=f"sample-{index}",
        question="Où est la lésion ? 日本",
        images=(image or noise(120, 90, seed=index),),
        answer="A",
        answers=("A", "C") if index % 2 else (),
        options=(("A", "left"), ("B", "right"), ("C", "left")),
        boxes=(Box(1.25, 2, 30, 40.5, "original"),),
        metadata={"organ": "brain", "centre": (1.5, 2), "taken": datetime.date(2026, 11, 21), "slices": {3: None}},
    )
    played = Episode(sample, VITAR, PROCESSOR, LIMITS, SAMPLING).fork(index % 4)
    looks = (
        write_turn("spöt", "mark", box=[[1.5, 2, 50, 1e1 * 6]]),
        write_turn("now", "Terminate", answer="A"),
    )
    rng = np.random.default_rng(index)
    for text in looks if texts is None else texts:
        token_ids = [*CHAT.text(text), CHAT.im_end]
        played.add_turn(token_ids, (-rng.exponential(size=len(token_ids)).astype(np.float32)).tolist())
        if played.finished:
            break
    record = played.trajectory(stream="on_policy", policy_version=3, banned_sha256="ab" * 32)
    return dataclasses.replace(record, rewards={"answer": 0.7, "format": 0.1, "iou": 1 / 3}, advantage=-1 / 3)


def write(directory: Path, *trajectories: Trajectory) -> Path:
    TrajectoryWriter(directory).write(trajectories)
    return directory


def same(first: Trajectory, second: Trajectory) -> bool:
    """Equal in every field, types of numbers included, and in every pixel."""
    fields = [f.name for f in dataclasses.fields(Trajectory) if f.name != "images"]
    for name in fields:
        assert repr(getattr(first, name)) == repr(getattr(second, name)), name
    for one, two in zip(first.images, second.images, strict=True):
        for name in ("sha256", "grid_thw", "size", "turn"):
            assert getattr(one, name) == getattr(two, name)
        assert one.pixels.mode == two.pixels.mode and np.array_equal(one.pixels, two.pixels)
    return True


def test_nothing_is_lost(tmp_path: Path) -> None:
    written = [
        trajectory(0),
        trajectory(1, ("what?", "{}")),
        dataclasses.replace(trajectory(2, image=noise(99, 80).convert("L")), rewards=None),
    ]
    assert [len(t.images) for t in written] == [2, 1, 2]
    again = list(read_trajectories(write(tmp_path, *written)))
    assert all(same(*pair) for pair in zip(written, again, strict=True))
    assert again[0].reward == written[0].reward == pytest.approx(0.7 + 0.1 + 1 / 3)


def test_no_mask_is_lost(tmp_path: Path) -> None:
    seen = Mask.of(np.random.default_rng(0).random((90, 120)) > 0.5, "original")
    empty = Mask.of(np.zeros((90, 120), bool), "original")
    masks = (ObjectMask(3, "obj1", "reasoning", seen, 0.1 + 0.2), ObjectMask(5, None, None, empty, 0.0), ObjectMask(9, "obj2"))
    record = trajectory()
    objects = (SegmentedObject("obj1", seen, "spöt", True), SegmentedObject("obj2", empty, in_answer=True))
    turns = (record.turns[0], dataclasses.replace(record.turns[1], masks=masks))
    written = dataclasses.replace(record, turns=turns, objects=objects)
    [again] = read_trajectories(write(tmp_path, written))
    assert same(written, again)
    assert np.array_equal(again.turns[1].masks[0].mask.array, seen.array)  # type: ignore[union-attr]


def test_a_record_without_masks_has_no_keys_for_them() -> None:
    record = trajectory().to_json()
    assert "objects" not in record and all("masks" not in turn for turn in record["turns"])


@given(st.lists(st.text(max_size=30), min_size=1, max_size=2), st.text(max_size=20), st.integers(0, 10**6))
@settings(max_examples=40)
def test_nothing_is_lost_of_any_text(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], answer: str, version: int
) -> None:
    written = dataclasses.replace(trajectory(0, tuple(texts)), predicted_answer=answer, policy_version=version, question=answer)
    assert same(written, next(read_trajectories(write(tmp_path_factory.mktemp("t"), written))))


@pytest.mark.parametrize(
    "text",
    [
        '{"thought": "\\ud800", "actions": [{"name": "Terminate", "arguments": {"answer": "\\udfff"}}]}',
        '{"thought": "\\u0000\\u2028", "actions": [{"name": "zoom", "arguments": {"box": [NaN, 1e999]}}]}',
        '{"actions": [{"name": "zoom", "arguments": {"box": [[' + "9" * 300 + ", 0, 1, 2]]}}]}",
    ],
)
def test_nothing_is_lost_of_what_json_can_spell(text: str, tmp_path: Path) -> None:
    written = trajectory(0, (text,))
    assert same(written, next(read_trajectories(write(tmp_path, written))))


def test_an_image_is_written_once(tmp_path: Path) -> None:
    first, second = trajectory(0), dataclasses.replace(trajectory(0), member=1)
    write(tmp_path, first, second, trajectory(1))
    stored = {path.name for path in (tmp_path / "images").iterdir()}
    assert stored == {f"{image.sha256}.png" for t in (first, trajectory(1)) for image in t.images}
    assert len(stored) == 4


def test_a_hash_tells_images_apart() -> None:
    def sha256(image: Image.Image) -> str:
        return TrajectoryImage(image, (1, 2, 2), (28, 28)).sha256

    pixels = np.arange(48, dtype=np.uint8)
    images = [
        Image.fromarray(pixels.reshape(4, 4, 3)),
        Image.fromarray(pixels.reshape(2, 8, 3)),
        Image.fromarray(pixels.reshape(4, 12)),
        Image.fromarray(np.roll(pixels, 1).reshape(4, 12)),
    ]
    assert len({sha256(image) for image in images}) == len(images)
    assert sha256(images[0]) == sha256(images[0].copy())


def test_a_record_of_an_older_version_can_be_read(tmp_path: Path) -> None:
    write(tmp_path, trajectory(0))
    path = tmp_path / JSONL
    newer = {"advantage", "metadata"}
    assert "answers" not in json.loads(path.read_text())  # not written where there is only one
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in newer}) + "\n")
    (read,) = read_trajectories(tmp_path)
    assert read.advantage is None and read.metadata == {} and read.answers == ()
    assert [record["sample_id"] for record in read_records(tmp_path)] == ["sample-0"]


def test_a_line_without_calls_and_sources_of_images_can_be_read(tmp_path: Path) -> None:
    """As written before records said which tool call a turn made and what an image was made from."""
    zoom = {"name": "zoom", "arguments": {"box": [[30, 30, 60, 60]]}}
    answer = {"name": "Terminate", "arguments": {"answer": "B"}}
    line = {
        "sample_id": "old-1",
        "group_id": "old-1",
        "member": 0,
        "stream": "on_policy",
        "policy_version": 3,
        "protocol": "vitar",
        "sampling": {"temperature": 1.0, "top_p": 1.0, "seed": 0, "top_k": 0, "min_p": 0.0, "stop_ids": []},
        "banned_sha256": "ab" * 32,
        "question": "Which texture?",
        "options": [["A", "flat"], ["B", "rows"]],
        "answer": "B",
        "boxes": [{"x1": 120, "y1": 120, "x2": 180, "y2": 180, "frame": "original"}],
        "token_ids": [5, 1, 2, 3],
        "loss_mask": [0, 1, 0, 1],
        "logprobs": [None, -0.5, None, -0.25],
        "position_ids": [[0, 1, 2, 3]] * 3,
        "vision_index": [0, -1, 1, -1],
        "images": [
            {"sha256": "first", "grid_thw": [1, 6, 6], "size": [84, 84], "turn": None},
            {"sha256": "second", "grid_thw": [1, 6, 6], "size": [84, 84], "turn": 0},
        ],
        "turns": [
            {"start": 1, "end": 2, "text": "{}", "thought": "closer", "action": zoom, "error": None, "image": 1}
            | {"boxes_model_input": [[30, 30, 60, 60]], "boxes_original": [[100, 100, 200, 200]], "answer_tokens": None},
            {"start": 3, "end": 4, "text": "{}", "thought": "rows", "action": answer, "error": None, "image": None}
            | {"boxes_model_input": [], "boxes_original": [], "answer_tokens": [3, 4]},
        ],
        "predicted_answer": "B",
        "end_reason": "answered",
        "rewards": {"accuracy": 1.0, "iou": 0.5},
        "advantage": 0.25,
        "metadata": {"kind": "rows"},
    }
    (tmp_path / JSONL).write_text(json.dumps(line) + "\n")
    (tmp_path / "images").mkdir()
    for name, side in (("first", 280), ("second", 300)):
        noise(side, side).save(tmp_path / "images" / f"{name}.png")
    (read,) = read_trajectories(tmp_path)
    look = read.first_look
    assert read.reward == 1.5 and read.turns[1].answer_tokens == (3, 4)
    assert look is not None and (look.turn, look.image, look.boxes) == (0, 0, (Box(100, 100, 200, 200, "original"),))
    # The zoom shows 100 pixels as 300.
    (gold,) = read.boxes_on(1, 0, read.boxes)
    assert gold.xyxy == pytest.approx((60, 60, 240, 240))
    assert [record["sample_id"] for record in read_records(tmp_path)] == ["old-1"]


def test_writing_goes_on_where_it_was(tmp_path: Path) -> None:
    write(tmp_path, trajectory(0))
    write(tmp_path, trajectory(1), trajectory(2))
    assert [t.sample_id for t in read_trajectories(tmp_path)] == ["sample-0", "sample-1", "sample-2"]


@pytest.mark.parametrize("kept", [1, 100, -1])
def test_a_last_line_that_was_cut_short_is_left_out(kept: int, tmp_path: Path) -> None:
    write(tmp_path, trajectory(0), trajectory(1))
    path = tmp_path / JSONL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:kept])
    assert [t.sample_id for t in read_trajectories(tmp_path)] == ["sample-0"]
    # What is written after the restart does not grow out of the stump.
    write(tmp_path, trajectory(2))
    assert [t.sample_id for t in read_trajectories(tmp_path)] == ["sample-0", "sample-2"]


def test_every_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    """All are read, also where fewer processes go on; a stump is left out until its own writer comes again."""
    writers = [TrajectoryWriter(tmp_path, process) for process in range(3)]
    for number in range(6):
        writers[number % 3].write([trajectory(number)])
    stump = tmp_path / file_of(2, JSONL)
    stump.write_bytes(stump.read_bytes()[:-1])
    assert stump.name == "trajectories-00002.jsonl"

    def ids() -> list[str]:
        assert [record["sample_id"] for record in read_records(tmp_path)] == [t.sample_id for t in read_trajectories(tmp_path)]
        return [t.sample_id for t in read_trajectories(tmp_path)]

    assert ids() == ["sample-1", "sample-4", "sample-2", "sample-0", "sample-3"]
    TrajectoryWriter(tmp_path).write([trajectory(5)])
    assert ids() == ["sample-1", "sample-4", "sample-2", "sample-0", "sample-3", "sample-5"]
    TrajectoryWriter(tmp_path, 2).write([trajectory(6)])
    assert ids() == ["sample-1", "sample-4", "sample-2", "sample-6", "sample-0", "sample-3", "sample-5"]


def test_a_line_never_names_an_image_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "save", lambda *args, **options: 1 / 0)  # stands for a kill
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, trajectory(0))
    assert list(read_records(tmp_path)) == []


def test_processes_that_write_an_image_at_a_time_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One writes the same image from begin to end before the other's has its name."""
    other, save = TrajectoryWriter(tmp_path, 1), Image.Image.save

    def interrupted(*args: Any, **options: Any) -> None:
        save(*args, **options)
        monkeypatch.undo()
        other.write([trajectory(0)])

    monkeypatch.setattr(Image.Image, "save", interrupted)
    TrajectoryWriter(tmp_path).write([trajectory(0)])
    assert len(list(read_trajectories(tmp_path))) == 2


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda record: {k: v for k, v in record.items() if k != key}


def having(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record | changes


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: [],
        lambda record: None,
        without("token_ids"),
        without("turns"),
        having(unknown=1),
        having(turns=[1]),
        having(turns=[{"start": 0}]),
        having(boxes=[{"x1": 5, "y1": 0, "x2": 1, "y2": 1, "frame": "original"}]),
        having(boxes="nowhere"),
        having(sampling={"warmth": 1}),
        having(images=["a"]),
        having(images=[{"sha256": "gone", "grid_thw": [1, 2, 2], "size": [28, 28], "turn": None}]),
        having(images=[{}]),
    ],
)
def test_a_damaged_line_is_named(damage: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    path = write(tmp_path, trajectory(0), trajectory(1), trajectory(2)) / JSONL
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(damage(json.loads(lines[1])))
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"{JSONL}:2: is damaged"):
        list(read_trajectories(tmp_path))


@pytest.mark.parametrize("line", [b"", b"{", b"\xff\xfe", b"\x00" * 20, b"[" * 100_000])
def test_a_line_that_is_no_json_is_named(line: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, trajectory(0), trajectory(1)) / JSONL
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], line, lines[1]]) + b"\n")
    reading = read_trajectories(tmp_path)
    assert next(reading).sample_id == "sample-0"  # what stands before it can be had
    with pytest.raises(DataError, match=rf"{JSONL}:2: is damaged"):
        next(reading)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_damaged_image_is_named(content: bytes | None, tmp_path: Path) -> None:
    """None cuts the file in two."""
    written = trajectory(0)
    path = write(tmp_path, written) / "images" / f"{written.images[1].sha256}.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=rf"{JSONL}:1: is damaged"):
        list(read_trajectories(tmp_path))


def test_a_folder_without_trajectories_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        list(read_trajectories(tmp_path))


# Examples


def same_example(ours: Example, live: Example) -> None:
    for name in ("token_ids", "loss_mask", "position_ids", "vision_index"):
        assert getattr(ours, name).dtype == getattr(live, name).dtype, name
        assert np.array_equal(getattr(ours, name), getattr(live, name)), name
    assert (ours.name, ours.grids, ours.content_ids) == (live.name, live.grids, live.content_ids)
    assert ours.extras.keys() == live.extras.keys()
    for one, two in zip(ours.patches, live.patches, strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("tool", ["window", "zoom", "mark"])
def test_a_stored_trajectory_is_the_example_of_the_live_episode(images: int, tool: str, tmp_path: Path) -> None:
    """Of each member of a group."""
    protocol = dataclasses.replace(VITAR, tools=("mark", "zoom", "window"), max_turns=3)
    pictures = tuple(noise(120, 90, seed=i) for i in range(images))
    played = Episode(Sample("s", "Which?", pictures, "A"), protocol, PROCESSOR, LIMITS, SAMPLING)
    arguments: dict[str, Any] = {"centre": 90, "width": 40} if tool == "window" else {"box": [[0, 0, 50, 60]]}
    group = [played.fork(member) for member in range(2)]
    for member, episode in enumerate(group):
        turns = [write_turn("spot", tool, image=max(0, images - 1), **arguments)] * (member + 1)
        for text in [*turns, write_turn("now", "Terminate", answer="A")]:
            episode.add_turn([*CHAT.text(text), CHAT.im_end], None, learn=member == 0)
        if images:
            assert len(episode.images) == images + member + 1
    TrajectoryWriter(tmp_path).write(e.trajectory(stream="expert", policy_version=0, banned_sha256="") for e in group)
    weights = {"weights": np.ones(1, np.float32)}
    for stored, episode in zip(read_trajectories(tmp_path), group, strict=True):
        same_example(stored.example(PROCESSOR, **weights), episode.example(**weights))


def test_a_trajectory_of_another_processor_is_refused() -> None:
    other = tiny.processor(12, max_pixels=28 * 28 * 4)
    with pytest.raises(DataError, match="sample-0: image 0: got grid"):
        trajectory(0).example(other)
