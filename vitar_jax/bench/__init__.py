"""Benchmarks against Hugging Face on torch, in one process. Nothing else in `vitar_jax` imports torch."""
