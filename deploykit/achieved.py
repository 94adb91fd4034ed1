"""`Achieved`: what a deployed model really computes in, counted in the produced file and not in the request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from deploykit.precision import Evidence


@dataclass(frozen=True)
class LayerAchieved:
    """One operator of the deployed model.

    Attributes:
        name: node name in the captured graph.
        module_path: dotted path of the PyTorch module, "" for the root.
        op: kind of operator, such as `conv` or `linear`.
        precision: what it computes in, such as `int8` or `float32`.
        macs: multiply-accumulates per sample batch of the example inputs; 0 where the op has none.
        weights: number of weight elements.
        reason: why it is not in the requested precision; "" where it is.
    """

    name: str
    module_path: str
    op: str
    precision: str
    macs: int = 0
    weights: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Delegation:
    """What a runtime hands to its accelerated part, where it has one that may refuse operators.

    Attributes:
        name: of the accelerated part, such as `XNNPACK`.
        operators, delegated: how many the file has, and how many of them are taken.
        macs_fraction: share of multiply-accumulates that is taken, 0 to 1; 1 where there are none.
        partitions: in how many pieces; data crosses over at every border.
        left: kinds of the others -> how many, most first.
    """

    name: str
    operators: int
    delegated: int
    macs_fraction: float
    partitions: int
    left: dict[str, int]

    @property
    def described(self) -> str:
        """All of it in one line."""
        pieces = f"{self.partitions} partition{'' if self.partitions == 1 else 's'}"
        return f"{self}; {self.macs_fraction:.1%} of multiply-accumulates, in {pieces}"

    def __str__(self) -> str:
        left = ", ".join(f"{count} {kind}" for kind, count in self.left.items())
        return f"{self.name} takes {self.delegated} of {self.operators} operators" + (f", not {left}" if left else "")


@dataclass(frozen=True)
class Achieved:
    """Counts by the precision that is really used.

    Attributes:
        requested: the precision that was asked for.
        source: where the counts were read, such as "ONNX Runtime's optimised graph".
        ops, macs, weights: number of operators, multiply-accumulates and weight elements by precision.
        layers: every operator that was counted.
        notes: what a reader must know to use the counts, such as "computed in float32 by inserted casts".
        evidence: `compiled` where the vendor's compiler listed what it computes in, `device` where the built program
            did; None where the produced file was read.
        delegation: what the runtime's accelerated part takes; None where there is no such part, or it takes all.
    """

    requested: str
    source: str
    ops: dict[str, int]
    macs: dict[str, int]
    weights: dict[str, int]
    layers: tuple[LayerAchieved, ...] = ()
    notes: tuple[str, ...] = ()
    delegation: Delegation | None = None
    evidence: Evidence | None = None

    @classmethod
    def count(
        cls, requested: str, layers: Iterable[LayerAchieved], *, source: str, notes: Iterable[str] = ()
    ) -> Achieved:
        """Sum `layers` by precision."""
        layers = tuple(layers)
        ops: Counter[str] = Counter()
        macs: Counter[str] = Counter()
        weights: Counter[str] = Counter()
        for layer in layers:
            ops[layer.precision] += 1
            macs[layer.precision] += layer.macs
            weights[layer.precision] += layer.weights
        return cls(requested, source, dict(ops), dict(macs), dict(weights), layers, tuple(notes))

    def macs_fraction(self, precision: str) -> float:
        """Share of multiply-accumulates in `precision`, from 0 to 1; 0 where the model has none."""
        total = sum(self.macs.values())
        return self.macs.get(precision, 0) / total if total else 0.0

    @property
    def not_as_requested(self) -> tuple[LayerAchieved, ...]:
        """Operators that carry a reason why they stayed in another precision, largest first."""
        return tuple(sorted((layer for layer in self.layers if layer.reason), key=lambda layer: -layer.macs))

    def __str__(self) -> str:
        parts = [f"{name} {self.macs_fraction(name):.1%} of MACs" for name in sorted(self.macs) if self.macs[name]]
        return ", ".join(parts) or "no multiply-accumulates"
