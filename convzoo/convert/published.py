"""Known published weights: where they come from, under which licence, what is reported of them and what we measured.

`name` is what training, conversion and `convzoo.load` take: LIBRARY:NAME for torchvision and timm, darknet:FILE for the
files of pjreddie.com. Reported accuracies are the publishers' own, ours are measured.
"""

from typing import NamedTuple

from convzoo.plain import JsonObject

DARKNET_URL = "https://pjreddie.com/media/files/"
PUBLIC_DOMAIN = "public domain (Darknet's licence)"
# torchvision's weights come with no licence of their own; its documentation refers to the data set's terms.
TORCHVISION = "BSD-3-Clause (torchvision); ImageNet's terms may apply"
CROP_224 = "short side 256, bilinear, centre crop 224, ImageNet mean and std"
DARKNET_CROP = "short side 256, bilinear, centre crop {} px, values 0..1, no mean"
IMAGENET = "ImageNet val"


class Accuracy(NamedTuple):
    """Fractions of 1 and the images that they were measured on."""

    values: dict[str, float]
    images: str


class Published(NamedTuple):
    """One published file.

    Attributes:
        sha256: of the file: the whole, or its first digits where only its name states those; None where unknown.
        preprocessing: what conversion attaches.
        reported: by the publisher, on the pictures named.
        measured: by us, None where these weights were not at hand.
    """

    name: str
    model: str
    source: str
    licence: str
    sha256: str | None
    preprocessing: str
    reported: Accuracy | None
    measured: Accuracy | None = None

    def plain(self) -> JsonObject:
        """Return plain values for JSON."""
        return {
            **self._asdict(),
            "reported": self.reported and self.reported._asdict(),
            "measured": self.measured and self.measured._asdict(),
        }


def _top(top1: float, top5: float, images: str = IMAGENET) -> Accuracy:
    return Accuracy({"top1": top1, "top5": top5}, images)


def _torchvision(name: str, model: str, file: str, reported: Accuracy) -> Published:
    url = f"https://download.pytorch.org/models/{file}"
    sha256 = file.rpartition("-")[2].removesuffix(".pth")
    return Published(f"torchvision:{name}.IMAGENET1K_V1", model, url, TORCHVISION, sha256, CROP_224, reported)


def _timm(name: str, model: str, licence: str, preprocessing: str, reported: Accuracy) -> Published:
    url = f"https://huggingface.co/timm/{name}"
    return Published(f"timm:{name}", model, url, licence, None, preprocessing, reported)


def _darknet(
    file: str,
    model: str,
    preprocessing: str,
    reported: Accuracy | None,
    sha256: str | None = None,
    measured: Accuracy | None = None,
) -> Published:
    url = DARKNET_URL + file
    return Published(f"darknet:{file}", model, url, PUBLIC_DOMAIN, sha256, preprocessing, reported, measured)


TABLE = (
    _darknet(
        "tiny.weights",
        "tinydarknet",
        DARKNET_CROP.format(224),
        _top(0.587, 0.817),
        sha256="f1c3fe6b9bab9af69ae2a090682df3e5b9d83accba69551315f030ce1b37ea81",
        measured=_top(137 / 200, 179 / 200, "200 images of ImageNet val, one of every fifth class"),
    ),
    _darknet("darknet53.weights", "darknet53", DARKNET_CROP.format(256), _top(0.772, 0.938)),
    _darknet("darknet53.conv.74", "darknet53", "none: a backbone, to train from", None),
    _darknet(
        "yolov3.weights",
        "yolov3",
        "letterboxed on grey to 416x416, values 0..1, no mean",
        Accuracy({"AP": 0.310, "AP50": 0.553}, "COCO test-dev at 416"),
    ),
    _darknet(
        "yolov3-tiny.weights",
        "yolov3_tiny",
        "letterboxed on grey to 416x416, values 0..1, no mean",
        Accuracy({"AP50": 0.331}, "COCO test-dev at 416"),
        sha256="dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
        measured=Accuracy({"AP": 0.2124, "AP50": 0.4319}, "128 images of COCO val2017"),
    ),
    _torchvision("VGG16_Weights", "vgg16", "vgg16-397923af.pth", _top(0.71592, 0.90382)),
    _torchvision("VGG16_BN_Weights", "vgg16", "vgg16_bn-6c64b313.pth", _top(0.73360, 0.91516)),
    _torchvision("DenseNet121_Weights", "densenet121", "densenet121-a639ec97.pth", _top(0.74434, 0.91972)),
    _timm("vgg16.tv_in1k", "vgg16", "BSD-3-Clause", CROP_224, _top(0.71592, 0.90384)),
    _timm("vgg16_bn.tv_in1k", "vgg16", "BSD-3-Clause", CROP_224, _top(0.73370, 0.91514)),
    _timm(
        "densenet121.tv_in1k",
        "densenet121",
        "Apache-2.0",
        CROP_224.replace("bilinear", "bicubic"),
        _top(0.74764, 0.92154),
    ),
    _timm(
        "densenet121.ra_in1k",
        "densenet121",
        "Apache-2.0",
        CROP_224.replace("bilinear", "bicubic"),
        _top(0.76500, 0.93368, "ImageNet val at 288, crop 0.95"),
    ),
    _timm(
        "darknet53.c2ns_in1k",
        "darknet53",
        "Apache-2.0",
        "short side 288, bicubic, centre crop 256, ImageNet mean and std",
        _top(0.80536, 0.95434, "ImageNet val at 288, crop 1.0"),
    ),
)


# The `.cfg` files of Darknet's programs by the bytes of their weights, but those of our networks.
DARKNET_CFGS = {
    19_233_100: "enet-coco.cfg",
    19_560_180: "efficientnet_b0.cfg",
    24_251_276: "yolov4-tiny.cfg",
    24_967_560: "yolov7-tiny.cfg",
    35_434_956: "yolov3-tiny.cfg",
    63_471_560: "yolov2-tiny-voc.cfg",
    68_825_780: "densenet201.cfg",
    83_427_124: "darknet19.cfg",
    89_251_508: "resnext50.cfg",
    91_303_604: "resnet50.cfg",
    202_704_264: "yolov2-voc.cfg",
    211_944_840: "yolov4-csp-swish.cfg",
    228_123_400: "csresnext50-panet-spp.cfg",
    246_714_648: "yolov3-voc.cfg",
    249_513_396: "alexnet.cfg",
    252_209_544: "yolov3-spp.cfg",
    257_717_640: "yolov4.cfg",
    283_669_892: "yolov4-p5.cfg",
    553_430_196: "vgg-16.cfg",
}


def names(library: str | None = None) -> list[str]:
    """Return the names of all, or of those of torchvision, timm or darknet."""
    return [entry.name for entry in TABLE if library is None or entry.name.startswith(f"{library}:")]


def find(name: str) -> Published | None:
    """Return the entry of a name such as `timm:densenet121.ra_in1k`."""
    return next((entry for entry in TABLE if entry.name == name), None)


def of_file(sha256: str) -> Published | None:
    """Return the entry of a file by its SHA-256."""
    return next((entry for entry in TABLE if entry.sha256 and sha256.startswith(entry.sha256)), None)


def text() -> str:
    """Return the table for people."""
    lines = []
    for entry in TABLE:
        lines += [entry.name, f"    model          {entry.model}", f"    source         {entry.source}"]
        lines += [f"    licence        {entry.licence}", f"    SHA-256        {entry.sha256 or 'not known'}"]
        lines += [f"    preprocessing  {entry.preprocessing}"]
        for what, accuracy in (("reported", entry.reported), ("measured", entry.measured)):
            lines.append(f"    {what}       {_accuracy(accuracy)}")
    return "\n".join(lines)


def _accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "-"
    values = "  ".join(f"{key} {100 * value:.2f} %" for key, value in accuracy.values.items())
    return f"{values}  ({accuracy.images})"
