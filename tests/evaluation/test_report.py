"""Reports: what is written comes back, and what a model wrote stays text. How they look and move is for tests/system."""

import base64
import csv
import dataclasses
import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kit import tiny
from tests.kit.images import noise
from tests.kit.text import SHOWN
from tests.kit.trajectories import make_search, make_trace
from vitar_jax.episodes.actions import ToolCall
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, TrajectoryImage, Turn
from vitar_jax.episodes.trajectory_files import TrajectoryWriter
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.evaluation.report import MOST_IN_A_PAGE, SHARD, ReportSection, write_report
from vitar_jax.evaluation.summary import summary_table


def read_script(path: Path):
    """What a data script hands over, having checked that it can do nothing else."""
    match = re.fullmatch(r"report\.(index|shard)\((.*)\);\n", path.read_text("utf-8"))
    assert match and not set("<\u2028\u2029\n") & set(match[2])
    *number, text = json.loads(f"[{match[2]}]")  # strings of JSON are strings of JavaScript
    assert number == ([str(int(path.stem))] if match[1] == "shard" else [])
    return json.loads(text)


def read_episodes(folder: Path):
    """[(row, episode)] in the order of the report."""
    index = read_script(folder / "data/index.js")
    shards = {number: read_script(folder / f"data/{number:03d}.js") for _, number, _ in index["places"]}
    assert [row["section"] for row in index["rows"]] == [index["sections"][at]["name"] for at, _, _ in index["places"]]
    return [(row, shards[number][place]) for row, (_, number, place) in zip(index["rows"], index["places"], strict=True)]


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


def test_episodes_are_cut_into_shards_with_a_key_for_each_episode(tmp_path, make_trajectory):
    trajectory = make_trajectory(0)
    page = write_report(tmp_path, [ReportSection("x", [trajectory] * (2 * SHARD + 1))], title="t")
    index = read_script(page.parent / "data/index.js")
    assert [shard for _, shard, _ in index["places"]] == [*[0] * SHARD, *[1] * SHARD, 2]
    assert [place for _, _, place in index["places"]] == [*range(SHARD), *range(SHARD), 0]
    assert sorted(path.name for path in (page.parent / "data").iterdir()) == ["000.js", "001.js", "002.js", "index.js"]
    assert len({row["key"] for row in index["rows"]}) == 2 * SHARD + 1


def test_a_report_is_complete_and_asks_nothing_of_a_network(report):
    page, _ = report
    html = page.read_text()
    assert "<img src=x" not in html and "<!-- <script>" not in html
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(addresses) > 10
    for address in addresses:
        assert address == "data:," or address.startswith("#") or (page.parent / address).is_file()
    for path in page.parent.glob("assets/*"):
        addresses = re.findall(r"(?:https?:)?//[a-z][^\s\"']*\.[^\s\"']+", path.read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}  # a name, never asked for


def test_a_report_can_be_written_again_over_an_older_one(report):
    page, sections = report
    before = {path: path.read_bytes() for path in page.parent.rglob("*") if path.is_file()}
    name, trajectories = next(iter(sections.items()))
    write_report(page.parent, [ReportSection(name, trajectories)], title="newer", images=True)
    assert len(read_episodes(page.parent)) == len(trajectories)
    assert all(path.read_bytes() == old for path, old in before.items() if path.suffix == ".png")


def test_figures_are_copied(tmp_path, make_trajectory):
    figure = tmp_path / "my #1 curves.png"
    Image.new("L", (8, 8)).save(figure)
    page = write_report(tmp_path / "report", [], title="t", figures=[figure, figure])
    sources = re.findall(r'img src="(figures/[^"]*)"', page.read_text())
    assert len(set(sources)) == 2
    assert all((page.parent / source).read_bytes() == figure.read_bytes() for source in sources)
    with pytest.raises(DataError, match="figure does not exist"):
        write_report(tmp_path / "report", [], title="t", figures=[tmp_path / "none.png"])


def test_summary_in_words():
    rows = {
        "one": {"n": 1024, "score": {"value": 0.5, "interval": [0.4, 0.6]}, "iou": {"value": None}, "extra_thing": 0.12345},
        "two": {"score": None, "answered": {"value": 0.25, "interval": None}, "extra_thing": "so so"},
    }
    table = summary_table(rows)
    assert table.columns == ["Episodes", "Score", "Answered", "extra thing"]
    assert table.rows == [
        ("one", [("1,024", ""), ("50.0 %", "40.0 – 60.0"), ("–", ""), ("0.1235", "")]),
        ("two", [("–", ""), ("–", ""), ("25.0 %", ""), ("so so", "")]),
    ]


def test_images_are_left_out_unless_asked_for(report, make_trajectory):
    page, sections = report
    trajectories = sections["Two looks <after> GRPO"]
    stray = page.parent / "images" / "mine.png"
    shutil.copyfile(next(stray.parent.iterdir()), stray)
    write_report(page.parent, [ReportSection("x", trajectories)], title="t")
    assert list(stray.parent.iterdir()) == [stray]  # an older report's are gone, and nothing else
    for (_, episode), trajectory in zip(read_episodes(page.parent), trajectories, strict=True):
        for shown, image in zip(episode["images"], trajectory.images, strict=True):
            assert shown["file"] is shown["seen"] is None
            assert (shown["width"], shown["height"]) == image.pixels.size and shown["seen_size"] == [*image.size[::-1]]


def test_a_folder_of_trajectories_is_no_place_for_a_report(tmp_path, make_trajectory):
    TrajectoryWriter(tmp_path).write([make_trajectory(0)])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="needs a folder of its own"):
        write_report(tmp_path, [], title="t")
    assert sorted(tmp_path.rglob("*")) == before


def test_large_images_are_jpegs(tmp_path, make_trajectory):
    large = TrajectoryImage(Image.linear_gradient("L").resize((1200, 800)), (1, 30, 40), (420, 560))
    trajectory = dataclasses.replace(make_trajectory(0, box=None), images=(large,))
    write_report(tmp_path, [ReportSection("x", [trajectory])], title="t", images=True)
    names = {f"{large.sha256}.jpg": (1200, 800), f"{large.sha256}-560x420.png": (560, 420)}
    assert {path.name: Image.open(path).size for path in (tmp_path / "images").iterdir()} == names
    error = np.asarray(Image.open(tmp_path / "images" / f"{large.sha256}.jpg"), float) - np.asarray(large.pixels, float)
    assert abs(error).max() < 8


def test_a_single_file_holds_everything(tmp_path, make_trajectory, hostile):
    figure = tmp_path / "curves.png"
    Image.new("L", (8, 8)).save(figure)
    trajectories = [hostile, make_trajectory(1), *[make_trajectory(2, box=None)] * (MOST_IN_A_PAGE - 2)]
    sections = [ReportSection("x", trajectories)]
    page = write_report(tmp_path / "report", sections, title="t", figures=[figure], images=True, single_file=True)
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]
    html = page.read_text("utf-8")
    for address in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert address.startswith(("data:", "#"))
    for image in {image.sha256: image for trajectory in trajectories for image in trajectory.images}.values():
        inside = re.search(rf'images/{image.sha256}\.png\\":\\"data:image/png;base64,([^\\]*)', html)
        assert inside and Image.open(io.BytesIO(base64.b64decode(inside[1]))).tobytes() == image.pixels.tobytes()
    more = ReportSection("y", [make_trajectory(3)])
    with pytest.raises(ConfigError, match="at most 200 episodes"):
        write_report(tmp_path / "report", [*sections, more], title="t", single_file=True)
    assert page.read_text("utf-8") == html


def test_tokens_come_with_what_is_known_of_them(tmp_path):
    processor = tiny.processor(4)
    sample = Sample("s", "Où ? 日本", (noise(56, 56),), "A", (("A", "left"), ("B", "right")))
    episode = Episode(sample, PROTOCOLS["vitar"], processor, Limits(tokens=1200, turn_tokens=200), Sampling())
    turns = [write_turn("spöt \U0001fac1", "mark", box=[[1, 2, 50, 40]]), write_turn("now", "Terminate", answer="A")]
    for text in turns:
        token_ids = [*processor.chat.text(text), processor.chat.im_end]
        episode.add_turn(token_ids, [-0.01 * place for place in range(len(token_ids))], learn=text != turns[0])
    trajectory = episode.trajectory(stream="on_policy", policy_version=0, banned_sha256="")
    assert len(trajectory.images) == 2
    write_report(tmp_path, [ReportSection("x", [trajectory])], title="t", pieces=processor.chat.pieces)
    ((_, shown),) = read_episodes(tmp_path)

    pads = [processor.tokens(image.grid_thw) for image in trajectory.images]
    assert [(run["image"], run["count"]) for run in shown["tokens"] if "image" in run] == [*enumerate(pads)]
    texts = [run for run in shown["tokens"] if "text" in run]
    assert sum(len(run["text"]) for run in texts) == len(trajectory.token_ids) - sum(pads)
    spelled = processor.chat.decode([t for t in trajectory.token_ids if t != processor.chat.image_pad])
    assert "".join("".join(run["text"]) for run in texts) == spelled
    for number, (turn, text) in enumerate(zip(shown["turns"], turns, strict=True)):
        (run,) = (run for run in texts if run["start"] == turn["start"])
        assert "".join(run["text"]) == text + "<|im_end|>"
        assert run["mask"] == str(number) * len(run["text"])
        assert run["logprobs"] == [pytest.approx(-0.01 * place) for place in range(len(run["text"]))]
    between = [run for run in texts if run["start"] is None]
    assert between and all(run["logprobs"] is None and set(run["mask"]) == {"0"} for run in between)
    assert shown["turns"][0]["start"] < shown["turns"][1]["start"]


def test_looks_are_numbered_on_the_samples_image_with_an_experts_modes(tmp_path):
    boxes = [(100.0, 100.0, 200.0, 200.0), (0.0, 0.0, 90.0, 60.0)]
    played = make_search(*boxes)
    box = ((21.0, 42.0, 42.0, 84.0),)
    inside = Turn(0, 0, "", "closer", None, box, box, call=ToolCall("zoom", image=1))
    failed = dataclasses.replace(played.turns[0], error=("box_outside", "No."), image=None)
    chained = dataclasses.replace(played, turns=(failed, played.turns[0], inside, played.turns[-1]))
    searched = {"search": 3, "modes": ["scan", "drill", "drill"], "confidences": [0.25, math.nan]}
    expert = dataclasses.replace(played, stream="expert", metadata=searched)
    odd = dataclasses.replace(expert, metadata={"modes": [7, None], "confidences": "high"})
    claimed = dataclasses.replace(played, metadata=searched)  # a data set's own metadata
    write_report(tmp_path, [ReportSection("x", [played, chained, expert, odd, claimed])], title="t")
    plain, after, modes, none, own = (episode["looks"] for _, episode in read_episodes(tmp_path))
    look = {"on": 0, "mode": None, "confidence": None}
    assert plain == none == own == [look | {"turn": n, "boxes": [list(box)]} for n, box in enumerate(boxes)]
    # The first zoom enlarged 100 pixels to 84.
    expected = [100 + edge * 100 / 84 for edge in (21, 42, 42, 84)]
    assert [seen["turn"] for seen in after] == [1, 2] and after[1]["boxes"] == [pytest.approx(expected)]
    assert [(seen["mode"], seen["confidence"]) for seen in modes] == [("scan", 0.25), ("drill", None)]
    assert [row["key"] for row, _ in read_episodes(tmp_path)][2] == "x/phantom-0/expert-0"


def test_the_table_of_episodes_is_beside_the_page(tmp_path, make_trajectory, hostile):
    trajectories = [
        hostile,
        make_trajectory(1, rewards=None, metadata={"organ": "brain", "patient_id": "7", "url": "1", "all": "same"}),
        make_trajectory(2, error=("bad_box", "No."), metadata={"organ": "lung", "patient_id": "8", "url": "2", "all": "same"}),
        make_trajectory(3, answer="=HYPERLINK(1)", rewards={"iou": math.inf}, metadata={"organ": "lung"}, advantage=-0.5),
    ]
    write_report(tmp_path, [ReportSection("=x", trajectories)], title="t")
    rows = json.loads((tmp_path / "episodes.json").read_text("utf-8"))
    with (tmp_path / "episodes.csv").open(encoding="utf-8-sig", newline="") as file:
        sheet = list(csv.DictReader(file))
    assert rows == [row for row, _ in read_episodes(tmp_path)]
    assert [row["sample_id"] for row in rows] == [t.sample_id for t in trajectories]
    assert [row.get("reward") for row in rows] == [0.5, None, 1.5, None]
    assert [row["tool_error"] for row in rows] == ["bad_box", None, "bad_box", None]
    assert [row.get("metadata/organ") for row in rows] == [None, "brain", "lung", "lung"]
    # Whose image it is stays out of it, and so does what says nothing or everything.
    assert {key for row in rows for key in row if key.startswith("metadata/")} <= {"metadata/organ", "metadata/url"}
    for row, line in zip(rows, sheet, strict=True):
        for key, text in line.items():
            value = row.get(key)
            guarded = f"'{value}" if isinstance(value, str) and value.startswith("=") else value
            assert text == ("" if guarded is None else str(guarded))
    assert sheet[3]["predicted"] == "'=HYPERLINK(1)" and sheet[0]["predicted"] == SHOWN


def test_more_values_than_a_reader_would_choose_from_are_no_filter(tmp_path, make_trajectory):
    """Nor are those that almost name the sample."""
    first = make_trajectory(0)
    metadata = [{"few": n % 32, "many": n % 33, "name": n // 2} for n in range(66)]
    many = [dataclasses.replace(first, sample_id=str(n), metadata=said) for n, said in enumerate(metadata)]
    write_report(tmp_path, [ReportSection("x", many)], title="t")
    assert read_script(tmp_path / "data/index.js")["facets"] == ["metadata/few"]
    write_report(tmp_path, [ReportSection("x", many[:9])], title="t")
    assert read_script(tmp_path / "data/index.js")["facets"] == []
    write_report(tmp_path, [ReportSection("x", many[:10])], title="t")
    assert read_script(tmp_path / "data/index.js")["facets"] == ["metadata/name"]


def test_masks_come_back_with_the_places_of_their_mentions(tmp_path):
    trace = make_trace()
    turn = trace.turns[0]
    tokens = re.findall(r"\[SEG\]|.", turn.text, re.DOTALL)
    spelled = dataclasses.replace(trace, turns=(dataclasses.replace(turn, text=turn.text + "[SEG]"),))
    for pieces, played in ((None, trace), (lambda _: tokens, trace), (lambda _: [*tokens, *"[SEG]"], spelled)):
        write_report(tmp_path, [ReportSection("x", [played])], title="t", pieces=pieces)
        ((_, shown),) = read_episodes(tmp_path)
        masks = shown["turns"][0]["masks"]
        spans = [turn.text[slice(*mask["span"])] for mask in masks]
        assert spans == ["<obj1> [SEG]", "<obj2> [SEG]", "<obj3>\n[SEG]", "[SEG]", "<obj1> [SEG]"]
        assert masks[-1]["span"][0] > turn.text.index("</think>")
        for mask, made in zip(masks, turn.masks, strict=True):
            assert (mask["name"], mask["part"], mask["score"]) == (made.name, made.part, made.score)
            decoded = None if mask["counts"] is None else Mask.from_coco({"size": mask["size"], "counts": mask["counts"]})
            assert decoded == made.mask and mask["area"] == (made.mask and made.mask.array.sum())
    write_report(tmp_path, [ReportSection("x", [spelled])], title="t")
    ((_, shown),) = read_episodes(tmp_path)
    assert [mask["span"] for mask in shown["turns"][0]["masks"]] == [None] * 5
    # The third object is part of neither the reasoning nor the answer.
    assert [(mask["name"], mask["caption"]) for mask in shown["gold_masks"]] == [("obj1", "nodule"), ("obj2", "aorta")]
