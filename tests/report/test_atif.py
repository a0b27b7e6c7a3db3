"""ATIF documents: another package's models accept ours, and they come back without loss."""

import json
from pathlib import Path

import pytest
from atif import Trajectory as AtifTrajectory

from tests.kit.trajectories import make_search, make_trace, make_trajectory
from vitar_jax.episodes.trajectory import Trajectory, UnrecordedImage
from vitar_jax.report import atif
from vitar_jax.report.conversation import Context, Played
from vitar_jax.report.readers import READERS, find_reader

BOX = (10.0, 20.0, 300.0, 400.0)


def written(trajectory: Trajectory, folder: Path, *, images: bool = True) -> tuple[dict, Path]:
    path = atif.write(trajectory, 0.5, folder, "one", images=images)
    return json.loads(path.read_text()), path


def read(document: dict, path: Path) -> Played:
    assert find_reader(document) == "atif"
    (played,) = READERS["atif"].read(document, Context(path))
    return played


def trajectories(hostile: Trajectory) -> dict[str, Trajectory]:
    return {"hostile": hostile, "two": make_trajectory(), "search": make_search(BOX, BOX), "trace": make_trace()}


@pytest.mark.parametrize("name", ["two", "search", "trace", "hostile"])
@pytest.mark.parametrize("images", [True, False])
def test_a_document_is_valid_and_comes_back(name: str, images: bool, hostile: Trajectory, tmp_path: Path) -> None:
    expected = trajectories(hostile)[name]
    document, path = written(expected, tmp_path, images=images)
    checked = AtifTrajectory.model_validate(document)
    assert [step.source for step in checked.steps] == ["user"] + ["agent"] * len(expected.turns)
    assert checked.to_json_dict() == document
    played = read(document, path)
    assert played.score == 0.5
    found = played.trajectory
    assert all(isinstance(image, UnrecordedImage) is not images for image in found.images)
    if name != "hostile":  # whose lone surrogate cannot be written
        assert found.turns == expected.turns and found.rewards == expected.rewards and found.boxes == expected.boxes
        assert found.token_ids == expected.token_ids and found.logprobs == expected.logprobs
    if images:
        pairs = zip(found.images, expected.images, strict=True)
        assert all(image.sha256 == other.sha256 and image.to_source == other.to_source for image, other in pairs)
    else:
        assert not list((tmp_path / "images").iterdir())


def test_an_image_is_a_file_beside_the_document(tmp_path: Path) -> None:
    expected = make_trajectory()
    document, _ = written(expected, tmp_path)
    asked, look, _ = AtifTrajectory.model_validate(document).steps
    shown = [asked.message[0].source.path, look.observation.results[0].content[0].source.path]
    assert shown == [f"images/{image.sha256}.png" for image in expected.images]
    assert all((tmp_path / path).exists() for path in shown)
    assert look.observation.results[0].source_call_id == look.tool_calls[0].tool_call_id
    assert look.metrics.completion_token_ids == [1, 2] and look.metrics.logprobs == [-0.5, -0.5]


def test_documents_of_other_agents_are_read(tmp_path: Path) -> None:
    """With the standard's fields alone; `extra` is another's."""
    expected = make_trajectory()
    document, path = written(expected, tmp_path)
    call = {"tool_call_id": "a", "function_name": "zoom", "arguments": {"bbox_2d": [1, 2, 30, 40]}}
    document["steps"][1] |= {"message": "I zoom.", "tool_calls": [call]}
    document["steps"][1]["observation"]["results"][0]["source_call_id"] = "a"
    document["steps"][2]["message"] = "<answer>B</answer>"
    del document["extra"]
    AtifTrajectory.model_validate(document)
    found = read(document, path).trajectory
    assert found.question.startswith("Which texture?") and found.predicted_answer == "B"
    assert found.turns[0].boxes_original == ((1.0, 2.0, 30.0, 40.0),) and found.turns[0].image == 1
    assert [image.sha256 for image in found.images] == [image.sha256 for image in expected.images]
    assert [turn.thought for turn in found.turns] == [turn.thought for turn in expected.turns]
    document["subagent_trajectories"] = [document | {"trajectory_id": "inner"}]
    assert len(list(READERS["atif"].read(document, Context(path)))) == 2
