"""Run a captured graph fast, showing every value to an observer on the way: the engine of the calibration pass.

What makes it faster than interpreting the graph as it is:
    - everything is planned once: the list of calls, where each value lives, when it dies;
    - values are freed at their last use, and a few ops write into an operand that dies there anyway;
    - convolutions run channels-last, in bfloat16 where that is asked for.

Refuses nothing; whether bfloat16 is good enough is the observer's decision.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from deploykit.capture.model import CapturedModel

aten = torch.ops.aten

# Ops whose result may be written into the first operand when nobody else can see that operand any more.
IN_PLACE: Mapping[Any, Any] = {
    aten.relu.default: aten.relu_.default,
    aten.hardtanh.default: aten.hardtanh_.default,
    aten.clamp.default: aten.clamp_.default,
    aten.hardswish.default: aten.hardswish_.default,
    aten.silu.default: aten.silu_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
}

# Ops that are known to return memory of their own, never a view of an operand.
FRESH = frozenset(
    {
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv3d.default,
        aten.conv_transpose2d.input,
        aten.convolution.default,
        aten.linear.default,
        aten.matmul.default,
        aten.add.Tensor,
        aten.mul.Tensor,
        aten.batch_norm.default,
        aten.cat.default,
    }
)

CONVOLUTIONS = frozenset({aten.conv2d.default, aten.conv_transpose2d.input, aten.convolution.default})


@dataclass(frozen=True)
class _Slot:
    """Stands for the value of an earlier node among the arguments of a call."""

    index: int


@dataclass(frozen=True)
class _Call:
    """One planned call: what to call, with what, where the result goes, and which values die after it."""

    name: str
    slot: int
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dying: tuple[int, ...]


Observe = Callable[[str, Any], None]


class Executor:
    """A captured graph, ready to run many batches.

    Args:
        captured: the model; its graph and weights are only read.
        dtype: torch.float32, or torch.bfloat16 to compute every floating value in it.
    """

    def __init__(self, captured: CapturedModel, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        nodes = list(captured.graph_module.graph.nodes)
        self._slots = {node: index for index, node in enumerate(nodes)}
        self._channels_last = any(node.target in CONVOLUTIONS for node in nodes)
        self._placeholders = [node for node in nodes if node.op == "placeholder"]
        self._input_names = [spec.name for spec in captured.inputs]
        self._constants = {
            self._slots[node]: self._constant(captured.graph_module, node) for node in nodes if node.op == "get_attr"
        }
        self._last_user = {source: node for node in nodes for source in node.all_input_nodes}
        self._calls = [self._plan(node) for node in nodes if node.op == "call_function"]

    def run(self, feeds: Mapping[str, Tensor], observe: Observe) -> None:
        """Run one batch.

        Args:
            feeds: the feeds, by input name.
            observe: called with node name and value for every placeholder and call, in order, before the value
                can be overwritten. Values are in the dtype of the executor, and must not be kept.
        """
        with torch.inference_mode():
            values: list[Any] = [None] * len(self._slots)
            for slot, constant in self._constants.items():
                values[slot] = constant
            for node, name in zip(self._placeholders, self._input_names, strict=True):
                values[self._slots[node]] = value = self._converted(feeds[name], dense=self._channels_last)
                observe(node.name, value)
            for call in self._calls:
                result = call.function(
                    *_filled(call.args, values), **{k: _filled(x, values) for k, x in call.kwargs.items()}
                )
                values[call.slot] = result
                observe(call.name, result)
                for slot in call.dying:
                    values[slot] = None

    def _constant(self, module: fx.GraphModule, node: fx.Node) -> Any:
        value = operator.attrgetter(str(node.target))(module)
        if not isinstance(value, Tensor):
            return value
        return self._converted(value.detach(), dense=any(user.target in CONVOLUTIONS for user in node.users))

    def _converted(self, value: Tensor, *, dense: bool) -> Tensor:
        """A floating tensor in our dtype; channels-last where it is an image or a kernel."""
        if not value.is_floating_point():
            return value
        layout = torch.channels_last if dense and value.ndim == 4 else torch.preserve_format
        return value.to(dtype=self.dtype if value.dtype == torch.float32 else value.dtype, memory_format=layout)

    def _plan(self, node: fx.Node) -> _Call:
        function: Any = node.target
        if function in IN_PLACE and _may_overwrite(node):
            function = IN_PLACE[function]
        if function is aten.view.default:  # channels-last values have strides that a view may refuse
            function = aten.reshape.default
        args = tuple(self._planned(argument) for argument in node.args)
        kwargs = {key: self._planned(argument) for key, argument in node.kwargs.items()}
        dying = [x for x in node.all_input_nodes if self._last_user[x] is node and x.op != "get_attr"]
        slots = [self._slots[x] for x in dying] + ([] if node.users else [self._slots[node]])
        return _Call(node.name, self._slots[node], function, args, kwargs, tuple(slots))

    def _planned(self, argument: Any) -> Any:
        """An argument with nodes replaced by slots, and float32 by our dtype."""
        if isinstance(argument, fx.Node):
            return _Slot(self._slots[argument])
        if isinstance(argument, list | tuple):
            items = [self._planned(item) for item in argument]
            return tuple(items) if isinstance(argument, tuple) else items
        return self.dtype if argument is torch.float32 else argument


def floating_nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    """The placeholders and calls whose value is one floating tensor, in order."""
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if node.op in ("placeholder", "call_function") and isinstance(value, Tensor) and value.is_floating_point():
            yield node


def _filled(argument: Any, values: list[Any]) -> Any:
    """Arguments with slots replaced by values; lists (of a cat) included."""
    if type(argument) is _Slot:
        return values[argument.index]
    if type(argument) is tuple:
        return tuple(_filled(item, values) for item in argument)
    if type(argument) is list:
        return [_filled(item, values) for item in argument]
    return argument


def _may_overwrite(node: fx.Node) -> bool:
    """Whether the first operand is fresh memory that only this call sees, of the shape and dtype of the result."""
    first = node.args[0]
    if not isinstance(first, fx.Node) or first.target not in FRESH | set(IN_PLACE) or len(first.users) != 1:
        return False
    if any(other is first for other in node.args[1:]):
        return False
    mine, theirs = node.meta.get("val"), first.meta.get("val")
    if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor):
        return False
    return tuple(mine.shape) == tuple(theirs.shape) and mine.dtype == theirs.dtype
