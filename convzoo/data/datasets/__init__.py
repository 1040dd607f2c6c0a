"""Data sets: one source a file, each a builder marked `@register("dataset")`."""
