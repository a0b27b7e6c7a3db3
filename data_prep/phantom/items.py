"""Base class of the phantom sources, which draw an item when it is read."""

import abc

from vitar_jax.episodes.sample import Sample


class Items(abc.ABC):
    """A source of `length` items. Item i depends only on the source's arguments and i, in any thread or process."""

    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} is out of range for a source of {self.length} samples")
        return self._item(int(index))

    @abc.abstractmethod
    def _item(self, index: int) -> Sample: ...
