"""torch.export's .pt2 archive: PyTorch's own, run without this package (`torch.export.load(path).module()`)."""

import io
from pathlib import Path

import torch
import torchvision.ops
from torch import Tensor
from torch.export.passes import move_to_device_pass

from convzoo.deploy.exported import RuntimeOptions, Session
from convzoo.deploy.formats.pt2_safety import DOCUMENT, archive, archive_digest, cleaned, members
from convzoo.deploy.graph import quiet
from convzoo.deploy.metadata import UNSEALED, ExportInfo, parse_document
from convzoo.errors import ConvzooError, UsageError
from convzoo.tasks.postprocess import FAR_PX

PACKAGES = ()


def suppress(boxes: Tensor, scores: Tensor, most: int, iou_threshold: float, score_threshold: float) -> Tensor:
    """Suppress in all images and classes at once, moved apart in double precision, as `tasks.postprocess` does."""
    image, class_, box = (scores > score_threshold).nonzero(as_tuple=True)
    score = scores[image, class_, box].double()
    apart = (image * scores.shape[1] + class_).double() * (2 * FAR_PX + 1)
    survivors = torchvision.ops.nms(boxes[image, box].double() + apart[:, None], score, iou_threshold)
    return torch.stack([image, class_, box], 1)[survivors]


def write(program: torch.export.ExportedProgram, info: ExportInfo, path: Path) -> list[Path]:
    """Write the archive. Raises OSError, and the exporter's errors."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={Path(DOCUMENT).name: info.to_json()})
    return relabel(cleaned(members(buffer.getvalue())), info, path)


def relabel(files: dict[str, bytes], info: ExportInfo, path: Path) -> list[Path]:
    """Write an archive's files with other metadata. Raises OSError."""
    document = info.to_json().replace(UNSEALED, archive_digest(files))
    path.write_bytes(archive({**files, DOCUMENT: document.encode()}))
    return []


def read(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return the metadata and the files of an archive that convzoo wrote. Raises ConvzooError."""
    files = members(path.read_bytes())
    document = files[DOCUMENT].decode("utf-8", "replace")
    if parse_document(document).get("seal") != archive_digest(files):
        raise ConvzooError("damaged or changed: its SHA-256 is not the one it was written with")
    return document, cleaned(files)


def start(content: dict[str, bytes], info: ExportInfo, options: RuntimeOptions) -> Session:
    """Load the checked archive on a device. Raises UsageError for another precision than the file's."""
    if options.precision != "fp32":
        raise UsageError(f"--precision {options.precision}: a .pt2 file has the precision it was exported with")
    with quiet():
        program = torch.export.load(io.BytesIO(archive(content)))
        if options.device != "cpu":
            program = move_to_device_pass(program, options.device)
        module = program.module(check_guards=False)

    @torch.inference_mode()
    def run(images: Tensor) -> list[Tensor]:
        return [output.cpu() for output in module(images.to(options.device))]

    return run
