"""VQA-RAD: the published counts, and demonstrations that play with the real processor."""

from collections import Counter

import pytest
from absl import flags

from data_prep.sets.vqa_rad import majority_answer_baseline, source
from tests.kit.processes import ROOT
from vitar_jax.data.sources import load_source
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.regions import to_frame
from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.processing.files import open_image
from vitar_jax.runtime import config_flag

CONFIG = ROOT / "configs" / "vqa_rad_small.py"


@pytest.fixture
def directory(test_data):
    return str(test_data / "vqa_rad")


@pytest.fixture
def read_recipe(monkeypatch):
    """Reads the config as an entry point does, with these further flags."""

    def read(*overrides: str) -> Recipe:
        argv = ["train", f"--config={CONFIG}", *overrides]
        monkeypatch.setattr("sys.argv", argv)  # where ml_collections looks for overrides
        values = flags.FlagValues()
        config = config_flag.define(Recipe, "", values=values)
        values(argv)
        return Recipe.from_config(config.value)

    return read


@pytest.fixture
def recipe(test_data, read_recipe):
    processor = test_data / "qwen2_5_vl_7b_instruct"
    return read_recipe(f"--config.data.source={test_data / 'vqa_rad'}", f"--config.data.processor={processor}")


# --- the real data set --------------------------------------------------------------------------


def test_counts_are_the_published_ones(directory):
    train, test = (source(split, directory=directory) for split in ("train", "test"))
    assert (len(train), len(test)) == (1793, 451)
    assert Counter(s.metadata["answer_type"] for s in test) == {"CLOSED": 272, "OPEN": 179}
    assert Counter(s.metadata["phrase_type"] for s in test) == {"test_freeform": 308, "test_para": 143}
    assert sum(s.answer.lower() in ("yes", "no") for s in test) == 251
    content = [{(s.images, s.question, s.answer) for s in split} for split in (train, test)]
    assert len(content[0]) == 1793 and not content[0] & content[1]
    assert len({s.sample_id for s in [*train, *test]}) == 1793 + 451
    images = [{s.images[0] for s in split} for split in (train, test)]
    assert (len(images[0] | images[1]), len(images[1]), len(images[0] & images[1])) == (314, 203, 202)


def test_every_image_can_be_read(directory):
    paths = {sample.images[0] for split in ("train", "test") for sample in source(split, directory=directory)}
    assert all(min(open_image(path).size) >= 256 for path in paths)


def test_fields_are_text(directory):
    for sample in source("train", directory=directory):
        for text in (sample.question, sample.answer, *sample.metadata.values()):
            assert isinstance(text, str) and text and text == text.strip()
        assert not sample.options and not sample.boxes and sample.demonstration is None


def test_always_the_most_frequent_answer(directory):
    """It is "no": 48.9 % of closed questions, as published harnesses find."""
    train, test = (list(source(split, directory=directory)) for split in ("train", "test"))
    closed, open_ = ([s for s in test if s.metadata["answer_type"] == kind] for kind in ("CLOSED", "OPEN"))
    assert majority_answer_baseline(train, test) == pytest.approx(133 / 451)
    assert majority_answer_baseline(train, closed) == pytest.approx(133 / 272)
    assert majority_answer_baseline(train, open_) == 0
    open_train = [s for s in train if s.metadata["answer_type"] == "OPEN"]
    assert majority_answer_baseline(open_train, open_) == pytest.approx(11 / 179)  # "axial"


def test_items_are_the_same_whatever_was_read_before(directory):
    a, b = (source("train", directory=directory, demonstrations="two_rounds", tool="mark") for _ in range(2))
    backwards = {n: b[n] for n in reversed(range(10))}
    assert all(a[n] == backwards[n] for n in range(10))
    assert directory not in repr(a) and repr(a) != repr(source("train", directory=directory))
    with pytest.raises(IndexError):
        a[1793]


def telling(samples):
    """Indices of the longest questions and answers, of the most oblong images, and of some others."""
    every = range(len(samples))
    oblong = {s.images[0]: open_image(s.images[0]).size for s in samples}

    def shape(n):
        width, height = oblong[samples[n].images[0]]
        return width / height

    chosen = [max(every, key=shape), min(every, key=shape)]
    for text in ("question", "answer"):
        chosen += sorted(every, key=lambda n: -len(getattr(samples[n], text)))[:4]
    return sorted({*chosen, *every[:: len(every) // 10]})


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_demonstrations_play_with_the_real_processor(directory, recipe, tmp_path, split):
    processor, protocols = build.processor(recipe, tmp_path), recipe.all_protocols
    plain = source(split, directory=directory)
    direct = source(split, directory=directory, demonstrations="direct")
    looks = {tool: source(split, directory=directory, demonstrations="two_rounds", tool=tool) for tool in ("mark", "zoom")}
    chosen = telling(plain)
    assert len(chosen) >= 18
    seen = Counter()
    for n in chosen:
        episode = demonstrate(direct[n], protocols["direct"], processor, recipe.limits)
        assert episode.predicted_answer == plain[n].answer and len(episode.turns) == 1
        for tool, samples in looks.items():
            sample = samples[n]
            assert sample.metadata["synthetic_box"] is True
            episode = demonstrate(sample, protocols["vitar"], processor, recipe.limits)
            assert episode.predicted_answer == plain[n].answer
            first, last = episode.turns
            assert first.action["name"] == tool and first.image == 1 and last.error is None
            assert sum(episode.loss_mask) <= 2 * recipe.limits.turn_tokens
            (box,) = sample.demonstration.looks[0].regions
            height, width = episode.images[0].size
            in_view = to_frame(box, "model_input", episode.images[0].pixels.size, (width, height))
            whole = int(sample.sample_id.split("-")[-1]) % 2 == 0
            assert in_view.xyxy == pytest.approx(
                (0, 0, width, height) if whole else (width * 0.2, height * 0.2, width * 0.8, height * 0.8)
            )
            assert first.boxes_model_input[0] == pytest.approx(in_view.xyxy, abs=0.5)
            seen[tool, whole] += 1
    assert min(seen.values()) > 2 and len(seen) == 4


# --- the recipe ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_flag_sets_every_folder(recipe, test_data, tmp_path):
    data, processor = str(test_data / "vqa_rad"), str(test_data / "qwen2_5_vl_7b_instruct")
    sources = [recipe.evaluation, *(s for stage in recipe.stages.values() for s in stage.sources.values())]
    assert {s.options["directory"] for s in sources} == {data} and len(sources) == 6
    assert all(len(load_source(s)) in (451, 1793) for s in sources)
    assert (recipe.processor.tokenizer, recipe.processor.image) == (processor, processor)
    model_config = build.model_config(recipe, build.processor(recipe, tmp_path))
    assert model_config.image_token_id == 151_655


def test_a_folder_that_is_not_given_is_one_clear_error(read_recipe):
    with pytest.raises(ConfigError, match=r"config\.data\.source: must be set"):
        read_recipe("--config.data.processor=x")
    with pytest.raises(ConfigError, match=r"config\.data\.processor: must be set"):
        read_recipe("--config.data.source=x")
