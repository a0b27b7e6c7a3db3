"""Reports of searches in a real browser: looks numbered on the image, modes, and both streams of a group."""

import pytest
from playwright.sync_api import Page, expect

from tests.kit.trajectories import make_search, make_trajectory
from vitar_jax.evaluation.report import ReportSection, write_report

UPPER, LOWER, CLOSER = (100.0, 100.0, 200.0, 200.0), (240.0, 260.0, 400.0, 420.0), (280.0, 300.0, 360.0, 380.0)


@pytest.fixture
def page(tmp_path, show) -> Page:
    """A report of a group of two policy episodes and two searches of an expert, in the order of their members."""
    searches = [
        make_search(
            *boxes, stream="expert", member=number, metadata={"search": number, "modes": modes, "confidences": confidences}
        )
        for number, (boxes, modes, confidences) in enumerate(
            [((LOWER, CLOSER, UPPER), ["scan", "drill", "drill"], [0.5, 0.75, 0.9]), ((UPPER,), ["drill"], [0.86])]
        )
    ]
    policy = [make_search(LOWER, LOWER, member=0), make_trajectory(0, member=1)]
    played = [searches[1], policy[0], searches[0], policy[1], make_trajectory(1)]
    written = write_report(tmp_path / "report", [ReportSection("played", played)], title="t", images=True)
    return show(f"{written.as_uri()}#played/phantom-0/expert-0")


def numbers(page: Page, section: str) -> list[tuple[str, float, float]]:
    """The numbers that are drawn, with the corners of their boxes as shares of the image's side."""
    found = []
    for figure in page.locator(f"{section} figure").all():
        frame = figure.locator("svg").bounding_box()
        for label in figure.locator("text.number").all():
            place = label.bounding_box()
            assert frame and place
            inside = (place["x"] - frame["x"]) / frame["width"], (place["y"] - frame["y"]) / frame["height"]
            found.append((label.text_content() or "", *inside))
    return found


def test_looks_are_numbered_on_the_image_and_on_their_turns(page):
    overview = numbers(page, "#episode .looks")
    assert [text for text, *_ in overview] == ["1", "2", "3"]
    for (_, x, y), box in zip(overview, (LOWER, CLOSER, UPPER), strict=True):
        assert 0 < x - box[0] / 448 < 0.05 and -0.02 < y - box[1] / 448 < 0.05
    assert page.locator("#episode .looks rect.look").count() == 3
    assert [text for text, *_ in numbers(page, "#episode .turn")] == ["1", "2", "3"]
    alt = page.locator("#episode .looks img").get_attribute("alt") or ""
    assert "look 2 at 280, 300, 360, 380" in alt and "the gold box at" in alt


def test_an_experts_steps_tell_their_mode_and_confidence(page):
    heads = page.locator("#episode .turn h4").all_inner_texts()
    assert [" ".join(head.split()) for head in heads] == [
        "Turn 1 look 1 scan confidence 0.50",
        "Turn 2 look 2 drill confidence 0.75",
        "Turn 3 look 3 drill confidence 0.90",
        "Turn 4",
    ]
    assert page.inner_text("#episode .looks p") == "1 scan, 2 drill, 3 drill"


def test_looks_at_one_place_share_a_label_and_a_single_look_has_no_number(page):
    page.evaluate("location.hash = 'played/phantom-0/0'")
    expect(page.locator("#episode .looks text.number")).to_have_text(["1, 2"])
    assert page.locator("#episode .looks p").count() == 0
    page.evaluate("location.hash = 'played/phantom-0/1'")
    expect(page.locator("#position")).to_have_text("4 of 5")
    expect(page.locator("#episode .turn")).to_have_count(2)
    assert page.locator("#episode text.number").count() == page.locator("#episode .looks").count() == 0


def test_both_streams_of_a_group_stand_side_by_side(page):
    page.keyboard.press("g")
    members = page.locator("#episode .member")
    expect(members).to_have_count(4)
    assert [name.split()[:2] for name in members.locator("> h4").all_inner_texts()] == [
        ["Member", "0"], ["Member", "1"], ["Expert", "0"], ["Expert", "1"],
    ]  # fmt: skip
    places = [member.bounding_box() for member in members.all()]
    assert len({place["y"] for place in places if place}) == 1 and len({place["x"] for place in places if place}) == 4
    assert page.get_attribute("#episode .member:nth-child(3)", "aria-current") == "true"
    assert members.nth(2).locator(".looks text.number").count() == 3
    page.keyboard.press("m")
    expect(page.locator("#episode .member:nth-child(4)")).to_have_attribute("aria-current", "true")
    links = page.locator("#episode .elsewhere a").all_inner_texts()
    assert [" ".join(link.split()[-2:]) for link in links] == ["member 0", "expert 0", "member 1"]


def test_episodes_are_filtered_by_stream(page):
    for stream, left in (("expert", "2 episodes of 5"), ("on_policy", "3 episodes of 5"), ("", "5 episodes")):
        page.select_option("#stream-filter", stream)
        expect(page.locator("#count")).to_have_text(left)
    assert page.locator("#stream-filter option").all_inner_texts() == ["All", "Expert", "On policy"]
