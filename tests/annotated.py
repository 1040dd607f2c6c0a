"""A COCO tree as real ones are: ids with gaps and in no order, crowds, areas of outlines, pictures without objects."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_coco(root: Path, split: str, count: int = 50, seed: int = 0) -> None:
    """Write `count` grey pictures with up to twelve boxes each, of eighty classes, small and large."""
    rng = np.random.default_rng([seed, split == "val"])
    category_ids = rng.permutation(90)[:80] + 1
    content: dict[str, list] = {"images": [], "annotations": []}
    content["categories"] = [{"id": int(number), "name": f"class {number}"} for number in category_ids]
    (root / f"{split}2017").mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for image_id in rng.permutation(10 * count)[:count].tolist():
        width, height = rng.integers(200, 641, 2).tolist()
        file = f"{image_id:012d}.png"
        Image.new("L", (width, height), 128).save(root / f"{split}2017" / file)
        content["images"].append({"id": image_id, "file_name": file, "width": width, "height": height})
        for _ in range(rng.integers(0, 13)):
            sides = np.minimum(8 * 40 ** rng.random() * np.exp(rng.normal(0, 0.3, 2)), (width, height))
            corner = rng.random(2) * ((width, height) - sides)
            box = np.concatenate([corner, sides]).round(2)
            category = int(rng.choice(category_ids[:6] if rng.random() < 0.7 else category_ids))
            entry = {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": category}
            shape = {"bbox": box.tolist(), "area": round(float(box[2] * box[3]) * rng.uniform(0.4, 1), 3)}
            content["annotations"].append({**entry, **shape, "iscrowd": int(rng.random() < 0.1)})
    rng.shuffle(content["annotations"])
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
