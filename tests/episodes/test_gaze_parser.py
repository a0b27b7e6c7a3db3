"""MedEyes' turns and episodes: what is read and written, and feedback that only the environment writes."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.kit.episodes import CHAT, PROCESSOR, WIDE, check, sample, say
from vitar_jax.episodes.actions import ActionError, Answer, ParsedTurn, ToolCall
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.gaze_parser import parse_gaze, write_gaze
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Answer as LastTurn
from vitar_jax.episodes.sample import Demonstration, Look, Sample
from vitar_jax.errors import DataError

MEDEYES = PROTOCOLS["medeyes"]
LIMITS = Limits(tokens=3000, turn_tokens=400, images=5)
BOX = (28.0, 14.0, 84.0, 70.0)
GAZE = '<reasoning>A spot.</reasoning><action>{"name": "Gaze", "coordinate": [28, 14, 84, 70]}</action>'
ANSWER = "<reasoning>Rows.</reasoning><answer>A</answer>"
TAGS = [f"<{slash}{name}>" for name in ("reasoning", "action", "feedback", "answer") for slash in ("", "/")]
MANY = 300_000  # characters that a parser of quadratic time would sit over for hours


def action(text: str) -> str:
    return f"<reasoning></reasoning><action>{text}</action>"


def gaze(*coordinate: object) -> str:
    return action(json.dumps({"name": "Gaze", "coordinate": coordinate}))


def ended(answer: str) -> dict[str, object]:
    return {"name": "Terminate", "arguments": {"answer": answer}}


# Reading


def test_both_forms_of_a_turn_are_read() -> None:
    called = {"name": "Gaze", "arguments": {"coordinate": [28, 14, 84, 70]}}
    assert parse_gaze(GAZE) == ParsedTurn("A spot.", called, ToolCall("Gaze", (BOX,)))
    assert parse_gaze(ANSWER) == ParsedTurn("Rows.", ended("A"), Answer("A"))


def test_white_space_may_stand_between_the_elements_and_at_both_ends() -> None:
    spaced = re.sub(r"(</?(?:reasoning|action)>)", r"\n \1\t", GAZE)
    assert parse_gaze(spaced).outcome == ToolCall("Gaze", (BOX,))
    assert parse_gaze(spaced).thought == "\tA spot.\n "


@pytest.mark.parametrize(
    "text, kind",
    [
        ("", "bad_tags"),
        ("A", "bad_tags"),
        ("<answer>A</answer>", "bad_tags"),
        ("<reasoning>A</reasoning>", "bad_tags"),
        (GAZE + ".", "bad_tags"),
        ("So: " + GAZE, "bad_tags"),
        (ANSWER.replace("<answer>", "so <answer>"), "bad_tags"),
        ("<reasoning>Rows.<answer>A</answer></reasoning>", "bad_tags"),
        ("<answer>A</answer><reasoning>Rows.</reasoning>", "bad_tags"),
        ("<reasoning>1</reasoning>" + ANSWER, "bad_tags"),
        (ANSWER.removesuffix("</answer>"), "bad_tags"),
        (ANSWER.replace("<answer>", "<ANSWER>"), "bad_tags"),
        (GAZE + ANSWER, "second_action"),
        (GAZE + GAZE, "second_action"),
        (ANSWER + "<answer>B</answer>", "second_action"),
        (GAZE + "<feedback></feedback>" + ANSWER, "wrote_feedback"),
        ("<feedback>" + GAZE, "wrote_feedback"),
        ("<reasoning></feedback></reasoning><answer>A</answer>", "wrote_feedback"),
        (GAZE + "</feedback>", "wrote_feedback"),
        ("<reasoning></reasoning><answer> \n</answer>", "bad_answer"),
        (action(""), "bad_json"),
        (action("[28, 14, 84, 70]"), "bad_json"),
        (action('{"name": "Gaze", "coordinate": [28, 14, 84, 70]'), "bad_json"),
        (action('{"name": "Gaze", "coordinate": [28, 14, 84, 70]} and'), "bad_json"),
        (action(r'{"name": "\ud800", "coordinate": [28, 14, 84, 70]}'), "bad_json"),
        (action('{"coordinate": [28, 14, 84, 70]}'), "bad_action"),
        (action('{"name": "Gaze"}'), "bad_action"),
        (action('{"name": 7, "coordinate": [28, 14, 84, 70]}'), "bad_action"),
        (action('{"name": "Gaze", "coordinate": 7}'), "box_nesting"),
        (action('{"name": "Gaze", "coordinate": [[28, 14, 84, 70]]}'), "box_nesting"),
        (gaze(28, 14, 84), "box_nesting"),
        (gaze(28, 14, 84, "70"), "box_number"),
        (gaze(28, 14, 84, True), "box_number"),
        (gaze(28, 14, 84, 10**400), "box_number"),
        (gaze(28, 14, 84, float("nan")), "box_number"),
        (gaze(84, 14, 28, 70), "box_reversed"),
        ("<" * MANY, "bad_tags"),
        ("</reasoning" * MANY, "bad_tags"),
        ("<reasoning>" * MANY, "bad_tags"),
        ("<answer>" * MANY, "second_action"),
        (action("[" * MANY), "bad_json"),
        (action("9" * MANY), "bad_json"),
        (" " * MANY + GAZE + " " * MANY + ".", "bad_tags"),
    ],
)
def test_a_turn_of_another_form_is_an_error(text: str, kind: str) -> None:
    outcome = parse_gaze(text).outcome
    assert isinstance(outcome, ActionError) and outcome.kind == kind and outcome.message


def test_the_thought_before_an_error_is_kept() -> None:
    assert parse_gaze(GAZE + GAZE).thought == "A spot."
    assert parse_gaze(gaze(84, 14, 28, 70)).thought == ""
    assert parse_gaze("So: " + GAZE).thought is None


CALL = '{"name": "Gaze", "coordinate": [1, 2, 3, 4]}'
pieces = st.sampled_from([*TAGS, "<reasoning>", "</reasoning>", "</answer>", " ", "\n", "A", CALL, "{}"])
torn = st.lists(pieces, max_size=9).map("".join)
gaps = [st.just("") | pieces] * 5
nearly = st.builds("{}<reasoning>{}</reasoning>{}<action>{}</action>{}".format, *gaps)
INSIDE = r"((?:(?!</?(?:reasoning|action|feedback|answer)>).)*)"
GRAMMAR = re.compile(rf"\s*<reasoning>{INSIDE}</reasoning>\s*<(action|answer)>{INSIDE}</\2>\s*", re.DOTALL)


@given(torn | nearly | nearly.map(lambda text: text.replace("action>", "answer>")))
@settings(max_examples=300)
def test_a_turn_is_read_as_a_regular_expression_reads_it(text: str) -> None:
    """Beside a pattern of the whole turn, which says it shortly and knows no kinds of errors."""
    parsed, found = parse_gaze(text), GRAMMAR.fullmatch(text)
    if found is None:
        assert isinstance(parsed.outcome, ActionError) and parsed.action is None
        assert (parsed.outcome.kind == "wrote_feedback") == ("<feedback>" in text or "</feedback>" in text)
        return
    thought, kind, content = found.groups()
    assert parsed.thought == thought
    if kind == "answer":
        assert parsed.outcome == Answer(content.strip()) if content.strip() else isinstance(parsed.outcome, ActionError)
    else:
        call = ToolCall("Gaze", ((1.0, 2.0, 3.0, 4.0),))
        assert parsed.outcome == call if content.strip() == CALL else isinstance(parsed.outcome, ActionError)


# Writing

written = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
nearly_tags = st.sampled_from(
    ["<", "</", ">", "<answer", "</reasoning", "reasoning>", "action", "< answer>", "<|im_end|>", "[{" * 60]
)
escaped = st.sampled_from([*TAGS, ANSWER, GAZE, "&", "&lt;", "&amp;", "amp;", "&lt;answer>", "&amp;lt;", "&amp;<action>"])
texts = st.lists(written | nearly_tags | escaped, max_size=4).map("".join)
answers = texts.map(str.strip).filter(bool).map(Answer)
edges = st.floats(-9.99e8, 9.99e8) | st.integers(-1000, 1000).map(float)
spans = st.tuples(edges, edges).filter(lambda span: span[0] < span[1])
gazes = st.builds(lambda x, y: ToolCall("Gaze", ((x[0], y[0], x[1], y[1]),)), spans, spans)


@given(texts, answers | gazes)
def test_what_is_written_is_read(thought: str, outcome: Answer | ToolCall) -> None:
    parsed = parse_gaze(write_gaze(thought, outcome))
    assert (parsed.thought, parsed.outcome) == (thought, outcome)


def test_what_is_written_is_the_published_form() -> None:
    """Byte for byte: models will be trained on it."""
    assert write_gaze("A spot.", ToolCall("Gaze", (BOX,))) == GAZE
    assert write_gaze("Rows.", Answer("A")) == ANSWER


def test_a_tag_that_a_text_spells_stays_text() -> None:
    for tag in TAGS:
        text = write_gaze(f"So {tag}", Answer(f"A{tag}"))
        assert text == f"<reasoning>So &lt;{tag[1:]}</reasoning><answer>A&lt;{tag[1:]}</answer>"
        assert parse_gaze(text) == ParsedTurn(f"So {tag}", ended(f"A{tag}"), Answer(f"A{tag}"))
    assert write_gaze("p &lt; 0.05 & q < 1", Answer("A")) == "<reasoning>p &amp;lt; 0.05 & q < 1</reasoning><answer>A</answer>"
    named = write_gaze("", ToolCall("</action><answer>", (BOX,)))
    assert parse_gaze(named).outcome == ToolCall("</action><answer>")  # an unknown tool, whose boxes are not read


@pytest.mark.parametrize(
    "call",
    [ToolCall("Gaze"), ToolCall("Gaze", (BOX, BOX)), ToolCall("Gaze", (BOX,), 1), ToolCall("Gaze", (BOX,), 0, {"width": 4.0})],
)
def test_a_call_that_is_no_gaze_cannot_be_written(call: ToolCall) -> None:
    with pytest.raises(DataError, match="a gaze: .* expected one box on image 0"):
        write_gaze("", call)


# Episodes


def play(*texts: str, image: Image.Image = WIDE) -> Episode:
    played = Episode(sample(image), MEDEYES, PROCESSOR, LIMITS)
    for text in texts:
        say(played, text)
    check(played)  # so that nothing but turns is under the loss mask
    return played


def test_each_gaze_is_answered_by_its_region_in_feedback() -> None:
    """Beside the whole conversation encoded at once, and the regions cut by PIL."""
    boxes = [(28, 14, 84, 70), (0, 0, 56, 42), (14, 14, 70, 84), (42, 0, 98, 56)]
    turns = [write_gaze(f"Look {n}.", ToolCall("Gaze", (box,))) for n, box in enumerate(boxes)]
    played = play(*turns, ANSWER)
    assert (played.end_reason, played.predicted_answer) == ("answered", "A")
    assert [turn.image for turn in played.turns] == [1, 2, 3, 4, None]
    assert [turn.acted_on for turn in played.turns] == [0] * 5 and {image.source for image in played.images[1:]} == {0}
    height, width = played.images[0].size
    for turn, image, box in zip(played.turns, played.images[1:], boxes, strict=False):
        assert turn.boxes_model_input == (box,)
        original = tuple(edge * side / seen for edge, side, seen in zip(box, WIDE.size * 2, (width, height) * 2, strict=True))
        assert turn.boxes_original[0] == pytest.approx(original)
        shown = WIDE.resize(image.pixels.size, Image.Resampling.BICUBIC, box=turn.boxes_original[0])  # type: ignore[arg-type]
        assert image.pixels.tobytes() == shown.tobytes()
    counts = [PROCESSOR.tokens(image.grid_thw) for image in played.images]
    messages = MEDEYES.opening(played.sample, counts[:1])
    for text, count in zip(turns, counts[1:], strict=True):
        messages += [("assistant", [text]), ("user", ["<feedback>", count, "</feedback>"])]
    prompt = CHAT.render(messages, reply=True)
    assert played.token_ids == prompt + [*CHAT.text(ANSWER), CHAT.im_end]
    learnt = CHAT.decode(np.array(played.token_ids)[np.array(played.loss_mask, bool)].tolist())
    assert learnt == "<|im_end|>".join([*turns, ANSWER, ""])


def test_a_fifth_gaze_ends_the_episode_without_an_answer() -> None:
    played = play(*[GAZE] * 5)
    assert played.end_reason == "turn_limit" and len(played.images) == 5 and played.predicted_answer is None


@pytest.mark.parametrize("text", [GAZE + "<feedback></feedback>" + ANSWER, GAZE + GAZE, GAZE + ANSWER, gaze(0, 0, 9, 9)])
def test_a_turn_with_an_error_shows_no_region(text: str) -> None:
    played = play(text, ANSWER)
    assert played.turns[0].error is not None and len(played.images) == 1
    said = CHAT.decode(played.token_ids[played.turns[0].end : played.turns[1].start])
    assert said == f"\n<|im_start|>user\nError: {played.turns[0].error[1]}<|im_end|>\n<|im_start|>assistant\n"
    assert played.end_reason == "answered"


def test_a_demonstration_of_gazes_is_the_episode_of_a_policy_that_wrote_the_same() -> None:
    looks = [Look(f"Look {n}.", "Gaze", (Box(60 + n, 40, 160, 120 + n, "original"),)) for n in range(4)]
    shown = Demonstration(tuple(looks), LastTurn("Rows <|im_end|></reasoning><feedback>.", "A"))
    expert = demonstrate(Sample("s", "Which?", (WIDE,), "A", demonstration=shown), MEDEYES, PROCESSOR, LIMITS)
    assert [turn.error for turn in expert.turns] == [None] * 5 and len(expert.images) == 5
    policy = Episode(expert.sample, MEDEYES, PROCESSOR, LIMITS)
    for turn in expert.turns:
        say(policy, turn.text)
    for name in ("token_ids", "loss_mask", "vision_index"):
        assert getattr(policy, name) == getattr(expert, name)
    assert "<|im_end|>" in expert.turns[-1].text and expert.token_ids.count(CHAT.im_end) == 11
