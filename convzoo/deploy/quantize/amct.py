"""INT8 for Ascend: AMCT, the vendor's quantiser, and `atc` write it; the device measures it as every INT8 file."""

import shutil
import tempfile
from pathlib import Path

from convzoo.deploy import export
from convzoo.deploy.exported import open_exported
from convzoo.deploy.formats import ascend, mindir
from convzoo.deploy.metadata import UNSEALED
from convzoo.deploy.quantize.calibration import Calibration, find_calibration
from convzoo.deploy.quantize.comparison import Comparison, QuantizeOptions, QuantizeResult
from convzoo.deploy.quantize.schemes import QuantizationScheme
from convzoo.errors import UsageError
from convzoo.inference.torch_model import TorchModel

SCHEME = QuantizationScheme("amct")


def quantize_model(opened: TorchModel, options: QuantizeOptions) -> QuantizeResult:
    """Write a model's INT8 .om, and keep it only if it is accurate enough and faster on the device.

    Left beside it is what an Ascend host needs where a tool is missing: NAME.onnx, the calibration's inputs in
    NAME-calibration, and AMCT's NAME-amct_deploy_model.onnx.

    Raises:
        MissingPackageError: no AMCT, no `atc` or no `acl`; says what to take along.
        ToleranceError, UsageError, DataError, ConvzooError: as `quantize.quantize`.
    """
    model = opened.path
    target = export.target_path(model, options.out, ".om", "-int8")
    source = target.with_name(f"{model.stem}.onnx")
    info = export.export(opened, export.ExportOptions("onnx", out=source, batch=1, data=options.data)).info
    calibration = find_calibration(opened, options.data, options.calibration, options.calibration_images, info.size)
    inputs = target.with_name(f"{model.stem}-calibration")
    _write_inputs(calibration, inputs)
    deployed = quantize_file(source, inputs, target.with_name(f"{model.stem}-amct"))
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        before, after = Path(folder) / "float.om", Path(folder) / target.name
        for made_from, file in ((source, before), (deployed, after)):
            ascend.compile_om(made_from, info, file, None, options.soc_version)
            mindir.write_beside(info.model_copy(update={"seal": UNSEALED}), file)
        comparison = Comparison(open_exported(before), calibration, options, Path(folder))
        candidate = comparison.measured(SCHEME, after)
        if not comparison.passes(candidate):
            raise comparison.refusal([candidate])
        described, float_bytes = comparison.description(candidate), before.stat().st_size
        provenance = {**info.provenance, "quantization": described}
        changed = {"metrics": candidate.result, "provenance": provenance, "seal": UNSEALED}
        ascend.publish([after, mindir.write_beside(info.model_copy(update=changed), after)], target.parent)
    return QuantizeResult(target, target.stat().st_size, float_bytes, described)


def _write_inputs(calibration: Calibration, folder: Path) -> None:
    """Write each picture as the network gets it. Raises UsageError for a folder that exists."""
    if folder.exists():
        raise UsageError(f"{folder}: exists already; calibration inputs are written there")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as draft:
        for number, image in enumerate(calibration):
            image.tofile(Path(draft) / f"{number:05d}.bin")
        shutil.copytree(draft, folder)


def quantize_file(source: Path, calibration: Path, out: Path) -> Path:
    """Run AMCT, the vendor's quantiser, on a float32 ONNX file of convzoo's; return the INT8 one for `compile_om`.

    Args:
        calibration: a folder of float32 .bin inputs, as `quantize_model` writes them.
        out: path and first part of the name of what AMCT writes, NAME_deploy_model.onnx and NAME_fake_quant_model.onnx.
    Raises:
        UsageError: no calibration inputs. MissingPackageError: no AMCT. ConvzooError: it failed.
    """
    info, inputs = open_exported(source).info, len(list(calibration.glob("*.bin")))
    if not inputs or info.input != "float_nchw":
        raise UsageError(f"{calibration}: no .bin inputs for {source.name}; convzoo quantize --format om writes them")
    command = ["amct_onnx", "calibration", f"--model={source}", f"--save_path={out}"]
    command += [f"--input_shape={ascend.shape(info)}", f"--data_dir={calibration}", "--data_types=float32"]
    command += [f"--batch_num={max(1, inputs // (info.batch or 1))}"]
    target = out.with_name(f"{out.name}_deploy_model.onnx")
    ascend.call(command, "INT8 for Ascend needs the vendor's AMCT", [source, calibration], target)
    return target
