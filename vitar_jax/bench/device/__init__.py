"""Benchmark of one machine with a GPU or TPU: checks its kernels, then measures its speed, in a given time. Needs no torch."""
