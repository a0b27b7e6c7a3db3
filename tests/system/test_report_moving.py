"""Reports in a real browser: keys, addresses, filters, and two thousand episodes."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from vitar_jax.evaluation.report import SHARD, ReportSection, write_report

pytestmark = pytest.mark.slow

EPISODES, MEMBERS, TOKENS, KINDS = 2000, 8, 300, 16


def listed(page: Page) -> list[str]:
    return page.locator("#list .name").all_inner_texts()


def shown(page: Page) -> tuple[str, str]:
    """Which episode is shown: the place in the list, and the address."""
    return page.inner_text("#position"), page.url.partition("#")[2]


def test_keys_move(open_group):
    page = open_group()
    press = page.keyboard.press
    assert shown(page)[0] == "1 of 6"
    press("ArrowRight")
    assert shown(page) == ("2 of 6", "played/phantom-0/1")
    press("ArrowLeft")
    press("k")  # there is none before the first
    assert shown(page) == ("1 of 6", "played/phantom-0/0")
    press("m")
    assert shown(page) == ("2 of 6", "played/phantom-0/1")
    press("Shift+M")
    press("Shift+M")
    assert shown(page)[0] == "1 of 6"
    for number in (1, 2, 2):  # to the last
        press("t")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Turn {number}"
    press("Shift+T")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Turn 1"
    assert page.locator("#episode .turn").first.bounding_box()["y"] >= 0  # type: ignore[index]
    press("/")
    page.keyboard.type("jk")  # are letters here
    assert page.input_value("#text-filter") == "jk"
    page.fill("#text-filter", "")
    press("Escape")
    assert page.evaluate("document.activeElement.id") == "viewer"
    press("?")
    expect(page.locator("#help")).to_be_visible()
    press("j")  # the episode behind does not move
    press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    assert shown(page)[0] == "1 of 6"
    press("Control+ArrowRight")
    assert shown(page)[0] == "1 of 6"


def test_every_key_is_in_the_help(open_group):
    page = open_group()
    page.click("#show-help")
    assert page.locator("#help tr").count() == page.evaluate("KEYS.length") >= 11


def test_an_address_leads_to_an_episode(open_group):
    page = open_group("#played/z/2")
    assert shown(page) == ("6 of 6", "played/z/2")
    page.evaluate("location.hash = 'played/z/1'")
    expect(page.locator("#position")).to_have_text("5 of 6")
    page.click("#list li:nth-child(1) a")
    expect(page.locator("#position")).to_have_text("1 of 6")
    page.go_back()
    expect(page.locator("#position")).to_have_text("5 of 6")


def test_filters(open_group, group):
    page = open_group()

    def left(change: Callable[[], Any]) -> int:
        change()
        page.wait_for_timeout(250)
        found = int(page.inner_text("#count").split()[0])
        assert len(listed(page)) == found
        assert page.inner_text("#position").endswith(f"of {found}")
        return found

    select, fill = page.select_option, page.fill
    assert left(lambda: select("#answer-filter", "wrong")) == 1
    assert left(lambda: select("#answer-filter", "")) == len(group)
    assert left(lambda: select("#tool-filter", "failed")) == 3 and set(listed(page)) == {"z"}
    assert left(lambda: select("#tool-filter", "")) == len(group)
    assert left(lambda: select("#protocol-filter", "zoom")) == 3 and set(listed(page)) == {"z"}
    assert left(lambda: select("#protocol-filter", "")) == len(group)
    assert left(lambda: select("#data-filter", label="lung")) == 3 and set(listed(page)) == {"z"}
    assert left(lambda: select("#data-filter", "")) == len(group)
    assert left(lambda: fill("#least-reward", "0.5")) == 2 and set(listed(page)) == {"phantom-0"}
    assert left(lambda: (fill("#least-reward", ""), fill("#most-reward", "0.5"))) == 3 and set(listed(page)) == {"z"}
    assert left(lambda: fill("#most-reward", "")) == len(group)
    assert left(lambda: fill("#text-filter", "NO such z")) == 3
    assert shown(page)[1] == "played/z/0"  # the first that is left
    assert left(lambda: fill("#text-filter", "")) == len(group)
    left(lambda: select("#order-filter", "low"))
    rewards = page.locator("#list .quiet:last-child").all_inner_texts()
    assert rewards == ["0.00", "0.00", "0.00", "0.75", "0.75", ""]
    assert page.locator("#section-filter").is_hidden()  # there is one section


# --- thousands of episodes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory, make_trajectory) -> Path:
    """A report of 2,000 episodes in groups of eight, of 300 tokens each, with images."""
    kinds = [make_trajectory(number) for number in range(KINDS)]
    tokens = {
        "token_ids": tuple(range(TOKENS)),
        "loss_mask": (1,) * TOKENS,
        "logprobs": tuple(-math.log1p(n % 7) for n in range(TOKENS)),
        "vision_index": (-1,) * TOKENS,
    }
    played = (
        dataclasses.replace(
            kinds[number % KINDS],
            sample_id=f"sample-{number // MEMBERS}",
            group_id=f"sample-{number // MEMBERS}",
            member=number % MEMBERS,
            turns=(dataclasses.replace(kinds[number % KINDS].turns[0], end=TOKENS // 2), *kinds[number % KINDS].turns[1:]),
            **tokens,
        )
        for number in range(EPISODES)
    )
    return write_report(
        tmp_path_factory.mktemp("large"),
        [ReportSection("large", played)],
        title="Two thousand episodes",
        pieces=lambda token_ids: [f" word{token_id}" for token_id in token_ids],
        images=True,
    )


def test_only_what_is_in_sight_is_there(large, show):
    page = show(large.as_uri())

    def elements() -> int:
        return page.evaluate("document.querySelectorAll('*').length")

    def shards() -> list[int]:
        """Those whose script was run."""
        page.wait_for_timeout(100)
        return sorted(page.evaluate("[...arrived.keys()]"))

    assert page.evaluate("entries.length") == EPISODES
    assert elements() < 600 and page.locator("#list li").count() < 50
    assert shards() == [0]
    for _ in range(3):
        page.keyboard.press("j")
    assert shards() == [0] and elements() < 600
    page.evaluate("document.querySelector('#list').scrollTop = 1e9")
    expect(page.locator("#list li").last).to_contain_text(f"sample-{EPISODES // MEMBERS - 1}")
    assert page.locator("#list li").last.get_attribute("aria-posinset") == str(EPISODES)
    assert shards() == [0] and elements() < 600  # to scroll loads nothing
    page.locator("#list li a").last.click()
    expect(page.locator("#position")).to_have_text(f"2,000 of {EPISODES:,}")
    assert shards() == [0, (EPISODES - 1) // SHARD]
    page.evaluate(f"location.hash = {f'large/sample-{SHARD // MEMBERS * 4 - 1}/{MEMBERS - 1}'!r}")
    expect(page.locator("#position")).to_have_text(f"{SHARD * 4} of {EPISODES:,}")
    assert shards() == [0, 3, 4, (EPISODES - 1) // SHARD]  # the next episode's is there before it is asked for


def test_a_row_keeps_the_focus_while_the_list_scrolls(large, show):
    page = show(large.as_uri())
    row = page.locator("#list li a").nth(8)
    row.focus()
    page.evaluate("document.querySelector('#list').scrollTop = 200")
    page.wait_for_timeout(100)
    assert page.evaluate("[document.activeElement.tagName, document.activeElement.querySelector('.name')?.textContent]") == [
        "A",
        "sample-1",
    ]


@pytest.mark.parametrize("coloured", [False, True])
def test_a_key_shows_one_episode_and_leaves_nothing_behind(coloured: bool, large: Path, show: Callable[..., Page]) -> None:
    """The page does not grow with the episodes that were shown, nor with those in the report."""
    page = show(large.as_uri())
    if coloured:
        page.select_option("#colouring", "probability")
        page.locator("#viewer").focus()
    page.wait_for_timeout(200)
    page.evaluate("performance.clearMeasures()")
    rows, elements = [], []
    for keys in range(1, 21):
        page.keyboard.press("ArrowRight")
        for _ in range(500):  # not wait_for_function, which evaluates a string: the page's policy forbids that
            if page.evaluate("performance.getEntriesByName('episode shown').length") >= keys:
                break
            page.wait_for_timeout(10)
        assert page.inner_text("#position") == f"{keys + 1} of {EPISODES:,}"
        rows.append(page.locator("#list li").count())
        elements.append(page.evaluate("document.querySelectorAll('#episode *').length"))
    assert page.evaluate("performance.getEntriesByName('episode shown').length") == len(rows)
    assert max(rows) < 50
    assert max(elements[KINDS:]) <= max(elements[:KINDS]) < 2 * TOKENS + 500
