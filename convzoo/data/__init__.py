"""Data sets, decoding, transforms, sample order and loading.

A data set is a builder `name(root, split, *, keys)` marked `@register("dataset")` that returns an object with
`class_names`, `labels` and `load(index) -> Sample`; split is "train" or "val".
"""
