"""The verb `list`: what there is."""

import json
from typing import Annotated

import typer

from convzoo.cli.options import Json


def list_(
    weights: Annotated[bool, typer.Option("--weights", help="List the published weights instead.")] = False,
    json_: Json = False,
) -> None:
    """List the recipes, models and data sets, or the published weights."""
    from convzoo.config import recipe as recipes
    from convzoo.config import registry

    if weights:
        from convzoo.convert import published

        print(json.dumps([entry.plain() for entry in published.TABLE]) if json_ else published.text())
        return
    headers = {
        name: (recipes.SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for name in recipes.shipped()
    }
    catalogue = {
        "recipes": headers,
        **{f"{kind}s": registry.declared(kind) for kind in ("model", "dataset", "transform")},
    }
    if json_:
        print(json.dumps({**catalogue, "recipe_schema": recipes.Recipe.model_json_schema()}, ensure_ascii=False))
        return
    print("recipes")
    for name, header in headers.items():
        print(f"  {name:26} {header}")
    for kind in ("models", "datasets", "transforms"):
        print(f"{kind}\n  {', '.join(catalogue[kind])}")
