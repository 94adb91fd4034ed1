"""Captured graph (float, or with q/dq nodes) -> one standard ONNX model.

The captured graph is already normalised, so it is walked once and written node by node from the table in `ops/`:
well under a second for ResNet-50, where a second export takes several. An operator outside the table is exported
alone by PyTorch's own exporter and spliced in (`fallback.py`); what that refuses too is a `ConversionError` naming
the user's line.

Names: inputs and outputs as in the captured specs; every other value and node as its captured node, which q/dq
placement keeps, so that the float and the quantised model can be compared name by name. No shapes of inner values,
no stack traces, no paths: the same model gives the same bytes in every process.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx
import torch
from onnx import helper
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from deploykit.capture.calls import attribute, bind, refusal
from deploykit.contract.errors import ConversionError
from deploykit_targets._onnx.fallback import export_alone, splice
from deploykit_targets._onnx.ops import TABLE, Call, Value
from deploykit_targets._onnx.ops.table import dtype_named, scalar_operator
from deploykit_targets._onnx.optimise import clean
from deploykit_targets._onnx.writer import GraphWriter, element_type

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.tensors import TensorSpec

MIN_OPSET, MAX_OPSET = 18, 22  # reductions take their axes as input from 18 on; 23 changes shapes of many operators
IR_VERSION = 10  # the first with metadata on nodes
_WITHOUT_VALUE = ("aten._assert", "aten.sym_constrain_range", "aten._assert_tensor_metadata")


def to_onnx(
    captured: CapturedModel,
    graph_module: GraphModule | None = None,
    *,
    opset: int = 20,
    name: str = "model",
    log: list[str] | None = None,
) -> onnx.ModelProto:
    """Lower a captured graph to ONNX.

    Args:
        captured: gives input and output specs and where each node comes from.
        graph_module: a q/dq copy of its graph; by default the float graph itself.
        opset: version of the standard operator set, 18 to 22. Gelu is one operator from 20 on; int16 needs 21.
        name: the graph's name.
        log: what converters printed is appended here; nothing reaches the terminal.

    Returns:
        A model without `value_info`; int8 weights stay int8, zero points are explicit constants.

    Raises:
        ConversionError: an operator cannot be written; names operator, module path, source line and what to try.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ConversionError(f"opset {opset} is not supported", hint=f"choose {MIN_OPSET} to {MAX_OPSET}")
    module = captured.graph_module if graph_module is None else graph_module
    walk = _Walk(captured, GraphWriter(opset), log if log is not None else [])
    with torch.no_grad():
        walk.run(module)
    return clean(walk.model(module, name))


@dataclass
class _Walk:
    """One pass over a captured graph; gives values to translations as they ask for them."""

    captured: CapturedModel
    writer: GraphWriter
    log: list[str]
    values: dict[Node, Value] = field(default_factory=dict)
    constants: dict[Node, torch.Tensor] = field(default_factory=dict)
    turned: dict[tuple[object, ...], str] = field(default_factory=dict)
    stored: dict[tuple[object, ...], str] = field(default_factory=dict)

    def run(self, module: GraphModule) -> None:
        """Write every node; constants are written when something reads them."""
        for spec in (*self.captured.inputs, *self.captured.outputs):
            self.writer.reserve(spec.name)
        for node, spec in zip(module.graph.find_nodes(op="placeholder"), self.captured.inputs, strict=True):
            self.values[node] = spec.name
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self.constants[node] = attribute(node)
            elif node.op == "call_function" and node.users and not self._is_constant(node):
                self._write(node)

    # What translations may ask (ops.table.ValueSource).

    def value(self, node: Node) -> Value:
        """The ONNX value of a captured node."""
        if node not in self.values:
            scope = self.writer.scope
            if node in self.constants:
                self.values[node] = self._once(self.stored, node, self.constants[node])
            else:  # a dequantised weight: written when first read
                self._write(node)
            self.writer.enter(*scope, restart=False)
        return self.values[node]

    def constant_of(self, node: Any) -> torch.Tensor | None:
        """The tensor of a constant, None for anything computed."""
        return self.constants.get(node) if isinstance(node, Node) else None

    def transposed(self, node: Node) -> str:
        """A constant matrix stored the other way round, once."""
        return self._once(self.turned, node, self.constants[node].t())

    # Steps.

    def _once(self, stored: dict[tuple[object, ...], str], node: Node, tensor: torch.Tensor) -> str:
        """Store a weight under its first name; tied weights share their memory and are stored once."""
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key not in stored:
            plain = (
                torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
            )  # as torch.onnx has them
            stored[key] = self.writer.initialiser(plain, str(node.target))
        return stored[key]

    def _is_constant(self, node: Node) -> bool:
        """Weights: a quantised constant is folded, a dequantised one waits until it is read."""
        target = str(node.target)
        if not target.startswith("quantized_decomposed.") or node.args[0] not in self.constants:
            return False
        if target.startswith("quantized_decomposed.quantize"):
            arguments = [self.constants.get(arg, arg) if isinstance(arg, Node) else arg for arg in node.args]
            self.constants[node] = node.target(*arguments)  # type: ignore[operator]
        return True

    def _write(self, node: Node) -> None:
        if node.target is operator.getitem:
            self.values[node] = self.value(node.args[0])[node.args[1]]  # type: ignore[arg-type, index]
            return
        if str(node.target).startswith(_WITHOUT_VALUE):
            return
        origin = self.captured.origins.get(node.name)
        self.writer.enter(node.name, origin.module_path if origin else "")
        first = len(self.writer.nodes)
        try:
            written = self._translate(node)
        except ConversionError:
            raise
        except Exception as error:
            why = f"cannot be written as ONNX: {_reason(error)}"
            raise refusal(node, self.captured.origins, why) from error
        self.values[node] = self._named(node, written, first)

    def _translate(self, node: Node) -> Value:
        if _is_complex(node):
            self.log.append(f"{node.name}: complex numbers; handed to torch.onnx")
            return self._alone(node)
        translation = TABLE.lookup(node.target)
        if translation is None:
            simple = scalar_operator(node, self.writer, self)
            return simple if simple is not None else self._alone(node)
        mark, known = len(self.writer.nodes), self.writer
        try:
            return translation(Call(node, bind(node), known, self))
        except NotImplementedError as error:  # a form that the table leaves to PyTorch's exporter
            del known.nodes[mark:]
            self.log.append(f"{node.name}: {error}; handed to torch.onnx")
            return self._alone(node)

    def _alone(self, node: Node) -> Value:
        model, inputs = export_alone(node, self.writer.opset, self.log)
        return splice(self.writer, model, [self.value(source) for source in inputs], multiple=_is_group(node))

    def _named(self, node: Node, written: Value, first: int) -> Value:
        """Give what was written for a node the node's own name; a value that was only passed on keeps its name."""
        made = {name for produced in self.writer.nodes[first:] for name in produced.output}
        if isinstance(written, str):
            return self._rename(written, node.name, first) if written in made else written
        return tuple(
            self._rename(value, f"{node.name}.{index}", first) if value in made else value
            for index, value in enumerate(written)
        )

    def _rename(self, old: str, new: str, first: int) -> str:
        free = self.writer.reserve(new)
        self.writer.rename(old, free, since=first)
        return free

    # The model.

    def model(self, module: GraphModule, name: str) -> onnx.ModelProto:
        """The finished model."""
        self._name_outputs(module)
        inputs = [_value_info(spec) for spec in self.captured.inputs]
        outputs = [_value_info(spec) for spec in self.captured.outputs]
        return self.writer.finish(name, inputs, outputs, IR_VERSION)

    def _name_outputs(self, module: GraphModule) -> None:
        """Give the results their public names; one that is an input, a constant or already named gets an Identity."""
        (output,) = module.graph.find_nodes(op="output")
        results: Sequence[Node] = output.args[0]
        produced = {value for node in self.writer.nodes for value in node.output}
        named: Mapping[str, str] = {}
        for node, spec in zip(results, self.captured.outputs, strict=True):
            value = self.value(node)
            if value in produced and value not in named:
                self.writer.rename(str(value), spec.name, with_node=False)
                named = {**named, str(value): spec.name}
            else:
                self.writer.enter(f"{spec.name}.copy", "")
                copy = self.writer.op("Identity", named.get(str(value), str(value)))
                self.writer.rename(copy, spec.name, with_node=False)


def _reason(error: Exception) -> str:
    """What the exporter found, without the page of advice around it."""
    while (cause := error.__cause__) is not None and isinstance(cause, Exception):
        error = cause
    return str(error)


def _is_complex(node: Node) -> bool:
    """Whether an operator reads or gives complex numbers: in ONNX pairs of one rank more, as torch.onnx writes them."""
    values = pytree.tree_leaves([part.meta.get("val") for part in (node, *node.all_input_nodes)])
    return any(isinstance(value, torch.Tensor) and value.is_complex() for value in values)


def _is_group(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    dtype = dtype_named(spec.dtype)
    return helper.make_tensor_value_info(spec.name, element_type(dtype), list(spec.shape))
