"""An expert's searches of phantoms, as a function that recipes name, and the micro recipe with them."""

from typing import Any

from ml_collections import ConfigDict

from tests.kit import micro
from vitar_jax.data.traces import Step, Trace
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.processing.files import open_image, pixels_sha256


def searches(sample: Sample) -> list[Trace]:
    """Returns three searches of a phantom: at the lesion and right, elsewhere and wrong, at the lesion and wrong."""
    image = open_image(sample.images[0])
    spot, corner = sample.boxes[0], Box(0, 0, 30, 30, frame="original")
    wrong = next(letter for letter, _ in sample.options if letter != sample.answer)
    ends = ((spot, sample.answer), (corner, wrong), (spot, wrong))
    return [
        Trace(
            sample.sample_id,
            pixels_sha256(image),
            number,
            (Step("drill", box, 0.5, 0.9, "spot"),),
            "so",
            answer,
            answer == sample.answer,
            "confident",
        )
        for number, (box, answer) in enumerate(ends)
    ]


def get_config() -> ConfigDict:
    """Returns the micro recipe whose GRPO plays MedEyes' protocol beside an expert."""
    config: Any = micro.get_config()
    config.protocols.medeyes = dict(system="Gaze.", max_turns=2)
    config.limits = dict(tokens=240, turn_tokens=90, images=2)
    config.stages.grpo.protocol = "medeyes"
    config.stages.grpo.objective.experts = dict(
        traces=("tests.kit.searches:searches",), searches=2, draw="random", scope="batch", mu_peak=0.3, mu_decay=4
    )
    return config
