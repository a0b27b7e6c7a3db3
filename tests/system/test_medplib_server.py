"""MedPLIB's server: masks become regions, regions become masks, and the expert `endpoint` understands its replies."""

import importlib.util
import json
import subprocess
import sys
import threading
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from data_prep.gaze import asked
from tests.kit.processes import ROOT
from vitar_jax.episodes.regions import Box
from vitar_jax.errors import EndpointError
from vitar_jax.runtime.endpoint import ChatClient

SCRIPT = ROOT / "launch" / "medplib_server.py"
_spec = importlib.util.spec_from_file_location("medplib_server", SCRIPT)
assert _spec is not None and _spec.loader is not None
server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(server)


def mask(*boxes: tuple[int, int, int, int, float], shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    """Returns probabilities: 0.01, and those of the boxes (x1, y1, x2, y2, probability)."""
    found = np.full(shape, 0.01)
    for x1, y1, x2, y2, probability in boxes:
        found[y1:y2, x1:x2] = probability
    return found


# --- masks ------------------------------------------------------------------------------------------


def test_connected_parts_of_a_mask_are_regions_with_their_mean_probability() -> None:
    two = mask((4, 6, 14, 26, 0.5), (14, 6, 24, 26, 0.9), (40, 30, 50, 40, 0.95))
    first, second = server.regions(two)
    assert first == {"box": [40, 30, 50, 40], "confidence": pytest.approx(0.95)}
    assert second == {"box": [4, 6, 24, 26], "confidence": pytest.approx(0.7)}


def test_parts_that_touch_at_a_corner_are_one_region_and_specks_are_none() -> None:
    assert [r["box"] for r in server.regions(mask((10, 10, 20, 20, 0.8), (20, 20, 30, 30, 0.8), (60, 50, 61, 51, 0.9)))] == [
        [10, 10, 30, 30]
    ]
    assert server.regions(mask()) == []


def test_at_most_five_regions_are_returned_and_json_writes_them() -> None:
    many = mask(*((10 * n, 10, 10 * n + 5, 20, 0.3 + 0.05 * n) for n in range(8)))
    assert [r["box"][0] for r in server.regions(many)] == [70, 60, 50, 40, 30]
    assert json.loads(json.dumps(server.regions(many))) == server.regions(many)


def test_the_confidence_of_a_region_is_the_mean_of_the_mask_inside_it() -> None:
    found = mask((10, 10, 20, 20, 0.4), (20, 10, 30, 20, 0.8))
    assert server.confidence_in(found, [10, 10, 30, 20]) == pytest.approx(0.6)
    assert server.confidence_in(found, [20, 10, 60, 40]) == pytest.approx(0.8)
    assert server.confidence_in(found, [40, 40, 60, 50]) == 0.0


BOXES = ((10, 20, 30, 40), (10.5, 20.5, 29.2, 39.1), (79.5, 59.9, 80, 60), (-5, -5, 200, 200), (3, 3, 3, 3))


@pytest.mark.parametrize("box", BOXES)
def test_the_mask_of_a_region_is_its_box(box: tuple[float, ...]) -> None:
    found = server.region_mask(list(box), (60, 80))
    rows, columns = np.nonzero(found)
    x1, y1, x2, y2 = np.clip(box, 0, [80, 60, 80, 60])
    assert found.shape == (60, 80) and found.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert columns.min() <= x1 and rows.min() <= y1 and columns.max() + 1 >= x2 and rows.max() + 1 >= y2
    assert columns.min() > x1 - 1 and rows.min() > y1 - 1


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (336, 336), (50, 60)])
def test_a_region_lies_in_medplibs_grid_where_the_image_does(shape: tuple[int, int]) -> None:
    """Against Pillow: the image's longest side fills 336 pixels, padding is on both sides, a cell is 14 pixels."""
    height, width = shape
    box = [width * 0.25, height * 0.5, width * 0.75, height]
    found = server.clip_mask(server.region_mask(box, shape))
    whole = Image.fromarray(255 * server.region_mask(box, shape))
    scale = 336 / max(shape)
    small = np.asarray(whole.resize((round(width * scale), round(height * scale)), Image.Resampling.BOX))
    square = np.zeros((336, 336))
    top, left = (336 - small.shape[0]) // 2, (336 - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    cells = square.reshape(24, 14, 24, 14).mean((1, 3)) / 255
    assert found[cells > 0.9].all() and not found[cells < 0.1].any()


def test_a_small_region_keeps_a_cell() -> None:
    assert server.clip_mask(server.region_mask([1000, 3, 1002, 5], (900, 2000))).sum() == 1


def test_images_are_padded_in_the_middle() -> None:
    square = server.padded(Image.new("RGB", (100, 50), (200, 10, 20)), 336, (122, 116, 104))
    assert square.shape == (336, 336, 3)
    padding = np.concatenate([square[:84], square[252:]])
    assert (square[84:252] == (200, 10, 20)).all() and (padding == (122, 116, 104)).all()


# --- requests -----------------------------------------------------------------------------------------


class Written:
    """A model that answers as written, and notes what it was asked."""

    def __init__(self, probabilities: np.ndarray | None):
        self.probabilities = probabilities
        self.asked: list[tuple[str, tuple[int, int], np.ndarray | None]] = []

    def ask(self, image: Image.Image, text: str, region: np.ndarray | None = None) -> tuple[str, np.ndarray | None]:
        self.asked.append((text, image.size, region))
        return "A round shadow.", self.probabilities


@pytest.fixture
def expert(request, tmp_path):
    """Serves a `Written` model; returns it, and the expert that asks it."""
    model = Written(request.param)
    with server.make_server(model, "medplib", 0) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{served.server_address[1]}/v1"
        client = ChatClient(url, "medplib", tmp_path / "replies.jsonl", asked.REQUEST, retries=0)
        with closing(client):
            yield model, asked.AskedExpert(client, "medplib", asked.REQUEST)
        served.shutdown()
        thread.join()


IMAGE = Image.new("RGB", (80, 60), (90, 90, 90))


@pytest.mark.parametrize("expert", [mask((4, 6, 24, 26, 0.7), (40, 30, 50, 40, 0.9))], indirect=True)
def test_the_endpoint_expert_asks_the_server(expert) -> None:
    model, endpoint = expert
    found = endpoint.scan(IMAGE)
    assert [(r.box.xyxy, round(r.confidence, 6)) for r in found] == [((40, 30, 50, 40), 0.9), ((4, 6, 24, 26), 0.7)]
    finding = endpoint.drill(IMAGE, Box(0, 0, 30, 30, "original"))
    assert (round(finding.confidence, 6), finding.sentence) == (0.7, "A round shadow.")
    assert endpoint.answer(IMAGE, "Which?\nA rows\nB checks", Box(0, 0, 30, 30, "original")) == "A round shadow."
    (scan, _, none), (examine, size, region), (describe, _, same), (question, _, whole) = model.asked
    assert scan == server.FIND and examine == server.EXAMINE and describe == server.DESCRIBE
    assert question == "Which?\nA rows\nB checks" and none is None and whole is None
    assert size == (80, 60) and (region == same).all() and (region == server.region_mask([0, 0, 30, 30], (60, 80))).all()
    for text in (examine, describe):  # MedPLIB looks for the two tags side by side
        assert text.count("<region></region>") == 1 and text.count("<region>") == 1


@pytest.mark.parametrize("expert", [None], indirect=True)
def test_without_a_mask_there_is_no_region_and_no_confidence(expert) -> None:
    _, endpoint = expert
    assert endpoint.scan(IMAGE) == [] and endpoint.drill(IMAGE, Box(0, 0, 30, 30, "original")).confidence == 0.0


@pytest.mark.parametrize("expert", [None], indirect=True)
def test_a_request_without_an_image_is_refused(expert) -> None:
    _, endpoint = expert
    with pytest.raises(EndpointError, match="the last one has no image") as caught:
        endpoint.client.ask([{"role": "user", "content": "Which?"}])
    assert caught.value.kind == "bad_request"


@pytest.mark.slow
def test_it_imports_nothing_of_the_project_or_of_medplib_before_it_serves() -> None:
    code = (
        f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}); "
        "print([name for name in ('torch', 'transformers', 'vitar_jax', 'data_prep', 'jax') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_it_says_that_it_has_not_run_with_the_weights() -> None:
    assert "HAS NOT RUN WITH THE WEIGHTS" in server.__doc__
