"""Recipes: their schema, the objects built from them, compiled programs, training and run directories."""
