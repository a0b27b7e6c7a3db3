"""Phantoms of CT: the lesion is seen through its organ's window, and through no other, in the first view least of all."""

import numpy as np
import pytest
from PIL import Image

from data_prep.phantom.windows import CONTRAST, ORGANS, QUADRANTS, WindowPhantoms, own_window, source
from tests.kit.trajectories import make_trajectory
from vitar_jax.episodes.actions import ToolCall
from vitar_jax.episodes.tools import CT_WINDOWS
from vitar_jax.episodes.trajectory import Turn
from vitar_jax.processing.files import open_image
from vitar_jax.processing.hounsfield import read_hounsfield, windowed

TRAIN, TEST = source("train", seed=1), source("test", seed=1)


def seen(values: np.ndarray, window: str) -> np.ndarray:
    shown = windowed(values, *CT_WINDOWS[window]) if window else open_image(Image.fromarray(values))
    return np.asarray(shown, int)


@pytest.mark.parametrize("organ", ORGANS)
@pytest.mark.parametrize("window", ["", *CT_WINDOWS])
def test_the_lesion_is_visible_in_one_window_only(organ: str, window: str) -> None:
    """The same phantom with and without the lesion."""
    for number in range(5):
        without, lesion = (
            seen(TRAIN.values(np.random.default_rng(number), organ, 30, 50, contrast), window) for contrast in (0, CONTRAST)
        )
        changed = np.abs(lesion - without)
        if window == organ:
            assert np.count_nonzero(changed) > 200 and changed[changed > 0].min() >= 30
        else:
            assert not changed.any()


def test_the_first_view_shows_the_organ() -> None:
    centres = {organ: {open_image(s.images[0]).getpixel((42, 42)) for s in _of(organ)} for organ in ORGANS}
    assert centres == {"lung": {1}, "bone": {4}}


def _of(organ: str) -> list:
    return [sample for sample in map(TRAIN.__getitem__, range(40)) if sample.metadata["organ"] == organ]


def test_the_answer_is_the_quadrant_of_the_box_and_of_the_brightest_pixels() -> None:
    for sample in map(TEST.__getitem__, range(40)):
        values = read_hounsfield(sample.images[0])
        assert values is not None and values.shape == (84, 84)
        (box,) = sample.boxes
        assert min(box.x1, box.y1) >= 7 and max(box.x2, box.y2) <= 77 and not (box.x1 < 42 < box.x2 or box.y1 < 42 < box.y2)
        x, y = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
        quadrant = QUADRANTS[2 * (y > 42) + (x > 42)]
        assert dict(sample.options)[sample.answer] == quadrant
        inside = values[7:77, 7:77]
        rows, columns = np.nonzero(inside > ORGANS[sample.metadata["organ"]] + CONTRAST / 2)
        assert (columns.mean() + 7.5, rows.mean() + 7.5) == pytest.approx((x, y), abs=0.5)


def test_a_demonstration_chooses_the_right_window_as_often_as_asked() -> None:
    def share(phantoms: WindowPhantoms) -> float:
        samples = [phantoms[index] for index in range(300)]
        return float(np.mean([s.demonstration.looks[0].arguments["preset"] == s.metadata["organ"] for s in samples]))  # type: ignore[union-attr]

    assert share(source("train", right_window=1.0)) == 1 and share(source("train", right_window=0.0)) == 0
    assert share(TRAIN) == pytest.approx(0.25, abs=0.1)


def test_samples_depend_on_their_index_alone_and_splits_differ() -> None:
    again = source("train", seed=1)
    assert again[3].images[0] == TRAIN[3].images[0] and again[3].demonstration == TRAIN[3].demonstration
    assert TRAIN[3].images[0] != TEST[3].images[0] and source("train", seed=2)[3].images[0] != TRAIN[3].images[0]
    for wrong in ({"side": 10}, {"seed": -1}, {"right_window": 1.5}):
        with pytest.raises(ValueError):
            source("train", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split"):
        source("validation")  # type: ignore[arg-type]


def test_a_window_counts_as_chosen_if_the_tool_ran() -> None:
    plain = make_trajectory(0, box=None, metadata={"organ": "lung"})
    for preset, error, chosen in (("lung", None, 1), ("bone", None, 0), ("lung", ("no_values", ""), 0)):
        turn = Turn(0, 2, "", call=ToolCall("ct_window", arguments={"preset": preset}), error=error)
        played = make_trajectory(0, box=None, metadata={"organ": "lung"}, turns=(turn, plain.turns[-1]))
        assert own_window(played) == chosen
    assert own_window(plain) == 0
