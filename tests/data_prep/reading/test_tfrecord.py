"""TFRecord files of another writer are read, and each damage is named."""

import subprocess
import sys

import pytest

from data_prep.reading.tfrecord import read_examples
from tests.kit.processes import ROOT
from tests.kit.tfrecords import write_examples, write_records
from vitar_jax.errors import DataError

EXAMPLE = {"text": ["é".encode(), b"\xff\x00"], "numbers": [3, -5, 2**40], "shares": [0.5, -2.0], "nothing": []}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A file of three records."""
    return write_examples(tmp_path_factory.mktemp("records") / "a.tfrecord", [EXAMPLE] * 3)


def read(folder, content):
    """What is read of a file: None for a record that is as it was written, the words of the error for another."""
    (file := folder / "b.tfrecord").write_bytes(content)
    found = list(read_examples(file))
    assert [where for where, _ in found] == [f"{file}, record {number}" for number in range(len(found))]
    for where, features in found:
        assert features == EXAMPLE or str(features).startswith(where)
    return [str(features).partition(": ")[2] if isinstance(features, DataError) else None for _, features in found]


def test_what_was_written_is_read(content, tmp_path):
    assert read(tmp_path, content) == [None] * 3
    assert read(tmp_path, b"") == []


def test_a_file_that_is_cut_off_is_read_up_to_there(content, tmp_path):
    one = len(content) // 3
    for length in range(len(content)):
        whole, rest = divmod(length, one)
        *before, last = read(tmp_path, content[:length]) or [None]
        assert before == [None] * (len(before)) and (last is None) == (rest == 0)
        assert rest == 0 or (len(before) == whole and last.startswith("is cut off"))


def test_a_flipped_bit_is_noticed_wherever_it_is(content, tmp_path):
    one = len(content) // 3
    for place in range(one, 2 * one):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        first, second, *rest = read(tmp_path, bytes(flipped))
        in_length = place < one + 12
        assert first is None and second is not None
        assert ("checksum of its length" in second) == in_length and rest == ([] if in_length else [None])


def test_what_is_no_example_is_named(tmp_path):
    assert read(tmp_path, write_records(tmp_path / "a", [b"\xff" * 9])) == ["is no tf.train.Example"]
    with pytest.raises(DataError, match="missing.tfrecord: cannot be read"):
        list(read_examples(tmp_path / "missing.tfrecord"))


def test_reading_loads_no_tensorflow():
    code = "import data_prep.reading.tfrecord as t, sys; t._message(); print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
