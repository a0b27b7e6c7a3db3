"""Reports: what is written comes back, and what a model wrote stays text, also in a real browser."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from vitar_jax.episodes.trajectory import Turn
from vitar_jax.errors import DataError
from vitar_jax.evaluation.report import SHARD, ReportSection, write_report
from vitar_jax.evaluation.scoring import score
from vitar_jax.evaluation.summary import summary_table

HOSTILE = '</script><img src=x onerror="document.title=1"> <!-- <script> \u2028 \u202e \U0001fac1 ${1} {{ 1 }} "\'\\ \ud800 end'
SHOWN = HOSTILE.replace("\ud800", "\ufffd")  # half a character cannot be shown


@pytest.fixture
def hostile(make_trajectory):
    """A trajectory in which everything a model or a data set can write is hostile."""
    trajectory = make_trajectory(0, thought=HOSTILE, answer=HOSTILE, sample_id="a/b#c%2F?<i>")
    action = {"name": HOSTILE, "arguments": {"__proto__": HOSTILE, "image": [1]}}
    broken = Turn(2, 4, HOSTILE, HOSTILE, action, error=("bad_box", HOSTILE))
    return dataclasses.replace(
        trajectory,
        question=HOSTILE,
        options=(("A", HOSTILE), ("B", "rows")),
        turns=(trajectory.turns[0], broken, *trajectory.turns[1:]),
    )


@pytest.fixture
def report(tmp_path, make_trajectory, hostile):
    """A report of two sections, and the trajectories in them."""
    sections = {
        "Two looks <after> GRPO": [hostile, make_trajectory(1), make_trajectory(1, member=1, answer="A")],
        "two looks: after GRPO": [make_trajectory(1), make_trajectory(2, box=None, answer=None)],
    }
    page = write_report(
        tmp_path / "report",
        [ReportSection(name, iter(trajectories)) for name, trajectories in sections.items()],
        title=f"Title {HOSTILE}",
        summary={name: score(trajectories).to_json() for name, trajectories in sections.items()},
    )
    return page, sections


def read_script(path: Path):
    """What a data script pushes, having checked that it can do nothing else."""
    match = re.fullmatch(r"\(window\.report = window\.report \|\| \[\]\)\.push\((.*)\);\n", path.read_text("utf-8"))
    assert match and not set("<\u2028\u2029\n") & set(match[1])
    return json.loads(match[1])


def read_episodes(folder: Path):
    """[(entry, episode)] in the order of the report."""
    entries = read_script(folder / "data/index.js")["entries"]
    shards = {entry["shard"]: read_script(folder / f"data/{entry['shard']}.js") for entry in entries}
    assert all(name == shard["shard"] for name, shard in shards.items())
    return [(entry, shards[entry["shard"]]["episodes"][entry["place"]]) for entry in entries]


def test_episodes_come_back_as_they_were(report):
    page, sections = report
    pairs = read_episodes(page.parent)
    expected = [trajectory for trajectories in sections.values() for trajectory in trajectories]
    assert len(pairs) == len(expected)
    for (entry, episode), trajectory in zip(pairs, expected, strict=True):
        assert entry["sample_id"] == episode["sample_id"] == trajectory.sample_id
        assert entry["correct"] == episode["correct"] == (trajectory.predicted_answer == trajectory.answer)
        assert dict(episode["rewards"]) == trajectory.rewards
        assert tuples(episode["gold"]) == tuple(box.xyxy for box in trajectory.boxes)
        assert tuples(episode["options"]) == as_shown(trajectory.options)
        for name in ("question", "answer", "end_reason"):
            assert episode[name] == as_shown(getattr(trajectory, name))
        assert episode["predicted"] == as_shown(trajectory.predicted_answer)
        for shown, turn in zip(episode["turns"], trajectory.turns, strict=True):
            assert (shown["text"], shown["thought"]) == as_shown((turn.text, turn.thought))
            assert (shown["action"] and json.loads(shown["action"])) == as_shown(turn.action)
            assert tuples(shown["error"]) == as_shown(turn.error)
            assert tuples(shown["boxes"]) == turn.boxes_original
            assert shown["image"] == turn.image


def as_shown(value):
    """`value` with its strings as a report shows them."""
    if isinstance(value, str):
        return value.replace("\ud800", "\ufffd")
    if isinstance(value, dict):
        return {as_shown(key): as_shown(item) for key, item in value.items()}
    return type(value)(map(as_shown, value)) if isinstance(value, tuple | list) else value


def tuples(value):
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def test_every_image_is_written_once(report):
    page, sections = report
    folder = page.parent / "images"
    images = {i.sha256: i for ts in sections.values() for t in ts for i in t.images}
    wholes = [path for path in folder.iterdir() if path.stem in images]
    assert len(wholes) == len(images)
    for path in wholes:
        assert Image.open(path).tobytes() == images[path.stem].pixels.tobytes()
    # 448 px pictures that the model saw at 84 px are kept at that size too.
    smaller = [path for path in folder.iterdir() if path.stem not in images]
    assert len(smaller) == sum(image.pixels.size == (448, 448) for image in images.values())
    assert {Image.open(path).size for path in smaller} == {(84, 84)}
    for _, episode in read_episodes(page.parent):
        for image in episode["images"]:
            assert all((folder / name).exists() for name in (image["file"], image["seen"]) if name)


def test_sections_are_cut_into_shards_with_a_key_for_each_episode(tmp_path, make_trajectory):
    trajectory = make_trajectory(0)
    page = write_report(tmp_path, [ReportSection("x", [trajectory] * (2 * SHARD + 1))], title="t")
    pairs = read_episodes(page.parent)
    assert [entry["place"] for entry, _ in pairs] == [*range(SHARD), *range(SHARD), 0]
    assert len({entry["shard"] for entry, _ in pairs}) == 3
    assert len({entry["key"] for entry, _ in pairs}) == len(pairs)


def test_a_report_is_complete_and_asks_nothing_of_a_network(report):
    page, _ = report
    html = page.read_text()
    assert "<img src=x" not in html and "<!-- <script>" not in html
    for address in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert address == "data:," or address.startswith("#") or (page.parent / address).is_file()
    for path in page.parent.glob("assets/*"):
        addresses = re.findall(r"(?:https?:)?//[a-z][^\s\"']*\.[^\s\"']+", path.read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}  # a name, never asked for


def test_a_report_can_be_written_again_over_an_older_one(report):
    page, sections = report
    before = {path: path.read_bytes() for path in page.parent.rglob("*") if path.is_file()}
    name, trajectories = next(iter(sections.items()))
    write_report(page.parent, [ReportSection(name, trajectories)], title="newer")
    assert len(read_episodes(page.parent)) == len(trajectories)
    assert all(path.read_bytes() == old for path, old in before.items() if path.suffix == ".png")


def test_figures_are_copied(tmp_path, make_trajectory):
    figure = tmp_path / "my #1 curves.png"
    Image.new("L", (8, 8)).save(figure)
    page = write_report(tmp_path / "report", [], title="t", figures=[figure, figure])
    sources = re.findall(r'img src="(figures/[^"]*)"', page.read_text())
    assert len(set(sources)) == 2
    assert all((page.parent / source).read_bytes() == figure.read_bytes() for source in sources)
    with pytest.raises(DataError, match="no such figure"):
        write_report(tmp_path / "report", [], title="t", figures=[tmp_path / "none.png"])


def test_summary_in_words():
    rows = {
        "one": {"n": 1024, "accuracy": 0.5, "interval": [0.4, 0.6], "iou": None, "extra_thing": 0.12345},
        "two": {"accuracy": None, "interval": None, "extra_thing": "so so"},
    }
    table = summary_table(rows)
    assert table.columns == ["Episodes", "Accuracy", "extra thing"]
    assert table.rows == [
        ("one", [("1,024", ""), ("50.0 %", "40.0 – 60.0"), ("0.1235", "")]),
        ("two", [("–", ""), ("–", ""), ("so so", "")]),
    ]


# --- in a browser ---------------------------------------------------------------------------------


class _Page(HTMLParser):
    """The elements of a page, and its text outside scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._scripts = 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._scripts += tag == "script"

    def handle_endtag(self, tag):
        self._scripts -= tag == "script"

    def handle_data(self, data):
        self.text += "" if self._scripts else data


@pytest.fixture
def browse(tmp_path):
    """Opens an address in a headless browser and returns the page as it stands once its scripts have run."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is installed")

    def open_page(address: str) -> _Page:
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
            "--disable-background-networking --disable-component-update --virtual-time-budget=5000 --dump-dom"
        )
        command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'browser'}", address]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        return _Page(done.stdout.decode())

    return open_page


def test_a_browser_shows_what_was_written_as_text(report, browse):
    page, _ = report
    address = f"{page.as_uri()}#two-looks-after-grpo/a/b%23c%252F%3F%3Ci%3E/0"
    shown = browse(address)
    for words in ("Title " + SHOWN, "a/b#c%2F?<i>", "What the tool returned", "✗ wrong", "1 of 5"):
        assert words in shown.text
    # Thought, error, question, option, answer, and the turn as written.
    assert shown.text.count(SHOWN) >= 6
    assert all("onerror" not in attributes for _, attributes in shown.elements)
    assert {a["src"].split("/")[0] for tag, a in shown.elements if tag == "img"} == {"images"}
    boxes = [a for tag, a in shown.elements if tag == "rect" and a["class"] in ("look", "gold")]
    assert {"x": "100", "y": "100", "width": "100", "height": "100", "class": "look"} in boxes
    assert {"x": "120", "y": "120", "width": "60", "height": "60", "class": "gold"} in boxes


def test_a_browser_opens_the_first_episode_of_a_section(report, browse):
    page, _ = report
    shown = browse(f"{page.as_uri()}#two-looks-after-grpo-2")
    assert "2 episodes of 5" in shown.text and "1 of 2" in shown.text
    assert "spot upper left zoom close" in shown.text and "✓ right" in shown.text
