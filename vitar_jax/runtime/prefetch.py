"""Results of a function, computed on a pool before they are needed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(pool: Executor, function: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """Yields the results for `items` in order. The pool computes up to `depth` of them in advance."""
    items = iter(items)
    pending = deque(pool.submit(function, item) for item in islice(items, depth))
    while pending:
        future = pending.popleft()
        pending.extend(pool.submit(function, item) for item in islice(items, 1))
        yield future.result()
