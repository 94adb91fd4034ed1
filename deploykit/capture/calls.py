"""Calls of operators in a captured graph: their arguments by name, and tables of what to do with each operator."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch.fx import Node

from deploykit.capture.origins import Origin
from deploykit.contract.errors import ConversionError

Rule = TypeVar("Rule", bound=Callable[..., Any])


class OperatorTable(Generic[Rule]):
    """What a lowering does with each operator overload, which is written as `aten.add.Tensor`."""

    def __init__(self) -> None:
        self._rules: dict[str, Rule] = {}

    def register(self, *targets: str) -> Callable[[Rule], Rule]:
        """A decorator that enters a function under overloads; a second claim is a ValueError."""

        def enter(rule: Rule) -> Rule:
            for target in targets:
                if target in self._rules:
                    raise ValueError(f"{target} is claimed twice")
                self._rules[target] = rule
            return rule

        return enter

    def lookup(self, target: Any) -> Rule | None:
        """The rule of an operator overload, or None."""
        return self._rules.get(str(target))

    def known(self) -> tuple[str, ...]:
        """Every overload that has a rule, sorted."""
        return tuple(sorted(self._rules))


def bind(node: Node) -> dict[str, Any]:
    """Arguments of a captured call by schema name, defaults filled in."""
    bound = {}
    for position, (name, default) in enumerate(_schema(node.target)):
        bound[name] = node.args[position] if position < len(node.args) else node.kwargs.get(name, default)
    return bound


@cache
def _schema(target: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((argument.name, argument.default_value) for argument in target._schema.arguments)


def refusal(node: Node, origins: Mapping[str, Origin], why: str) -> ConversionError:
    """The error of a lowering that has no form for a call: operator, module path, source line, and what to do.

    Args:
        origins: the origins of the captured graph.
        why: end of the sentence that begins with the operator, such as "cannot be written as ONNX: ...".
    """
    origin = origins.get(node.name)
    where = f" in {origin.module_path or 'the model itself'}" if origin else ""
    line = f" ({origin.source})" if origin and origin.source else ""
    return ConversionError(
        f"{node.target}{where}{line} {why}",
        hint="replace the operation by simpler tensor operations, or take the part out of the exported model",
    )


def attribute(node: Node) -> torch.Tensor:
    """The tensor that a `get_attr` node names."""
    found = stored(node.graph.owning_module, str(node.target))
    assert isinstance(found, torch.Tensor)
    return found


def stored(module: Any, path: str) -> Any:
    """What a module holds under a dotted path."""
    return operator.attrgetter(path)(module)
