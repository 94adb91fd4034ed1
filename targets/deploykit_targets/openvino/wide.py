"""Operators of an OpenVINO model that stay float32 where the rest is float16: OpenVINO's own mark, `precise`.

OpenVINO sets the mark itself for what its rules of thumb find, and its plugins read it from the file. Its Python
bindings do not write it: it is put into the model for the compression of weights, and into the file afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

_MARK = {"name": "precise", "version": "0"}
_KEY = "precise_0"


def mark(model: Any, kept: Collection[str]) -> frozenset[str]:
    """Mark the operators of `kept` and their constants.

    Args:
        model: OpenVINO model with friendly names of captured nodes, `name` or `name/part`; marked in place.
        kept: captured names.
    Returns:
        The friendly names of all that was marked.
    """
    found = [op for op in model.get_ordered_ops() if op.get_friendly_name().split("/")[0] in kept]
    marked = [node for op in found for node in _all(op)]
    for node in marked:
        node.get_rt_info()[_KEY] = ""
    return frozenset(node.get_friendly_name() for node in marked)


def _all(op: Any) -> Iterator[Any]:
    yield op
    for value in op.input_values():
        source = value.get_node()
        if source.get_type_name() in ("Constant", "Convert"):
            yield from _all(source)


def write_marks(path: Path, names: Collection[str]) -> None:
    """Mark the layers of a written `.xml` that have these friendly names."""
    if not names:
        return
    tree = ElementTree.parse(path)
    for layer in tree.iter("layer"):
        if layer.get("name") in names:
            facts = layer.find("rt_info")
            if facts is None:
                facts = ElementTree.Element("rt_info")
                data = layer.find("data")
                layer.insert(0 if data is None else list(layer).index(data) + 1, facts)
            ElementTree.SubElement(facts, "attribute", _MARK)
    tree.write(path, encoding="utf-8", xml_declaration=True)
