"""Run the program that `convert.py` wrote. Needs NumPy and safetensors only: no PyTorch on the device."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
from safetensors import SafetensorError, safe_open

from deploykit import ArtifactError, Session
from deploykit.artifact.store import StoredArtifact
from deploykit.contract.tensors import Feeds
from deploykit_numpy.formats import unpack

ENTRY = "model.safetensors"
Array = np.ndarray

_erf = np.vectorize(math.erf, otypes=[np.float32])


def _gelu(x: Array) -> Array:
    y: Array = x * np.float32(0.5) * (1 + _erf(x * np.float32(math.sqrt(0.5))))
    return y


_ELEMENTWISE: dict[str, Callable[[Array], Array]] = {"relu": lambda x: np.maximum(x, 0), "gelu": _gelu, "tanh": np.tanh}


class NumpySession(Session):
    """Interprets the steps; int8 weights stay as they were written, those of 12 bits are unpacked to int16."""

    def __init__(self, artifact: StoredArtifact) -> None:
        super().__init__(artifact.inputs, artifact.outputs, threads=1)
        try:
            with safe_open(artifact.path / artifact.manifest.entry, framework="numpy") as file:
                self._program = json.loads(file.metadata()["program"])
                self._constants: dict[str, Array] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            for name, columns in self._program["packed"].items():
                self._constants[name] = unpack(self._constants[name], columns)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{ENTRY} cannot be read: {error}", hint="export the model again") from error

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        values = {node: feeds[name] for name, node in self._program["inputs"].items()}
        for step in self._program["steps"]:
            values[step["result"]] = self._step(step["op"], step["arguments"], values)
        return {name: values[node] for name, node in self._program["outputs"].items()}

    def _step(self, op: str, arguments: list[str], values: dict[str, Array]) -> Array:
        x, *others = (values[name] if name in values else self._constants[name] for name in arguments)
        if op != "linear":
            return _ELEMENTWISE[op](x)
        y: Array = x @ others[0].T.astype(x.dtype)
        scale = self._constants.get(f"{arguments[1]}.scale")
        y = y if scale is None else y * scale
        return y + others[1] if len(others) > 1 else y
