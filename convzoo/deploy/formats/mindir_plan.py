"""A traced network as data: the plan from which `mindir_worker` rebuilds it in MindSpore."""

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from convzoo.errors import UsageError
from convzoo.plain import JsonObject, JsonValue

# Operators that MindSpore has as they are, those that only give the same values another shape, and those that do
# nothing in evaluation mode, or are the tracer's notes to itself.
DIRECT = {"relu", "sigmoid", "exp", "add", "sub", "mul", "div"}
RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
UNCHANGED = {"dropout", "contiguous", "clone", "detach", "alias", "_assert_tensor_metadata"}


@dataclass(frozen=True)
class Value:
    """A value of the plan: what step `index` results in, 0 being the input, and the shape it was traced with."""

    index: int
    shape: tuple[int, ...] = ()


Traced = Any  # Any: what a node results in: a Value, or tensors and numbers where it depends on no input


class Plan:
    """A traced network of fixed batch and size, in the form that `mindir_worker` reads.

    What depends on no input is computed here, so that a plan holds only what MindSpore has to do. The methods `op_NAME`
    take the arguments of PyTorch's operators; `like` is the result as traced, for its shape.

    Raises:
        UsageError: an operator, or a setting of one, that has no counterpart.
    """

    def __init__(self, program: torch.export.ExportedProgram):
        self.steps: list[JsonObject] = []
        self.weights: dict[str, np.ndarray] = {}
        self.input: JsonObject = {}
        self.outputs: list[int] = []
        signature, tensors = program.graph_signature, {**program.constants, **program.state_dict}
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        names.update(signature.inputs_to_lifted_tensor_constants)
        results: dict[fx.Node, Traced] = {}
        with torch.no_grad():
            for node in program.graph.nodes:
                if node.op == "placeholder":
                    results[node] = tensors[names[node.name]] if node.name in names else self._given(node)
                elif node.op == "output":
                    self.outputs = [value.index for value in fx.map_arg(node.args[0], results.__getitem__)]
                else:
                    results[node] = self._result(node, *fx.map_arg((node.args, node.kwargs), results.__getitem__))

    def write(self, folder: Path) -> list[str]:
        """Write the plan and its weights, and return where they are."""
        plan, weights = folder / "plan.json", folder / "weights.npz"
        document = {"input": self.input, "steps": self.steps, "outputs": self.outputs}
        plan.write_text(json.dumps(document), encoding="utf-8")
        np.savez(weights, **self.weights)  # type: ignore[arg-type]
        return [str(plan), str(weights)]

    def _given(self, node: fx.Node) -> Value:
        like = node.meta["val"]
        self.input = {"shape": list(like.shape), "dtype": str(like.dtype).removeprefix("torch.")}
        return Value(0, tuple(like.shape))

    def _result(self, node: fx.Node, args: tuple, kwargs: dict) -> Traced:
        target: Any = node.target  # Any: an operator, with whatever arguments it has
        if not any(isinstance(leaf, Value) for leaf in pytree.tree_leaves((args, kwargs))):
            return target(*args, **kwargs)
        if target is operator.getitem:
            return target(*args)
        name, like = str(getattr(target, "_opname", target)), node.meta["val"]
        if name in UNCHANGED:
            return args[0]
        if name in DIRECT and not kwargs:
            result = self.add(name, args)
        elif name in RESHAPES:
            result = self.reshape(like, args[0])
        elif hasattr(self, f"op_{name}"):
            result = getattr(self, f"op_{name}")(like, *args, **kwargs)
        else:
            raise UsageError(f"--format mindir: the network's operator {target} has no counterpart in MindSpore here")
        return Value(result.index, tuple(like.shape)) if isinstance(result, Value) else result

    def add(self, op: str, inputs: Sequence[Traced], weights: Sequence[Traced] = (), **args: JsonValue) -> Value:
        """Add a step. Inputs that are no values become constants."""
        indices = [value.index if isinstance(value, Value) else self._constant(value) for value in inputs]
        names = [self._keep(tensor) for tensor in weights if tensor is not None]
        self.steps.append({"op": op, "inputs": indices, "weights": names, "args": args})
        return Value(len(self.steps))

    def _constant(self, value: Traced) -> int:
        return self.add("constant", [], [torch.as_tensor(value, dtype=torch.float32)]).index

    def _keep(self, tensor: torch.Tensor) -> str:
        self.weights[f"w{len(self.weights)}"] = tensor.numpy()
        return f"w{len(self.weights) - 1}"

    # --- layers

    def op_conv2d(self, like, x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
        sizes = {"stride": _two(stride), "padding": _two(padding), "dilation": _two(dilation)}
        return self.add("conv2d", [x], [w, b], groups=groups, **sizes)

    def op_linear(self, like, x, w, b=None):
        return self.add("linear", [x], [w, b])

    def op_batch_norm(self, like, x, w, b, mean, variance, training, momentum, eps, cudnn):
        return self.add("batch_norm", [x], [w, b, mean, variance], eps=eps)

    def op_leaky_relu(self, like, x, slope=0.01):
        return self.add("leaky_relu", [x], slope=slope)

    def op_max_pool2d(self, like, x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
        _only("max_pool2d's dilation", _two(dilation), [1, 1])
        sizes = {"kernel": _two(kernel), "stride": _two(stride or kernel), "padding": _two(padding)}
        return self.add("max_pool", [x], ceil_mode=ceil_mode, **sizes)

    def op_avg_pool2d(self, like, x, kernel, stride=None, padding=0, ceil_mode=False, count_pad=True, divisor=None):
        _only("avg_pool2d's padding, ceil_mode and divisor", [*_two(padding), ceil_mode, divisor], [0, 0, False, None])
        return self.add("avg_pool", [x], kernel=_two(kernel), stride=_two(stride or kernel))

    def op_adaptive_avg_pool2d(self, like, x, size):
        if x.shape == like.shape:
            return x
        if all(before % after == 0 for before, after in zip(x.shape[2:], _two(size), strict=True)):
            cells = [before // after for before, after in zip(x.shape[2:], _two(size), strict=True)]
            return self.op_avg_pool2d(like, x, cells)
        return self.add("adaptive_avg_pool", [x], size=_two(size))

    def op_mean(self, like, x, axes, keepdim=False, *, dtype=None):
        return self.add("mean", [x], axes=list(axes), keep=keepdim)

    def op_upsample_nearest2d(self, like, x, size, scales):
        return self.add("upsample", [x], size=list(like.shape[2:]))

    def op_pad(self, like, x, around, mode="constant", value=None):
        _only("pad's mode and value", [mode, value or 0], ["constant", 0])
        pairs = [list(around[i : i + 2]) for i in range(0, len(around), 2)][::-1]
        return self.add("pad", [x], pads=[[0, 0]] * (like.ndim - len(pairs)) + pairs)

    def op_to(self, like, x, *_):
        return self.add("cast", [x], dtype=str(like.dtype).removeprefix("torch."))

    # --- shapes

    def reshape(self, like, x):
        return self.add("reshape", [x], shape=list(like.shape))

    def op_permute(self, like, x, order):
        return self.add("transpose", [x], order=list(order))

    def op_transpose(self, like, x, a, b):
        order = list(range(like.ndim))
        order[a], order[b] = order[b], order[a]
        return self.op_permute(like, x, order)

    def op_slice(self, like, x, axis=0, start=0, end=None, step=1):
        _only("slice's step", step, 1)
        begin = [0] * like.ndim
        begin[axis] = start
        return self.add("slice", [x], begin=begin, size=list(like.shape))

    def op_select(self, like, x, axis, index):
        begin, size = [0] * (like.ndim + 1), list(like.shape)
        begin[axis] = index
        size.insert(axis % len(begin), 1)
        return self.reshape(like, self.add("slice", [x], begin=begin, size=size))

    def op_unbind(self, like, x, axis=0):
        return [self.op_select(part, x, axis, i) for i, part in enumerate(like)]

    def op_cat(self, like, xs, axis=0):
        return self.add("cat", xs, axis=axis)

    def op_stack(self, like, xs, axis=0):
        return self.add("stack", xs, axis=axis)


def _two(sizes: int | Sequence[int]) -> list[int]:
    return [sizes, sizes] if isinstance(sizes, int) else [*sizes] * (2 // len(sizes))


def _only(what: str, given: object, supported: object) -> None:
    if given != supported:
        raise UsageError(f"--format mindir: {what} {given} has no counterpart in MindSpore here; only {supported}")
