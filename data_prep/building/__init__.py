"""Writes data sets as ArrayRecord files with a card."""
