"""`Achieved`: what a deployed model really computes in, counted in the produced file and not in the request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from deploykit.contract.precision import Evidence, Precision, known


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
        reason: why it is not in the requested precision; "" where it is, or where the precision does not concern it.
        by_request: it stayed in float because `include` or `exclude` says so, or as a part of a Fourier transform.
        counted: whether its multiply-accumulates are known; `macs` is 0 where they are not.
    """

    name: str
    module_path: str
    op: str
    precision: str
    macs: int = 0
    weights: int = 0
    reason: str = ""
    by_request: bool = False
    counted: bool = True


@dataclass(frozen=True)
class FloatActivation:
    """An operator without products that computes in float beside integer layers: SiLU, a gate, a norm, a softmax.

    Attributes:
        name: node name in the captured graph.
        module_path: dotted path of the PyTorch module, "" for the root.
        op: kind of operator, such as `silu` or `mul`.
        elements: elements of the activations that it reads and writes in one run of the example inputs.
        bytes: what these are in float32; runtimes that fuse it, or compute in float16, move less. What it reads is
            dequantised for it, and quantised again behind it.
    """

    name: str
    module_path: str
    op: str
    elements: int
    bytes: int


@dataclass(frozen=True)
class Delegation:
    """What a runtime hands to its accelerated part, where it has one that may refuse operators.

    Attributes:
        name: the name of the accelerated part, such as `XNNPACK`.
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
        float_activations: what computes in float beside the integer layers of a static precision, largest first.
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
    float_activations: tuple[FloatActivation, ...] = ()

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
    def module_paths(self) -> dict[str, str]:
        """Module path by node name, of layers and float activations."""
        beside = {each.name: each.module_path for each in self.float_activations}
        return beside | {layer.name: layer.module_path for layer in self.layers}

    @property
    def as_asked_fraction(self) -> float:
        """Share of all multiply-accumulates in the requested precision or a narrower one, 0 to 1; 1 without any."""
        total = sum(self.macs.values())
        return sum(macs for name, macs in self.macs.items() if self.is_as_asked(name)) / total if total else 1.0

    @property
    def placed_fraction(self) -> float | None:
        """The same as `as_asked_fraction`, of the layers that the request is about; None where there are none.

        Left out are layers that `include` or `exclude` keeps in float and, in a precision of weights, products of two
        activations, which have no weights.
        """
        concerned = [layer for layer in self.layers if layer.macs and not layer.by_request]
        if self._precision is not None and self._precision.is_weight_only:
            concerned = [layer for layer in concerned if layer.weights]
        total = sum(layer.macs for layer in concerned)
        return sum(layer.macs for layer in concerned if self.is_as_asked(layer.precision)) / total if total else None

    @property
    def uncounted(self) -> tuple[LayerAchieved, ...]:
        """Operators of which it is not known how often they multiply."""
        return tuple(layer for layer in self.layers if not layer.counted)

    def is_as_asked(self, found: str) -> bool:
        """Whether `found` is what was requested; see `Format.counts_as`."""
        return self._precision is not None and self._precision.row.counts_as(found)

    @property
    def _precision(self) -> Precision | None:
        return known(self.requested)

    @property
    def not_as_requested(self) -> tuple[LayerAchieved, ...]:
        """Operators that carry a reason why they stayed in another precision, largest first."""
        return tuple(sorted((layer for layer in self.layers if layer.reason), key=lambda layer: -layer.macs))

    def __str__(self) -> str:
        parts = [f"{name} {self.macs_fraction(name):.1%} of MACs" for name in sorted(self.macs) if self.macs[name]]
        return ", ".join(parts) or "no multiply-accumulates"
