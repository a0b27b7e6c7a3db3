"""A judge: what it is asked, what its replies are worth, and that nothing is asked twice."""

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitar_jax.errors import ConfigError, DataError
from vitar_jax.evaluation.judge import ChatJudge, Judgements, Question, messages, read_verdict

LEFT = Question("Which side?", "left", "on the left")
RIGHT = Question("Which side?", "left", "right")
MUTE = Question("Which side?", "left", "neither")


class Client:
    """Says whether the answer holds the reference, and nothing of "neither"."""

    def __init__(self):
        self.asked = []
        self._lock = threading.Lock()

    def ask(self, messages, check=str):
        (message,) = messages
        lines = dict(line.split(": ", 1) for line in message["content"].splitlines() if ": " in line)
        gold, answer = json.loads(lines["Reference"]), json.loads(lines["Answer"])
        with self._lock:
            self.asked.append(answer)
        reply = (
            f"They {'' if gold in answer else 'do not '}agree. <judge>{'correct' if gold in answer else 'incorrect'}</judge>"
        )
        if answer == "neither":
            reply = "Who knows."
        check(reply)
        return reply


@pytest.mark.parametrize(
    "reply, verdict",
    [
        ("They agree.\n<judge>correct</judge>", True),
        ("<judge> Incorrect </judge>", False),
        ("<judge>correct</judge> <judge>correct</judge>", True),
        ("<judge>correct</judge> no: <judge>incorrect</judge>", None),
        ("<judge>0</judge>", None),
        ("correct", None),
        ("", None),
        # Reasoning holds no verdict.
        ("<think>Say <judge>correct</judge> or <judge>incorrect</judge>?</think>\n<judge>correct</judge>", True),
        ("<think>So <judge>correct</judge>", None),
        ("Both, so <judge>correct</judge></think>They differ. <judge>incorrect</judge>", False),
        ("<think><judge>correct</judge></think>", None),
        ("<think>a</think><judge>correct</judge><think>or <judge>incorrect</judge></think>", True),
        ("<think>a <think><judge>correct</judge></think> b</think><judge>incorrect</judge>", False),
        ("<Thinking>So <judge>correct</judge></THINKING ><judge>incorrect</judge>", False),
        ("[THINK]<judge>correct</judge>[/THINK]<judge>incorrect</judge>", False),
        ('<reasoning effort="low"><judge>correct</judge></reasoning> <judge>incorrect</judge>', False),
        ("<seed:think><judge>correct</judge></seed:think><judge>incorrect</judge>", False),
    ],
)
def test_replies(reply, verdict):
    assert read_verdict(reply) is verdict


@given(st.text(), st.text())
def test_what_is_judged_is_quoted(gold, prediction):
    (message,) = messages(Question("Which?", gold, prediction))
    lines = message["content"].split("\n")
    (line,) = [line for line in lines if line.startswith("Answer: ")]
    assert json.loads(line.removeprefix("Answer: ")) == prediction


def test_nothing_is_asked_twice(tmp_path):
    client, path = Client(), tmp_path / "judgements.jsonl"
    judge = ChatJudge(client)
    kept = Judgements(path, "stub")
    assert kept.ask(judge, [LEFT, RIGHT, MUTE, LEFT]) == 1  # the one that could not be judged
    assert [kept[asked] for asked in (LEFT, RIGHT, MUTE)] == [True, False, None]
    assert sorted(client.asked) == ["neither", "on the left", "right"]

    again = Judgements(path, "stub")
    assert again.missing([LEFT, RIGHT, MUTE]) == [MUTE]
    again.ask(judge, [LEFT, RIGHT, MUTE])
    assert client.asked[3:] == ["neither"]
    # Another judge, or another wording of any part, is another question.
    other = Judgements(path, "other")
    assert other.missing([LEFT]) == [LEFT]
    keys = {again.key(LEFT), other.key(LEFT)} | {again.key(LEFT._replace(**{field: "x"})) for field in LEFT._fields}
    assert len(keys) == 5


def test_a_wrong_key_is_no_judgement(tmp_path):
    class Closed:
        def ask(self, messages, check):
            raise ConfigError("no such key")

    with pytest.raises(ConfigError):
        Judgements(tmp_path / "judgements.jsonl", "stub").ask(ChatJudge(Closed()), [LEFT])


def test_a_torn_last_line_is_taken_away(tmp_path):
    path = tmp_path / "judgements.jsonl"
    Judgements(path, "stub").ask(ChatJudge(Client()), [LEFT])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-9])
    assert Judgements(path, "stub")[LEFT] is True
    assert path.read_bytes() == whole
    path.write_bytes(whole + b'{"key": 1}\n')
    with pytest.raises(DataError, match="judgements.jsonl:2"):
        Judgements(path, "stub")


def test_by_file(tmp_path):
    """Requests as the batch interface takes them, and its responses, one of which says nothing."""
    kept = Judgements(tmp_path / "judgements.jsonl", "stub")
    questions = [LEFT, RIGHT, MUTE]
    assert kept.export_requests(questions, tmp_path / "requests.jsonl") == 3
    requests = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert {request["url"] for request in requests} == {"/v1/chat/completions"}
    client, lines = Client(), []
    for request in requests:
        assert request["body"]["model"] == "stub" and request["body"]["temperature"] == 0
        message = {"role": "assistant", "content": client.ask(request["body"]["messages"])}
        response = {"status_code": 200, "body": {"choices": [{"message": message}]}}
        lines.append(json.dumps({"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}))
    responses = tmp_path / "responses.jsonl"
    responses.write_text("\n".join([*lines, json.dumps({"custom_id": "another's", "response": None, "error": {"code": "x"}})]))
    assert kept.import_responses(questions, responses) == 1
    # A line may hold what some take for the end of one; and what fails later takes nothing back.
    failed = {"custom_id": requests[0]["custom_id"], "response": None, "error": {"code": "late \u2028"}}
    responses.write_text(json.dumps(failed, ensure_ascii=False) + "\n", encoding="utf-8")
    assert kept.import_responses(questions, responses) == 1 and kept[LEFT] is True
    assert kept.reasons == ["late"]
    refused = {"status_code": 400, "body": {"error": {"message": "Unsupported value: temperature"}}}
    responses.write_text(json.dumps({"custom_id": requests[0]["custom_id"], "response": refused, "error": None}) + "\n")
    assert kept.import_responses(questions, responses) == 1
    assert kept.reasons[1:] == ["Unsupported value: temperature"]
    again = Judgements(tmp_path / "judgements.jsonl", "stub")
    assert [again[asked] for asked in questions] == [True, False, None]
    options = {"temperature": None, "max_completion_tokens": 512}
    again.export_requests(questions, tmp_path / "rest.jsonl", options)
    (request,) = map(json.loads, (tmp_path / "rest.jsonl").read_text().splitlines())
    assert request["body"].keys() == {"model", "messages", "max_completion_tokens"}
    assert again.export_requests(questions, tmp_path / "rest.jsonl") == 1
    for damaged in (
        "no JSON",
        "{}",
        '{"custom_id": "a", "response": 3}',
        '{"custom_id": "a", "response": {"body": {"choices": 1}}}',
    ):
        responses.write_text(damaged)
        with pytest.raises(DataError, match="responses.jsonl:1"):
            again.import_responses(questions, responses)
    with pytest.raises(DataError, match="nowhere"):
        again.import_responses(questions, tmp_path / "nowhere")
