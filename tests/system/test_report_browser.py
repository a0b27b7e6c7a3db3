"""Reports in a real browser, opened from disk: what they show, to everybody, and that they ask nothing of a network."""

import re
import shutil

import pytest
from playwright.sync_api import Page, expect

from tests.kit.text import SHOWN
from vitar_jax.evaluation.report import ReportSection, write_report

pytestmark = pytest.mark.slow


def boxes(page: Page, kind: str) -> list[tuple[float, ...]]:
    names = ("x", "y", "width", "height")
    found = page.locator(f"#episode figure rect.{kind}").all()
    return [tuple(float(rect.get_attribute(name) or "nan") for name in names) for rect in found]


def test_what_was_written_is_shown_as_text(report, show):
    page = show(f"{report[0].as_uri()}#two-looks-after-grpo/a/b%23c%252F%3F%3Ci%3E/0")
    page.select_option("#colouring", "probability")
    page.click("text=as the model read and wrote")
    text = page.evaluate("document.body.textContent")
    for words in (f"Title {SHOWN}", "a/b#c%2F?<i>", "What the tool returned", "✗ wrong", "1 of 5"):
        assert words in text
    # Thought, error, question, option, answer, the turn as written, and tokens.
    assert text.count(SHOWN) >= 8
    assert page.get_attribute("#data-filter optgroup", "label") == SHOWN
    assert page.title().split() == f"Title {SHOWN}".split()
    assert page.locator("[onerror]").count() == 0
    sources = page.eval_on_selector_all("img", "images => images.map(image => image.getAttribute('src').split('/')[0])")
    assert set(sources) == {"images"}
    assert (100, 100, 100, 100) in boxes(page, "look") and (120, 120, 60, 60) in boxes(page, "gold")


def test_the_address_of_a_section_opens_its_first_episode(report, show):
    page = show(f"{report[0].as_uri()}#two-looks-after-grpo-2")
    text = page.inner_text("body")
    assert "2 episodes of 5" in text and "1 of 2" in text
    assert "spot upper left zoom close" in text and "✓ right" in text


def test_nothing_can_be_loaded_from_a_network(report, browser):
    """The page's own policy forbids it, also to a script that should not be there."""
    page = browser.new_page()
    page.goto(report[0].as_uri())
    refused = page.evaluate(
        """() => new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", (event) => resolve(event.blockedURI));
            fetch("http://127.0.0.1:9/").catch(() => setTimeout(resolve, 1000, "nothing was refused"));
        })"""
    )
    assert refused == "http://127.0.0.1:9/"
    page.close()


@pytest.mark.parametrize("single_file", [False, True])
def test_images_are_shown_under_the_boxes(single_file, open_group, group):
    page = open_group(single_file=single_file)
    images = page.locator("#episode img")
    expect(images).to_have_count(2)
    for image in images.all():
        expect(image).to_have_js_property("naturalWidth", 84)
    page.keyboard.press("s")
    expect(images.first).to_have_js_property("naturalWidth", group[0].images[0].pixels.width)


def test_boxes_are_drawn_on_empty_frames_where_images_are_left_out(open_group):
    page = open_group(images=False)
    assert page.locator("#episode img").count() == 0
    frame = page.locator("#episode .frame.empty svg").first
    assert frame.get_attribute("viewBox") == "0 0 448 448"
    size = frame.bounding_box()
    assert size and size["width"] == pytest.approx(size["height"]) and size["width"] > 100
    drawn = page.locator("#episode figure rect.look").bounding_box()
    assert drawn and drawn["x"] - size["x"] == pytest.approx(size["width"] * 100 / 448, abs=3)
    assert boxes(page, "look") == [(100, 100, 100, 100)] and boxes(page, "gold") == [(120, 120, 60, 60)]
    assert "image omitted" in str(frame.get_attribute("aria-label"))


def test_rewards_are_shown_by_part(open_group):
    page = open_group()
    assert page.inner_text("#episode .rewards").split() == ["accuracy", "1", "length", "−0.25", "Reward", "0.75"]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#episode .outcome")).to_contain_text("No reward")


def test_members_of_a_group_stand_side_by_side(open_group):
    page = open_group("#played/phantom-0/1")
    page.keyboard.press("g")
    members = page.locator("#episode .member")
    assert [text.split()[1] for text in members.locator("h4").all_inner_texts() if "Member" in text] == ["0", "1", "2"]
    places = [member.bounding_box() for member in members.all()]
    assert len({place["y"] for place in places if place}) == 1 and len({place["x"] for place in places if place}) == 3
    assert members.locator("figure").count() == 6 and boxes(page, "look") == [(100, 100, 100, 100)] * 3
    assert page.get_attribute("#episode .member:nth-child(2)", "aria-current") == "true"
    page.keyboard.press("m")
    assert page.get_attribute("#episode .member:nth-child(3)", "aria-current") == "true"
    page.keyboard.press("j")
    expect(members).to_have_count(3)
    expect(page.locator("#episode h3")).to_contain_text("z")
    page.keyboard.press("g")
    expect(members).to_have_count(0)


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_are_coloured(open_group):
    page = open_group()
    tokens = page.locator("#episode .turn .tokens span")
    assert tokens.count() == 0

    def kinds() -> list[tuple[str, str]]:
        return tokens.evaluate_all("spans => spans.map((span) => [span.textContent, span.className])")

    page.keyboard.press("c")
    # 0.99, 0.61, 0.14, 0.002
    assert kinds() == [["<1>", "p0"], ["<2>", "p1"], ["<3>", "p2"], ["<4>", "p4"]]
    assert "probability 60.7 %" in str(tokens.nth(1).get_attribute("title"))
    page.keyboard.press("j")
    assert kinds()[0] == ["<1>", "unsampled"]
    page.keyboard.press("c")
    assert [kind for _, kind in kinds()] == ["context", "learnt", "learnt", "learnt"]
    page.keyboard.press("c")
    assert [kind for _, kind in kinds()] == ["context", "down3", "down3", "down3"]
    page.keyboard.press("k")
    assert [kind for _, kind in kinds()] == ["up2"] * 4
    page.keyboard.press("c")
    assert page.input_value("#colouring") == "plain" and tokens.count() == 0


def test_a_report_without_tokens_says_so(report, tmp_path, group, show):
    page = show(write_report(tmp_path / "x", [ReportSection("x", group)], title="t").as_uri())
    page.select_option("#colouring", "probability")
    expect(page.locator("#episode")).to_contain_text("contains no tokens")


# --- for everybody ----------------------------------------------------------------------------------------------------

CONTRASTS = """() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = channels(colour).map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        const colour = element && getComputedStyle(element).backgroundColor;
        return !element ? "rgb(255, 255, 255)" : channels(colour)[3] === 0 ? ground(element.parentElement) : colour;
    };
    const poor = [];
    for (const element of document.querySelectorAll("body *")) {
        const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!text || !element.checkVisibility() || element.closest(":disabled, svg, option, noscript, script, .skip")) continue;
        const [a, b] = [getComputedStyle(element).color, ground(element)].map(light);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) poor.push(`${element.outerHTML.slice(0, 80)}: ${ratio.toFixed(2)}`);
    }
    return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("colouring", ["probability", "mask", "advantage"])
def test_text_stands_out(scheme, colouring, open_group):
    """A contrast of 4.5, WCAG 2.2 AA."""
    page = open_group(scheme=scheme)
    page.select_option("#colouring", colouring)
    page.click("text=as the model read and wrote")
    assert page.evaluate(CONTRASTS) == []
    page.keyboard.press("g")
    page.click("#show-help")
    assert page.evaluate(CONTRASTS) == []


def test_every_control_has_a_name_and_shows_its_focus(open_group):
    page = open_group()
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, select, input, a")].filter((control) =>
            !(control.getAttribute("aria-label") || control.textContent.trim() || control.labels?.[0]?.textContent.trim())
        ).map((control) => control.outerHTML)"""
    )
    assert unnamed == []
    focused = []
    for _ in range(20):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"))
    assert {"answer-filter", "text-filter", "next", "colouring"} <= {name for name, _ in focused}
    assert {style for _, style in focused} == {"solid"}


@pytest.mark.parametrize("width", [320, 390, 1920])
def test_the_page_is_no_wider_than_the_window(width, open_group):
    page = open_group(width=width)
    for key in ("c", "g"):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.keyboard.press(key)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_damaged_report_says_so(tmp_path, group, show):
    page = write_report(tmp_path / "x", [ReportSection("x", group * 20)], title="t")
    (tmp_path / "x" / "data" / "001.js").write_text("report.")
    shutil.rmtree(tmp_path / "x" / "images")
    shown = show(f"{page.as_uri()}")
    shown.evaluate("window.addEventListener('error', (event) => event.preventDefault())")  # the browser's own complaint
    shown.select_option("#order-filter", "low")
    shown.fill("#text-filter", "rows")
    expect(shown.locator("#count")).to_have_text(re.compile("Cannot search: data/001.js is damaged"))
