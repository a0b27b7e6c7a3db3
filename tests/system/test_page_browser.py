"""The server's page in a real browser: a question from the image to the answer, for everybody, and with this server alone."""

import dataclasses
import io
import itertools
import json
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, FileChooser, Page, expect
from pydicom import examples

from tests.kit.images import noise
from tests.kit.rollout import BLIND
from tests.kit.served import Served, load, serving
from tests.kit.text import SHOWN
from tests.kit.trajectories import make_search, make_trace, make_trajectory
from tests.system.test_report_browser import CONTRASTS, boxes
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, Trajectory
from vitar_jax.episodes.trajectory_files import read_trajectories
from vitar_jax.evaluation.report_episode import episode as report_episode
from vitar_jax.evaluation.report_files import whole
from vitar_jax.evaluation.report_masks import turn_masks
from vitar_jax.rollout.player import Player
from vitar_jax.runtime.endpoint import data_url

pytestmark = pytest.mark.slow

ASKED = "Which texture?"
PICTURE = noise(60, 50)


@pytest.fixture(scope="module")
def player(checkpoint: Path) -> Player:
    loaded = dataclasses.replace(load(checkpoint), protocol=BLIND, sampling=Sampling(1.0, seed=2))
    return dataclasses.replace(loaded, protocols={"blind": BLIND, "plain": loaded.protocols["plain"]})


@pytest.fixture(scope="module")
def served(player: Player) -> Iterator[Served]:
    with serving(player) as running:
        yield running


@pytest.fixture
def open_page(served: Served, show: Callable[..., Page]) -> Callable[..., Page]:
    return lambda **how: show(f"{served.url}/", ready="#protocol", **how)


def file(name: str, content: bytes) -> Any:
    return {"name": name, "mimeType": "", "buffer": content}


def png() -> bytes:
    content = io.BytesIO()
    PICTURE.save(content, "PNG")
    return content.getvalue()


def stream(*trajectories: Trajectory) -> str:
    """Returns the reply with which a server would stream these episodes, one text per word."""
    events: list[dict[str, Any]] = []
    for trajectory in trajectories:
        for turn in trajectory.turns:
            events += ({"type": "text", "text": word} for word in re.split(r"(?<= )", turn.text))
            image = None if turn.image is None else data_url(trajectory.images[turn.image].pixels)
            shown = {"shown_masks": turn_masks(trajectory.token_ids, turn, None)} if turn.masks else {}
            events.append({"type": "turn", **turn.to_json(), **shown, "image_url": image})
        view = report_episode(trajectory, None, "", None, None)
        end = {"predicted_answer": trajectory.predicted_answer, "end_reason": trajectory.end_reason}
        events.append({"type": "end", **end, "episode": view})
    chunks = [{"id": "x", "event": event, "choices": [{"index": 0, "delta": {}}]} for event in events]
    return whole("".join(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks)) + "data: [DONE]\n\n"


def replay(page: Page, *trajectories: Trajectory, cut: str = "") -> None:
    """Asks, and answers with recorded episodes, up to the first event of a type `cut`."""
    body = stream(*trajectories)
    if cut:
        body = "".join(itertools.takewhile(lambda event: f'"type": "{cut}"' not in event, body.splitlines(keepends=True)))
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    picture = io.BytesIO()
    trajectories[0].images[0].pixels.save(picture, "PNG")
    page.set_input_files("#files", file("slice.png", picture.getvalue()))
    expect(page.locator("#chosen li")).to_have_count(1)
    page.fill("#question", trajectories[0].question)
    page.keyboard.press("Enter")
    expect(page.locator("#episode .outcome" if not cut else "#episode .turn")).to_be_visible()


def a_seed_that_looks(player: Player) -> int:
    """Returns a seed under which a tool returns an image."""
    for seed in range(40):
        drawing = dataclasses.replace(player, sampling=Sampling(1.0, seed=seed))
        if len(drawing.finish(drawing.begin(Sample("question", ASKED, (PICTURE,), ""))).images) > 1:
            return seed
    raise AssertionError("no tool returned an image")


def test_a_question_is_played_in_front_of_the_user(player: Player, served: Served, open_page, tmp_path: Path) -> None:
    """By keyboard alone. The turns, boxes, images and the answer are the player's, and so are the saved record and report."""
    seed = a_seed_that_looks(player)
    local = dataclasses.replace(player, sampling=Sampling(1.0, seed=seed))
    expected = local.record(local.finish(local.begin(Sample("question", ASKED, (PICTURE,), ""))))
    page = open_page(reduced_motion="reduce")
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#files")).to_be_focused()
    page.keyboard.press("Space")
    while not choosers:
        page.wait_for_timeout(5)
    choosers[0].set_files(file("noise.png", png()))
    expect(page.locator("#chosen img")).to_have_js_property("naturalWidth", PICTURE.width)
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "Remove noise.png"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type(ASKED)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # opens the settings
    for value in ("", None, "1", str(seed)):  # options, protocol, temperature, seed
        page.keyboard.press("Tab")
        if value is not None:
            page.keyboard.type(value)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#episode .outcome")).to_be_visible(timeout=60_000)
    expect(page.locator("#status")).to_contain_text("Answer: ")
    turns = page.locator("#episode .turn")
    assert turns.count() == len(expected.turns)
    for shown, turn in zip(turns.all(), expected.turns, strict=True):
        assert turn.text.strip() in shown.evaluate("element => element.textContent")
    looked_at = [box for turn in expected.turns for box in turn.boxes_original]
    assert set(boxes(page, "look")) == {(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in looked_at}
    returned = page.locator("#episode figure", has_text="What the tool returned").locator("img")
    sizes = returned.evaluate_all("images => images.map((image) => [image.naturalWidth, image.naturalHeight])")
    assert sizes == [list(image.pixels.size) for image in expected.images[1:]] and sizes
    with page.expect_download() as download:
        page.click("text=Save the trajectory")
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    (saved,) = read_trajectories(tmp_path)
    assert saved.to_json() == expected.to_json()
    with page.expect_popup() as popup:
        page.click("text=Open in the report")
    report = popup.value
    expect(report.locator("#episode .turn")).to_have_count(len(expected.turns))
    expect(report.locator("#episode img").first).to_have_js_property("naturalWidth", PICTURE.width)


def test_text_grows_and_can_be_stopped(player: Player, served: Served, open_page) -> None:
    page = open_page()
    page.fill("#question", ASKED)
    page.click("summary")
    page.select_option("#protocol", "blind")
    left, steps, step = threading.Event(), itertools.count(), player.scheduler.step
    player.scheduler.step = lambda: (next(steps) < 2 or left.wait(60)) and step()  # type: ignore[method-assign]
    try:
        page.focus("#submit")
        page.keyboard.press("Enter")
        growing = page.locator("#episode .growing")
        expect(growing).not_to_be_empty()
        assert page.evaluate("document.activeElement.id") == "stop"
        assert page.get_attribute("#episode .turn", "aria-busy") == "true"
        page.keyboard.press("Escape")
        expect(page.locator("#status")).to_have_text("Stopped.")
        expect(page.locator("#stop")).to_be_hidden()
        assert page.evaluate("document.activeElement.id") == "submit"
        while served.server.metrics.registry.get_sample_value("vitar_episodes"):
            page.wait_for_timeout(5)
    finally:
        left.set()
        del player.scheduler.step
    assert page.inner_text("#problem") == ""


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_images_are_dropped_or_pasted(how: str, open_page) -> None:
    page = open_page()
    page.evaluate(
        """([how, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "here.png"));
            const event = how === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
        }""",
        [how, list(png())],
    )
    expect(page.locator("#chosen img")).to_have_attribute("alt", re.compile("^here.png, 60.×.50.px$"))
    page.click("text=Remove")
    expect(page.locator("#chosen li")).to_have_count(0)
    assert page.evaluate("document.activeElement.id") == "files"


def test_dicom_is_shown_and_a_damaged_file_is_named(open_page) -> None:
    page = open_page(refused=True)
    page.set_input_files("#files", [file("knee.dcm", Path(examples.get_path("mr")).read_bytes()), file("a.png", png()[:200])])
    expect(page.locator("#chosen img")).to_have_js_property("naturalWidth", 64)
    expect(page.locator("#problem")).to_contain_text("a.png: damaged or truncated")


def test_a_refusal_is_one_sentence(open_page) -> None:
    page = open_page(refused=True)
    page.fill("#question", "lesion " * 500)
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("tokens")
    expect(page.locator("#episode")).to_be_empty()
    expect(page.locator("#submit")).to_be_enabled()


def test_a_server_with_a_key_asks_for_it(player: Player, show) -> None:
    with serving(player, key="opensesame") as served:
        page = show(f"{served.url}/", ready="#problem", refused=True)
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("opensesame")
        page.keyboard.press("Tab")
        expect(page.locator("#protocol option")).to_have_count(2)
        expect(page.locator("#problem")).to_be_empty()


def test_what_a_model_wrote_is_shown_as_text(hostile, open_page) -> None:
    page = open_page()
    replay(page, hostile)
    text = page.evaluate("document.body.textContent")
    assert text.count(SHOWN) >= 6 and page.locator("[onerror]").count() == 0


@pytest.mark.parametrize(("motion", "strokes"), [("no-preference", ["casing", "look"]), ("reduce", [])])
def test_a_box_is_drawn_stroke_by_stroke_unless_the_user_wants_stillness(motion: str, strokes: list[str], open_page) -> None:
    page = open_page(reduced_motion=motion)
    page.evaluate(
        """() => {
            window.strokes = [];
            const animate = Element.prototype.animate;
            Element.prototype.animate = function (...how) {
                if (how[0][0].width === "0px") window.strokes.push(this.getAttribute("class"));
                return animate.apply(this, how);
            };
        }"""
    )
    replay(page, make_trajectory(0))
    assert page.evaluate("window.strokes") == strokes


def test_masks_and_gazes_are_shown(open_page) -> None:
    page = open_page()
    replay(page, make_trace())
    expect(page.locator('#episode path.mask[data-mask="0"]')).to_be_visible()
    page.hover('.trace .mention[data-mask="3"]')
    expect(page.locator("#episode path.mask.lit")).to_have_attribute("data-mask", "3")
    page = open_page()
    replay(page, make_search((40.0, 40.0, 200.0, 160.0), (220.0, 240.0, 400.0, 400.0)))
    assert page.locator("#episode .looks text.number").all_text_contents() == ["1", "2"]


def test_masks_are_drawn_as_their_turn_ends(open_page) -> None:
    """Before the end of the episode, which changes nothing about them."""
    page, shapes = open_page(), """() => [...document.querySelectorAll("#episode path.mask:not(.gold)")].map((path) =>
        [path.dataset.mask, path.getAttribute("d"), path.getAttribute("class").replace(" appear", "")])"""
    replay(page, make_trace(), cut="end")
    expect(page.locator('#episode path.mask[data-mask="0"]')).to_be_visible()
    assert page.locator("#episode .outcome").count() == 0
    drawn = page.evaluate(shapes)
    page = open_page()
    replay(page, make_trace())
    assert page.evaluate(shapes) == drawn


def test_nothing_can_be_loaded_from_elsewhere(served: Served, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(served.url)
    refused = page.evaluate(
        """() => new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", (event) => resolve(event.blockedURI));
            fetch("http://127.0.0.1:9/").catch(() => setTimeout(resolve, 1000, "nothing was refused"));
        })"""
    )
    assert refused == "http://127.0.0.1:9/"
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (1280, "light")])
def test_the_page_is_legible_named_and_no_wider_than_the_window(width: int, scheme: str, open_page) -> None:
    page = open_page(width=width, scheme=scheme)
    page.click("summary")
    replay(page, make_search((40.0, 40.0, 200.0, 160.0), (220.0, 240.0, 400.0, 400.0)))
    page.evaluate("document.getAnimations().forEach((one) => one.finish())")
    assert page.evaluate(CONTRASTS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, select, input, textarea, a")].filter((control) =>
            !(control.getAttribute("aria-label") || control.textContent.trim() || control.labels?.[0]?.textContent.trim())
        ).map((control) => control.outerHTML)"""
    )
    assert unnamed == []
