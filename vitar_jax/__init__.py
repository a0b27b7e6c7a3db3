"""A medical vision-language model that looks twice, in JAX.

Shape letters, used by every name and annotation in this package:

    B  batch            H  query heads        L  layers
    S  sequence         K  key-value heads    P  patches
    T  query tokens     E  head width         W  windows
    D  model width      F  MLP width          N  images
    V  vocabulary       G  group              A  actions

Importing the package loads nothing else: subpackages are imported by name.
"""

__version__ = "0.1.0"
