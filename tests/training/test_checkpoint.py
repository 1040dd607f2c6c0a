"""Model files and training state: whole or not at all, verified when read."""

import json
import re
import resource
import shutil

import pytest
import torch
from safetensors.torch import save_file

from convzoo import model_file
from convzoo.config.recipe import load as load_recipe
from convzoo.errors import ConvzooError
from convzoo.model_file import ModelInfo, load_model, save_model
from convzoo.training.checkpoints import RunCheckpoints, load_state, save_state
from helpers import one_line

RECIPE = load_recipe("tinydarknet-digits").plain()
INFO = ModelInfo(recipe=RECIPE, class_names=[str(i) for i in range(10)], metrics={"top1": 0.5})
WEIGHTS = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(7), "d": torch.randn(2, 2).bfloat16()}


def test_a_model_file_gives_back_what_it_was_given(tmp_path):
    path = tmp_path / "m.safetensors"
    digest = save_model(path, WEIGHTS, INFO)
    weights, info, read_digest = load_model(path)
    assert info == INFO and read_digest == digest
    assert all(
        torch.equal(weights[name], tensor) and weights[name].dtype == tensor.dtype for name, tensor in WEIGHTS.items()
    )
    assert info.preprocessing["mean"] == [0.306, 0.306, 0.306] and info.preprocessing["eval"]
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("where", [0.3, 0.5, 0.97])
def test_one_flipped_byte_is_found_anywhere(tmp_path, where):
    path = tmp_path / "m.safetensors"
    save_model(path, WEIGHTS, INFO)
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConvzooError, match="damaged|not a whole"):
        load_model(path)


def test_what_is_no_model_file_is_named(run, tmp_path, digits_run):
    path = tmp_path / "m.safetensors"
    whole = (digits_run / "checkpoints/last.safetensors").read_bytes()
    cases = [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>not found</html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
        (b"PK\x03\x04rest", "convzoo convert"),
        (whole[: len(whole) // 2], "not a whole safetensors file"),
        (whole + b"\0", "not a whole safetensors file"),
        (b"\xff" * 64, "not a whole safetensors file"),
    ]
    for data, message in cases:
        path.write_bytes(data)
        code, out, err = run("eval", path)
        assert (code, out) == (1, "") and message in one_line(err) and str(path) in err
    save_file(WEIGHTS, path)
    code, _, err = run("eval", path)
    assert code == 1 and "not the names of" in one_line(err)  # it may be another program's
    code, _, err = run("export", path, "--format", "onnx")
    assert code == 1 and "not one that convzoo wrote" in one_line(err)


def test_weights_of_another_network_are_refused_by_name():
    model = torch.nn.Linear(2, 3)
    good = model.state_dict()
    for weights, message in [
        ({"weight": good["weight"]}, "'bias' is missing"),
        ({**good, "more": torch.zeros(1)}, "'more' is not in the network"),
        ({**good, "bias": torch.zeros(4)}, r"'bias' is \[4\], the network has \[3\]"),
    ]:
        with pytest.raises(ConvzooError, match=message):
            model_file.load_into(model, weights, "x")


def test_a_state_without_its_checksum_or_changed_is_refused(tmp_path):
    path = tmp_path / "s.state.pt"
    save_state(path, {"step": 3, "t": torch.ones(2)})
    assert load_state(path)["step"] == 3
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConvzooError, match="damaged"):
        load_state(path)
    (tmp_path / "s.state.pt.sha256").unlink()
    with pytest.raises(ConvzooError, match="sha256"):
        load_state(path)


def test_a_state_never_runs_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("payload ran",))

    path = tmp_path / "s.state.pt"
    save_state(path, {"step": Payload()})
    with pytest.raises(ConvzooError, match="more than tensors"):
        load_state(path)


def saved(folder, steps, keep=10):
    checkpoints = RunCheckpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, {"w": torch.full((1000,), float(step))}, INFO, {"note": step}, is_best=step == 2)
    return checkpoints


def newest_note(checkpoints: RunCheckpoints) -> int:
    newest = checkpoints.newest_whole()
    assert newest is not None
    return newest[1]["note"]


def test_the_newest_whole_pair_is_used(tmp_path):
    checkpoints = saved(tmp_path, [1, 2, 3])
    assert newest_note(checkpoints) == 3
    newest = tmp_path / "step-00000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert newest_note(checkpoints) == 2
    (tmp_path / "step-00000002.state.pt").unlink()
    assert newest_note(checkpoints) == 1
    # a state beside other weights than its own
    shutil.copy(tmp_path / "best.safetensors", tmp_path / "step-00000001.safetensors")
    assert checkpoints.newest_whole() is None


def test_last_best_and_the_number_kept(tmp_path):
    saved(tmp_path, [1, 2, 3, 4], keep=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert {name for name in names if name.startswith("step") and name.endswith(".safetensors")} == {
        "step-00000003.safetensors",
        "step-00000004.safetensors",
    }
    assert load_model(tmp_path / "last.safetensors")[0]["w"][0] == 4
    assert load_model(tmp_path / "best.safetensors")[0]["w"][0] == 2
    assert load_state(tmp_path / "best.state.pt")["note"] == 2
    assert not any("tmp" in name for name in names)


@pytest.mark.parametrize("limit", [2_000, 8_500])
def test_a_full_disk_leaves_what_was_saved(tmp_path, limit):
    checkpoints = saved(tmp_path, [1, 2])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(ConvzooError, match="step-00000003.*no space left; what was saved before is untouched"):
            checkpoints.save(3, {"w": torch.zeros(1000)}, INFO, {"note": 3, "more": torch.zeros(5000)}, is_best=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name: after[name] for name in before} == before
    assert not any(name.endswith(".tmp") for name in after)
    assert newest_note(checkpoints) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": "ab"}, "class_names: "),
        ({"input_hw": [32, -1]}, "input_hw.1: "),
        ({"extra": 1}, "extra: "),
        ({"recipe": {}}, "preprocessing: must be the recipe's transform"),
        ({"preprocessing": {"mean": [9, 9, 9]}}, "preprocessing: must be the recipe's transform"),
        ({"format": 2}, "format 2, this version reads 1"),
    ],
)
def test_metadata_that_is_wrong_is_one_line_with_its_key(tmp_path, change, message):
    """Its checksum is right: what wrote it was not."""

    class Wrong(ModelInfo):
        def to_json(self) -> str:
            return json.dumps(json.loads(super().to_json()) | change)

    save_model(tmp_path / "x.safetensors", WEIGHTS, Wrong(recipe=RECIPE, class_names=["a"]))
    with pytest.raises(ConvzooError, match=re.escape(message)) as refused:
        load_model(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(refused.value) and len(str(refused.value).splitlines()) == 1
