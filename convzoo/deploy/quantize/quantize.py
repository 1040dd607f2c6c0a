"""INT8: calibrated on pictures that are not evaluated, and kept only where it is accurate enough and faster."""

import os
import tempfile
from pathlib import Path

from convzoo.config.registry import nearest
from convzoo.deploy import SUFFIXES, bytes_of, export, format_module, library
from convzoo.deploy.exported import open_exported
from convzoo.deploy.quantize import schemes
from convzoo.deploy.quantize.calibration import find_calibration
from convzoo.deploy.quantize.comparison import Comparison, QuantizeOptions, QuantizeResult
from convzoo.errors import UsageError
from convzoo.files import written_whole
from convzoo.inference.torch_model import TorchModel


def quantize(opened: TorchModel, options: QuantizeOptions, exported: Path | None = None) -> QuantizeResult:
    """Quantise a model that is open and keep the result only if it is accurate enough and faster.

    Args:
        exported: the float file of that format, where it was written before.
    Raises:
        UsageError: no such file or folder, or another format.
        DataError: nothing to calibrate on, nothing to evaluate, or pictures that are in both.
        ToleranceError: no way of quantising keeps the accuracy, or none is faster than float; nothing is left behind.
        MissingPackageError: the format's library is not installed.
    """
    if options.format == "om":
        from convzoo.deploy.quantize import amct

        return amct.quantize_model(opened, options)
    if options.format not in schemes.SCHEMES:
        raise UsageError(f"--format {options.format}: no INT8 in it{nearest(options.format, [*schemes.SCHEMES, 'om'])}")
    module = format_module(options.format)
    target = export.target_path(opened.path, options.out, SUFFIXES[options.format], "-int8")
    for name in (*module.PACKAGES, "nncf"):
        library(name, f"INT8 for {options.format}")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        folder = Path(name)
        if exported is None:
            exported = export.export(opened, export.ExportOptions(options.format, out=folder, data=options.data)).path
        before = open_exported(exported)
        calibration = find_calibration(
            opened, options.data, options.calibration, options.calibration_images, before.info.size
        )
        session = Comparison(before, calibration, options, folder)
        candidate, network = session.best()
        draft, others = session.written(network, candidate, target.name)
        size = sum(path.stat().st_size for path in (draft, *others))
        with written_whole(target) as temporary:
            for other in others:
                with written_whole(target.with_name(other.name)) as beside:
                    os.replace(other, beside)
            os.replace(draft, temporary)
        return QuantizeResult(target, size, bytes_of(exported), session.description(candidate))
