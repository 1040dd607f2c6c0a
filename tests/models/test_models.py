"""Networks: every registered one computes, trains in all its parameters, and has the published size."""

import pytest
import torch

from convzoo.config import registry
from helpers import CONV, cfg_text

COUNTS = [
    ("vgg16", {}, 138_357_544),
    ("vgg16", {"batch_norm": True}, 138_365_992),
    ("vgg16", {"batch_norm": True, "head": "small", "num_classes": 10}, 14_728_266),
    ("vgg16", {"batch_norm": True, "conv_bias": False, "num_classes": 10}, 134_305_738),
    ("vgg16", {"conv_bias": False}, 138_353_320),
    ("densenet100", {}, 769_162),
    ("densenet100", {"stem_norm": True}, 769_210),
    ("densenet121", {}, 7_978_856),
    ("tinydarknet", {}, 1_042_104),
    ("tinydarknet", {"last": "norm_leaky"}, 1_043_104),
    ("darknet53", {}, 41_609_928),
    ("yolov3", {}, 61_949_149),
    ("yolov3_tiny", {}, 8_852_366),
]
CFG = cfg_text(
    "net width=64 height=64 channels=3",
    f"{CONV} filters=8 stride=2",
    "avgpool",
    "connected output=7 activation=linear",
    "softmax",
)
SMALL = {
    "vgg16": {"head": "small", "batch_norm": True, "dropout": 0.0},
    "yolov3": {"width": 0.125},
    "yolov3_tiny": {"width": 0.125},
    "darknet": {"cfg": CFG},
}


def build(name: str, **keys):
    return registry.bind("model", {"name": name, **keys})()


@pytest.mark.parametrize(("name", "keys", "count"), COUNTS)
def test_parameter_counts(name, keys, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build(name, **keys).parameters()) == count


@pytest.mark.parametrize("name", registry.names("model"))
def test_every_model_computes_and_trains(name):
    torch.manual_seed(0)
    model = build(name, num_classes=7, **SMALL.get(name, {}))
    images = torch.randn(4, 3, 64, 64)
    outputs = model.train()(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if name == "yolov3":
        assert [tuple(o.shape) for o in outputs] == [(4, 36, 8, 8), (4, 36, 4, 4), (4, 36, 2, 2)]
    elif name == "yolov3_tiny":
        assert [tuple(o.shape) for o in outputs] == [(4, 36, 4, 4), (4, 36, 2, 2)]
    else:
        assert outputs[0].shape == (4, 7)
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", registry.names("model"))
def test_in_evaluation_a_picture_does_not_depend_on_its_batch(name):
    torch.manual_seed(0)
    model = build(name, num_classes=7, **SMALL.get(name, {})).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        together, alone = model(images), model(images[1:2])
    for a, b in zip(together, alone, strict=True) if isinstance(together, tuple) else [(together, alone)]:
        assert (a[1:2] - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize(
    ("name", "size"),
    [("tinydarknet", (227, 227)), ("tinydarknet", (33, 47)), ("darknet53", (96, 64)), ("densenet121", (75, 50))],
)
def test_other_sizes_are_accepted(name, size):
    model = build(name, num_classes=3).eval()
    assert model(torch.randn(1, 3, *size)).shape == (1, 3)


def test_dropout_and_initialisation_follow_their_keys():
    small = build("vgg16", head="small", num_classes=10, batch_norm=True, dropout=0.3)
    assert [module.p for module in small.modules() if isinstance(module, torch.nn.Dropout)] == [0.3]
    conv = small.features[40]
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    xavier = build("vgg16", head="small", init="xavier", num_classes=10).features[28]
    assert xavier.weight.abs().max().item() <= (6 / (9 * 1024)) ** 0.5
    assert build("tinydarknet", init="truncated_normal").features[-1].conv.weight.abs().max() <= 0.04


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered twice"):

        @registry.register("model")
        def vgg16():
            pass
