"""The real questions of SLAKE and MedXpertQA, built with pictures of our own."""

import json
import zipfile
from collections import Counter

import pytest

from data_prep.sets.slake import SET
from tests.kit.datasets import card, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from tests.kit.slake import FILES
from vitar_jax.data.sources import SourceConfig, load_source


@pytest.mark.slow
def test_slake(build_set, test_data, tmp_path):
    questions = {name: json.loads((test_data / "slake_text" / name).read_text()) for name in FILES}
    source = write_files(tmp_path / "slake", {name: (test_data / "slake_text" / name).read_bytes() for name in FILES})
    names = sorted({record["img_name"] for records in questions.values() for record in records})
    with zipfile.ZipFile(source / "imgs.zip", "w") as archive:
        for n, name in enumerate(names):
            archive.writestr(f"imgs/{name}", picture(n))
    data_dir = build_set("slake", source)

    made = card(data_dir, "slake")
    assert {split: count["questions"] for split, count in made["splits"].items()} == SET.counts
    images = {split: count["images"] for split, count in made["splits"].items()}
    assert images == {
        f"{split}_{q}": n for split, n in (("train", 450), ("validation", 96), ("test", 96)) for q in ("en", "zh")
    }
    # Found by content in what was built, and by name in what was published.
    leaks = {frozenset(leak["splits"]): leak["images"] for leak in made["leaks"]}
    assert leaks[frozenset(("train_zh", "test_en"))] == 72 and leaks[frozenset(("train_en", "test_zh"))] == 70
    named = {
        f"{split}_{q}": {r["img_name"] for r in questions[name] if r["q_lang"] == q}
        for split, name in zip(("train", "validation", "test"), FILES, strict=True)
        for q in ("en", "zh")
    }
    shared = {frozenset((a, b)): len(named[a] & named[b]) for a in named for b in named if a < b}
    assert leaks == {pair: number for pair, number in shared.items() if number}
    text = (data_dir / "slake" / "1.1.0" / "CARD.md").read_text()
    assert "72 of the 96 images of test_en are also in train_zh." in text
    assert {"test.json", "train.json", "validate.json", "imgs.zip"} == set(made["files"])

    options = {"set": "slake", "data_dir": str(data_dir), "language": "zh"}
    samples = load_source(SourceConfig("data_prep.built:source", "test", options=options))
    expected = [record for record in questions["test.json"] if record["q_lang"] == "zh"]
    assert [(s.question, s.answer) for s in map(samples.__getitem__, range(len(samples)))] == [
        (record["question"].strip(), record["answer"].strip()) for record in expected
    ]
    sample = samples[0]
    number = names.index(sample.metadata["img_name"])
    assert sample.images[0].getpixel((0, 0)) == (number % 256, number // 256, 0)
    assert sample.metadata["triple"] == expected[0]["triple"]
    closed = Counter(s.metadata["answer_type"] for s in read_back(data_dir, "slake", "test_en"))
    assert closed == {"OPEN": 645, "CLOSED": 416}


@pytest.mark.slow
def test_medxpertqa(build_set, test_data, tmp_path):
    text = (test_data / "medxpertqa_text" / "mm_input.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    names = sorted({image["image_path"] for record in records for image in record["images"]})
    pictures = {f"images/{name}": picture(n) for n, name in enumerate(names)}
    source = write_files(tmp_path / "source", {"medxpertqa_mm_input.jsonl": text, **pictures})
    data_dir = build_set("medxpertqa_mm", source)
    assert card(data_dir, "medxpertqa_mm")["splits"] == {"test": {"questions": 2000, "images": len(names)}}
    samples = read_back(data_dir, "medxpertqa_mm", "test")
    assert Counter(s.metadata["question_type"] for s in samples) == {"Reasoning": 1446, "Understanding": 554}
    for sample, record in zip(samples, records, strict=True):
        (answer,) = record["label"]
        assert (sample.sample_id, sample.answer, len(sample.images)) == (record["id"], answer, len(record["images"]))
        # What the question lost is its options.
        lost = record["question"].replace(sample.question, "", 1)
        assert lost.strip().startswith("Answer Choices: (A)") and all(option.strip() in lost for _, option in sample.options)
    number = names.index(records[7]["images"][0]["image_path"])
    assert samples[7].images[0].getpixel((0, 0)) == (number % 256, number // 256, 0)
