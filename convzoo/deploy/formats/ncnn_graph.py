"""A traced network in the operators that pnnx translates and NCNN computes: same values, other words."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument

aten = torch.ops.aten


def translatable(network: GraphModule) -> GraphModule:
    """Rewrite the graph of a network, in place, for one picture of the size that it was traced with."""
    for node in list(network.graph.nodes):
        if node.target in REWRITES:
            with network.graph.inserting_before(node):
                replacement = REWRITES[node.target](network.graph, node)
            if replacement is not node:
                replacement.meta = dict(node.meta)
                node.replace_all_uses_with(replacement)
    network.graph.eliminate_dead_code()
    network.recompile()
    return network


def _max_pool(_: Graph, node: Node) -> Node:
    """Cut a window to its input, which is the same; NCNN pads it with more than one row and gives infinities."""
    source, window, *rest = node.args
    padding = rest[1] if len(rest) > 1 else [0, 0]
    sides = [side + 2 * pad for side, pad in zip(_shape(source)[2:], padding, strict=True)]  # type: ignore[arg-type]
    node.args = (source, [min(pair) for pair in zip(window, sides, strict=True)], *rest)  # type: ignore[arg-type]
    return node


def _slice(graph: Graph, node: Node) -> Node:
    """Take every n-th row or column by a pool of one pixel: NCNN's own slices have no steps."""
    source, dim, start, end, step = (*node.args, *(0, 0, None, 1)[len(node.args) - 1 :])
    if step == 1 or dim not in (2, 3):
        return node
    if start:
        source = graph.call_function(aten.slice.Tensor, (source, dim, start, end))
    return graph.call_function(aten.max_pool2d.default, (source, [1, 1], [step, 1] if dim == 2 else [1, step]))


def _narrow(graph: Graph, node: Node) -> Node:
    source, dim, start, length = node.args
    return graph.call_function(aten.slice.Tensor, (source, dim, start, start + length))  # type: ignore[operator]


def _permute(graph: Graph, node: Node) -> Node:
    """Do what Darknet's reorg does with six dimensions, more than NCNN has, by a layer of its own and a permutation."""
    source, order = node.args
    if order != [0, 3, 5, 1, 2, 4]:
        return node
    _, channels, height, step, width, _ = _shape(source)

    def call(target: Callable[..., object], *arguments: Argument) -> Node:
        return graph.call_function(target, arguments)

    picture = call(aten.reshape.default, source, [1, channels, height * step, width * step])
    apart = call(aten.pixel_unshuffle.default, picture, step)
    parts = call(aten.reshape.default, apart, [1, channels, step * step, height, width])
    return call(aten.permute.default, parts, [0, 2, 1, 3, 4])


def _shape(node: Any) -> tuple[int, ...]:  # Any: an argument that is a node, which torch.fx types as all that it may be
    return tuple(node.meta["val"].shape)


REWRITES: dict[object, Callable[[Graph, Node], Node]] = {
    aten.max_pool2d.default: _max_pool,
    aten.slice.Tensor: _slice,
    aten.narrow.default: _narrow,
    aten.permute.default: _permute,
}
