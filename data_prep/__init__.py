"""Reads, checks and builds data sets, generates phantoms, and curates questions from detection data."""
