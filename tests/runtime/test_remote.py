"""Checkpoints from elsewhere: URLs, and the hub's own cache layout."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import huggingface_hub
import jax
import numpy as np
import pytest

from tests.kit import tiny
from tests.kit.files import write_files
from vitar_jax.errors import CheckpointError
from vitar_jax.models.pretrained import load_pretrained, save_pretrained
from vitar_jax.models.registry import load_config
from vitar_jax.parallel.mesh import ShardingRules, make_mesh, shardings
from vitar_jax.runtime.remote import CheckpointFolder, weights_hash


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("published")
    save_pretrained(tiny.pretrained()[1], directory, max_shard_bytes=200_000)
    small = {"tokenizer.json": "{}", "merges.txt": "a b", "chat_template.jinja": "{{ messages }}"}
    write_files(directory, small | {"README.md": "words"})
    return directory


@pytest.fixture
def remote(published: Path) -> Iterator[str]:
    """The same as a URL."""
    root = f"/{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    fs.put(str(published), root, recursive=True)
    yield f"memory:/{root}"
    fs.rm(root, recursive=True)


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same as a repository that was downloaded before; there is no way to the hub itself."""
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(published, repository / "snapshots" / "0123")
    write_files(repository / "refs", {"main": "0123"})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return "someone/tiny"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["remote", "hub"])
def test_weights_from_elsewhere_are_the_same(place: str, published: Path, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(place)
    here = load_pretrained(published)
    spread = shardings(here, make_mesh(data=2, fsdp=2, tensor=2), ShardingRules())
    for there in (load_pretrained(path), load_pretrained(path, shardings=spread), load_pretrained(CheckpointFolder.open(path))):
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (here, there)), strict=True))
    assert load_config(path) == here.config


@pytest.mark.parametrize("place", ["published", "remote", "hub"])
def test_small_files_are_at_hand(place: str, request: pytest.FixtureRequest) -> None:
    with CheckpointFolder.open(request.getfixturevalue(place)).small_files() as directory:
        assert (directory / "tokenizer.json").read_text() == "{}"
        assert (directory / "merges.txt").read_text() == "a b"
        assert (directory / "chat_template.jinja").read_text() == "{{ messages }}"
        assert (directory / "config.json").exists()


def test_a_directory_goes_before_the_hub(hub: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(published, hub)
    assert CheckpointFolder.open(hub).root == str(tmp_path / hub)
    assert CheckpointFolder.open(Path(hub)).root == str(tmp_path / hub)


def test_only_small_files_are_asked_for(monkeypatch: pytest.MonkeyPatch, published: Path) -> None:
    asked = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(published)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_config("someone/tiny") == load_config(published)
    load_pretrained("someone/tiny")
    small = ["*.json", "*.jinja", "*.txt"]
    assert asked == [("someone/tiny", small), ("someone/tiny", [*small, "*.safetensors"])]


@pytest.mark.parametrize("path", ["someone/else", "nothing://bucket/model", "memory://nowhere", "nowhere", "no/where/at/all"])
def test_what_is_nowhere_is_named(path: str, hub: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as raised:
        load_pretrained(path)
    assert str(raised.value).startswith(path)


def test_a_hash_tells_weights_apart(published: Path, remote: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(published, other)
    assert weights_hash(other) == weights_hash(published)
    last = sorted(other.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"\1")
    assert weights_hash(other) != weights_hash(published)

    folder = CheckpointFolder.open(remote)
    before = weights_hash(folder)
    assert weights_hash(folder) == before
    folder.fs.pipe_file(f"{folder.root}/{last.name}", last.read_bytes())
    assert weights_hash(folder) != before
