"""What litert-torch lowers wrongly, or into what LiteRT's runtime does not have, in forms that it lowers well.

    sort, argsort, msort        top-k of all elements, in their order
    top-k                       of the rows of a matrix, its values a lookup by the indices
    floor and trunc division    division, then floor or trunc
    one index of an axis        a slice of one, without the axis
    lengths of vectors          roots of sums of squares
    exclusive or of truth       inequality
    nearest-neighbour resizing  to sizes that are no multiples: a lookup of rows and columns
    transposed convolutions     with output padding: without any padding, then cut to size
    biases in int32             the floats that they stand for
    erfc, exp2, col2im, ...     plain arithmetic, and a transposed convolution that adds up windows
    scatters that reduce        comparison of places and indices; of whole rows, a matrix product

What has no such form is refused here, where the converter's own words do not name the layer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import fx

from deploykit.capture import plain, scatter
from deploykit.capture.calls import bind, stored
from deploykit.capture.editor import Call, Editor, is_static, rank_of, shape_of
from deploykit.capture.rewrite_ops import expand
from deploykit.contract.errors import ConversionError

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

aten = torch.ops.aten
_WIDE_CONSTANT = torch.ops.quantized_decomposed.dequantize_per_channel.default

_NO_FORM = {
    "linalg_inv": "an inverse",
    "linalg_inv_ex": "an inverse",
    "inverse": "an inverse",
    "linalg_solve": "a solver of equations",
    "linalg_solve_ex": "a solver of equations",
    "_linalg_solve_ex": "a solver of equations",
    "linalg_cholesky": "a factorisation",
    "linalg_cholesky_ex": "a factorisation",
    "triangular_solve": "a solver of equations",
    "linalg_solve_triangular": "a solver of equations",
}


def lowered(captured: CapturedModel, graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph in the forms that the converter takes; the graph itself where nothing is to be changed.

    Args:
        captured: names operators in errors.
        graph_module: its float or q/dq graph; it is not changed.

    Raises:
        ConversionError: an operator has no form in LiteRT; names it with module and source line.
    """
    for node in graph_module.graph.nodes:
        _refuse(captured, node)
    if not any(node.target in _RULES for node in graph_module.graph.nodes):
        return graph_module
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph_module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    names = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    editor = Editor(graph, {name: stored(graph_module, name) for name in names})
    for node in editor.calls(*_RULES):
        _RULES[node.target](editor, node)
    return editor.module()


def _refuse(captured: CapturedModel, node: fx.Node) -> None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return
    name = node.target._schema.name.split("::")[1]
    origin = captured.origins.get(node.name, node.name)
    if name in _NO_FORM:
        raise ConversionError(f"LiteRT has no form of {_NO_FORM[name]}: {origin}", hint=_KEEP_OUT)
    if name == "max_pool2d_with_indices" and any(user.args[1] == 1 for user in node.users):
        raise ConversionError(f"LiteRT's pooling gives no indices: {origin}", hint=_KEEP_OUT)


_KEEP_OUT = "write that part with other operators, or keep it out of the exported model"


def _bias(editor: Editor, node: Call) -> None:
    """An int32 bias as the floats that it stands for, of which the converter makes the same integers."""
    stored_bias, scale = editor.value(node.args[0]), editor.value(node.args[1])
    if stored_bias is None or scale is None or stored_bias.dtype != torch.int32:
        return
    editor.swap(node, editor.constant(f"{node.name}_float", stored_bias.double().mul(scale.double()).float()))


def _sort(editor: Editor, node: Call) -> None:
    given = bind(node)
    args = _all_in_order(given["self"], given.get("dim", 0), descending=given.get("descending", False))
    if args is None:
        return
    if node.target in _PAIRS:
        editor.retarget(node, aten.topk.default, *args)
        _top(editor, node)
        return
    both = editor.call(aten.topk.default, *args, before=node)
    indices = _indices(editor, both)
    values_wanted = node.target is aten.msort.default
    editor.swap(node, _looked_up(editor, both, indices) if values_wanted else indices)


def _top(editor: Editor, node: Call) -> None:
    """Of rows: the converter takes an axis of an image for another, drops what nobody reads, and has no form then."""
    if rank_of(node.args[0]) > 2 and is_static(shape_of(node.args[0])):
        expand(editor, node, plain.top_of_rows)
        return
    if any(user.args[1] == 1 for user in node.users):
        return
    for values in list(node.users):
        editor.swap(values, _looked_up(editor, node, _indices(editor, node)))


def _indices(editor: Editor, both: Call) -> Call:
    return editor.call(operator.getitem, both, 1, before=both.next)


def _looked_up(editor: Editor, both: Call, indices: Call) -> Call:
    given = bind(both)
    return editor.call(aten.gather.default, given["self"], given["dim"], indices, before=indices.next)


def _all_in_order(source: Call, dim: int, *, descending: bool) -> tuple[Any, ...] | None:
    if not shape_of(source):
        return None
    dim %= rank_of(source)
    return source, shape_of(source)[dim], dim, descending, True


def _select(editor: Editor, node: Call) -> None:
    """The converter's pass to channels last takes the index of one channel of a quantized image for one of a row."""
    given = bind(node)
    axis, index = given["dim"] % rank_of(given["self"]), given["index"]
    size = shape_of(given["self"])[axis]
    if not is_static((size, *shape_of(node))) or not isinstance(index, int):
        return
    index %= size
    kept = editor.call(aten.slice.Tensor, given["self"], axis, index, index + 1, before=node)
    editor.retarget(node, aten.reshape.default, kept, list(shape_of(node)))


def _length(editor: Editor, node: Call) -> None:
    """Of the channels of a quantized image, too: a sum of squares, and its root."""
    x, order, axes, keep = (*node.args, False)[:4]
    if order != 2 or not axes or not x.meta["val"].is_floating_point():
        return
    squares = editor.call(aten.mul.Tensor, x, x, before=node)
    editor.retarget(node, aten.sqrt.default, editor.call(aten.sum.dim_IntList, squares, axes, keep, before=node))


def _spread(editor: Editor, node: Call) -> None:
    """Of a quantized image, too: what is spread to be multiplied or added is left to the operator that does so."""
    source = node.args[0]
    if rank_of(source) == rank_of(node) and all(_broadcasts(user, node) for user in node.users):
        editor.swap(node, source)


def _broadcasts(user: Call, node: Call) -> bool:
    others = [each for each in user.all_input_nodes if each is not node]
    return user.target in _BINARY and any(shape_of(other) == shape_of(node) for other in others)


def _divide(editor: Editor, node: Call) -> None:
    given = bind(node)
    mode = given.get("rounding_mode", "floor")
    if mode is None or not node.meta["val"].is_floating_point():
        return
    quotient = editor.call(aten.div.Tensor, given["self"], given["other"], before=node)
    editor.retarget(node, aten.floor.default if mode == "floor" else aten.trunc.default, quotient)


def _exclusive(editor: Editor, node: Call) -> None:
    operands = [each for each in node.args if isinstance(each, fx.Node)]
    if len(operands) == 2 and all(each.meta["val"].dtype == torch.bool for each in operands):
        editor.retarget(node, aten.ne.Tensor, *operands)


def _nearest(editor: Editor, node: Call) -> None:
    source = node.args[0]
    before, after = shape_of(source)[2:], shape_of(node)[2:]
    if all(to % size == 0 for size, to in zip(before, after, strict=True)):
        return
    found = source
    for axis, size in enumerate(before):
        rows = editor.constant(f"{node.name}_rows_{axis}", _rows(node, axis, before))
        if axis == len(before) - 1:
            editor.retarget(node, aten.index_select.default, found, axis + 2, rows)
        elif size != after[axis]:
            found = editor.call(aten.index_select.default, found, axis + 2, rows, before=node)


def _rows(node: Call, axis: int, sizes: tuple[int, ...]) -> torch.Tensor:
    """Which rows of an axis the operator takes: those that it takes of their own numbers."""
    shape = [1] * len(sizes)
    shape[axis] = sizes[axis]
    numbers = torch.arange(sizes[axis], dtype=torch.float64).reshape(shape).expand(sizes)[None, None]
    taken: torch.Tensor = node.target(numbers.contiguous(), *node.args[1:], **node.kwargs)[0, 0]
    return taken.movedim(axis, 0).reshape(taken.shape[axis], -1)[:, 0].long()


def _transposed(editor: Editor, node: Call) -> None:
    given = bind(node)
    rank = rank_of(node) - 2
    extra = _each(given["output_padding"], rank)
    if not any(extra):
        return
    padding, size, bias = _each(given["padding"], rank), shape_of(node)[2:], given["bias"]
    plain = (given["input"], given["weight"], None, given["stride"], [0] * rank, [0] * rank)
    whole = editor.infer(node.target, (*plain, given["groups"], given["dilation"]))
    value, users = node.meta["val"], list(node.users)
    editor.retarget(node, node.target, *plain, given["groups"], given["dilation"])
    node.meta["val"] = whole
    after = node.next
    found: Call = node
    missing = [max(0, pad + out - have) for pad, out, have in zip(padding, size, whole.shape[2:], strict=True)]
    if any(missing):
        pads = [each for count in reversed(missing) for each in (0, count)]
        found = editor.call(aten.constant_pad_nd.default, found, pads, before=after)
    for axis, (pad, out) in enumerate(zip(padding, size, strict=True)):
        found = editor.call(aten.slice.Tensor, found, axis + 2, pad, pad + out, before=after)
    if bias is not None:
        spread = editor.call(aten.reshape.default, bias, [1, -1] + [1] * rank, before=after)
        found = editor.call(aten.add.Tensor, found, spread, before=after)
    found.meta["val"] = value
    for user in users:
        user.replace_input_with(node, found)


def _each(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * rank if len(values) == 1 else values


def _scatter(editor: Editor, node: Call) -> None:
    given = bind(node)
    x, index, dim = given["self"], given["index"], given["dim"]
    if not shape_of(x) or not is_static((*shape_of(x), *shape_of(index))):
        return
    axis = dim % rank_of(x)
    function = _SCATTERS[node.target]
    if function is scatter.scatter_add and _says_rows(x, index, axis) and x.meta["val"].is_floating_point():
        function = scatter.add_rows
    expand(editor, node, function)


def _says_rows(x: Call, index: Call, axis: int) -> bool:
    """Whether an index was spread from one of whole rows."""
    if _others(shape_of(x), axis) != _others(shape_of(index), axis):
        return False
    return index.target is aten.expand.default and set(_others(shape_of(index.args[0]), axis)) <= {1}


def _others(shape: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _plain(editor: Editor, node: Call) -> None:
    expand(editor, node, _PLAIN[node.target])


_BINARY = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
_SCATTERS: Mapping[Any, Callable[..., Any]] = {
    aten.scatter_add.default: scatter.scatter_add,
    aten.scatter_reduce.two: scatter.scatter_reduce,
}
_PLAIN: Mapping[Any, Callable[..., Any]] = {
    aten.col2im.default: plain.fold,
    aten.unfold.default: plain.unfold,
    aten.erfc.default: plain.erfc,
    aten.special_erfc.default: plain.erfc,
    aten.exp2.default: plain.exp2,
    aten.special_exp2.default: plain.exp2,
    aten.logaddexp2.default: plain.logaddexp2,
    aten.logcumsumexp.default: plain.logcumsumexp,
}
"""Operators that neither the converter nor the runtime has."""
_PAIRS = (aten.sort.default, aten.sort.stable)
_NEAREST = (
    *(aten.upsample_nearest1d.default, aten.upsample_nearest1d.vec, aten.upsample_nearest2d.default),
    *(aten.upsample_nearest2d.vec, aten.upsample_nearest3d.default, aten.upsample_nearest3d.vec),
)
_RULES: Mapping[Any, Callable[[Editor, Call], None]] = {
    **dict.fromkeys((*_PAIRS, aten.argsort.default, aten.argsort.stable, aten.msort.default), _sort),
    aten.topk.default: _top,
    aten.select.int: _select,
    aten.linalg_vector_norm.default: _length,
    **dict.fromkeys((aten.expand.default, aten.expand_as.default), _spread),
    **dict.fromkeys(_SCATTERS, _scatter),
    **dict.fromkeys(_PLAIN, _plain),
    _WIDE_CONSTANT: _bias,
    **dict.fromkeys((aten.floor_divide.default, aten.div.Tensor_mode, aten.div.Scalar_mode), _divide),
    **dict.fromkeys((aten.logical_xor.default, aten.bitwise_xor.Tensor), _exclusive),
    **dict.fromkeys(_NEAREST, _nearest),
    **dict.fromkeys(
        (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input), _transposed
    ),
}
