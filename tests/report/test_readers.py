"""Records of other trainers become the trajectories that they describe. Their forms are written out here, from their code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.kit.images import noise
from tests.kit.trajectories import make_trajectory
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.trajectory import Trajectory, UnrecordedImage
from vitar_jax.episodes.trajectory_files import TrajectoryWriter, read_trajectories
from vitar_jax.processing.files import pixels_sha256
from vitar_jax.report.conversation import UNKNOWN_SIDE, Context, Played
from vitar_jax.report.readers import READERS, find_reader
from vitar_jax.runtime.endpoint import data_url, image_part

ASKED = "Is there a nodule?"
CALL = '{"name": "zoom_in", "arguments": {"bbox_2d": [10, 20, 600, 40]}}'
LOOK = f"<think>Look closer.</think>\n<tool_call>\n{CALL}\n</tool_call>"
SEEN = "<tool_response>\nHere it is.\n</tool_response>"
LAST = "<think>Clear.</think>\n<answer>no</answer>"
PROMPT = f"system\nYou look at images.\nuser\n{ASKED}\nassistant\n"

VERL = {"input": PROMPT, "output": f"{LOOK}\nuser\n{SEEN}\nassistant\n{LAST}", "gts": "yes", "score": 0.25, "step": 40}


def read(record: Mapping[str, Any], path: Path = Path("40.jsonl"), **how: Any) -> list[Played]:
    name = find_reader(record)
    assert name is not None
    return list(READERS[name].read(record, Context(path, **how)))


def check_two_turns(trajectory: Trajectory) -> None:
    """Asserts that a trajectory is a look at one box, with an observation, and an answer."""
    assert trajectory.question == ASKED and trajectory.predicted_answer == "no"
    look, last = trajectory.turns
    assert (look.thought, last.thought) == ("Look closer.", "Clear.")
    assert look.action == {"name": "zoom_in", "arguments": {"bbox_2d": [10, 20, 600, 40]}} and last.action is None
    assert look.boxes_original == ((10.0, 20.0, 600.0, 40.0),) and not last.boxes_original
    assert "Here it is." in look.observation and not last.observation
    assert trajectory.images[look.acted_on].turn is None


def test_a_dump_of_verl_has_its_turns_and_an_empty_frame_for_its_box() -> None:
    assert find_reader(VERL) == "verl"
    context = Context(Path("40.jsonl"))
    twice = [next(iter(READERS["verl"].read(VERL, context))) for _ in range(2)]
    for number, played in enumerate(twice):
        check_two_turns(played.trajectory)
        assert (played.trajectory.sample_id, played.trajectory.member) == ("40-0", number)
    trajectory = twice[0].trajectory
    assert (trajectory.policy_version, trajectory.rewards, trajectory.answer) == (40, {"score": 0.25}, "yes")
    assert twice[0].score == 0.0  # "no" is not "yes"
    assert trajectory.metadata == {"before": [["system", "You look at images."]]}
    (image,) = trajectory.images
    assert isinstance(image, UnrecordedImage) and image.pixels.size == (600, UNKNOWN_SIDE)
    (other,) = READERS["verl"].read(VERL | {"input": PROMPT.replace("nodule", "mass"), "acc": 1.0}, context)
    assert (other.trajectory.sample_id, other.trajectory.member, other.score) == ("40-1", 0, 1.0)


def test_a_dump_with_special_tokens_shows_where_its_images_were() -> None:
    image = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    prompt = f"<|im_start|>user\n{image}{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    seen = f"{LOOK}<|im_end|>\n<|im_start|>user\n<image>Here it is.<|im_end|>\n<|im_start|>assistant\n{LAST}<|im_end|>"
    (played,) = read(VERL | {"input": prompt, "output": seen})
    check_two_turns(played.trajectory)
    assert [image.turn for image in played.trajectory.images] == [None, 0] and played.trajectory.turns[0].image == 1
    assert all(isinstance(image, UnrecordedImage) for image in played.trajectory.images)


def test_boxes_are_in_the_frame_of_the_model() -> None:
    (played,) = read(VERL, frame="normalized_1000")
    scale = UNKNOWN_SIDE / 1000
    assert played.trajectory.turns[0].boxes_original[0] == pytest.approx([scale * edge for edge in (10, 20, 600, 40)])


def test_turns_are_read_by_a_protocol_if_one_is_given() -> None:
    look = json.dumps({"thought": "there", "actions": [{"name": "zoom", "arguments": {"box": [[1, 2, 30, 40]]}}]})
    last = json.dumps({"thought": "so", "actions": [{"name": "Terminate", "arguments": {"answer": "B"}}]})
    record = VERL | {"output": f"{look}\nuser\nLook again.\nassistant\n{last}", "gts": "B"}
    (played,) = read(record, protocol=PROTOCOLS["zoom"])
    turn = played.trajectory.turns[0]
    assert (turn.thought, turn.boxes_original, played.trajectory.predicted_answer, played.score) == (
        "there",
        ((1.0, 2.0, 30.0, 40.0),),
        "B",
        1.0,
    )


TRL = {
    "step": 3,
    "prompt": [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": ASKED}]}],
    "completion": [
        {"role": "assistant", "content": [{"type": "text", "text": LOOK}]},
        {"role": "tool", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Here it is."}]},
        {"role": "assistant", "content": [{"type": "text", "text": LAST}]},
    ],
    "accuracy_reward": 0.0,
    "format_reward": 0.5,
    "solution": "no",
    "advantage": -0.5,
}


def test_a_row_of_trl_keeps_the_places_of_the_images_that_were_dropped() -> None:
    assert find_reader(TRL) == "trl"
    (played,) = read(TRL)
    check_two_turns(played.trajectory)
    assert played.trajectory.rewards == {"accuracy_reward": 0.0, "format_reward": 0.5}
    assert (played.trajectory.advantage, played.trajectory.answer, played.score) == (-0.5, "no", 1.0)
    assert [image.turn for image in played.trajectory.images] == [None, 0]


def test_a_row_of_trl_may_be_text() -> None:
    (played,) = read(TRL | {"prompt": ASKED, "completion": "user\nno"})
    assert [turn.text for turn in played.trajectory.turns] == ["user\nno"] and played.trajectory.predicted_answer == "user\nno"


def test_a_conversation_of_miles() -> None:
    calls = [{"function": {"name": "zoom_in", "arguments": '{"bbox_2d": [10, 20, 600, 40]}'}}]
    record = {
        "sample_index": 9,
        "group_index": 2,
        "status": "completed",
        "reward": 1.0,
        "prompt": f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n",
        "messages": [
            {"role": "assistant", "content": "", "reasoning_content": "Look closer.", "tool_calls": calls},
            {"role": "tool", "content": "Here it is.", "name": "zoom_in"},
            {"role": "assistant", "content": LAST},
        ],
    }
    assert find_reader(record) == "miles"
    (played,) = read(record, Path("trajectory/eval_7.jsonl"))
    check_two_turns(played.trajectory)
    trajectory = played.trajectory
    assert (trajectory.sample_id, trajectory.policy_version, trajectory.rewards) == ("eval_7-2", 7, {"reward": 1.0})
    whole = {"prompt": [], "messages": [{"role": "user", "content": ASKED}, *record["messages"]]}
    (again,) = read(record | whole, Path("trajectory/eval_7.jsonl"))
    assert again.trajectory.turns == trajectory.turns and again.trajectory.question == ASKED


def rllm_step(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"observation": None, "thought": "", "action": None, "chat_completions": list(messages), "model_response": ""}


def test_an_episode_of_rllm_is_one_conversation(tmp_path: Path) -> None:
    noise(60, 50).save(tmp_path / "a.png")
    asked = {"role": "user", "content": f"<image>{ASKED}", "images": ["a.png"]}
    looked = {"role": "assistant", "content": LOOK}
    seen = {"role": "user", "content": [image_part(data_url(noise(30, 20))), {"type": "text", "text": "Here it is."}]}
    last = {"role": "assistant", "content": LAST}
    steps = [rllm_step(asked, looked), rllm_step(asked, looked, seen, last)]
    record = {
        "training_step": 5,
        "episode_id": "case7:1",
        "task": {"question": ASKED, "ground_truth": "yes"},
        "is_correct": False,
        "termination_reason": "env_done",
        "trajectories": [{"name": "solver", "reward": 0.5, "steps": steps}],
    }
    assert find_reader(record) == "rllm"
    (played,) = read(record, tmp_path / "episode.json")
    check_two_turns(played.trajectory)
    trajectory = played.trajectory
    assert (trajectory.sample_id, trajectory.member, trajectory.policy_version) == ("case7", 1, 5)
    assert (trajectory.answer, trajectory.end_reason, trajectory.rewards) == ("yes", "env_done", {"reward": 0.5})
    assert played.score == 0.0
    assert [image.pixels.size for image in trajectory.images] == [(60, 50), (30, 20)]
    assert trajectory.images[0].sha256 == pixels_sha256(noise(60, 50))


def test_an_episode_of_rllm_may_have_only_what_the_model_wrote() -> None:
    steps = [{"input": None, "output": "no", "chat_completions": [], "model_response": "", "thought": ""}]
    task = {"id": "7", "instruction": ASKED, "metadata": {"answer": "no"}}
    record = {"id": "7", "task": task, "is_correct": True, "trajectories": [{"uid": "u", "name": "", "steps": steps}]}
    (played,) = read(record)
    assert (played.trajectory.question, played.trajectory.predicted_answer, played.score) == (ASKED, "no", 1.0)


def test_an_image_that_cannot_be_opened_is_counted_and_never_fetched(tmp_path: Path) -> None:
    blocks = [{"type": "image", "image": "gone.png"}, {"type": "image_url", "image_url": {"url": "https://127.0.0.1/x.png"}}]
    record = TRL | {"prompt": [{"role": "user", "content": [*blocks, {"type": "text", "text": ASKED}]}]}
    context = Context(tmp_path / "x.parquet")
    (played,) = READERS["trl"].read(record, context)
    assert all(isinstance(image, UnrecordedImage) for image in played.trajectory.images)
    assert context.missing.total() == 2 and any("gone.png" in reason for reason in context.missing)


def test_our_records_come_back_with_frames_for_lost_images(tmp_path: Path) -> None:
    expected = make_trajectory()
    TrajectoryWriter(tmp_path).write([expected])
    (line,) = (tmp_path / "trajectories.jsonl").read_text().splitlines()
    assert find_reader(json.loads(line)) == "vitar_jax"
    (played,) = read(json.loads(line), tmp_path / "trajectories.jsonl")
    assert played.trajectory == next(iter(read_trajectories(tmp_path))) and played.score == 1.0
    (tmp_path / "images" / f"{expected.images[0].sha256}.png").unlink()
    (played,) = read(json.loads(line), tmp_path / "trajectories.jsonl")
    first, second = played.trajectory.images
    assert isinstance(first, UnrecordedImage) and first.pixels.size == (UNKNOWN_SIDE, UNKNOWN_SIDE)
    assert second.sha256 == expected.images[1].sha256 and second.to_source == expected.images[1].to_source


def test_other_records_have_no_form() -> None:
    others: list[dict[str, Any]] = [{}, {"input": "a", "output": "b"}, {"trajectories": []}, {"schema_version": "1"}]
    assert [find_reader(record) for record in others] == [None] * 4


@pytest.mark.parametrize("name", ["bbox_2d", "box"])
def test_no_argument_of_a_tool_breaks_a_reader(name: str) -> None:
    """Nor is a box read that has no extent, or that is not a box."""
    for value in ([[1, 2, 3, 4], 5, [1, 2, 1, 4], [True, 0, 1, 1]], [[5, 6, 7]], "x", None, {"a": 1}, [1e300, 0, 1, 1]):
        call = json.dumps({"name": "zoom_in", "arguments": {name: value, "img_idx": 1}})
        (played,) = read(VERL | {"output": f"<tool_call>{call}</tool_call>"})
        (turn,) = played.trajectory.turns
        assert turn.boxes_original in ((), ((1.0, 2.0, 3.0, 4.0),))
        assert not turn.boxes_original or (turn.acted_on == 1 and len(played.trajectory.images) == 2)
    deep = VERL | {"output": "<tool_call>" + "[" * 100_000}
    assert read(deep)[0].trajectory.turns[0].action is None
