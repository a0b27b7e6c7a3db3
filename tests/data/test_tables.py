"""Tables of every kind give the same rows; `test_questions` has the errors of CSV and JSONL."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from vitar_jax.data.tables import Row, csv_rows, json_rows, jsonl_rows, parquet_rows
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
