"""Tables of every kind give the same rows; `test_questions` has the errors of CSV and JSONL."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitar_jax.data.tables import Row, as_list, csv_rows, json_rows, jsonl_rows, parquet_rows
from vitar_jax.errors import DataError

ROWS = [{"a": "1", "b": "two"}, {"a": "3", "b": "four,\nfive"}]


def test_every_kind_gives_the_same_rows(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n1,two\n3,"four,\nfive"\n')
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "t.json").write_text(json.dumps(ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    places = {csv_rows: (":2", ":3"), jsonl_rows: (":1", ":2")}
    for kind, read in (("csv", csv_rows), ("jsonl", jsonl_rows), ("json", json_rows), ("parquet", parquet_rows)):
        rows = list(read(tmp_path / f"t.{kind}"))
        assert [row.values for row in rows] == ROWS
        suffixes = places.get(read, (", record 0", ", record 1") if kind == "json" else (", row 0", ", row 1"))
        assert [row.where for row in rows] == [f"{tmp_path}/t.{kind}{suffix}" for suffix in suffixes]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), ("[", "cannot be read as JSON"), ("{}", "got a dict"), ("[3]", "record 0: got a int")],
)
def test_wrong_json_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=f"t.json.*{words}"):
        list(json_rows(tmp_path / "t.json"))


def test_wrong_parquet_is_named(tmp_path):
    file = tmp_path / "t.parquet"
    for content in (None, b"", b"PAR1 no PAR1"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DataError, match="t.parquet: cannot be read as Parquet"):
            list(parquet_rows(file))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    with pytest.raises(DataError, match=r"got the columns \['a', 'b'\], expected them to include 'a' and 'c'"):
        list(parquet_rows(file, needed=("a", "c")))


def test_a_long_value_is_shown_in_part():
    row = Row({"a": "x" * 1000, "n": 3}, "here")
    assert len(str(row.wrong("a", "short"))) < 120 and row.text("n") == "3"
    with pytest.raises(DataError, match="here: b is missing"):
        row.text("b")
    assert row.text_or_nothing("b") == "" and Row({"a": " "}, "here").text_or_nothing("a") == ""


def test_missing_values_have_no_key_in_any_kind(tmp_path):
    """As pandas writes None, NaN, NaT and NA, and as `json.dumps` writes NaN."""
    (tmp_path / "t.csv").write_text("a,b,c,d\n1,, ,None\n")
    (tmp_path / "t.jsonl").write_text('{"a": "1", "b": NaN, "c": null, "d": "None"}\n')
    (tmp_path / "t.json").write_text('[{"a": "1", "b": NaN, "c": " ", "d": "None"}]')
    columns = {"a": ["1"], "b": [float("nan")], "c": pyarrow.array([None], pyarrow.timestamp("ns")), "d": ["None"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    for kind, read in (("csv", csv_rows), ("jsonl", jsonl_rows), ("json", json_rows), ("parquet", parquet_rows)):
        (row,) = read(tmp_path / f"t.{kind}")
        assert row.values == {"a": "1", "d": "None"}
        assert row.text_or_nothing("b") == row.text_or_nothing("c") == "" and row.text("d") == "None"


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@settings(max_examples=60)
@given(st.lists(TEXTS, min_size=2, max_size=5))
def test_a_list_is_read_as_it_was_written(texts):
    for written in (json.dumps(texts), json.dumps(texts, ensure_ascii=False), str(texts), str(tuple(texts))):
        assert as_list(written, "here") == texts
    for array in (np.array(texts), np.array(texts, dtype=object)):
        for written in (str(array), repr(array)):
            assert as_list(written, "here") == list(array)  # an array of fixed width drops zeros at the end


def test_numbers_and_lists_of_parquet_are_lists(tmp_path):
    columns = {"a": [["x", "y"]], "b": ["['x' 'y']"], "c": ["[1. 2.5]"], "d": ["x"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t")
    (row,) = parquet_rows(tmp_path / "t")
    assert (row.list("a"), row.list("b"), row.list("c")) == (["x", "y"], ["x", "y"], [1.0, 2.5])
    with pytest.raises(DataError, match="t, row 0: d: got 'x', expected a list"):
        row.list("d")


@pytest.mark.parametrize(
    "written", ["['a', 'b' 'c']", "['a', 'b'", "['a' ... 'b']", "['a', nan]", "[nan, 'a']", "{'a', 'b'}", "['a' b]"]
)
def test_what_only_begins_like_a_list_is_refused(written):
    with pytest.raises(DataError, match="^here: got .*begins like a list"):
        as_list(written, "here")


@pytest.mark.parametrize(
    "written", ["x", "[x]", "(A) x", "[1]|[2]", "[F-18] x|[C-11] y", "{x}", "", "[", "('a' in b) c", '("a", b']
)
def test_other_text_is_no_list(written):
    assert as_list(written, "here") is None
