"""Attention back ends: XLA on every device, and kernels of accelerators."""
