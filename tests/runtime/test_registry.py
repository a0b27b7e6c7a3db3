"""Every kind of registered thing is found by the same three forms of name, with the same errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.files import write_files
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.episodes.parsers import PARSERS
from vitar_jax.episodes.protocols import PROTOCOLS, find_protocol
from vitar_jax.episodes.tools import TOOLS
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.measures import find_measures
from vitar_jax.evaluation.rules import find_rules
from vitar_jax.experiment.build import TOKENIZERS
from vitar_jax.learning.rewards import RewardConfig, Rewards
from vitar_jax.runtime.registry import Registry

Find = Callable[[str], Any]
KINDS: dict[str, tuple[Find, str, str]] = {  # how a name is looked up, a wrong name, and the one it is nearest to
    "data set": (lambda name: load_source(SourceConfig(name)), "qestions", "questions"),
    "protocol": (lambda name: find_protocol(name, PROTOCOLS), "vitra", "vitar"),
    "parser": (PARSERS.find, "plian", "plain"),
    "tool": (TOOLS.find, "zoon", "zoom"),
    "reward": (lambda name: Rewards({"mine": RewardConfig(name, {"a": 1.0})}), "vitra", "vitar"),
    "measure": (lambda name: find_measures([name]), "iuo", "iou"),
    "scoring rule": (lambda name: find_rules([name]), "exakt", "exact"),
    "tokenizer": (TOKENIZERS.find, "mine.py:cuont", "count"),
}
FILES = {
    "mine.py": """
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import Sample

play = Protocol("mine", "Look.", parser="plain")


def cases(split):
    return [Sample("1", "Which?", (), "A")]


def count(*arguments, **options):
    return 1.0
""",
    "raises.py": "1 / 0",
    "in_package/__init__.py": "",
    "in_package/mine.py": "def count(*arguments, **options): ...",
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kind of thing, in a working directory with files of a user's."""
    write_files(tmp_path, FILES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    return request.param


def message(find: Find, name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        find(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_name_is_answered_with_the_nearest(kind: str) -> None:
    find, wrong, right = KINDS[kind]
    said = message(find, wrong)
    assert kind in said and repr(wrong) in said and f"did you mean {right}?" in said


@pytest.mark.parametrize(
    "name, words",
    [
        ("mine.py:cuont", "mine.py has no 'cuont', did you mean count?"),
        ("nowhere.py:count", "nowhere.py: no such file"),
        ("raises.py:count", "raises.py: ZeroDivisionError: division by zero"),
        ("json:lods", "json has no 'lods', did you mean loads?"),
        ("in_package.mine:cuont", "in_package.mine has no 'cuont', did you mean count?"),
        ("no_such_package.mine:count", "no_such_package.mine: cannot be imported (ModuleNotFoundError: "),
    ],
)
def test_a_wrong_address_is_one_line(kind: str, name: str, words: str) -> None:
    assert words in message(KINDS[kind][0], name)


def test_a_thing_of_a_file_is_found(kind: str) -> None:
    """A file's relative name starts at the working directory."""
    find, thing = KINDS[kind][0], {"data set": "cases", "protocol": "play"}.get(kind, "count")
    assert find(f"mine.py:{thing}") is not None
    assert find(f"{Path('mine.py').resolve()}:{thing}") is not None


def test_a_file_is_run_once_per_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    things: Registry[Any] = Registry("thing")
    for number, folder in enumerate(("a", "b")):
        write_files(tmp_path / folder, {"mine.py": f"thing = [{number}]"})
        monkeypatch.chdir(tmp_path / folder)
        assert things.find("mine.py:thing") == [number]
        assert things.find("mine.py:thing") is things.find("mine.py:thing")


def test_a_file_may_define_dataclasses(tmp_path: Path) -> None:
    """Their strings of types are looked up in the module."""
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Mine:\n    x: int = 3"
    write_files(tmp_path, {"mine.py": text})
    things: Registry[Any] = Registry("thing")
    assert things.find(f"{tmp_path / 'mine.py'}:Mine")().x == 3


def test_names_are_registered() -> None:
    things: Registry[int] = Registry("thing")
    assert things.register("one")(1) == things.find("one") == 1
    with pytest.raises(ConfigError, match="unknown thing 'on', did you mean one\\?; known are one, package.module:name and "):
        things.find("on")
