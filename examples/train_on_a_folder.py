"""Train a classifier on a folder of pictures and read what came of it.

    python examples/train_on_a_folder.py PICTURES [--out RUN] [train.epochs=50 ...]

PICTURES holds `train/` and `val/`, and each of them a folder per class.
"""

import argparse
import csv
from pathlib import Path

import convzoo


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/my-pictures"))
    parser.add_argument("overrides", nargs="*", help="keys of the recipe, such as train.epochs=50")
    args = parser.parse_intermixed_args(arguments)

    # Any recipe is a beginning: another data set under its name, as many classes as there are folders.
    num_classes = sum(folder.is_dir() for folder in (args.pictures / "train").iterdir())
    changes = ["data={name: image_folder}", f"model.num_classes={num_classes}", *args.overrides]
    run = convzoo.train("tinydarknet-digits", *changes, data=args.pictures, out=args.out)

    # A run is plain files; its model file knows its classes, its preprocessing and what was measured.
    model = convzoo.load(run / "checkpoints/last.safetensors")
    print(f"top-1 {model.metrics['top1']:.1%} of {model.metrics['images']} pictures; see {run}/README.md")
    with open(run / "eval/per_class.csv", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            print(row)
    for answer in model.predict(args.pictures / "val" / model.class_names[0]):
        print(answer.text())
    return run


if __name__ == "__main__":
    main()
