"""The checkpoints of a run: model files, each with the training state that continues from it.

The state lies beside the model file as `.state.pt` (tensors and plain values) with a `.sha256`.
"""

import os
import pickle
import shutil
from pathlib import Path

import torch

from convzoo.errors import ConvzooError
from convzoo.files import file_sha256, written_whole
from convzoo.logs import log
from convzoo.model_file import ModelInfo, StateDict, load_model, save_model
from convzoo.plain import JsonObject


def save_state(path: Path, state: JsonObject) -> None:
    """Write a training state and its checksum."""
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)
    with written_whole(Path(f"{path}.sha256")) as temporary:
        temporary.write_text(f"{file_sha256(path)}  {path.name}\n")


def load_state(path: Path) -> JsonObject:
    """Read and verify a training state. Raises ConvzooError where it is missing or damaged."""
    try:
        expected = Path(f"{path}.sha256").read_text().split()[0]
        if file_sha256(path) != expected:
            raise ConvzooError(f"{path}: damaged: its SHA-256 is not the one it was written with")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConvzooError(f"{path}: holds more than tensors and plain values; it is not opened") from None
    except (OSError, IndexError):
        raise ConvzooError(f"{path}: missing, or without its .sha256") from None


class RunCheckpoints:
    """The `checkpoints/` folder of a run: `step-NNNNNNNN`, and `last` and `best` as links to such a pair."""

    def __init__(self, folder: Path, keep_max: int):
        self.folder = folder
        self.keep_max = keep_max

    def save(self, step: int, state_dict: StateDict, info: ModelInfo, state: JsonObject, is_best: bool) -> Path:
        """Write a pair and point `last`, and `best` if it is, at it; then drop the oldest beyond keep_max."""
        self.folder.mkdir(exist_ok=True)
        stem = f"step-{step:08d}"
        model_path = self.folder / f"{stem}.safetensors"
        digest = save_model(model_path, state_dict, info)
        save_state(self.folder / f"{stem}.state.pt", {**state, "step": step, "model_sha256": digest})
        for name in ["last"] + ["best"] * is_best:
            for suffix in (".safetensors", ".state.pt", ".state.pt.sha256"):
                _link(self.folder / f"{stem}{suffix}", self.folder / f"{name}{suffix}")
        for old in self.steps()[self.keep_max :]:
            for suffix in (".safetensors", ".state.pt", ".state.pt.sha256"):
                (self.folder / f"step-{old:08d}{suffix}").unlink(missing_ok=True)
        return model_path

    def steps(self) -> list[int]:
        """Return the steps of the pairs on disk, latest first."""
        return sorted(
            (int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.safetensors")), reverse=True
        )

    def newest_whole(self) -> tuple[StateDict, JsonObject] | None:
        """Return the weights and state of the latest pair that is whole, warning of each that is not."""
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()
        for step in self.steps():
            stem = self.folder / f"step-{step:08d}"
            try:
                state_dict, _, digest = load_model(Path(f"{stem}.safetensors"))
                state = load_state(Path(f"{stem}.state.pt"))
                if state["model_sha256"] != digest:
                    raise ConvzooError(f"{stem}.state.pt: belongs to other weights than the file beside it")
                return state_dict, state
            except ConvzooError as error:
                log.warning(f"{error}; using the one before it")
        return None


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
