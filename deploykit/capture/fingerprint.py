"""Fingerprints of a captured model, equal in every process: of structure, weights and specs, and of structure alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from deploykit.contract.tensors import TensorSpec


def fingerprint(graph_module: fx.GraphModule, inputs: Sequence[TensorSpec]) -> str:
    """sha256 hex of nodes (names, ops, arguments), constants (dtype, shape, bytes) and input specs."""
    digest = hashlib.sha256()
    for spec in inputs:
        digest.update(f"{spec}\n".encode())
    seen: dict[int, str] = {}
    for node in graph_module.graph.nodes:
        digest.update(f"{node.name} {node.op} {node.target} {_text(node.args)} {_text(node.kwargs)}\n".encode())
        if node.op == "get_attr":
            value = constant(graph_module, str(node.target))
            if id(value) not in seen:
                _update(digest, value)
            digest.update(seen.setdefault(id(value), node.name).encode())
    return digest.hexdigest()


def structure(graph_module: fx.GraphModule) -> str:
    """sha256 hex of nodes (names and ops) and of the shapes and types of constants: the same for other weights, and for
    inputs of another size where the graph is the same for them.
    """
    digest = hashlib.sha256()
    for node in graph_module.graph.nodes:
        stored = ""
        if node.op == "get_attr":
            value = constant(graph_module, str(node.target))
            stored = f"{value.dtype} {tuple(value.shape)}"
        target = "" if node.op == "get_attr" else node.target
        digest.update(f"{node.name} {node.op} {target} {stored}\n".encode())
    return digest.hexdigest()


def constant(graph_module: fx.GraphModule, path: str) -> Tensor:
    """The tensor behind a get_attr path."""
    found: Any = graph_module
    for step in path.split("."):
        found = getattr(found, step)
    assert isinstance(found, Tensor)
    return found


def _update(digest: Any, tensor: Tensor) -> None:
    plain = tensor.detach().contiguous()
    digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
    if plain.numel():
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _text(value: Any) -> str:
    """Arguments as text: nodes by name, containers item by item, the rest as Python prints it."""
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(item)}' for key, item in sorted(value.items()))}}}"
    return repr(value)
