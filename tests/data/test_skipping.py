"""Records that cannot be used: skipped, counted by kind and named, an error only if they are many."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from tests.kit import micro
from tests.kit.images import noise
from vitar_jax.data import pipeline
from vitar_jax.data.pipeline import sft_batches
from vitar_jax.data.skipping import KINDS, Skipped, Skips, attempt
from vitar_jax.data.sources import SourceConfig
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import CheckpointError, ConfigError, DataError, ImageError, TooLongError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.learning.sft import SFTBatches

BOX = [[20, 20, 60, 60]]


def row(name: str, **changes: Any) -> dict[str, Any]:
    shown = {"thoughts": ["Zoom.", "So."], "tool": "zoom", "boxes": BOX}
    whole = {"images": [f"{name}.png"], "question": "Which?", "answer": "A", "options": ["x", "y"], "demonstration": shown}
    return {"id": name} | {key: value for key, value in (whole | changes).items() if value is not None}


def spoil_file(content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content(path.read_bytes()))  # type: ignore[return-value]


def show(*size: int, mode: str = "L") -> Callable[[Path], None]:
    return lambda path: Image.new(mode, size).save(path)


BAD: dict[str, tuple[str, Callable[[Path], None], dict[str, Any]]] = {  # kind, what becomes of the image, of the row
    "missing": ("image", Path.unlink, {}),
    "cut_short": ("image", spoil_file(lambda content: content[:300]), {}),
    "empty": ("image", spoil_file(lambda content: b""), {}),
    "no_image": ("image", spoil_file(lambda content: b"patient,age\n1,70\n"), {}),
    "dicom": ("image", spoil_file(lambda content: b"\0" * 128 + b"DICM" + content[:200]), {}),
    "thin": ("image", show(450, 30), {}),
    "thread": ("image", show(1000, 1), {}),
    "huge": ("image", show(10_000, 9_000, mode="1"), {}),
    "long": ("too_long", show(84, 84), {"question": "why " * 99}),
    "long_turn": ("too_long", show(84, 84), {"demonstration": {"thoughts": ["Zoom. " * 99, ""], "tool": "zoom", "boxes": BOX}}),
    "many_images": ("too_long", show(84, 84), {"images": ["good0.png"] * 3}),
    "no_demonstration": ("data", show(84, 84), {"demonstration": None}),
    "outside": ("data", show(84, 84), {"demonstration": {"thoughts": ["", ""], "tool": "zoom", "boxes": [[80, 80, 99, 99]]}}),
    "no_tool": ("data", show(84, 84), {"demonstration": {"thoughts": ["", ""], "tool": "saw", "boxes": BOX}}),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes the pipeline of eight good records and the given bad ones."""
    recipe = Recipe.from_config(micro.get_config())
    processor = build.processor(recipe, tmp_path_factory.mktemp("processor"))
    stage = recipe.stages["sft"]
    shape = build.batch_shape(recipe, stage, bins=1, shards=1)
    folder = tmp_path_factory.mktemp("questions")
    for i in range(8):
        noise(84, 84, seed=i).save(folder / f"good{i}.png")

    def pipeline_of(bad: Iterable[str], *, threads: int = 0, source: SourceConfig | None = None, **how: Any) -> Any:
        rows, file = [row(f"good{i}") for i in range(8)], folder / "questions.jsonl"
        for name in bad:
            _, spoil, changes = BAD[name]
            noise(84, 84).save(folder / f"{name}.png")
            spoil(folder / f"{name}.png")
            rows.insert(3, row(name, **changes))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return sft_batches(
            [source or SourceConfig("questions", options={"file": str(file)})],
            protocols=recipe.all_protocols,
            default_protocol="vitar",
            processor=processor,
            limits=recipe.limits,
            shape=shape,
            seed=0,
            batch_size=4,
            threads=threads,
            **how,
        )

    return pipeline_of


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_skipped_counted_and_named_once(
    name: str, make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The good ones are read in each epoch, and what is read after a restart is the same."""
    batches: Any = SFTBatches(make([name]))
    batches.next(None)
    state = json.loads(json.dumps(batches.get_state()))
    with caplog.at_level("WARNING"):
        following = [batches.next(None) for _ in range(4)]
    read = batches.get_state()["next_index"]
    kind, skipped = BAD[name][0], read - 20
    assert skipped >= 2
    scalars = following[-1][1]
    assert {key: value for key, value in scalars.items() if "data/skipped" in key and value} == {
        "data/skipped": skipped,
        f"data/skipped/{kind}": skipped,
    }
    assert len([line for line in caplog.messages if name in line]) <= 1
    again = SFTBatches(make([name], threads=2))
    again.set_state(state)
    for batch, _ in following:
        repeated, numbers = again.next(None)  # type: ignore[arg-type]
        assert jax.tree.all(jax.tree.map(np.array_equal, batch, repeated))
    assert again.get_state() == batches.get_state() and numbers["data/skipped"] == skipped


@pytest.mark.slow
def test_many_bad_records_end_the_run_with_an_error_that_names_the_last_one(make: Callable[..., Any]) -> None:
    kinds = Counter(kind for kind, *_ in BAD.values())
    batches = SFTBatches(make(BAD, max_skipped_share=0.7))
    for _ in range(20):
        _, scalars = batches.next(None)  # type: ignore[arg-type]
    shares = {kind: scalars[f"data/skipped/{kind}"] / scalars["data/skipped"] for kind in kinds}
    assert shares == pytest.approx({kind: count / len(BAD) for kind, count in kinds.items()}, abs=0.06)
    with pytest.raises(DataError, match=r"51 of \d+ consecutive records were skipped, more than max_skipped_share=0.5"):
        list(itertools.islice(make(BAD), 20))
    with pytest.raises(DataError, match="1 of . consecutive records .* the last: .*missing.png"):
        list(itertools.islice(make(["missing"], max_skipped_share=0.0), 5))
    with pytest.raises(TooLongError, match="sample long"):
        list(itertools.islice(make(["long"], too_long="error"), 5))


class Broken:
    """A source whose second record cannot be read, or raises an error that is not the record's."""

    def __init__(self, error: Exception):
        self.error = error

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: Any) -> Sample:
        if index == 1:
            raise self.error
        return Sample(f"{index}", "Which?", (noise(84, 84),), "A")


@pytest.mark.parametrize("threads", [0, 2])
def test_a_record_that_its_source_cannot_read_is_skipped(
    threads: int, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pipeline, "load_source", lambda config: Broken(ImageError("damaged")))
    source = SourceConfig("mine", protocol="plain")
    with caplog.at_level("WARNING"):
        batches = SFTBatches(make([], source=source, threads=threads))
        for _ in range(3):
            _, scalars = batches.next(None)  # type: ignore[arg-type]
    assert scalars["data/skipped/image"] >= 2
    assert [line for line in caplog.messages if "damaged" in line] == ["skipped a record (image): mine: record 1: damaged"]


@pytest.mark.parametrize("error", [TypeError("a bug"), ConfigError("a key"), KeyError("answer"), CheckpointError("weights")])
def test_other_errors_are_raised(error: Exception, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "load_source", lambda config: Broken(error))
    with pytest.raises(type(error), match=str(error.args[0])):
        list(itertools.islice(make([], source=SourceConfig("mine", protocol="plain")), 4))
    with pytest.raises(type(error)):
        attempt(lambda: Broken(error)[1])


@pytest.mark.parametrize("share, allowed", [(0.0, 0), (0.25, 25), (0.5, 50), (1.0, 99)])
def test_the_share_is_of_a_hundred_records(share: float, allowed: int) -> None:
    bad = Skipped("image", "one")
    skips = Skips(share)
    for _ in range(3):  # windows
        for number in range(100):
            assert (skips.accept(bad if number < allowed else number) is None) == (number < allowed)
    again = Skips(share)
    again.set_state(skips.get_state())
    with pytest.raises(DataError, match=f"max_skipped_share={share:g}"):
        for _ in range(allowed + 1):
            again.accept(bad)


def test_a_state_of_an_older_checkpoint_can_be_read() -> None:
    skips = Skips()
    skips.set_state({"next_index": 12, "skipped": 3})  # of SFT, which skipped only what was too long
    assert skips.get_state() | {"skipped": 3, "skipped_too_long": 3, "skipped_image": 0} == skips.get_state()
    skips.set_state({"taken": 12})
    assert not any(skips.get_state().values())


def test_a_probe_says_how_many_samples_it_played() -> None:
    bad = [Skipped("image", "a"), Skipped("too_long", "b")]
    kept, counts = Skips(0.5).separate([*bad, 3, 4])
    expected = {"samples": 2, "skipped": 2, "skipped/image": 1, "skipped/too_long": 1, "skipped/data": 0}
    assert (kept, counts) == ([3, 4], expected) and set(KINDS) == {"image", "too_long", "data"}
    for share, records in ((0.25, [*bad, 3, 4]), (1.0, bad)):
        with pytest.raises(DataError, match=f"2 of {len(records)} samples of the probe were skipped.*: b"):
            Skips(share).separate(records)
