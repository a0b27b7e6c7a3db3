"""Whole episodes with models that others serve: what is asked, recorded and counted, and that nothing is asked twice."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.endpoint import Reply, serving
from tests.kit.images import noise
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory_files import read_trajectories
from vitar_jax.errors import ConfigError, EndpointError
from vitar_jax.processing.files import open_image, pixels_sha256
from vitar_jax.rollout.endpoint_player import EndpointPlayer
from vitar_jax.rollout.offline import Failure, kinds, play_samples, read_failures
from vitar_jax.runtime.endpoint import ChatClient

ZOOM = PROTOCOLS["zoom"]
IMAGE = noise(120, 80)
LOOK = write_turn("there", "zoom", box=[[250, 500, 750, 1000]])
ANSWER = write_turn("rows", "Terminate", answer="B")


def sample(index: int = 0) -> Sample:
    return Sample(f"sample-{index}", f"Which texture is {index}?", (IMAGE,), "B", (("A", "flat"), ("B", "rows")))


def player(url: str, directory: Path, frame: Any = "normalized_1000", **options: Any) -> EndpointPlayer:
    client = ChatClient(url, "theirs", directory / "replies.jsonl", {"temperature": 0.0}, retries=1, pause=0.01, timeout=5.0)
    return EndpointPlayer(client, dataclasses.replace(ZOOM, frame=frame), **options)


def looks_then_answers(body: dict[str, Any], _: int) -> str:
    return ANSWER if len(body["messages"]) > 2 else LOOK


def test_a_turn_is_a_chat_completion_and_a_tool_runs_here(tmp_path: Path) -> None:
    with serving(looks_then_answers) as server:
        episode = player(server.url, tmp_path).ask(IMAGE, "Which texture?", ["flat", "rows"])
    assert (episode.predicted_answer, episode.end_reason) == ("B", "answered")
    first, second = (body["messages"] for body in server.asked)
    assert first[0] == {"role": "system", "content": ZOOM.system_text()} and second[:2] == first
    picture, text = first[1]["content"]
    assert text == {"type": "text", "text": "Which texture?\nOptions:\nA flat\nB rows"}
    assert pixels_sha256(open_image(picture["image_url"]["url"])) == pixels_sha256(IMAGE)
    assert second[2] == {"role": "assistant", "content": LOOK}
    zoomed, said = second[3]["content"]
    assert said == {"type": "text", "text": ZOOM.observation}
    assert pixels_sha256(open_image(zoomed["image_url"]["url"])) == episode.images[1].sha256
    look, _ = episode.turns
    assert look.boxes_original == ((30.0, 40.0, 90.0, 80.0),)  # of 120 x 80 pixels, from thousandths
    assert episode.images[1].to_source and episode.images[1].source == 0


@pytest.mark.parametrize("frame, box", [("original", (20.0, 10.0, 60.0, 50.0)), ("model_input", (40.0, 20.0, 120.0, 100.0))])
def test_an_image_is_sent_at_the_size_that_boxes_refer_to(tmp_path: Path, frame: str, box: tuple[float, ...]) -> None:
    image, look = noise(240, 160), write_turn("there", "zoom", box=[[20, 10, 60, 50]])
    with serving(lambda body, _: ANSWER if len(body["messages"]) > 2 else look) as server:
        episode = player(server.url, tmp_path, frame, max_pixels=120 * 80).ask(image, "Which?")
    assert episode.turns[0].boxes_original == (box,)
    (sent, _) = server.asked[0]["messages"][1]["content"]
    assert open_image(sent["image_url"]["url"]).size == (120, 80) and episode.images[0].pixels.size == (240, 160)


def test_the_record_has_turns_and_no_tokens(tmp_path: Path) -> None:
    with serving(looks_then_answers) as server:
        one = player(server.url, tmp_path)
        play_samples(one, [sample()], count=1, directory=tmp_path / "played", title="")
    (record,) = read_trajectories(tmp_path / "played")
    assert (record.predicted_answer, [turn.text for turn in record.turns]) == ("B", [LOOK, ANSWER])
    assert record.token_ids == record.logprobs == record.loss_mask == record.vision_index == ()
    assert record.position_ids == ((), (), ()) and {(turn.start, turn.end) for turn in record.turns} == {(0, 0)}
    assert record.looked_at(record.turns[0])[1][0].xyxy == (30.0, 40.0, 90.0, 80.0)
    settings = json.loads((tmp_path / "played" / "settings.json").read_text())
    assert settings["model"] == "theirs" and settings["protocol"]["frame"] == "normalized_1000"


@pytest.mark.parametrize(
    "said, answer, reason",
    [
        (f"<think>\nA box [1, 2].</think>\n{ANSWER}", "B", "answered"),  # the protocol reads it without its reasoning
        (Reply(ANSWER[:-2], finish_reason="length"), None, "turn_limit"),
        (Reply(""), None, "turn_limit"),
        ("no JSON", None, "turn_limit"),
    ],
)
def test_any_reply_is_a_turn(tmp_path: Path, said: Any, answer: str | None, reason: str) -> None:
    with serving(lambda *_: said) as server:
        episode = player(server.url, tmp_path).ask(IMAGE, "Which?")
    assert (episode.predicted_answer, episode.end_reason) == (answer, reason)
    if isinstance(said, Reply) and said.text:
        assert [turn.error and turn.error[0] for turn in episode.turns] == ["too_long"] * 2
        assert server.asked[1]["messages"][3] == {"role": "user", "content": "Error: The turn is too long."}


def test_failures_are_counted_by_kind_and_tried_again(tmp_path: Path) -> None:
    """What failed at one start is asked at the next, and nothing else is."""
    wanted, asked = [sample(index) for index in range(4)], []

    def answer(body: dict[str, Any], number: int) -> Any:
        question = json.dumps(body["messages"])
        asked.append((number, len(body["messages"])))
        if broken and "texture is 1" in question:
            return Reply(status=429, headers={"Retry-After": "0"})
        if broken and "texture is 2" in question and len(body["messages"]) > 2:
            return Reply(status=400)
        return looks_then_answers(body, number)

    def play() -> list[str]:
        one = player(server.url, tmp_path, concurrency=2)
        played = play_samples(one, wanted, count=4, directory=tmp_path / "played", title="")
        assert played.episodes == 2
        return sorted(failure.sample_id for failure in read_failures(tmp_path / "played"))

    with serving(answer) as server:
        broken = True
        assert play() == ["sample-1", "sample-2"]
        assert sorted(kinds(read_failures(tmp_path / "played")).split(", ")) == ["bad_request 1", "rate_limit 1"]
        assert len(asked) == 2 + 2 + 2 + 2  # two turns of two samples, a retried one, and two turns of the fourth
        broken = False
        asked.clear()
        assert play() == []
    assert sorted(turn for _, turn in asked) == [2, 4, 4]  # the first turn of sample-2 is in the cache


def test_what_was_asked_before_a_kill_is_not_asked_again(tmp_path: Path) -> None:
    """The directory of trajectories is gone, as if the process was killed before it wrote one; the replies are kept."""
    with serving(looks_then_answers) as server:
        one = player(server.url, tmp_path)
        expected = [player(server.url, tmp_path).finish(one.begin(sample(index))) for index in range(2)]
        assert len(server.asked) == 4
        again = list(player(server.url, tmp_path).play([one.begin(sample(index))] for index in range(2)))
        assert len(server.asked) == 4
    assert sorted(e.sample.sample_id for e in again if not isinstance(e, Failure)) == ["sample-0", "sample-1"]
    assert {e.predicted_answer for e in expected} == {"B"}


def test_a_wrong_key_or_model_ends_the_run(tmp_path: Path) -> None:
    with serving(lambda *_: Reply(status=401)) as server:
        with pytest.raises(ConfigError, match="check the key"):
            play_samples(player(server.url, tmp_path), [sample()], count=1, directory=tmp_path / "played", title="")
    with pytest.raises(ConfigError, match="protocol vrt: makes masks"):
        EndpointPlayer(player("http://localhost:1/v1", tmp_path).client, PROTOCOLS["vrt"])


def test_one_question_raises_its_failure(tmp_path: Path) -> None:
    with serving(lambda *_: Reply(status=500)) as server, pytest.raises(EndpointError, match="server_error"):
        player(server.url, tmp_path).ask(IMAGE, "Which?")
