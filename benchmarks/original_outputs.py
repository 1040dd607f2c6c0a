"""How far converted networks are from what their programs computed: the largest absolute difference, as JSON.

    python benchmarks/original_outputs.py FIXTURES        # the folder with mindspore/ and darknet/

The outputs are MindSpore's and Darknet's own, of weights that the scripts beside them draw.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from convzoo.convert import mindspore, readers
from convzoo.convert.mindspore_ckpt import write_records


def array(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(path))


def picture(path: Path) -> torch.Tensor:
    image = array(path)
    return image.reshape(-1, *image.shape[-3:])


def difference(outputs: torch.Tensor, path: Path) -> float:
    return float((outputs - array(path).reshape(outputs.shape)).abs().max())


def from_mindspore(folder: Path) -> dict[str, float]:
    spec = importlib.util.spec_from_file_location("make_params", folder / "make_params.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {}
    for name in ("densenet100", "densenet121", "tinydarknet", "vgg16_cifar10", "vgg16_imagenet"):
        drawn = {key: torch.from_numpy(value) for key, value in module.params(name).items()}
        model = readers.network(mindspore.read(write_records(drawn)))
        found[name] = difference(model(array(folder / name / "input.npy")), folder / name / "output.npy")
        if name == "tinydarknet":
            outputs = model(array(folder / "tinydarknet_227/input.npy"))
            found["tinydarknet_227"] = difference(outputs, folder / "tinydarknet_227/output.npy")
    drawn = {key: torch.from_numpy(value) for key, value in module.params("yolov3").items()}
    model = readers.network(mindspore.convert(drawn, "yolov3.ckpt"))
    for name, images, raw in (("yolov3", "input", "output_raw"), ("yolov3_64x96", "input_nonsquare", "nonsquare_raw")):
        heads = reversed(model(array(folder / f"yolov3/{images}.npy")))  # the zoo gives the coarsest first
        found[name] = max(difference(head, folder / f"yolov3/{raw}_{i}.npy") for i, head in enumerate(heads))
    return found


def from_darknet(folder: Path, scratch: Path) -> dict[str, float]:
    found = {}
    for name, last in (("tiny", 20), ("darknet53", 76), ("yolov3", None)):
        path = scratch / f"{name}.weights"
        subprocess.run([sys.executable, folder / "make_weights.py", name, path], check=True, capture_output=True)
        model = readers.network(readers.read(path))
        if last is None:
            _, medium, large = model(picture(folder / "yolov3-416/input.npy"))
            pairs = ((large, "yolov3-416/output_seeded_conv81.npy"), (medium, "yolov3-416/output_seeded_conv93.npy"))
        else:
            pairs = [
                (model(picture(folder / name / f"{image}.npy")), f"{name}/output_{kind}_logits{last}.npy")
                for image, kind in (("input", "seeded"), ("preprocessed_dog", "dog"))
            ]
        found[name] = max(difference(outputs, folder / file) for outputs, file in pairs)
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    fixtures = parser.parse_args().fixtures
    with tempfile.TemporaryDirectory() as scratch:
        darknet = from_darknet(fixtures / "darknet", Path(scratch))
    print(json.dumps({"mindspore": from_mindspore(fixtures / "mindspore"), "darknet": darknet}))


if __name__ == "__main__":
    main()
