"""Groups of a step. A group is the episodes of one played sample. Different samples may have the same id, for instance samples
of two data sets, or one sample in two epochs. The occurrence of an id in the step tells their groups apart."""

from collections import Counter
from collections.abc import Sequence

import jax

from vitar_jax.episodes.episode import Episode
from vitar_jax.runtime.distributed import gather_json


def fork_groups(leaders: Sequence[Episode], size: int, seen: Counter[int]) -> list[list[Episode]]:
    """Returns a group of `size` episodes per leader. Every process must call it equally often, also without leaders.

    Args:
      leaders: This process's episodes, before their first turn.
      seen: Number of the step's groups so far per `Episode.draw_key`, over all processes. Updated in place.
    """
    keys = gather_json([leader.draw_key for leader in leaders])
    occurrences = number_occurrences(keys, seen)[jax.process_index()]
    return [
        [leader.fork(member, occurrence) for member in range(size)]
        for leader, occurrence in zip(leaders, occurrences, strict=True)
    ]


def number_occurrences(keys: Sequence[Sequence[int]], seen: Counter[int]) -> list[list[int]]:
    """Returns how often each process's keys occurred earlier in the step, and adds them to `seen`.

    Samples count in the order of the stream, which deals them to the processes in turn. A step on any number of processes
    therefore has the same groups:

        [[7, 7]]    -> [[0, 1]]
        [[7], [7]]  -> [[0], [1]]
    """
    found: list[list[int]] = [[] for _ in keys]
    for place in range(max(map(len, keys))):
        for process, own in enumerate(keys):
            if place < len(own):
                found[process].append(seen[own[place]])
                seen[own[place]] += 1
    return found
