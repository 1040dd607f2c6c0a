"""Files that an earlier version wrote (`fixtures/write.py`) open still, and answer as they did then."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import convzoo
from convzoo.model_file import load_model
from convzoo.training.checkpoints import load_state
from helpers import skip_without_openvino

WRITTEN = Path(__file__).parent / "fixtures/written.zip"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    with zipfile.ZipFile(WRITTEN) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def answers(files) -> list[np.ndarray]:
    """Normalised pictures [2, 3, 64, 64], and the three head maps that the network gave then."""
    with np.load(files / "answers.npz") as stored:
        return [stored[name] for name in stored.files]


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "model.xml", "model.pt2"])
def test_a_file_of_before_opens_and_answers_as_it_did(files, answers, name):
    if name.endswith(".xml"):
        skip_without_openvino()
    images, *expected = answers
    model = convzoo.load(files / name)
    assert model.class_names == [str(digit) for digit in range(10)]
    assert model.metrics["images"] == model.metrics["images_expected"] == 120
    outputs = model(torch.from_numpy(images))
    assert len(outputs) == len(expected) == 3
    for output, stored in zip(outputs, expected, strict=True):
        assert np.abs(output.numpy() - stored).max() <= 1e-4 * np.abs(stored).max()


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx"])
def test_a_file_of_before_is_evaluated_on_its_own_data(files, name):
    model = convzoo.load(files / name)
    result = model.evaluate()
    assert result.keys() == model.metrics.keys()
    assert result["images"] == result["images_expected"] == 120


def test_a_training_state_of_before_belongs_to_its_weights(files):
    weights, info, digest = load_model(files / "model.safetensors")
    state = load_state(files / "model.state.pt")
    assert state["model_sha256"] == digest
    assert state["step"] == info.provenance["step"] == state["progress"]["step"] == 4
    trained = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
    heads = [tensor for name, tensor in weights.items() if ".out." in name]
    assert sorted(tensor.shape for tensor in trained) == sorted(tensor.shape for tensor in heads)


def test_training_goes_on_from_a_file_of_before(files, tmp_path, run):
    """The recipe that it carries is one that trains, and the weights fit it."""
    recipe = tmp_path / "again.yaml"
    recipe.write_text(convzoo.load(files / "model.safetensors").recipe.to_yaml())
    changes = ("train.weights_sha256=null", "data.max_train_images=16")
    weights = files / "model.safetensors"
    code, _, err = run("train", recipe, *changes, "--weights", weights, "--out", tmp_path / "run", "--device", "cpu")
    assert code == 0, err
