"""`Editor`: a graph under rewriting, with its constants and the shape of every value.

Passes work on an FX graph and a plain dict of constants, and build a GraphModule only when something must run. Every
node that a pass inserts gets `meta["val"]` (a fake tensor, no data) by running its op on the fakes of its arguments,
and the provenance (module stack, source lines) of the node it replaces. It does not decide what to rewrite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from deploykit.capture.derivation import Derivation, Derived, own_names

Target = Callable[..., Any]
Call = Any
"""An `fx.Node` that is a call. FX types its arguments as a union of everything; passes know them by the op's schema."""

PROVENANCE = ("nn_module_stack", "stack_trace")


class Editor:
    """An FX graph with its constants, and the operations that passes need.

    Attributes:
        graph: placeholders, get_attr (keys of `constants`), call_function and one output returning a tuple.
        constants: float32 or integer CPU tensors by get_attr target; weights are shared with the user's model,
            so that a pass adds new constants and never writes into old ones.
        derivations: how constants follow from the model's own tensors, by get_attr target; literals have none.
        trainable: parameters will change: no pass may rely on the value that one has now.
    """

    def __init__(
        self, graph: fx.Graph, constants: dict[str, Tensor], derivations: Mapping[str, Derivation] | None = None
    ) -> None:
        self.graph = graph
        self.constants = constants
        self.derivations = dict(derivations or {})
        self.trainable = False
        self._fake_mode = _fake_mode_of(graph)
        self._last_placeholder = [n for n in graph.nodes if n.op == "placeholder"][-1]

    def calls(self, *targets: Target) -> list[Call]:
        """The call_function nodes of these targets (all when none is given), in order, safe to edit while walking."""
        return [n for n in self.graph.nodes if n.op == "call_function" and (not targets or n.target in targets)]

    def value(self, node: Any) -> Tensor | None:
        """The tensor behind a get_attr node, or None for anything else."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return self.constants[str(node.target)]
        return None

    def derivation(self, node: Any) -> Any:
        """How the constant behind a get_attr node follows from the model's tensors; its value where it does not."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return self.derivations.get(str(node.target), self.constants[str(node.target)])
        return node

    def derived(self, name: str, function: Callable[..., Tensor], *sources: Any, parameter: bool = False) -> Call:
        """Add a constant that follows from others, and remember how.

        Args:
            function: differentiable, without state; is given the values of `sources`.
            sources: get_attr nodes, or values (None, say) that are passed as they are.
            parameter: it is stored as an `nn.Parameter`, as weights of the model are.
        """
        values = [self.value(each) if isinstance(each, fx.Node) else each for each in sources]
        with torch.no_grad():
            value = function(*values)
            value = nn.Parameter(value, requires_grad=False) if parameter else value
        operands = tuple(self.derivation(each) for each in sources)
        return self.constant(name, value, Derived(function, operands))

    def constant(self, name: str, tensor: Tensor, derivation: Any = None) -> Call:
        """Add a constant and a get_attr node for it behind the inputs; `name` gets a number when it is taken.

        Args:
            derivation: how it follows from the model's tensors; one that reads none of them is a literal.
        """
        unique, count = name, 0
        while unique in self.constants:
            count += 1
            unique = f"{name}_{count}"
        self.constants[unique] = tensor
        if isinstance(derivation, Derivation) and next(own_names(derivation), None) is not None:
            self.derivations[unique] = derivation
        with self.graph.inserting_after(self._last_placeholder):
            node = self.graph.create_node("get_attr", unique)
        node.meta["val"] = self._fake_mode.from_tensor(tensor, static_shapes=True)
        return node

    def call(self, target: Target, *args: Any, before: Call, val: Any = None, **kwargs: Any) -> Call:
        """Insert a call before a node and take over that node's provenance; the value is inferred.

        Args:
            val: the value, where PyTorch would fix a dynamic size to infer it.

        Raises:
            whatever the op raises on the fake arguments, such as a shape mismatch.
        """
        val = self.infer(target, args, kwargs) if val is None else val
        with self.graph.inserting_before(before):
            node = self.graph.create_node("call_function", target, args, kwargs, name=call_name(target))
        node.meta.update({key: before.meta[key] for key in PROVENANCE if key in before.meta})
        node.meta["val"] = val
        return node

    def infer(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Run an op on the fakes of its arguments: the shape and dtype it would give."""
        fakes = fx.map_arg((args, kwargs or {}), lambda n: n.meta["val"])
        with self._fake_mode, torch.no_grad():
            return target(*fakes[0], **fakes[1])

    def retarget(self, node: Call, target: Target, *args: Any, **kwargs: Any) -> None:
        """Turn a node into another call in place; its value must be the same."""
        node.target, node.args, node.kwargs = target, args, kwargs

    def swap(self, old: Call, new: Any) -> None:
        """Send every use of `old` to `new` and erase `old`."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def sweep(self) -> None:
        """Erase calls and constants that nothing uses."""
        for node in reversed(self.graph.nodes):
            if node.op in ("call_function", "get_attr") and not node.users:
                self.graph.erase_node(node)
        used = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        for name in [name for name in self.constants if name not in used]:
            del self.constants[name]
            self.derivations.pop(name, None)

    def module(self) -> fx.GraphModule:
        """A runnable GraphModule of the graph as it stands (constants shared, not copied)."""
        module = fx.GraphModule(dict(self.constants), self.graph)
        module.graph.lint()
        return module

    @contextmanager
    def fakes(self) -> Iterator[FakeTensorMode]:
        """The fake mode of the graph's values, entered, without gradients."""
        with self._fake_mode, torch.no_grad():
            yield self._fake_mode


def call_name(target: Target) -> str | None:
    """Name of a call: its op without namespace and overload (`conv2d`); None leaves the choice to FX."""
    return target._schema.name.split("::")[1].strip("_") if isinstance(target, torch._ops.OpOverload) else None


def with_defaults(node: Call, required: int, *defaults: Any) -> tuple[Any, ...]:
    """The positional arguments of a call: `required` ones, then those given or else these defaults."""
    return (*node.args, *defaults[len(node.args) - required :])


def shape_of(node: Call) -> tuple[Any, ...]:
    """Sizes of a node's tensor; ints, or SymInts on dynamic axes."""
    return tuple(node.meta["val"].shape)


def rank_of(node: Call) -> int:
    """Number of axes of a node's tensor."""
    return len(node.meta["val"].shape)


def is_static(sizes: Iterable[Any]) -> bool:
    """Whether every size is a plain int."""
    return all(isinstance(size, int) for size in sizes)


def _fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    for node in graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if isinstance(mode, FakeTensorMode):
            return mode
    return FakeTensorMode()
