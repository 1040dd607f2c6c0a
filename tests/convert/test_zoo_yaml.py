"""MindSpore zoo configurations as recipes: all of the documents' tables, what their values mean, and wrong ones."""

import ast
import json
import math
import re
import textwrap

import pytest
import torch
import yaml
from torch.nn import functional as F

from convzoo.build import check_recipe
from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.model_file import load_model
from convzoo.training.checkpoints import load_state
from convzoo.training.optim import build_schedule
from convzoo.training.setup import RunOptions, TrainState
from helpers import REPO, one_line

VGG = """
num_classes: 10
lr: 0.01
lr_init: 0.01
lr_max: 0.1
lr_epochs: '30,60,90,120'
lr_scheduler: "step"
warmup_epochs: 5
batch_size: 64
max_epoch: 70
momentum: 0.9
weight_decay: 5e-4
loss_scale: 1.0
label_smooth: 0
label_smooth_factor: 0
image_size: '224,224'
pad_mode: 'same'
padding: 0
has_bias: False
batch_norm: True
initialize_mode: "XavierUniform"
has_dropout: False
device_target: Ascend
file_format: MINDIR
"""
YOLO = """
pretrained_backbone: ''
num_classes: 80
lr: 0.001
lr_epochs: '220,250'
lr_scheduler: 'exponential'
max_epoch: 320
per_batch_size: 32
momentum: 0.9
weight_decay: 0.0005
loss_scale: 1024
label_smooth: 0
"""
COLUMNS = {  # column of the facts' tables -> (task, model, base rate, schedule, epochs, batch, smoothing)
    "cifar10_config of vgg16": ("classify", "vgg16", 0.1, "polynomial", 70, 64, 0),
    "imagenet2012_config": ("classify", "vgg16", 0.04, "cosine_annealing", 90, 64, 0.1 * 1000 / 999),
    "cpu_config (fine-tune)": ("classify", "vgg16", 0.001, "constant", 10, 64, 0),
    "densenet100_config": ("classify", "densenet100", 0.1, "multi_step", 300, 64, 0),
    "densenet121_config": ("classify", "densenet121", 0.1, "cosine_annealing", 120, 32, 0),
    "imagenet_config": ("classify", "tinydarknet", 0.1, "multi_step", 500, 128, 0.1 * 1000 / 999),
    "imagenet_config_gpu": ("classify", "tinydarknet", 0.1, "multi_step", 500, 128, 0.1 * 1000 / 999),
    "cifar10_config": ("classify", "tinydarknet", 0.1, "multi_step", 120, 32, 0),
    "cifar10_config_gpu": ("classify", "tinydarknet", 0.1, "multi_step", 120, 32, 0),
    "HEAD default_config": ("detect", "yolov3", 0.001, "multi_step", 320, 32, 0),
    "2021 default_config": ("detect", "yolov3", 0.001, "multi_step", 320, 32, 0),
}


def tables(shared) -> dict[str, dict]:
    """Read the configurations that the facts file has as tables: one column each, `—` where there is no such key."""
    text = (shared / "reference/model-zoo-facts.md").read_text()
    found: dict[str, dict] = {}
    for section in re.split(r"^### 3\.", text, flags=re.MULTILINE)[1:5]:
        rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in section.splitlines() if line.startswith("|")]
        for column, name in enumerate(rows[0][1:], 1):
            name = f"{name} of vgg16" if section.startswith("1 ") and name == "cifar10_config" else name
            cells = {row[0]: row[column] for row in rows[2:] if row[column] != "—"}
            found[name] = {key: ast.literal_eval(cell.strip("`")) for key, cell in cells.items()}
    return found


@pytest.mark.parametrize("column", COLUMNS)
def test_every_table_of_the_documents_becomes_a_recipe(run, shared, column, tmp_path):
    values = tables(shared)[column]
    assert len(values) > 20
    source, out = tmp_path / "zoo.yaml", tmp_path / "ours.yaml"
    # As the zoo's files are: values, help texts, choices.
    source.write_text(yaml.safe_dump_all([values, {"lr": "base rate"}, {"lr_scheduler": ["a", "b"]}], sort_keys=False))
    code, text, _ = run("convert", source, "--out", out, "--json")
    found = json.loads(text)
    assert code == 0
    recipe = recipes.load(out)
    assert recipe.plain() == found["recipe"]
    task, model, lr, schedule, epochs, batch_size, smoothing = COLUMNS[column]
    assert (recipe.task, recipe.model["name"], recipe.schedule.name) == (task, model, schedule)
    assert (recipe.optim.lr, recipe.train.epochs, recipe.train.batch_size) == (lr, epochs, batch_size)
    assert (
        recipe.loss.get("label_smoothing", 0.0) == pytest.approx(smoothing)
        and recipe.model["num_classes"] == values["num_classes"]
    )
    check_recipe(recipe)
    with torch.device("meta"):
        registry.bind("model", recipe.model)()
    if task == "detect":
        assert recipe.transform.multi_scale_px == list(range(320, 609, 32)) and recipe.loss["ignore_threshold"] == 0.7
        assert [name for operation in recipe.transform.train for name in operation] == [
            "random_place",
            "flip_lr",
            "hsv_distort",
        ]
        assert (
            recipe.transform.train[0]["random_place"]["jitter"] == 0.3 and recipe.postprocess["box_rule"] == "mindspore"
        )
    assert recipe.train.save_every_epochs == (
        values.get("ckpt_interval", 1) if "of vgg16" in column or column == "imagenet2012_config" else 1
    )
    dropped = found["dropped"]
    assert [key for key, why in dropped.items() if why == "nothing here answers to it"] == []
    assert set(dropped) < set(values)
    header = [line for line in out.read_text().splitlines() if line.startswith("#")]
    for key in dropped:
        assert any(line.startswith(f"# Left out: {key} (") for line in header)


def test_the_configurations_printed_in_the_documents(run, shared, tmp_path):
    """Three of the five documents print four: `key: value  # what it is`."""
    count = 0
    for document in sorted((shared / "reference/seeds").glob("*.txt")):
        for block in re.findall(r"```\w*\n(.*?)```", document.read_text(), flags=re.DOTALL):
            if re.search(r"^\W*num_classes'?:.*^\W*lr_scheduler'?:", block, flags=re.DOTALL | re.MULTILINE):
                count += 1
                (tmp_path / "zoo.yaml").write_text(textwrap.dedent(block))
                assert run("convert", tmp_path / "zoo.yaml", "--out", tmp_path / "ours.yaml")[0] == 0
                check_recipe(recipes.load(tmp_path / "ours.yaml"))
    assert count == 4


def test_the_guide_answers_to_every_flag_script_and_key_of_the_documents(shared):
    guide = (REPO / "docs/from-mindspore.md").read_text()
    documents = "".join(path.read_text() for path in (shared / "reference/seeds").glob("*.txt"))
    flags = set(re.findall(r"(?<![\w-])--([A-Za-z_]\w*)", documents)) - {"help"}
    scripts = set(re.findall(r"\b[A-Za-z]\w*\.(?:sh|py|yaml)\b", documents, re.ASCII)) - {"xxx_gpu.sh"}
    keys = {key for values in tables(shared).values() for key in values}
    assert len(flags) > 50 and len(scripts) > 60 and len(keys) > 110
    assert sorted(name for name in flags | scripts | keys if not re.search(rf"\b{re.escape(name)}\b", guide)) == []


def converted(run, tmp_path, text: str) -> recipes.Recipe:
    (tmp_path / "zoo.yaml").write_text(text)
    code, _, err = run("convert", tmp_path / "zoo.yaml", "--out", tmp_path / "ours.yaml")
    assert code == 0, err
    return recipes.load(tmp_path / "ours.yaml")


def test_schedules_are_the_zoos(run, tmp_path):
    """The zoo's formulas, one value a step, from its programs."""
    steps, epochs, warmup = 7, 70, 5 * 7

    def step(i):
        if i < warmup:
            return 0.01 + (0.1 - 0.01) * i / warmup
        return 0.1 * (1 - (i - warmup) / (epochs * steps - warmup)) ** 2

    def exponential(i):
        return 0.01 * (i + 1) / warmup if i < warmup else 0.01 * 0.1 ** sum(i // steps >= m for m in (30, 60))

    def cosine_annealing(i):
        return 0.01 * (i + 1) / warmup if i < warmup else 0.01 * (1 + math.cos(math.pi * (i // steps) / 80)) / 2

    for formula in (step, exponential, cosine_annealing):
        recipe = converted(run, tmp_path, VGG.replace('"step"', f'"{formula.__name__}"') + "T_max: 80\n")
        rate = build_schedule(recipe.schedule, recipe.optim.lr, steps, epochs)
        assert [rate(i) for i in range(epochs * steps)] == pytest.approx([formula(i) for i in range(epochs * steps)])


def test_smoothing_gives_the_zoos_targets(run, tmp_path):
    text = VGG.replace("num_classes: 10", "num_classes: 8").replace("label_smooth: 0", "label_smooth: 1")
    recipe = converted(run, tmp_path, text.replace("label_smooth_factor: 0", "label_smooth_factor: 0.1"))
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 7, 1, 1])
    targets = torch.full((5, 8), 0.1 / 7).scatter(1, labels[:, None], 0.9)
    zoos = -(targets * logits.log_softmax(1)).sum(1).mean()
    ours = F.cross_entropy(logits, labels, label_smoothing=recipe.loss["label_smoothing"])
    assert float(ours) == pytest.approx(float(zoos), rel=1e-6)


def test_a_converted_recipe_trains(run, tmp_path):
    text = "net: densenet100\ndataset: cifar10\nimage_size: '32, 32'\nnum_classes: 10\n"
    text += "lr: 0.1\nlr_scheduler: exponential\n"
    text += "lr_epochs: '150, 225, 300'\nlr_gamma: 0.1\nmax_epoch: 300\nper_batch_size: 64\nweight_decay: 0.0001\n"
    recipe = converted(run, tmp_path, text)
    assert recipe.schedule.milestones == [150, 225] and recipe.model["stem_norm"] is True
    overrides = [
        "data={name: digits, max_train_images: 64}",
        "train.epochs=1",
        "transform.eval=[]",
        "transform.train=[]",
    ]
    assert run("train", tmp_path / "ours.yaml", *overrides, "--out", tmp_path / "run")[0] == 0


def test_the_fine_tuning_configuration_trains_the_last_layer_alone(run, shared, tmp_path):
    recipe = converted(run, tmp_path, yaml.safe_dump(tables(shared)["cpu_config (fine-tune)"]))
    assert recipe.model["batch_norm"] is True and recipe.model["num_classes"] == 5
    with torch.device("meta"):
        names = dict(registry.bind("model", recipe.model)().named_parameters())
    import fnmatch

    left = [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in recipe.train.freeze)]
    assert left == ["classifier.6.weight", "classifier.6.bias"]


def header(run, tmp_path, text: str) -> str:
    converted(run, tmp_path, text)
    return "".join(line for line in (tmp_path / "ours.yaml").read_text().splitlines(True) if line.startswith("#"))


def test_a_header_says_what_is_true_of_this_configuration(run, shared, tmp_path):
    told = header(run, tmp_path, VGG)
    assert "from zoo.yaml, a configuration of the MindSpore zoo's vgg16" in told and told.count("Note: ") == 2
    assert "on N devices multiply train.batch_size by N" in told and "--weights" not in told.splitlines()[-1]
    grouped = header(run, tmp_path, VGG + "group_size: 8\n")
    assert "times group_size 8" in grouped and "multiply" not in grouped
    assert recipes.load(tmp_path / "ours.yaml").train.batch_size == 512
    fine_tuning = header(run, tmp_path, yaml.safe_dump(tables(shared)["cpu_config (fine-tune)"]))
    assert fine_tuning.splitlines()[-1] == "# Run: convzoo train ours.yaml --data DIR --weights FILE"
    values = tables(shared)["2021 default_config"]
    assert "GPU program" not in header(run, tmp_path, yaml.safe_dump(values))
    assert "base rate 0.1 is for the zoo's GPU program" in header(run, tmp_path, yaml.safe_dump({**values, "lr": 0.1}))


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (("lr_max: 0.1", "lr_max: fast"), 2, "zoo.yaml:5: lr_max: must be a number, not 'fast'"),
        (("lr_max: 0.1", "lr_max: .inf"), 2, "zoo.yaml:5: lr_max: must be finite"),
        (("lr_max: 0.1", ""), 2, "no key lr_max"),
        (("max_epoch: 70", "max_epoch: 7.5"), 2, "zoo.yaml:10: max_epoch: must be a whole number, not 7.5"),
        (("max_epoch: 70", "max_epoch: 0"), 2, "train.epochs"),
        (
            ("max_epoch: 70", "max_epoch: 70\nckpt_interval: 0"),
            2,
            "zoo.yaml:11: ckpt_interval: must be 1 epoch or more",
        ),
        (("'224,224'", "[224, 192]"), 2, "image_size: must be square, not [224, 192]"),
        (('"step"', "cosine_annealing_V2"), 2, "lr_scheduler: one of step, exponential, cosine_annealing, not 'cosine"),
        (('"step"', "[step]"), 2, "lr_scheduler: one of"),
        (("'same'", "'valid'"), 2, "pad_mode: one of same, pad"),
        (("padding: 0", "padding: 2"), 2, "padding: only 0 is here, not 2"),
        (("batch_norm: True", "batch_norm: 3"), 2, "batch_norm: must be True or False, not 3"),
        (("num_classes: 10", "num_classes: 10\nnum_classes: 11"), 2, "zoo.yaml:3: num_classes: duplicate key"),
        (("num_classes: 10", "num_classes: [10"), 1, "not YAML"),
        ((VGG, "lr: 0.1\nbatch: 4\n"), 1, "not the configuration of a network of the MindSpore zoo"),
        ((VGG, "- a\n- b\n"), 1, "not a Darknet, MindSpore, PyTorch or safetensors weight file"),
        ((VGG, "net: densenet169\nnum_classes: 10\n"), 2, "zoo.yaml:1: net: one of densenet100, densenet121"),
        (
            (VGG, "anchor_scales: [[1, 2]]\nmax_epoch: 1\nlr: 1\nlr_scheduler: exponential\n"),
            2,
            "anchor_scales: must be nine pairs, not 1",
        ),
        (
            (VGG, "anchor_scales: [[1, 0]]\nmax_epoch: 1\nlr: 1\nlr_scheduler: exponential\n"),
            2,
            "anchor_scales: must be pairs of positive",
        ),
        (
            (
                VGG,
                "multi_scale: [[320, 416]]\nbackbone_layers: [1, 2, 8, 8, 4]\n"
                "max_epoch: 1\nlr: 1\nlr_scheduler: exponential\n",
            ),
            2,
            "multi_scale: must be square",
        ),
    ],
)
def test_a_wrong_configuration_is_one_line(run, change, code, message, tmp_path):
    assert change[0] in VGG
    (tmp_path / "zoo.yaml").write_text(VGG.replace(*change))
    got, out, err = run("convert", tmp_path / "zoo.yaml", "--out", tmp_path / "ours.yaml")
    assert got == code and out == "" and message in one_line(err)
    assert not (tmp_path / "ours.yaml").exists()


def test_a_recipe_needs_the_name_of_one(run, tmp_path):
    (tmp_path / "zoo.yaml").write_text(VGG)
    code, _, err = run("convert", tmp_path / "zoo.yaml", "--out", tmp_path / "ours.safetensors")
    assert code == 2 and "name it FILE.yaml" in one_line(err)
    for options in (["--model", "vgg16"], ["--num-classes", 10], ["--check"], ["--data-name", "digits"]):
        code, _, err = run("convert", tmp_path / "zoo.yaml", *options, "--out", tmp_path / "ours.yaml")
        assert code == 2 and f"{options[0]} has no meaning for a configuration" in one_line(err)
    code, _, err = run("convert", tmp_path / "zoo.yaml", "--out", tmp_path / "zoo.yaml")
    assert code == 2 and "the source itself" in one_line(err) and (tmp_path / "zoo.yaml").read_text() == VGG


def test_yolov3_in_float16_at_the_zoos_loss_scale_trains_as_in_float32(run, tmp_path):
    """Its loss begins at 430 here and at 10,000 in full size: times 1024, float16 does not hold its gradients."""
    (tmp_path / "zoo.yaml").write_text(YOLO)
    assert run("convert", tmp_path / "zoo.yaml", "--out", tmp_path / "ours.yaml")[0] == 0
    small = [
        "data={name: digit_scenes, max_train_images: 48, canvas_px: 96, digit_px: [16, 60]}",
        "model.num_classes=10",
        "model.width=0.125",
        "transform.multi_scale_px=[]",
        "train.eval_every_epochs=10",
        "transform.train=[{random_place: {size_px: 96}}]",
        "transform.eval=[{letterbox: {size_px: 64}}]",
        "optim.momentum=0.0",
        "optim.lr=0.000001",
        "train.batch_size=8",
        "train.epochs=1",
        "postprocess.score_threshold=0.9",
    ]
    assert recipes.load(tmp_path / "ours.yaml").train.loss_scale == 1024
    command = ["train", tmp_path / "ours.yaml", *small]
    code, _, err = run(*command, "train.precision=fp16", "--out", tmp_path / "fp16")
    assert code == 0 and "step 0: a gradient overflowed at loss scale 1024: update left out, scale now 512" in err
    state = load_state(tmp_path / "fp16/checkpoints/last.state.pt")
    left_out = state["progress"]["updates_left_out"]
    assert 1 <= left_out <= 5 and state["loss_scale"]["value"] == 1024 / 2**left_out
    assert f"{left_out} updates were left out (overflow)" in (tmp_path / "fp16/README.md").read_text()
    # The same without an update in as many steps: their rate is nothing.
    still = f"schedule={{warmup_epochs: {left_out / 6}, warmup_start_lr: 0.0, warmup_power: 100.0}}"
    float32 = ["train.precision=fp32", "train.loss_scale=null", still]
    assert run(*command, *float32, "--out", tmp_path / "fp32")[0] == 0
    before = TrainState(recipes.load(tmp_path / "fp32/recipe.yaml"), RunOptions(), torch.device("cpu")).model
    fp16, fp32 = (load_model(tmp_path / name / "checkpoints/last.safetensors")[0] for name in ("fp16", "fp32"))
    names = [name for name, _ in before.named_parameters()]
    for chosen, least in ((names, 0.8), ([name for name in names if ".head.out." in name], 0.999)):
        start, half, whole = (torch.cat([w[n].flatten() for n in chosen]) for w in (before.state_dict(), fp16, fp32))
        assert torch.cosine_similarity(half - start, whole - start, 0) > least
        assert float((half - start).norm()) == pytest.approx(float((whole - start).norm()), rel=0.2)
