"""`python -m vitar_jax.check_export`: equal with Hugging Face and with a server, and unequal if a weight is changed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.kit import micro_qwen3
from tests.kit.checkpoints import save_random
from tests.kit.endpoint import serving as answering
from tests.kit.errors import Main, check_error
from tests.kit.served import MODEL, load, serving
from vitar_jax import check_export
from vitar_jax.check_export import Asked, Finding, Reply, compare, play, prompts, transformers_peer
from vitar_jax.rollout.player import Player

TOLERANCE = 1e-3


def changed(checkpoint: Path, to: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Copies a checkpoint with other weights of its decoder's last norm."""
    shutil.copytree(checkpoint, to)
    tensors = load_file(to / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("language_model.norm.weight") or name == "model.norm.weight")
    save_file(tensors | {name: change(tensors[name])}, to / "model.safetensors", metadata={"format": "pt"})
    return to


def differences(asked: list[Asked], peer: check_export.Peer) -> list[Finding]:
    return [compare(one, peer(one), TOLERANCE, lambda *_: pytest.fail("transformers say their margins")) for one in asked]


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "qwen2_5_vl":
        return request.getfixturevalue("checkpoint")
    return save_random(micro_qwen3.get_config(), tmp_path / "qwen3")


@pytest.mark.slow
def test_transformers_agree_until_a_weight_is_changed(exported: Path, tmp_path: Path) -> None:
    player = Player.load(exported, slots=4)
    asked = play(player, count=5, tokens=6)
    assert {len(one.begun.images) for one in asked} == {1, 2} and all(one.token_ids for one in asked)
    banned = np.asarray(player.engine.banned)
    for found in differences(asked, transformers_peer(str(exported), banned)):
        assert not found.difference and found.logprobs < 1e-4
    slightly = changed(exported, tmp_path / "slightly", lambda norm: np.where(np.arange(norm.size) == 3, norm + 0.1, norm))
    assert max(found.logprobs for found in differences(asked, transformers_peer(str(slightly), banned))) > TOLERANCE
    reversed_norm = changed(exported, tmp_path / "reversed", lambda norm: -norm)
    found = differences(asked, transformers_peer(str(reversed_norm), banned))
    assert all(one.difference.startswith("token 0 of") and "by a margin of" in one.difference for one in found)


@pytest.fixture
def endpoint(checkpoint: Path) -> Iterator[str]:
    """Yields the URL of our server of the checkpoint. uvicorn closes absl's stream if it starts after `capsys`."""
    with serving(load(checkpoint)) as served:
        yield f"{served.url}/v1"


@pytest.mark.slow
def test_a_server_agrees_until_a_weight_is_changed(endpoint: str, checkpoint: Path, tmp_path: Path, main: Main, capsys) -> None:
    flags = [f"--endpoint={endpoint}", f"--model={MODEL}", "--prompts=3", "--tokens=5"]
    assert main(check_export, f"--checkpoint={checkpoint}", *flags) == 0
    assert "all tokens are equal" in capsys.readouterr().out
    other = changed(checkpoint, tmp_path / "other", lambda norm: -norm)
    assert main(check_export, f"--checkpoint={other}", *flags) == 1
    said = capsys.readouterr().out
    assert said.count("token 0 of 5 differs") == 3 and "3 of 3 prompts differ" in said
    margins = [float(line.split("margin of ")[1].split()[0]) for line in said.splitlines() if "margin of" in line]
    assert all(0.05 < margin < 50 for margin in margins)


class Begun:
    """A prompt of three tokens and our turn of three more, without a model."""

    def __init__(self) -> None:
        self.token_ids, self.stop_ids = [1, 2, 3], (9,)
        self.processor = self
        self.chat = self

    def decode(self, token_ids: list[int]) -> str:
        return f"<{token_ids[0]}>"


class Played(Begun):
    token_ids = [1, 2, 3, 4, 5, 9]
    logprobs = [None, None, None, -1.0, -2.0, -3.0]

    def __init__(self) -> None:
        pass


ASKED = Asked(Begun(), Played())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "reply, difference, logprobs",
    [
        (Reply((1, 2, 3), (4, 5, 9), (-1.0, -2.5, -3.0)), "", 0.5),
        (Reply((), (4, 5), (-1.0, -2.0)), "", 0.0),  # a server that leaves out the token that ended the turn
        (Reply((), (4,), (-1.0,)), "the other turn ends after 1 tokens", 0.0),
        (Reply((), (4, 5, 9, 6), (-1.0, -2.0, -3.0)), "ours ends after 3 tokens", 0.0),
        (Reply((1, 7, 3), (4, 5, 9), ()), "the prompt differs at token 1 of 3", 0.0),
        (Reply((), (4, 6, 9), (-1.5,)), "token 1 of 3 differs: ours is '<5>' (5), the other '<6>' (6), by a margin", 0.5),
        (Reply((), (4, 6, 7), (-1.0, -2.0, -3.0), (0.0, 1e-6, 0.125)), "token 2 of 3 differs", 0.0),
    ],
)
def test_the_first_difference_is_named(reply: Reply, difference: str, logprobs: float) -> None:
    found = compare(ASKED, reply, TOLERANCE, lambda asked, place, other: 0.25 * place)
    assert found.difference.startswith(difference) and bool(found.difference) == bool(difference)
    assert found.logprobs == pytest.approx(logprobs)


def test_a_tie_is_no_difference() -> None:
    reply = Reply((), (4, 6, 7), (-1.0,))
    assert compare(ASKED, reply, 0.5, lambda *_: 0.25).difference == ""
    assert compare(ASKED, reply, 0.2, lambda *_: 0.25).difference != ""


def test_prompts_are_the_same_each_time_and_have_several_images_where_they_may() -> None:
    first, again = list(prompts(8, 4)), list(prompts(8, 4))
    assert [len(one.images) for one in first] == [1, 1, 1, 2, 1, 1, 1, 2]
    assert [[image.tobytes() for image in one.images] for one in first] == [[i.tobytes() for i in one.images] for one in again]  # type: ignore[union-attr]
    assert {len(one.images) for one in prompts(8, 1)} == {1}
    assert len({image.size for one in first for image in one.images}) > 5  # type: ignore[union-attr]


@pytest.mark.slow
def test_an_endpoint_without_token_ids_is_refused(checkpoint: Path, main: Main, capsys) -> None:
    with answering(lambda body, number: "B") as server:
        assert main(check_export, f"--checkpoint={checkpoint}", f"--endpoint={server.url}", "--model=m", "--prompts=1") == 2
    check_error(capsys.readouterr().err, "no_tokens")


def test_what_a_user_gets_wrong_is_one_line(tmp_path: Path, main: Main, capsys) -> None:
    for flags, part in (
        ([], "expected --checkpoint=DIR"),
        (["--checkpoint=x", "--endpoint=http://127.0.0.1:9/v1"], "needs --model"),
        ([f"--checkpoint={tmp_path}"], "config.json"),
    ):
        assert main(check_export, *flags) == 2
        check_error(capsys.readouterr().err, part)
