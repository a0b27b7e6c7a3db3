"""Meshes and the one table that says how arrays fall on them."""
