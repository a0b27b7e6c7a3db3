"""The page of another trainer's episode, in a real browser."""

import pytest

from tests.report.test_readers import LOOK, VERL
from vitar_jax.evaluation.report import write_report
from vitar_jax.report.__main__ import OpenedSection
from vitar_jax.report.conversation import Context
from vitar_jax.report.readers import READERS

pytestmark = pytest.mark.slow


def test_an_episode_without_its_images_shows_frames_boxes_and_what_tools_said(tmp_path, show):
    twice = VERL | {"output": VERL["output"].replace("<tool_response>", "<image><image><tool_response>")}
    played = READERS["verl"].read(twice, Context(tmp_path / "40.jsonl"))
    page = show(write_report(tmp_path / "out", [OpenedSection.of("verl", iter(played))], title="t", images=True).as_uri())
    first, second = page.locator("#episode .turn").all()
    assert first.locator("figure").count() == 3 and first.get_by_text("image not recorded").count() == 3
    (box,) = first.locator("rect.look").all()
    assert [box.get_attribute(name) for name in ("x", "y", "width", "height")] == ["10", "20", "590", "20"]
    assert "Here it is." in first.inner_text() and "Look closer." in first.inner_text()
    assert second.locator("figure").count() == 0
    first.get_by_text("As written").click()
    assert LOOK.split("\n")[-1] in first.inner_text()
    for wrong in ("undefined", "null", "NaN"):
        assert wrong not in page.inner_text("body")
