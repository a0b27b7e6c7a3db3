"""Qwen2.5-VL in Flax nnx: modules are plain pytrees, functions of arrays of static shape."""
