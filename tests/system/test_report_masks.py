"""Masks in a report, in a real browser: their outlines, their colours, and the words that light them."""

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.kit.trajectories import make_trace, make_trajectory
from tests.system.test_report_browser import CONTRASTS
from vitar_jax.episodes.regions import Mask
from vitar_jax.evaluation.report import ReportSection, write_report

pytestmark = pytest.mark.slow

INSIDE = """([size, counts]) => {
    const { path, inside } = outline({ size, counts });
    const context = document.createElement("canvas").getContext("2d");
    const drawn = new Path2D(path);
    const within = (x, y) => context.isPointInPath(drawn, x, y, "evenodd");
    const upTo = (length) => [...Array(length).keys()];
    const pixels = upTo(size[0]).map((y) => upTo(size[1]).map((x) => within(x + 0.5, y + 0.5)));
    return [pixels, inside && within(...inside)];
}"""


@pytest.fixture
def open_trace(tmp_path, show):
    def open_report(*, images: bool = True, pieces=None, **how) -> Page:
        section = ReportSection("played", [make_trace(), make_trajectory(1)])
        return show(write_report(tmp_path, [section], title="t", images=images, pieces=pieces).as_uri(), **how)

    return open_report


def shapes() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 9), (7, 1), (6, 5), (17, 23)]
    random = [rng.random(size) < share for size in sizes for share in (0.1, 0.5, 0.9)]
    diagonal, whole, empty = np.eye(8, 11, dtype=bool), np.ones((5, 4), bool), np.zeros((3, 4), bool)
    rows, columns = np.mgrid[:40, :60]
    distance = np.hypot(rows - 20, columns - 30)
    return [*random, diagonal, whole, empty, (distance < 18) & (distance > 7)]


def test_an_outline_encloses_exactly_the_pixels_of_its_mask(open_trace) -> None:
    page = open_trace()
    for array in shapes():
        mask = Mask.of(array, "original")
        pixels, labelled = page.evaluate(INSIDE, [mask.shape, mask.counts.decode()])
        np.testing.assert_array_equal(pixels, array)
        assert labelled is (True if array.any() else None)


def colour(page: Page, selector: str) -> str:
    return page.locator(selector).first.evaluate("element => getComputedStyle(element).getPropertyValue('--object').trim()")


@pytest.mark.parametrize("images", [True, False])
def test_masks_lie_over_the_image_that_they_were_made_for(images, open_trace) -> None:
    page = open_trace(images=images)
    shown = page.locator("#episode figure .frame").bounding_box()
    assert shown and shown["width"] / shown["height"] == pytest.approx(1.5, rel=0.01)
    scale = shown["width"] / 300
    made = make_trace().turns[0].masks
    for key in (0, 3, 4):
        drawn = page.locator(f'#episode path.mask[data-mask="{key}"]').bounding_box()
        mask = made[key].mask
        assert drawn and mask
        box = mask.box
        expected = [shown["x"] + box.x1 * scale, shown["y"] + box.y1 * scale, box.width * scale, box.height * scale]
        assert [drawn[name] for name in ("x", "y", "width", "height")] == pytest.approx(expected, abs=4)
    alt = str(page.locator("#episode figure [aria-label], #episode figure img").first.evaluate("e => e.alt || e.ariaLabel"))
    assert "mask of obj1, 3,152\u00a0px" in alt and "mask of obj2, no pixel" in alt and "gold mask of obj2 (aorta)" in alt


def test_an_object_has_one_colour_in_text_and_picture(open_trace) -> None:
    page = open_trace()
    colours = {}
    for key in ("0", "3", "4"):
        drawn = colour(page, f'path.mask[data-mask="{key}"]')
        assert drawn == colour(page, f'.trace .mention[data-mask="{key}"]') != ""
        colours[key] = drawn
    assert colours["0"] == colours["4"] != colours["3"]
    assert colour(page, "path.gold") not in colours.values()
    assert page.locator("text.label").all_text_contents() == ["1", "?"]


def test_a_mention_lights_its_mask_by_pointer_and_by_keyboard(open_trace) -> None:
    page = open_trace()
    lit = page.locator("#episode path.mask.lit")
    assert lit.count() == 0
    page.hover('.trace .mention[data-mask="3"]')
    expect(lit).to_have_attribute("data-mask", "3")
    page.hover("h1")
    expect(lit).to_have_count(0)
    page.keyboard.press("o")
    expect(lit).to_have_attribute("data-mask", "0")
    page.keyboard.press("Tab")
    expect(lit).to_have_count(0)  # obj2 has no pixel
    assert page.evaluate("document.activeElement.ariaLabel") == "mask of obj2, no pixel"
    page.keyboard.press("O")
    page.hover('.trace .mention[data-mask="3"]')
    expect(lit).to_have_attribute("data-mask", "3")
    page.hover("h1")
    expect(lit).to_have_attribute("data-mask", "0")  # still has the focus
    page.hover('path.mask[data-mask="3"]')
    expect(page.locator(".trace .mention.lit")).to_have_text("[SEG]")


def test_masks_without_a_pixel_are_named_in_the_text(open_trace) -> None:
    page = open_trace()
    mentions = page.locator(".trace .mention").all_inner_texts()
    assert mentions == ["<obj1> [SEG]", "<obj2> [SEG] no pixel", "<obj3>\n[SEG] no mask", "[SEG]", "<obj1> [SEG]"]
    text = page.locator(".trace").evaluate("element => element.textContent")
    assert text.replace(" no pixel", "").replace(" no mask", "") == make_trace().turns[0].text
    page.click("text=5 masks")
    rows = [row.split("\t") for row in page.locator("table.masks tbody tr").all_inner_texts()]
    assert rows[0] == ["obj1", "reasoning", "3,152\u00a0px", "0.875"] and rows[1][2] == "no pixel" and rows[2][2] == "no mask"
    assert [row[:2] for row in rows[4:]] == [["obj1", "answer"], ["obj1 nodule", "gold"], ["obj2 aorta", "gold"]]


def test_gold_masks_are_dashed_and_can_be_hidden(open_trace) -> None:
    page = open_trace()
    gold = page.locator("#episode path.mask.gold")
    expect(gold).to_have_count(2)
    assert gold.first.evaluate("path => getComputedStyle(path).strokeDasharray") != "none"
    box = page.locator("input.gold-masks")
    page.keyboard.press("d")
    expect(gold.first).to_be_hidden()
    expect(box).not_to_be_checked()
    page.keyboard.press("j")
    assert page.locator("#episode path").count() == 0  # an episode without masks
    page.keyboard.press("k")
    expect(gold.first).to_be_hidden()
    box.check()
    expect(gold.first).to_be_visible()


def test_mentions_that_cannot_be_told_from_text_are_in_the_table(tmp_path, show) -> None:
    trace = make_trace()
    turn = trace.turns[0]
    spelled = make_trace(turns=(type(turn)(**{**vars(turn), "text": turn.text + " [SEG]"}),))
    page = show(write_report(tmp_path, [ReportSection("played", [spelled])], title="t").as_uri())
    assert page.locator(".trace .mention").count() == 0
    page.hover("table.masks .mention >> nth=0")
    expect(page.locator("#episode path.mask.lit")).to_have_attribute("data-mask", "0")


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1280, "dark")])
def test_a_page_with_masks_is_legible_and_no_wider_than_the_window(width, scheme, open_trace) -> None:
    page = open_trace(width=width, scheme=scheme)
    page.click("text=5 masks")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.hover('.trace .mention[data-mask="1"]')
    assert page.evaluate(CONTRASTS) == []
