"""Phantoms: synthetic scans with one small lesion, their tokenizer, and a probe that shows why one view is not enough."""

from data_prep.phantom.samples import source

__all__ = ["source"]
