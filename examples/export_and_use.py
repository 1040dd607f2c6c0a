"""Export a classifier, quantise it, and use the file where there is no PyTorch.

    python examples/export_and_use.py MODEL.safetensors PICTURE [--data DIR]

The first half needs convzoo[deploy]. The second, `answer`, is all that a device needs: ONNX Runtime, NumPy and Pillow.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def ship(model: Path, data: Path | None, calibration_images: int) -> Path:
    """Return the INT8 file, or the float file where INT8 is not both accurate and faster."""
    import convzoo
    from convzoo.deploy.quantize.comparison import QuantizeOptions
    from convzoo.deploy.quantize.quantize import quantize
    from convzoo.errors import ToleranceError
    from convzoo.inference.torch_model import open_model

    file = convzoo.load(model, device="cpu").export("onnx")  # compared with PyTorch before it gets this name
    try:
        options = QuantizeOptions("onnx", data=data, max_drop=1, calibration_images=calibration_images)
        result = quantize(open_model(model), options, exported=file)
    except ToleranceError as error:
        print(f"in float: {error}")
        return file
    print(result.text())
    return result.path


def answer(file: Path, picture: Path) -> tuple[str, float]:
    """Return the class and its probability, by nothing but what the file says of itself."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    info = json.loads(session.get_modelmeta().custom_metadata_map["convzoo"])
    height, width = info["size"]
    pixels = np.asarray(Image.open(picture).convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    mean, std = (np.float32(info["preprocessing"][key]) for key in ("mean", "std"))
    images = ((pixels / np.float32(255) - mean) / std).transpose(2, 0, 1)[None]
    outputs = session.run(None, {session.get_inputs()[0].name: images})
    logits = np.asarray(outputs[0])[0]
    probabilities = np.exp(logits - logits.max())
    best = int(logits.argmax())
    return info["class_names"][best], float(probabilities[best] / probabilities.sum())


def main(arguments: list[str] | None = None) -> tuple[Path, str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the recipe's data set, where it is not embedded")
    parser.add_argument("--calibration-images", type=int, default=300)
    args = parser.parse_args(arguments)

    file = ship(args.model, args.data, args.calibration_images)
    name, probability = answer(file, args.picture)
    print(f"{args.picture}: {name} {probability:.1%} ({file}, {file.stat().st_size / 1e6:.1f} MB)")
    return file, name


if __name__ == "__main__":
    main()
