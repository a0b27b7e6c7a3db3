"""Recipes: one file each, with `get_config()`."""
