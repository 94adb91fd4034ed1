"""`Recipe`: what was decided for one model on one target, as values: enough to make the same artifact again.

Every artifact's manifest has one, and `deploykit.export(model, recipe=...)` follows one. It holds decisions and their
reasons, and no weights and no timings: the same model, data and recipe give the same bytes. As a file it is TOML with a
layer a line, to be read, edited, compared and committed; see `deploykit.contract.recipe_file`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from deploykit.contract.arguments import path as path_of

SCHEMA_VERSION = 1
FLOAT = "float"
FLOAT32 = "float32"
"""What a layer computes in that is kept from the float16 that the target's file has beside it."""
WIDE = "int8-weights"
"""What a layer holds that is kept wider than others in a precision of narrower weights."""


class _Whole:
    """What msgspec reads has no attribute for a default, and would be written and hashed without it: here it has.

    Options, settings and what was decided are as a file has them, lists where they were tuples: a recipe equals what
    is read of its file.
    """

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            object.__setattr__(self, each.name, _as_in_a_file(value) if isinstance(value, dict) else value)


def _as_in_a_file(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_in_a_file(each) for key, each in value.items()}
    return [_as_in_a_file(each) for each in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class LayerChoice(_Whole):
    """What one layer computes in.

    Attributes:
        name: the name of its node in the captured graph.
        module_path: dotted path of the module, "" for the root.
        kind: such as `conv`, `linear`, `add`.
        precision: `float` (what the target computes in beside quantised layers), `float32` where that is float16 and
            shall not be, or what it was quantised to.
        reason: why it is float, or its weight wider than others; "" where neither is so.
        chosen: it is so because this recipe says so. The others are what scheme and patterns make of the graph.
    """

    name: str
    module_path: str
    kind: str
    precision: str
    reason: str = ""
    chosen: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.kind} of {self.module_path or 'the root module'})"


@dataclass(frozen=True)
class RangeChoice(_Whole):
    """How the range of one activation tensor is chosen, where that is not the recipe's `method`.

    Attributes:
        tensor: name of the node in the captured graph that computes it.
        method: one of the calibration methods, such as `mse` or `percentile:99.999`, or the range itself,
            `range:LOW:HIGH`, where training found it.
    """

    tensor: str
    method: str


@dataclass(frozen=True)
class AlgorithmStep(_Whole):
    """One algorithm that is run over the prepared model.

    Attributes:
        name: the name, by which it is registered.
        version: the version of its results: one that rounds otherwise has another.
        settings: what it was run with.
        decided: what it found from the data, such as `share = 0.5`; an export that follows the recipe takes it from
            here, and an empty one has the algorithm decide anew.
    """

    name: str
    version: str = "1"
    settings: dict[str, Any] = field(default_factory=dict)
    decided: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TriedStep(_Whole):
    """One rung of the ladder that found a recipe; figures are of held-out data, and none is a time.

    Attributes:
        step: such as `ptq`, `ranges`, `rounding: gptq`, `mixed: 4 layers`, `train`.
        outcome: `kept` (the best until then), `passed over`, `skipped`, or `failed`.
        reason: why it was passed over, skipped or failed; "" where there is nothing to say.
        sqnr_db: the SQNR of the worst output against the float model.
        metric: the task metric; None where there is none.
        drop, drop_low, drop_high: float metric less this one, and its 95 % interval where it is known.
        int8_share: the share of multiply-accumulates that are placed in the precision asked for, 0 to 1.
        on: what was measured: `simulation` or `artifact`.
    """

    step: str
    outcome: str
    reason: str = ""
    sqnr_db: float | None = None
    metric: float | None = None
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    int8_share: float | None = None
    on: str = ""


@dataclass(frozen=True)
class ModelIdentity(_Whole):
    """Which model a recipe is of.

    Attributes:
        name: class of the model.
        graph: sha256 hex of the structure: names, operators and shapes of what is stored, without its values.
        fingerprint: sha256 hex of structure, weights and inputs.
    """

    name: str
    graph: str
    fingerprint: str


@dataclass(frozen=True)
class Recipe(_Whole):
    """What was decided.

    Attributes:
        target: `device:toolchain`.
        precision: asked for.
        scheme: name of the quantisation scheme of the target; of floating precisions, `float`.
        model: the model whose layers these are.
        layers: every layer of the graph in execution order.
        method: how ranges of activations are chosen from statistics.
        ranges: the ranges of single tensors, where they are chosen otherwise.
        include, exclude: module-path patterns, as they were asked for.
        algorithms: what is run over the prepared model, in this order.
        options: the options of the toolchain; those that are None are left out.
        calibration: sha256 hex of the calibration data, "" for none.
        ladder: what was tried to find it; empty where nothing was.
        deploykit: version that decided.
        schema_version: the version of this layout; a newer one is refused.
    """

    target: str
    precision: str
    scheme: str
    model: ModelIdentity
    layers: tuple[LayerChoice, ...] = ()
    method: str = "default"
    ranges: tuple[RangeChoice, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    algorithms: tuple[AlgorithmStep, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    calibration: str = ""
    ladder: tuple[TriedStep, ...] = ()
    deploykit: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def fingerprint(self) -> str:
        """sha256 hex of everything in it."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    @property
    def kept(self) -> dict[str, str]:
        """Layers that this recipe keeps in float, by node name, and why."""
        return {each.name: each.reason for each in self.layers if each.chosen and each.precision in (FLOAT, FLOAT32)}

    @property
    def in_float32(self) -> dict[str, str]:
        """Layers that compute in float32, whatever type is beside them, by node name, and why."""
        return {each.name: each.reason for each in self.layers if each.precision == FLOAT32}

    @property
    def wider(self) -> dict[str, str]:
        """Layers whose weight this recipe holds wider than others, by node name, and why."""
        return {each.name: each.reason for each in self.layers if each.chosen and each.precision == WIDE}

    @property
    def methods(self) -> dict[str, str]:
        """Range method of single tensors, by node name."""
        return {each.tensor: each.method for each in self.ranges}

    def same_decisions(self, other: Recipe) -> bool:
        """Whether both say the same of the same model and data, whatever was tried on the way."""
        return replace(self, ladder=()) == replace(other, ladder=())

    def write(self, path: str | Path) -> None:
        """Write it as TOML; an existing file is replaced, atomically.

        Raises:
            UsageError: the file cannot be written.
        """
        from deploykit.contract.recipe_file import write

        write(self, path_of("path", path))

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read one from TOML.

        Raises:
            UsageError: no such file, no TOML, of a newer schema, a key missing, unknown or of the wrong type; the
                message names the line.
        """
        from deploykit.contract.recipe_file import read

        return read(path_of("path", path))
