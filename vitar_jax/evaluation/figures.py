"""Figures: one episode, attention maps, a comparison of results, training curves.

matplotlib is imported when a figure is drawn. Its global state is never touched, so figures can be drawn in any thread and
without a display.
"""

import itertools
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vitar_jax.episodes.trajectory import Trajectory, TrajectoryImage, Turn
from vitar_jax.evaluation.model_view import as_seen

_Corners = Sequence[float]  # x1, y1, x2, y2
Points = Sequence[tuple[int, float]]  # (step, value)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, LINE = "#1d2125", "#5b636c", "#dcdfe3"
LOOK, GOLD, BAR = "#e8590c", "#0c8ec4", "#4a78b0"
RIGHT, WRONG = "#14703a", "#b3261e"
PATTERN = "#9aa3ad"  # bars of controls
_COLOURS = (BAR, LOOK, RIGHT, "#7a3e9d", WRONG, "#8a6100", "#d0588f", PATTERN)
_CURVES = [(colour, style) for style in ("-", ":") for colour in _COLOURS]  # in this order

_TOP, _BOTTOM = 0.5, 0.45  # inches reserved for an episode's titles and legend


def episode_figure(trajectory: Trajectory, path: Path, *, right: bool) -> None:
    """Draws one episode, 1200 px wide: its images, boxes, thoughts and answer.

    Images are drawn at the size that the model saw. For the first turn that called a tool, the figure has the image before and
    after the call. For an episode without such a turn, it has only the first image.

    Args:
        right: Whether the answer is right.
    """
    act = next((turn for turn in trajectory.turns if turn.boxes_original or turn.image is not None), None)
    base = act.acted_on if act else 0
    shown = [trajectory.images[base]]
    if act and act.image is not None:
        shown.append(trajectory.images[act.image])
    lines = _story(trajectory, right, width=54 if len(shown) > 1 else 84)
    text_height = sum(_points(text, style) for text, style in lines)
    height = max(4.4 if len(shown) > 1 else 4.9, text_height / 72 + _TOP + _BOTTOM)

    figure = _figure(12, height)
    grid = figure.add_gridspec(
        1, len(shown) + 1, width_ratios=[1] * len(shown) + [1.25 if len(shown) > 1 else 1.6],
        left=0.015, right=0.985, top=1 - _TOP / height, bottom=_BOTTOM / height, wspace=0.06,
    )  # fmt: skip
    for place, image in enumerate(shown):
        axes = figure.add_subplot(grid[place])
        _draw_image(axes, image)
        height_seen, width_seen = image.size
        name = "What the model saw" if len(shown) == 1 else ("Before the look", "After the look")[place]
        axes.set_title(f"{name}, {width_seen} × {height_seen} px", fontsize=12, color=INK, loc="left")
    looks = act.boxes_original if act else ()
    gold = [box.xyxy for box in trajectory.boxes] if base == 0 else ()  # gold boxes lie on image 0
    _draw_boxes(figure.axes[0], looks, gold)

    words = figure.add_subplot(grid[-1])
    words.axis("off")
    used, room = 0.0, 72 * (height - _TOP - _BOTTOM)
    for text, style in lines:
        used += _points(text, style)
        words.text(0.02, 1 - used / room, text, va="bottom", transform=words.transAxes, parse_math=False, **style)
    _save(figure, path)


def attention_figure(trajectory: Trajectory, records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the attention of each turn to earlier images, as heat maps over them, with one row per turn.

    Args:
        records: Records of `measure_attention`, one per turn.
    """
    columns = max([1, *(len(record["images"]) for record in records)])
    figure = _figure(4.2 * columns + 1, 4.6 * len(records), layout="constrained")
    shown = [(record, place, seen) for record in records for place, seen in enumerate(record["images"])]
    heats = [np.nan_to_num(np.array(seen["map"], float)) for _, _, seen in shown]
    heats = [heat * heat.size for heat in heats]  # uniform attention is 1, however many tokens an image has
    hottest = max([1.0, *(heat.max() for heat in heats)])
    for (record, place, seen), heat in zip(shown, heats, strict=True):
        axes = figure.add_subplot(len(records), columns, (record["turn"] - 1) * columns + place + 1)
        image = trajectory.images[seen["image"]]
        width, height = image.pixels.size
        _draw_image(axes, image)
        mappable = axes.imshow(
            heat, extent=(0, width, height, 0), cmap="inferno", alpha=0.55, vmin=0, vmax=hottest, interpolation="nearest"
        )
        name = "edited" if seen["edited"] else "original"
        share = np.array(seen["share"], float).mean()
        axes.set_title(f"turn {record['turn']}: {share:.1%} on the {name} image", fontsize=11, color=INK, loc="left")
        corners = {
            kind: [(x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in box["corners"]]
            for kind, box in seen["boxes"].items()
        }
        _draw_boxes(axes, corners.get("model", ()), corners.get("gold", ()))
        axes.set(xlim=(0, width), ylim=(height, 0))  # boxes may extend beyond a zoomed image
    if shown:
        figure.colorbar(mappable, ax=figure.axes, shrink=0.6, label="attention per token (1: uniform)")
    _save(figure, path)


def results_figure(
    results: Mapping[str, Mapping[str, Any]],
    path: Path,
    *,
    labels: Mapping[str, str] | None = None,
    controls: Collection[str] = (),
    chance: float | None = None,
) -> None:
    """Draws scores as bars with their intervals.

    Args:
        results: {row: {"accuracy": share, "interval": (low, high) or absent}}, in the order to draw.
        labels: Label of each row's bar (default: the row's name).
        controls: Rows whose bars are grey.
        chance: Accuracy of guessing, as a share. If None, no line is drawn.
    """
    figure = _figure(max(6.0, 1.55 * len(results) + 1.2), 4.4, layout="constrained")
    axes = figure.add_subplot()
    for place, (entry, result) in enumerate(results.items()):
        accuracy = 100 * float(result["accuracy"])
        low, high = (100 * float(v) for v in result.get("interval") or (result["accuracy"],) * 2)
        colour = PATTERN if entry in controls else BAR
        axes.bar(place, accuracy, width=0.62, color=colour)
        if high > low:
            _draw_interval(axes, place, accuracy, (low, high))
        axes.text(place, max(accuracy, high) + 1.5, f"{accuracy:.1f}", ha="center", color=INK, fontsize=11)
    if chance is not None:
        axes.axhline(100 * chance, color=QUIET, linewidth=1.2, linestyle=(0, (4, 3)), zorder=3)
        axes.annotate(
            f"chance {100 * chance:.0f} %", (1.0, 100 * chance), xycoords=("axes fraction", "data"),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=10, color=QUIET,
        )  # fmt: skip
    axes.set_xticks(
        range(len(results)), [textwrap.fill((labels or {}).get(entry, entry.replace("_", " ")), 14) for entry in results]
    )
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy, % (95 % interval)", color=INK)
    _calm(axes)
    axes.tick_params(axis="x", length=0, labelsize=10.5)
    _save(figure, path)


def dose_figure(rows: Sequence[Mapping[str, Any]], path: Path, *, unit: str) -> None:
    """Draws scores by dose with their intervals.

    Args:
        rows: {"dose": text, "score": share or None, "interval": (low, high) or None}, in the order to draw, at equal distances.
        unit: Label of the axis of doses.
    """
    figure = _figure(max(4.5, 0.8 * len(rows) + 1.2), 3.6, layout="constrained")
    axes = figure.add_subplot()
    scores = [100 * float("nan" if row["score"] is None else row["score"]) for row in rows]
    axes.plot(range(len(rows)), scores, color=BAR, linewidth=1.8, marker="o")
    for place, (row, score) in enumerate(zip(rows, scores, strict=True)):
        if row["interval"]:
            low, high = (100 * float(bound) for bound in row["interval"])
            _draw_interval(axes, place, score, (low, high))
    axes.set_xticks(range(len(rows)), [row["dose"] for row in rows])
    axes.set_xlabel(unit, color=QUIET)
    axes.set_ylim(0, 103)
    axes.set_ylabel("score, % (95 % interval)", color=INK)
    _calm(axes)
    _save(figure, path)


def curves_figure(panels: Mapping[str, Mapping[str, Points]], path: Path) -> None:
    """Draws training curves as small multiples, each with its running mean. A curve has one colour in all panels.

    Args:
        panels: {panel: {curve: [(step, value), ...]}}. Panels and curves without points are left out.
    """
    known = {title: {name: points for name, points in curves.items() if points} for title, curves in panels.items()}
    drawn = {title: curves for title, curves in known.items() if curves}
    names = dict.fromkeys(name for curves in drawn.values() for name in curves)
    looks = dict(zip(names, itertools.cycle(_CURVES), strict=False))
    columns = 2 if len(drawn) == 4 else min(3, max(1, len(drawn)))
    rows = max(1, -(-len(drawn) // columns))
    figure = _figure(4 * columns, 2.6 * rows + 0.3 * -(-len(looks) // columns), layout="constrained")
    for place, (title, curves) in enumerate(drawn.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        for name, points in curves.items():
            _draw_curve(axes, points, *looks[name], name)
        axes.set_title(title, fontsize=12, loc="left", color=INK, parse_math=False)
        axes.margins(x=0.02)
        _calm(axes)
        if place >= len(drawn) - columns:
            axes.set_xlabel("step", color=QUIET)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    if looks:
        figure.legend(
            [lines[name] for name in looks], list(looks), loc="outside lower center", ncols=columns, frameon=False, fontsize=11
        )
    _save(figure, path)


def _draw_interval(axes: "Axes", place: int, value: float, interval: tuple[float, float]) -> None:
    error = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
    axes.errorbar(place, value, yerr=error, color=INK, capsize=4, linewidth=1.4)


def _draw_curve(axes: "Axes", points: Points, colour: str, style: str, label: str) -> None:
    """Draws one curve. If it has enough points, draws its running mean over it."""
    steps, values = np.array(points, float).T
    window = len(values) // 25
    if window > 1:
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
        # Averages existing points only, so that the curve does not drop towards zero at its ends.
        weights = np.ones(window)
        counts = np.convolve(np.isfinite(values).astype(float), weights, "same")
        sums = np.convolve(np.nan_to_num(values, posinf=0.0, neginf=0.0), weights, "same")
        values = sums / np.maximum(counts, 1)
    marker = "o" if len(values) < 8 else None
    axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.8, marker=marker, label=label)


def _story(trajectory: Trajectory, right: bool, width: int) -> list[tuple[str, dict[str, Any]]]:
    """Returns the episode's text as wrapped paragraphs, each with its matplotlib text style."""

    def wrap(text: str, longest: int = 400) -> str:
        printable = "".join(c if c.isprintable() else " " for c in text)
        return "\n".join(textwrap.wrap(textwrap.shorten(printable, longest, placeholder=" …"), width)) or "–"

    plain, heading = {"fontsize": 12, "color": INK}, {"fontsize": 9.5, "color": QUIET}
    options = dict(trajectory.options)
    listed = "  ·  ".join(f"{letter} {text}" for letter, text in options.items())
    lines = [(wrap(trajectory.question), {"fontsize": 13, "color": INK, "weight": "bold"})]
    if listed:
        lines.append((wrap(listed), plain))
    for number, turn in enumerate(trajectory.turns, start=1):
        lines.append((f"Turn {number}", heading))
        lines.append((wrap(f"“{turn.thought or turn.text}”"), plain | {"style": "italic"}))
        if action := _action_text(turn):
            lines.append((wrap(action), plain | {"color": LOOK}))
        if turn.error:
            lines.append((wrap(turn.error[1]), plain | {"color": WRONG}))
    said, answer = (
        f"{text} {options.get(text, '')}".strip() for text in (trajectory.predicted_answer or "no answer", trajectory.answer)
    )
    lines.append(("Answer", heading))
    if right:
        lines.append((wrap(f"{said}  ✓ right"), plain | {"color": RIGHT, "weight": "bold"}))
    else:
        verdict = f"{said}  ✗ wrong: it is {answer}"
        lines.append((wrap(verdict), plain | {"color": WRONG, "weight": "bold"}))
    return lines


def _points(text: str, style: Mapping[str, Any]) -> float:
    """Returns the height of a text in points, including the space above it; headings have more space."""
    space = 9 if style["color"] == QUIET else 3
    return space + 1.2 * style["fontsize"] * (text.count("\n") + 1)


def _action_text(turn: Turn) -> str:
    if not turn.boxes_original or not turn.action:
        return ""
    boxes = "; ".join(", ".join(f"{value:.0f}" for value in box) for box in turn.boxes_model_input)
    return f"→ {turn.action.get('name')} {boxes}"


def _draw_image(axes: "Axes", image: TrajectoryImage) -> None:
    """Draws an image at the resolution that the model saw, with axes in original pixels, the frame of boxes."""
    pixels = as_seen(image).convert("RGB")
    width, height = image.pixels.size
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest")
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_boxes(axes: "Axes", looks: Sequence[_Corners], gold: Sequence[_Corners]) -> None:
    """Draws boxes with a white outline and a legend. Dashed gold boxes are on top, so that both show where they coincide."""
    from matplotlib.patches import Rectangle

    def draw(boxes: Sequence[_Corners], **style: Any) -> list[Rectangle]:
        drawn = [Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style) for x1, y1, x2, y2 in boxes]
        for rectangle in drawn:
            axes.add_patch(rectangle)
        return drawn[:1]

    draw([*looks, *gold], edgecolor="white", linewidth=4)
    named = draw(looks, edgecolor=LOOK, linewidth=2, label="the model's box")
    named += draw(gold, edgecolor=GOLD, linewidth=2, linestyle=(0, (4, 2)), label="gold box")
    if named:
        axes.legend(
            handles=named, loc="upper left", bbox_to_anchor=(-0.02, -0.01), ncols=2, frameon=False,
            fontsize=10, handlelength=1.6, columnspacing=1.2,
        )  # fmt: skip


def _figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, facecolor="white", layout=layout)


def _calm(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=QUIET, labelsize=9.5)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(path, facecolor="white")
