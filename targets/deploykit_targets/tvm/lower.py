"""Captured graph (float, or with q/dq nodes) -> kernels, a program that calls them, and its constants.

The graph is walked once; `ops` translate each node to steps (`emit`), to other views of the same bytes, or to
arithmetic that is computed later (`values.Lazy`). An operator without a translation is a `ConversionError` that names
the user's line.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from deploykit.capture.calls import attribute, bind, refusal
from deploykit.contract.errors import ConversionError
from deploykit_targets.tvm.emit import Emitter, Finished, dtype_of
from deploykit_targets.tvm.fallback import simpler
from deploykit_targets.tvm.kernels.isa import Isa
from deploykit_targets.tvm.ops import Call, NotCoveredError, lookup
from deploykit_targets.tvm.ops.decomposed import DECOMPOSITIONS
from deploykit_targets.tvm.ops.table import consumers
from deploykit_targets.tvm.planning import ConstantBlock
from deploykit_targets.tvm.values import Constant, Lazy, Tensor, Value, View, elements

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

_WITHOUT_VALUE = ("aten._assert", "aten.sym_constrain_range", "aten._assert_tensor_metadata")


def lower(
    captured: CapturedModel,
    isa: Isa,
    graph_module: GraphModule | None = None,
    *,
    prefix: str = "",
    block: ConstantBlock | None = None,
) -> Finished:
    """Lower a captured graph.

    Args:
        captured: gives input and output specs and where each node comes from; its shapes are static.
        isa: instruction set of the kernels.
        graph_module: a q/dq copy of its graph; by default the float graph itself.
        prefix: the prefix of the kernels' symbols, where a library has several programs.
        block: the block that takes the constants, where programs share it.
    Raises:
        ConversionError: an operator has no kernels; names operator, module path, source line and what to try.
    """
    module = captured.graph_module if graph_module is None else graph_module
    lowering = Lowering(captured, Emitter(isa, prefix=prefix, block=block or ConstantBlock()))
    with torch.no_grad():
        return lowering.run(module)


@dataclass
class Lowering:
    """One walk over a captured graph; gives values to translations as they ask for them."""

    captured: CapturedModel
    emitter: Emitter
    values: dict[Node, Value] = field(default_factory=dict)
    inputs: list[tuple[str, View]] = field(default_factory=list)

    def run(self, module: GraphModule) -> Finished:
        """Lower every node."""
        for node, spec in zip(module.graph.find_nodes(op="placeholder"), self.captured.inputs, strict=True):
            shape = tuple(int(size) for size in spec.shape)
            view = self.emitter.new(shape, _supported(spec.dtype, f"input {spec.name}"))
            self.values[node] = view
            self.inputs.append((spec.name, view))
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self.values[node] = Constant(attribute(node).detach().cpu().numpy())
            elif node.op == "call_function" and node.users and node not in self.values:
                self._lower(node)
        (output,) = module.graph.find_nodes(op="output")
        return self.emitter.finish(self.inputs, self._outputs(output))

    def tensor(self, argument: Any) -> Tensor:
        """The value of a node that is one tensor; a Python number becomes a constant."""
        if not isinstance(argument, Node):
            return Constant(_number(argument))
        value = self.values[argument]
        if isinstance(value, tuple):
            raise NotCoveredError(f"{argument} is a group of tensors where one is needed")
        return value

    def _lower(self, node: Node) -> None:
        if str(node.target).startswith(_WITHOUT_VALUE):
            return
        self.emitter.node = node.name
        try:
            self.values[node] = self._translated(node)
        except ConversionError:
            raise
        except NotCoveredError as error:
            raise self._refused(node, str(error)) from error
        except Exception as error:
            raise self._refused(node, f"{type(error).__name__}: {error}") from error

    def _translated(self, node: Node) -> Value:
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]  # type: ignore[index]
        translation = lookup(node.target)
        if translation is not None:
            try:
                return translation(Call(node, bind(node), self))
            except NotCoveredError:
                if node.target not in DECOMPOSITIONS:
                    raise
        return self._simplified(node)

    def _simplified(self, node: Node) -> Value:
        """An operator outside the table as PyTorch's own simpler ones."""
        graph = simpler(node)
        if graph is None:
            raise NotCoveredError(f"the target has no kernels for {node.target}")
        for inner, source in zip(graph.graph.find_nodes(op="placeholder"), node.all_input_nodes, strict=True):
            self.values[inner] = self.values[source]
        (output,) = graph.graph.find_nodes(op="output")
        for inner in graph.graph.nodes:
            if inner.op == "get_attr":
                self.values[inner] = Constant(attribute(inner).detach().cpu().numpy())
            elif inner.op == "call_function" and inner.users and inner not in self.values:
                self.values[inner] = self._translated(inner)
        results = output.args[0]
        if isinstance(results, (tuple, list)):
            return tuple(self._kept(self.tensor(result)) for result in results if result is not None)
        value = self.tensor(results)
        return self._kept(value) if consumers(node) > 1 else value

    def _kept(self, value: Tensor) -> Tensor:
        """Several may read it: it is computed once."""
        if isinstance(value, Lazy):
            value.shared = True
        return value

    def _refused(self, node: Node, reason: str) -> ConversionError:
        return refusal(node, self.captured.origins, f"cannot be compiled for TVM: {reason}")

    def _outputs(self, output: Node) -> list[tuple[str, View]]:
        """Each result by itself, in the user's layout, in memory that nothing else uses."""
        found: list[tuple[str, View]] = []
        taken = {view.buffer for _, view in self.inputs}
        for node, spec in zip(output.args[0], self.captured.outputs, strict=True):  # type: ignore[arg-type]
            self.emitter.node = node.name
            view = self.emitter.dense(self.tensor(node), real=True)
            own = view.buffer not in taken and view.buffer.data is None and view.offset == 0
            if not own or view.affine is not None or elements(view.shape) == 0:
                dtype = "float32" if view.affine is not None else dtype_of(view)
                view = self.emitter.store(view, self.emitter.new(view.shape, dtype))
            taken.add(view.buffer)
            found.append((spec.name, view))
        return found


def _supported(dtype: str, what: str) -> str:
    if dtype not in ("float32", "int64", "int32", "bool", "uint8", "int8"):
        raise ConversionError(f"{what} is {dtype}, which the kernels do not compute", hint="convert it in the model")
    return dtype


def _number(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, bool):
        return np.asarray(value)
    return np.asarray(value, dtype=np.int64 if isinstance(value, int) else np.float32)
