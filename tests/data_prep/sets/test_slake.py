"""SLAKE: the real questions with pictures of our own; its known leak between languages; wrong records."""

import json
import re
import zipfile
from collections import Counter

import pytest

from data_prep.reading.published import Published
from data_prep.sets.slake import SET, read
from tests.kit.datasets import card, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from tests.kit.slake import FILES, RECORD, published
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.errors import DataError


def test_the_real_questions(build_set, test_data, tmp_path):
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
    text = (data_dir / "slake" / "1.0.0" / "CARD.md").read_text()
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": " "}, "question is ' '"),
        ({"question": None}, "question is None"),
        ({"q_lang": "fr"}, "q_lang is 'fr', it must be en or zh"),
        ({"answer": ["MRI"]}, "answer is .* text"),
        ({"triple": "vhead"}, "triple is 'vhead', it must be a list"),
        ({"img_name": "xmlab2/source.jpg"}, "there is no image xmlab2/source.jpg"),
        ({"img_name": "../test.json"}, "there is no image ../test.json"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, change, words):
    with pytest.raises(DataError, match=f"test.json, record 0: {words}"):
        read(Published(published(tmp_path, change)))


def test_a_missing_key_is_named(tmp_path):
    published(tmp_path)
    (tmp_path / "train.json").write_text(json.dumps([{key: RECORD[key] for key in RECORD if key != "modality"}]))
    with pytest.raises(DataError, match="train.json, record 0: modality is missing"):
        read(Published(tmp_path))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"imgs/xmlab1/source.jpg": b"no picture"}, "train.json, record 0: image xmlab1/source.jpg: not an image"),
        ({"imgs/xmlab1/source.jpg": picture(1)[:48]}, "image xmlab1/source.jpg: damaged"),
        ({"test.json": json.dumps([RECORD])}, "test.json, record 0: slake-0 is there twice, first at .*train.json, record 0"),
        ({"validate.json": "[]"}, None),
    ],
)
def test_what_is_wrong_is_found_while_building(build_set, tmp_path, capsys, files, words):
    source = write_files(published(tmp_path / "slake"), files)
    if words is None:  # a language or split without questions is none
        assert list(card(build_set("slake", source), "slake")["splits"]) == ["train_en", "test_en"]
        return
    with pytest.raises(SystemExit) as stopped:
        build_set("slake", source)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.search(words, error) and error.count("\n") == 1
    assert list((tmp_path / "built").iterdir()) == []


def test_missing_files_are_named(tmp_path):
    for name in (*FILES[:1], "imgs"):
        source = published(tmp_path / name)
        (source / name).rename(source / "elsewhere")
        with pytest.raises(DataError, match=f"holds no {name}"):
            read(Published(source))
    (tmp_path / "imgs" / "imgs.zip").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match="imgs.zip: cannot be read as a zip archive"):
        read(Published(tmp_path / "imgs"))
