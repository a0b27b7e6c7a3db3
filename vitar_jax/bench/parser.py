"""Fuzzes every parser with randomly damaged turns: no parser may raise, and its time may grow only with the length."""

import random
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator

from vitar_jax.episodes.actions import ActionError, Answer, ToolCall
from vitar_jax.episodes.gaze_parser import write_gaze
from vitar_jax.episodes.outline_parser import write_outline
from vitar_jax.episodes.parsers import PARSERS, write_turn

_TURNS = (
    write_turn("A lesion at the upper left.", "mark", box=[[10, 20, 60, 80], [100.5, 20, 160, 80]]),
    write_turn("Closer.", "zoom", box=[[10, 20, 60, 80]], image=1),
    write_turn("Too dark.", "window", centre=40, width=80),
    write_turn("It shows rows.", "Terminate", answer="B"),
    "Let me see.\n```json\n" + write_turn("é", "mark_bbox", box=[[0, 0, 9, 9]]) + "\n```",
    "The answer is B.",
    write_gaze("A spot.", ToolCall("Gaze", ((10, 20, 60, 80),))),
    write_gaze("It shows rows.", Answer("B")),
    write_outline("A spot (<ver><obj1></ver>).", ToolCall("outline")),
    write_outline("It (<ver><obj1></ver>) shows rows.", Answer("B (<vea><obj1></vea>).")),
)
_VALUES = (
    *("NaN", "-Infinity", "1e400", "9" * 400, "1" * 5000, "-7", "0", "5e-324"),
    *("true", "null", '"7"', r'"\ud800"', "[7]", "{}"),
)
_PIECES = (
    *_VALUES,
    *'[]{}":,\\ \n0-.eE\x00é\U0001f9e0',
    *("<reasoning>", "</reasoning>", "<action>", "</action>", "<feedback>", "</feedback>", "<answer>", "</answer>"),
    *("<think>", "</think>", "[SEG]", "<obj1>"),
    *("[[", "]]", '"actions": [', '{"name": "Terminate", "arguments": {', '"answer": "', '"box": [[', '"image": ', '"name": '),
)
_LONGEST = 100_000


def damaged(count: int, seed: int) -> Iterator[str]:
    """Yields turns with numbers replaced, or with words and punctuation replaced, inserted, deleted or taken from another turn.

    One turn in a thousand repeats a piece of text, up to `_LONGEST` characters.
    """
    rng = random.Random(seed)
    turns = [re.findall(r"\w+|\W", turn) for turn in _TURNS]
    for _ in range(count):
        words = list(rng.choice(turns))
        if rng.random() < 0.5:
            numbers = [place for place, word in enumerate(words) if word.isdigit()]
            for place in rng.sample(numbers, min(len(numbers), rng.randint(1, 3))):
                words[place] = rng.choice(_VALUES)
        else:
            for _ in range(rng.randint(1, 4)):
                _damage(words, rng.choice(turns), rng)
        if rng.random() < 1e-3:
            piece = rng.choice((*_PIECES, "".join(words)))
            words.insert(rng.randint(0, len(words)), piece * (rng.randint(1, _LONGEST) // max(1, len(piece))))
        yield "".join(words)


def _damage(words: list[str], other: list[str], rng: random.Random) -> None:
    start, end = sorted((rng.randint(0, len(words)), rng.randint(0, len(words))))
    match rng.randrange(4):
        case 0:
            words[start : start + 1] = [rng.choice(_PIECES)]
        case 1:
            words.insert(start, rng.choice(_PIECES))
        case 2:
            del words[start : start + rng.randint(1, 3)]
        case 3:
            words[start:end] = other[start:end]


def run(count: int, seed: int, say: Callable[[str], None]) -> int:
    """Reads `count` damaged turns with every parser and reports the outcomes and times.

    Returns:
      The number of times that a parser raised.
    """
    kinds: dict[str, Counter[str]] = {name: Counter() for name in PARSERS}
    seconds = dict.fromkeys(PARSERS, 0.0)
    slowest: dict[str, dict[int, tuple[float, int]]] = {name: {} for name in PARSERS}  # (seconds, length) by digits
    raised = 0
    for text in damaged(count, seed):
        for name, known in PARSERS.items():
            began = time.thread_time()
            try:
                outcome = known.read(text).outcome
            except Exception:
                raised += 1
                if raised <= 10:
                    say(f"{name} raised on {text[:500]!r}\n{traceback.format_exc()}")
                continue
            took = time.thread_time() - began
            seconds[name] += took
            power = len(str(len(text)))
            slowest[name][power] = max(slowest[name].get(power, (0.0, 0)), (took, len(text)))
            kinds[name][outcome.kind if isinstance(outcome, ActionError) else type(outcome).__name__] += 1
    for name in PARSERS:
        say(f"\n{name}: {count:,} strings, {count / seconds[name]:,.0f} per second")
        say("  " + ", ".join(f"{kind} {number:,}" for kind, number in kinds[name].most_common()))
        for power, (took, length) in sorted(slowest[name].items()):
            say(f"  under {10**power:,} characters: at most {1e3 * took:.2f} ms (for {length:,} characters)")
    say(f"\n{raised:,} exceptions" if raised else "\nno exceptions")
    return raised
