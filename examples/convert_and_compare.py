"""Convert weights of torchvision and see for yourself that nothing was lost.

    python examples/convert_and_compare.py densenet121 WEIGHTS.pth [--out MODEL.safetensors]

WEIGHTS.pth is a state dict as torchvision keeps it; vgg16, vgg16_bn and densenet121 are known here.
"""

import argparse
from pathlib import Path

import torch
import torchvision

import convzoo
from convzoo.convert.convert import convert


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("converted.safetensors"))
    args = parser.parse_args(arguments)

    report = convert(str(args.weights), args.out)  # every tensor finds its place, or this raises
    print(report.text())

    original = torchvision.models.get_model(args.network, weights=None)
    original.load_state_dict(torch.load(args.weights, weights_only=True))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = original.eval()(images)
    outputs = convzoo.load(args.out, device="cpu")(images)
    difference = float((outputs - expected).abs().max() / expected.abs().max())
    print(f"largest relative difference from torchvision's {args.network}: {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
