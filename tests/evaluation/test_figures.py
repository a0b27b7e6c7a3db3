"""Figures are drawn for whatever an episode or a run holds."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.kit.processes import run_code
from vitar_jax.evaluation.figures import attention_figure, curves_figure, episode_figure, results_figure


def read(path):
    """Pixels of a figure, [height, width, 3], of which some were drawn on."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert (pixels[0, 0] == 255).all() and pixels.std() > 5
    return pixels


def has(pixels, colour):
    return (pixels == colour).all(axis=-1).any()


def near(pixels, colour):
    """Whether a thin line of this colour was drawn, of which no pixel may be covered fully."""
    return (np.abs(pixels.astype(int) - colour).max(axis=-1) < 30).any()


ORANGE, BLUE, GREEN = (232, 89, 12), (12, 142, 196), (20, 112, 58)
BAR, GREY = (74, 120, 176), (154, 163, 173)


def test_an_episode_shows_both_boxes_and_the_verdict(make_trajectory, tmp_path):
    episode_figure(make_trajectory(0), tmp_path / "new folder/episode.png", right=True)
    pixels = read(tmp_path / "new folder/episode.png")
    assert pixels.shape[1] == 1200
    assert has(pixels, ORANGE) and has(pixels, BLUE) and has(pixels, GREEN)


@pytest.mark.parametrize(
    "changes, missing",
    [({"box": None}, ORANGE), ({"answer": None}, None), ({"gold": None}, BLUE), ({"error": ("e", "No.")}, None)],
)
def test_an_episode_of_which_something_is_missing(make_trajectory, tmp_path, changes, missing):
    episode_figure(make_trajectory(0, **changes), tmp_path / "episode.png", right=False)
    pixels = read(tmp_path / "episode.png")
    assert pixels.shape[1] == 1200
    assert {colour for colour in (ORANGE, BLUE) if not has(pixels, colour)} == ({missing} if missing else set())


def test_what_a_model_wrote_cannot_break_a_figure(make_trajectory, tmp_path):
    hostile = "$\\frac{1}{ \x00 \ud800 \n" + "endless" * 500
    trajectory = make_trajectory(0, thought=hostile, answer=hostile, question="")
    episode_figure(dataclasses.replace(trajectory, options=()), tmp_path / "episode.png", right=False)
    height, width, _ = read(tmp_path / "episode.png").shape
    assert width == 1200 and height < 1200  # endless words are cut


def test_reward_and_reliance_share_an_axis(tmp_path):
    """Each curve has a colour of its own, and a panel that has none is left out."""
    points = [(step, step / 10) for step in range(10)]
    probes = {"reward": points, "blank": [], "erased": [(step, 1 - y) for step, y in points]}
    curves_figure({"loss": {"grpo": points}, "probes": probes}, tmp_path / "a.png")
    pixels = read(tmp_path / "a.png")
    left, right = np.array_split(pixels[:240], 2, axis=1)  # above the legend
    assert near(left, BAR) and not near(left, ORANGE)
    assert near(right, ORANGE) and near(right, GREEN) and not near(right, BAR)
    curves_figure({"loss": {"grpo": points}, "probes": {"reward": [], "none": []}}, tmp_path / "b.png")
    assert read(tmp_path / "b.png").shape[1] == 400 < pixels.shape[1] == 800


def test_a_curve_has_one_colour_in_all_panels(tmp_path):
    """The second panel lacks the first curve, and the curve that both have keeps its colour."""
    points = [(step, step / 10) for step in range(10)]
    falling = [(step, 1 - y) for step, y in points]
    curves_figure({"loss": {"one": points, "two": falling}, "reward": {"two": points}}, tmp_path / "a.png")
    left, right = np.array_split(read(tmp_path / "a.png")[:240], 2, axis=1)
    assert near(left, BAR) and near(left, ORANGE) and near(right, ORANGE) and not near(right, BAR)


def test_results_have_the_given_bars(tmp_path):
    scores = {"accuracy": 0.5, "interval": (0.15, 0.85)}
    results = {"one": scores, "probe": {"accuracy": 0.26}, "mine": scores | {"interval": None}}
    results_figure(results, tmp_path / "results.png", controls=["probe"])
    plain = read(tmp_path / "results.png")
    assert has(plain, BAR) and has(plain, GREY)
    results_figure(results, tmp_path / "labelled.png", labels={"one": "first"}, chance=0.25)
    assert not np.array_equal(read(tmp_path / "labelled.png"), plain) and not has(read(tmp_path / "labelled.png"), GREY)


def test_curves(tmp_path):
    metrics = {
        "loss": [(n, 1 / (n + 1)) for n in range(200)],
        "reward": [(0, 0.1), (5, float("nan")), (10, 0.3)],
        "long": [(n, float("inf") if n == 3 else 1.0) for n in range(100)],
        "one": [(0, 1.0)],
        "none": [],
    }
    curves_figure({title: {"run": points} for title, points in metrics.items()}, tmp_path / "curves.png")
    pixels = read(tmp_path / "curves.png").astype(int)
    blue = pixels[:520, :, 2] - pixels[:520, :, 0] > 40  # above the legend
    panels = [panel for row in np.array_split(blue, 2) for panel in np.array_split(row, 2, axis=1)]
    assert [bool(panel.any()) for panel in panels] == [True] * 4  # one for each curve that has points
    curves_figure({}, tmp_path / "empty.png")


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, vitar_jax.evaluation.figures; print('matplotlib' in sys.modules)"
    assert run_code(code) == "False\n"


def test_attention(make_trajectory, tmp_path):
    def image(index, heat, **boxes):
        corners = {kind: {"corners": [box]} for kind, box in boxes.items()}
        return {"image": index, "edited": index > 0, "share": [[0.2, 0.1]], "map": heat, "boxes": corners}

    first = image(0, [[0.1, 0.9], [0.0, 0.0]], model=(0.2, 0.2, 0.4, 0.4), gold=(0.3, 0.3, 0.5, 0.5))
    second = image(1, [[None, None], [None, None]], gold=(-0.5, 0.1, 0.5, 2.0))
    records = [{"turn": 1, "images": [first]}, {"turn": 2, "images": [first, second]}]
    attention_figure(make_trajectory(0), records, tmp_path / "maps/attention.png")
    pixels = read(tmp_path / "maps/attention.png")
    assert has(pixels, ORANGE) and has(pixels, BLUE)


def test_attention_of_a_conversation_without_images(make_trajectory, tmp_path):
    attention_figure(make_trajectory(0), [{"turn": 1, "images": []}], tmp_path / "attention.png")
    assert (tmp_path / "attention.png").exists()
