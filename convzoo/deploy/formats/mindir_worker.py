"""The part of the MINDIR format that needs MindSpore: a process of its own, in whatever environment has the package.

    python mindir_worker.py write PLAN WEIGHTS OUT FORMAT    build the network of a plan and write it as MINDIR or AIR
    python mindir_worker.py run FILE THREADS                 open a MINDIR file and answer pictures over the pipe

A plan is data, as `mindir_plan` makes it: JSON with `input` (shape, dtype), `steps` (op, inputs, weights, args) and
`outputs`; value 0 is the input and value n the result of step n. Weights are an .npz. Everything goes over stdin and
stdout in frames: eight bytes of length, little-endian, and that many bytes. Requests are .npy pictures, an empty frame
ends the process, and so does the end of the pipe. An answer is JSON, {"arrays": n, "mindspore": version} with n .npy
after it, or {"error": ...}.
"""

import io
import json
import os
import struct
import sys

import numpy as np

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its onnx.py is not the library that somebody may ask for

FAILED, NO_MINDSPORE, NO_ASCEND = 1, 5, 6  # exit statuses


def read_frame(stream):
    """Return the next frame's bytes; none at the end."""
    head = stream.read(8)
    if len(head) < 8:
        return b""
    (length,) = struct.unpack("<Q", head)
    return stream.read(length)


def write_frame(stream, data):
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)


def answer(stream, arrays=(), **more):
    """Write one answer."""
    write_frame(stream, json.dumps({"arrays": len(arrays), **more}).encode())
    for array in arrays:
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_frame(stream, buffer.getvalue())
    stream.flush()


def schedule(steps, outputs):
    """Say of each step where its inputs lie among the values still needed, and which of those are needed after it.

    Without that every step would pass on all values, and MindSpore compiles for minutes.
    """
    last = {index: n for n, step in enumerate(steps) for index in step["inputs"]}
    last.update((index, len(steps)) for index in outputs)
    live, sources, keeps = [0], [], []
    for n, step in enumerate(steps):
        remaining = [index for index in live if last.get(index, -1) > n]
        sources.append(tuple(live.index(index) for index in step["inputs"]))
        keeps.append(tuple(live.index(index) for index in remaining))
        live = [*remaining, n + 1]
    return tuple(sources), tuple(keeps), tuple(live.index(index) for index in outputs)


def layers(ms):
    """Return what makes each layer, of its weights and settings."""
    nn = ms.nn

    def first(**values):
        return {name: ms.Tensor(value) for name, value in values.items() if value is not None}

    def conv2d(w, b=None, *, stride, padding, dilation, groups):
        pads = (padding[0], padding[0], padding[1], padding[1])
        channels = w.shape[1] * groups, w.shape[0], w.shape[2:]
        settings = tuple(stride), "pad", pads, tuple(dilation), groups, b is not None
        return nn.Conv2d(*channels, *settings, **first(weight_init=w, bias_init=b))

    def linear(w, b=None):
        return nn.Dense(w.shape[1], w.shape[0], has_bias=b is not None, **first(weight_init=w, bias_init=b))

    def batch_norm(w, b, mean, variance, *, eps):
        values = first(gamma_init=w, beta_init=b, moving_mean_init=mean, moving_var_init=variance)
        return nn.BatchNorm2d(len(w), eps, use_batch_statistics=False, **values)

    def max_pool(*, kernel, stride, padding, ceil_mode):
        return nn.MaxPool2d(tuple(kernel), tuple(stride), "pad", tuple(padding), ceil_mode=ceil_mode)

    return {
        "conv2d": conv2d,
        "linear": linear,
        "batch_norm": batch_norm,
        "max_pool": max_pool,
        "avg_pool": lambda *, kernel, stride: nn.AvgPool2d(tuple(kernel), tuple(stride)),
        "adaptive_avg_pool": lambda *, size: nn.AdaptiveAvgPool2d(tuple(size)),
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "leaky_relu": lambda *, slope: nn.LeakyReLU(slope),
    }


def operators(ms):
    """Return what makes a cell of each operator, of its settings."""
    nn, ops = ms.nn, ms.ops

    class Apply(nn.Cell):
        """An operator on values, or on a tuple of them."""

        def __init__(self, operator, joins=False):
            super().__init__()
            self.operator, self.joins = operator, joins

        def construct(self, *values):
            return self.operator(values) if self.joins else self.operator(*values)

    class Fixed(nn.Cell):
        """An operator on one value and on settings."""

        def __init__(self, operator, *settings):
            super().__init__()
            self.operator, self.settings = operator, settings

        def construct(self, x):
            return self.operator(x, *self.settings)

    class Constant(nn.Cell):
        def __init__(self, value):
            super().__init__()
            self.value = ms.Parameter(ms.Tensor(value), requires_grad=False)

        def construct(self):
            return self.value

    return {
        "constant": Constant,
        "exp": lambda: Apply(ops.Exp()),
        "add": lambda: Apply(ops.Add()),
        "sub": lambda: Apply(ops.Sub()),
        "mul": lambda: Apply(ops.Mul()),
        "div": lambda: Apply(ops.RealDiv()),
        "cat": lambda *, axis: Apply(ops.Concat(axis), True),
        "stack": lambda *, axis: Apply(ops.Stack(axis), True),
        "upsample": lambda *, size: Apply(ops.ResizeNearestNeighbor(tuple(size))),
        "pad": lambda *, pads: Apply(ops.Pad(tuple(map(tuple, pads)))),
        "mean": lambda *, axes, keep: Fixed(ops.ReduceMean(keep), tuple(axes)),
        "reshape": lambda *, shape: Fixed(ops.Reshape(), tuple(shape)),
        "transpose": lambda *, order: Fixed(ops.Transpose(), tuple(order)),
        "slice": lambda *, begin, size: Fixed(ops.Slice(), tuple(begin), tuple(size)),
        "cast": lambda *, dtype: Fixed(ops.Cast(), getattr(ms, dtype)),
    }


def build(ms, plan, weights):
    """Return the network: a Cell that walks a static tuple of sub-cells and the indices of what each takes."""
    nn, cells, steps = ms.nn, {**layers(ms), **operators(ms)}, plan["steps"]
    parts = [cells[step["op"]](*(weights[name] for name in step["weights"]), **step["args"]) for step in steps]
    sources, keeps, chosen = schedule(steps, plan["outputs"])

    class Walk(nn.Cell):
        """From the values still needed to those needed after these parts."""

        def __init__(self, cut):
            super().__init__()
            self.parts, self.sources, self.keeps = nn.CellList(parts[cut]), sources[cut], keeps[cut]

        def construct(self, values):
            for i in range(len(self.sources)):
                inputs, remaining = (), ()
                for source in self.sources[i]:
                    inputs = (*inputs, values[source])
                for keep in self.keeps[i]:
                    remaining = (*remaining, values[keep])
                values = (*remaining, self.parts[i](*inputs))
            return values

    class Network(nn.Cell):
        """A walk of walks: MindSpore unrolls loops into nested calls, whose depth has a limit."""

        def __init__(self):
            super().__init__()
            n = int(len(parts) ** 0.5) + 1
            self.walks = nn.CellList([Walk(slice(i, i + n)) for i in range(0, len(parts), n)])
            self.chosen = chosen

        def construct(self, images):
            values = (images,)
            for walk in self.walks:
                values = walk(values)
            outputs = ()
            for index in self.chosen:
                outputs = (*outputs, values[index])
            return outputs

    return Network().set_train(False)


def write(ms, plan_path, weights_path, out, file_format):
    """Build, compile and export."""
    with open(plan_path, encoding="utf-8") as file:
        plan = json.load(file)
    weights = np.load(weights_path, allow_pickle=False)
    example = ms.Tensor(np.zeros(plan["input"]["shape"], plan["input"]["dtype"]))
    ms.export(build(ms, plan, weights), example, file_name=out, file_format=file_format)
    if not os.path.isfile(out):
        raise RuntimeError("MindSpore keeps networks of more than 1 GB in several files")


def run(ms, path, requests, answers):
    """Open a file and answer until the pipe says stop."""
    network = ms.nn.GraphCell(ms.load(path))
    answer(answers, mindspore=ms.__version__)
    while True:
        request = read_frame(requests)
        if not request:
            return
        try:
            outputs = network(ms.Tensor(np.load(io.BytesIO(request), allow_pickle=False)))
            outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
            answer(answers, [output.asnumpy() for output in outputs], mindspore=ms.__version__)
        except Exception as error:
            answer(answers, error=first_line(error))


def first_line(error):
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    return (lines[0] if lines else type(error).__name__)[:200]


def main(action, *arguments):
    """Do what is asked and return the exit status; whatever goes wrong is an answer too."""
    # What libraries print must not get between the answers.
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    status = NO_MINDSPORE
    try:
        import mindspore as ms  # type: ignore[import-not-found]

        ms.set_context(mode=ms.GRAPH_MODE)
        status = NO_ASCEND
        if arguments[-1] == "AIR":
            ms.set_device("Ascend")
        status = FAILED
        if action == "write":
            write(ms, *arguments)
            answer(answers, mindspore=ms.__version__)
        else:
            ms.runtime.dispatch_threads_num(int(arguments[1]))
            run(ms, arguments[0], requests, answers)
    except Exception as error:
        answer(answers, error=first_line(error))
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
