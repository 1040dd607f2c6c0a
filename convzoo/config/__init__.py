"""Recipes: their schema, the lines of their keys, and the builders that the keys belong to."""
