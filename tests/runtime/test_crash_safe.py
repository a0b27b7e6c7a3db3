"""Files that a kill may meet half written."""

from pathlib import Path

import pytest

from vitar_jax.runtime.crash_safe import atomic_replace, drop_tail


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_replace(path) as partial:
        partial.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_replace(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_line_that_was_cut_short_is_dropped_with_all_after_the_last_that_stays(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("1\n2\n3")
    drop_tail(path)
    assert path.read_text() == "1\n2\n"
    drop_tail(path, lambda line: int(line) < 2)
    assert path.read_text() == "1\n"
    drop_tail(tmp_path / "none.jsonl")
    assert (tmp_path / "none.jsonl").read_text() == ""
