"""What a folder of labelled pictures holds, in numbers and words."""

from collections.abc import Sequence

import numpy as np

from convzoo.data.layouts.labels import Labels
from convzoo.data.layouts.recognise import LAYOUTS
from convzoo.data.layouts.split import in_one_split
from convzoo.plain import JsonObject


def account(labels: Labels, splits: Sequence[str | None] | None, source: str) -> JsonObject:
    """Return plain values about labels: layout, evidence, task, counts by class, split and what was left out.

    Args:
        splits: of each picture, None where nobody has split them; source: who did.
    """
    counts = labels.counts()
    classes: JsonObject = {}
    for i, name in enumerate(labels.class_names):
        classes[name] = {"images": int((counts[:, i] > 0).sum())}
        if labels.objects is not None:
            classes[name]["objects"] = int(counts[:, i].sum())
    boxes = labels.objects is not None
    by_split = {name: splits.count(name) for name in ("train", "val", "test") if name in splits} if splits else None
    return {
        "folder": str(labels.folder),
        "layout": labels.layout,
        "evidence": labels.evidence,
        "task": "detect" if boxes else "classify",
        "images": len(labels.files),
        "images_without_objects": int((counts.sum(1) == 0).sum()) if boxes else 0,
        "objects": len(labels.labels) if boxes else None,
        "scores": int(np.isfinite(labels.scores).sum()),
        "classes": classes,
        "splits": by_split,
        "split_by": source if splits else None,
        "in_one_split": in_one_split(labels, splits) if splits else {},
        "notes": labels.notes,
    }


def text(plain: JsonObject) -> str:
    """Return an account as lines for people."""
    boxed = plain["task"] == "detect"
    lines = [f"{plain['folder']}: {LAYOUTS[plain['layout']].title}, recognised by {plain['evidence']}"]
    total = f"{plain['images']:,} pictures, {len(plain['classes'])} classes"
    if boxed:
        total += f", {plain['objects']:,} objects, {plain['images_without_objects']:,} pictures without any"
    lines += [total, *(f"  {note}" for note in plain["notes"]), ""]
    width = max(5, *map(len, plain["classes"]))
    lines.append(f"{'class':{width}}  {'pictures':>9}" + f"  {'objects':>9}" * boxed)
    for name, counts in plain["classes"].items():
        lines.append(f"{name:{width}}  {counts['images']:9,}" + (f"  {counts['objects']:9,}" if boxed else ""))
    if plain["splits"]:
        by = {"lists": "lists beside the data", "layout": "the layout itself"}[plain["split_by"]]
        shares = ", ".join(f"{count:,} {split}" for split, count in plain["splits"].items())
        lines += ["", f"split by {by}: {shares}"]
        lines += [f"  in {split} only: {', '.join(names)}" for split, names in plain["in_one_split"].items()]
    else:
        lines += ["", "nobody split it: training holds out 20 % of each class, what looks alike on one side"]
    return "\n".join(lines)
