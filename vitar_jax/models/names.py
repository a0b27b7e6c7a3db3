"""Maps paths of our parameters to the names of the tensors in Hugging Face's files and modules."""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """Names of a family's tensors, in published files and in transformers' modules in memory.

    Attributes:
      stacks: (our prefix, published prefix) of each stack of layers; `{}` in the published prefix stands for the layer. `{}` in
        our prefix stands for the number of a stack's first layer, if that is not 0.
      renamed: Maps parts of our names to the published parts that differ from them.
      in_memory: (prefix in memory, published prefix) of transformers' modules.
      patch_embed: Our path of the kernel that is published as a convolution, [out, channels, frames, height, width].
      convolutions: Prefixes of our paths of kernels that are published as convolutions [out, in, side, side], with the side.
      left_out: Patterns of published names that files may contain and the model does not have.
      required: Maps prefixes of published names to what they are; a file without any of them is another model's.
    """

    stacks: tuple[tuple[str, str], ...]
    renamed: Mapping[str, str]
    in_memory: tuple[tuple[str, str], ...]
    patch_embed: str
    convolutions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    required: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def published(self, path: str, layers: int) -> tuple[str, ...]:
        """Returns the published names of one of our leaves: one name, or one for each of the stacked `layers`."""
        name = re.sub(r"/kernel$", "/weight", path)
        name = name + "/weight" if name.endswith("embed_tokens") else name
        if stack := self._stack(name):
            theirs, first, tail = stack
            return tuple(theirs.format(first + i) + tail.replace("/", ".") for i in range(layers))
        name = name.replace("/", ".")
        for ours, theirs in self.renamed.items():
            name = name.replace(ours, theirs)
        return (name,)

    def is_stacked(self, path: str) -> bool:
        """Returns whether a leaf has a leading axis of layers."""
        return self._stack(path) is not None

    def _stack(self, path: str) -> tuple[str, int, str] | None:
        """Returns the published prefix of a leaf's stack, the number of the stack's first layer, and the rest of the path."""
        for ours, theirs in self.stacks:
            if found := re.match(re.escape(ours).replace(r"\{\}", r"(\d+)"), path):
                return theirs, int(found[1]) if found.groups() else 0, path[found.end() :]
        return None

    def stored_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of a published tensor, given that of our leaf, or of one of its layers. Kernels are transposed."""
        if not path.endswith("/kernel"):
            return shape
        for prefix, side in self.convolutions.items():
            if path.startswith(prefix):
                return (shape[1], shape[0] // side**2, side, side)
        return shape[::-1]

    def is_left_out(self, name: str) -> bool:
        """Returns whether the model does without a published tensor."""
        return any(re.fullmatch(pattern, name) for pattern in self.left_out)

    def from_memory(self, name: str) -> str:
        """Returns the published name of a tensor, given its published name or its name in memory."""
        for nested, published in self.in_memory:
            if name.startswith(nested):
                return published + name.removeprefix(nested)
        return name

    def to_memory(self, name: str) -> str:
        """Returns the name in transformers' memory of a tensor, given its published name."""
        for nested, published in self.in_memory:
            if name.startswith(published):
                return nested + name.removeprefix(published)
        return name


@dataclasses.dataclass(frozen=True)
class JoinedNames(TensorNames):
    """Names of a model that contains other models, whose names stay as they are behind a prefix.

    Attributes:
      members: (our prefix, published prefix, names) of each member. The first whose prefix fits counts.
    """

    members: tuple[tuple[str, str, TensorNames], ...] = ()

    def published(self, path: str, layers: int) -> tuple[str, ...]:
        theirs, names, rest = self._member(path)
        return tuple(theirs + name for name in names.published(rest, layers))

    def is_stacked(self, path: str) -> bool:
        _, names, rest = self._member(path)
        return names.is_stacked(rest)

    def stored_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        _, names, rest = self._member(path)
        return names.stored_shape(rest, shape)

    def is_left_out(self, name: str) -> bool:
        return any(
            name.startswith(theirs) and names.is_left_out(name.removeprefix(theirs)) for _, theirs, names in self.members
        )

    def _member(self, path: str) -> tuple[str, TensorNames, str]:
        """Returns the published prefix and the names of the member that a leaf belongs to, and its path within the member."""
        return next(
            (theirs, names, path.removeprefix(ours)) for ours, theirs, names in self.members if path.startswith(ours)
        )
