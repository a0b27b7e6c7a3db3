"""Names of parameters: our paths, and the names of the tensors in Hugging Face's files and modules."""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """How a family's tensors are named in published files and in transformers' memory.

    Attributes:
      stacks: Our prefix of stacked layers, and the published prefix, in which `{}` is the layer.
      renamed: Parts of published names that differ from our paths, ours to theirs.
      in_memory: Prefixes of transformers' modules in memory, and the published prefixes that they replace.
      patch_embed: Our path of the kernel that is published as a convolution, [out, channels, frames, height, width].
    """

    stacks: tuple[tuple[str, str], ...]
    renamed: Mapping[str, str]
    in_memory: tuple[tuple[str, str], ...]
    patch_embed: str

    def published(self, path: str, layers: int) -> tuple[str, ...]:
        """Returns the published names of one leaf of ours: one name, or one for each of the stacked `layers`."""
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
        """Returns the published name of a tensor that may be named as in memory."""
        for nested, published in self.in_memory:
            if name.startswith(nested):
                return published + name.removeprefix(nested)
        return name

    def to_memory(self, name: str) -> str:
        """Returns a published name as transformers has it in memory."""
        for nested, published in self.in_memory:
            if name.startswith(published):
                return nested + name.removeprefix(published)
        return name
