"""A run's own README: what was trained, what was measured, and the command that repeats it."""

from pathlib import Path

from convzoo.plain import JsonObject
from convzoo.report.tables import percent, table


def write_card(path: Path, name: str, facts: JsonObject, result: JsonObject, rows: list[JsonObject]) -> None:
    """Write the README of a run.

    Args:
        facts: command, recipe (plain), env, data, best (highest value seen in training, or None), skipped counts, the
            model file, and how far an unfinished run is, such as "step 3 of 8"; None of a finished one.
        result: the final evaluation of the last weights; empty while the run is unfinished or if it does not evaluate.
        rows: one per epoch, as in results.csv.
    """
    data, recipe = facts["data"], facts["recipe"]
    text = f"""# {name}

{recipe["model"]["name"]} on {recipe["data"]["name"]}: {data["train_images"]:,} training \
and {_count(data["val_images"])} validation images, \
{len(data["class_names"])} classes, {recipe["train"]["epochs"]} epochs, seed {recipe["seed"]}.

## Result

{_result(facts, result)}

## Run

```
{facts["command"]}
```

{_curves(path.parent)}

{_epochs(rows)}

## Machine

{table(["", ""], [[key, str(value)] for key, value in facts["env"].items() if value is not None])}

`recipe.yaml` holds every key of the recipe, `metrics.jsonl` every measurement, `eval/` the tables and worst images \
of the final evaluation.
"""
    path.write_text(text, encoding="utf-8")


def _count(number: int) -> str:
    return f"{number:,}" if number else "no"


def _result(facts: JsonObject, result: JsonObject) -> str:
    data, recipe = facts["data"], facts["recipe"]
    notes = " ".join(f"{count} {what}." for what, count in facts["skipped"].items() if count)
    if facts["unfinished"]:
        return f"**Unfinished: {facts['unfinished']}.** The same command continues it. {notes}".rstrip()
    if not result:
        unmeasured = "Not measured: there was no validation (`train.eval_every_epochs: 0`)."
        return f"{unmeasured} The last weights: `{facts['model_file']}`. {notes}".rstrip()
    where = data.get("val_root", data["root"])
    root = "" if where == "None" else f" --data {where}"
    averaged = ", averaged (EMA)," if recipe["train"]["ema_decay"] is not None else ""
    best = f"the best epoch had {percent(facts['best'])}"
    return f"""The last weights{averaged} on the validation images, in float32:

{_measured(result)}

Not quoted as a result, because it was chosen on the same images: {best}. {notes}

Again: `convzoo eval {facts["model_file"]}{root}`"""


def _curves(folder: Path) -> str:
    """Return links to the curves that were drawn already."""
    names = {"loss": "loss", "accuracy": "accuracy", "learning rate": "learning_rate"}
    paths = {title: f"plots/{name}.png" for title, name in names.items()}
    return "\n".join(f"![{title}]({path})" for title, path in paths.items() if (folder / path).is_file())


def _measured(result: JsonObject) -> str:
    names = {"top1": "top-1", "top5": "top-5"}
    measured = [
        [names.get(key, key.replace("_", ", ")), percent(value)]
        for key, value in result.items()
        if isinstance(value, float)
    ]
    return table(["measure", "value"], [*measured, ["images", f"{result['images']} of {result['images_expected']}"]])


def _epochs(rows: list[JsonObject]) -> str:
    names = {
        "train_top1": "top-1, training",
        "top1": "top-1, validation",
        "AP": "AP, validation",
        "AP50": "AP50, validation",
    }
    shown = [key for key in names if any(row.get(key) is not None for row in rows)]
    lines = [
        [
            str(row["epoch"]),
            str(row["step"]),
            f"{row['loss']:.4f}",
            *(percent(row.get(key)) for key in shown),
            f"{row['lr']:.6f}",
        ]
        for row in rows
    ]
    return table(["epoch", "step", "loss", *(names[key] for key in shown), "learning rate"], lines)
