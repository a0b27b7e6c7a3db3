"""Maps paths of our parameters to the names of the tensors in Hugging Face's files and modules."""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """Names of a family's tensors, in published files and in transformers' modules in memory.

    Attributes:
      stacks: (our prefix, published prefix) of each stack of layers; `{}` in the published prefix stands for the layer.
      renamed: Maps parts of our names to the published parts that differ from them.
      in_memory: (prefix in memory, published prefix) of transformers' modules.
      patch_embed: Our path of the kernel that is published as a convolution, [out, channels, frames, height, width].
    """

    stacks: tuple[tuple[str, str], ...]
    renamed: Mapping[str, str]
    in_memory: tuple[tuple[str, str], ...]
    patch_embed: str

    def published(self, path: str, layers: int) -> tuple[str, ...]:
        """Returns the published names of one of our leaves: one name, or one for each of the stacked `layers`."""
        name = re.sub(r"/kernel$", "/weight", path)
        name = name + "/weight" if name.endswith("embed_tokens") else name
        for ours, theirs in self.stacks:
            if path.startswith(ours):
                tail = name.removeprefix(ours).replace("/", ".")
                return tuple(theirs.format(i) + tail for i in range(layers))
        name = name.replace("/", ".")
        for ours, theirs in self.renamed.items():
            name = name.replace(ours, theirs)
        return (name,)

    def is_stacked(self, path: str) -> bool:
        """Returns whether a leaf has a leading axis of layers."""
        return path.startswith(tuple(ours for ours, _ in self.stacks))

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
