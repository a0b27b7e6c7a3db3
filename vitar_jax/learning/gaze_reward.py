"""MedEyes' reward (arXiv 2511.22018): the answer, the grammar of the episode, and how different the gazes are."""

from itertools import combinations

from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.regions import Box, iou
from vitar_jax.episodes.trajectory import Trajectory, Turn

DIFFERENT = 0.5  # two regions whose IoU is lower are different, as in the published code
MOST_GAZES = 4  # of MedEyes' protocol

Place = tuple[int, Box]  # index of the sample's image, and a box on it


def medeyes(trajectory: Trajectory) -> dict[str, float]:
    """Returns the parts of MedEyes' reward, and the number of regions, which is off by default.

    `answer` is an exact match with any of the correct answers. `grammar` is 1 if the episode is (reasoning, action, feedback)
    at least once and then reasoning and an answer, without an error in any turn. `diversity` is the share of pairs of regions
    that are different; 0 for fewer than two regions. `regions` is the number of regions that are different from all earlier
    ones, over the four gazes that the protocol allows.

    The paper adds up the number of regions and the share of pairs without a normalisation; the published code has the pairs
    alone. Weights of 0.05 for both `diversity` and `regions` keep the sum in the paper's range.
    """
    places = regions(trajectory)
    return {
        "answer": exact_match(trajectory.predicted_answer, *trajectory.gold_answers),
        "grammar": follows_grammar(trajectory),
        "diversity": diversity(places),
        "regions": min(1.0, count_distinct(places) / MOST_GAZES),
    }


def follows_grammar(trajectory: Trajectory) -> bool:
    """Returns whether an episode is (reasoning, action, feedback) at least once, then reasoning and an answer, and no error."""
    gazes = trajectory.turns[:-1]
    answered = trajectory.end_reason == "answered" and all(turn.thought is not None for turn in trajectory.turns)
    return answered and bool(gazes) and all(map(was_shown, gazes))


def was_shown(turn: Turn) -> bool:
    """Returns whether a turn was answered by the image of a region; false for a gaze at the turn limit."""
    return turn.carried_out and turn.image is not None


def regions(trajectory: Trajectory) -> list[Place]:
    """Returns the regions that were shown, in order, on the sample's own images."""
    looked = (trajectory.looked_at(turn) for turn in trajectory.turns if was_shown(turn))
    return [(image, box) for image, boxes in looked for box in boxes]


def diversity(places: list[Place]) -> float:
    """Returns the share of pairs of regions that are different; 0 for fewer than two regions."""
    pairs = [different(a, b) for a, b in combinations(places, 2)]
    return sum(pairs) / len(pairs) if pairs else 0.0


def count_distinct(places: list[Place]) -> int:
    """Returns the number of regions that are different from all earlier ones."""
    return sum(all(different(place, earlier) for earlier in places[:n]) for n, place in enumerate(places))


def different(a: Place, b: Place) -> bool:
    """Returns whether two regions lie on different images or have an IoU below 0.5."""
    return a[0] != b[0] or iou(a[1], b[1]) < DIFFERENT
