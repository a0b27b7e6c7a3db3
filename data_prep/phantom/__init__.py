"""Phantoms: synthetic scans with one small lesion, their tokenizer, and the probe that shows why one look is not enough."""

from data_prep.phantom.samples import source

__all__ = ["source"]
