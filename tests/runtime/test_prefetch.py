"""Results that a pool computes in advance."""

from concurrent.futures import ThreadPoolExecutor

from vitar_jax.runtime.prefetch import prefetch


def test_results_are_made_ahead_and_in_order() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return -item

    with ThreadPoolExecutor(1) as pool:
        results = prefetch(pool, make, range(6), depth=2)
        assert made == [] and next(results) == 0
        pool.submit(lambda: None).result()  # what was asked for before is made
        assert made == [0, 1, 2]
        assert list(results) == [-1, -2, -3, -4, -5] and made == [0, 1, 2, 3, 4, 5]
