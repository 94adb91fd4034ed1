"""`PruneReport`: what pruning took from which module, what stayed and why, and what it gained where measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from deploykit_training.pruning.choose import Ratio

_MOST_KEPT_SHOWN = 12


@dataclass(frozen=True)
class ModulePruning:
    """One module that has parameters or multiplies.

    Attributes:
        path: the path of the module, "" for the root.
        kind: its class.
        parameters_before, parameters_after: elements of its own parameters.
        nonzero_after: how many of these are not zero.
        macs_before, macs_after: multiply-accumulates at the example inputs' sizes, zeros multiplied like other values.
        channels_before, channels_after: output channels (features) of a convolution or linear layer; 0 for others.
    """

    path: str
    kind: str
    parameters_before: int
    parameters_after: int
    nonzero_after: int
    macs_before: int
    macs_after: int
    channels_before: int = 0
    channels_after: int = 0

    @property
    def sparsity(self) -> float:
        """Share of its parameters that was removed or is zero, 0 to 1."""
        return 1.0 - self.nonzero_after / self.parameters_before if self.parameters_before else 0.0


@dataclass(frozen=True)
class Gain:
    """What pruning gained, measured: both models exported alike and run in turns.

    Attributes:
        target, precision: the target and precision of both exports.
        latency_before_ms, latency_after_ms: p50 of a run.
        size_before_bytes, size_after_bytes: the size before and size after of the payloads.
        evidence: `device`, or what else `deploykit.export` found for this target here.
    """

    target: str
    precision: str
    latency_before_ms: float
    latency_after_ms: float
    size_before_bytes: int
    size_after_bytes: int
    evidence: str

    @property
    def speedup(self) -> float:
        """Latency before over latency after: above 1 the pruned model is faster."""
        return self.latency_before_ms / self.latency_after_ms


@dataclass(frozen=True)
class PruneReport:
    """The result of `deploykit.prune`.

    Attributes:
        kind: `structured`, `unstructured` or `2:4`.
        ratio: the ratio that was asked for.
        scope: over which the ratio was kept.
        round_to: multiple that channel counts were rounded to; 1 where they were not.
        modules: every module that has parameters or multiplies.
        kept: layers that could have lost weights and did not, with the reason.
        sparsity: share of the weights of convolutions and linear layers that was removed or is zero, 0 to 1.
        removed: channels that went, by the path of the layer that made them first (`structured`); `replay` removes the
            same from another copy of the model.
        gain: what was measured; None where nothing was.
        findings: what a reader must not miss.
        model: the pruned model: the one that was passed, or the copy with `inplace=False`.
    """

    kind: str
    ratio: Ratio
    scope: str
    round_to: int
    modules: tuple[ModulePruning, ...]
    kept: Mapping[str, str]
    sparsity: float
    removed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    gain: Gain | None = None
    findings: tuple[str, ...] = ()
    model: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def parameters_before(self) -> int:
        """Elements of all parameters before."""
        return sum(m.parameters_before for m in self.modules)

    @property
    def parameters_after(self) -> int:
        """Elements of all parameters now, zeros among them."""
        return sum(m.parameters_after for m in self.modules)

    @property
    def macs_before(self) -> int:
        """Multiply-accumulates of a run before."""
        return sum(m.macs_before for m in self.modules)

    @property
    def macs_after(self) -> int:
        """Multiply-accumulates of a run now; those with a zero weight count, as runtimes compute them."""
        return sum(m.macs_after for m in self.modules)

    @property
    def parameters(self) -> dict[str, tuple[int, int]]:
        """Parameters before and after, by module."""
        return {m.path: (m.parameters_before, m.parameters_after) for m in self.modules}

    @property
    def macs(self) -> dict[str, tuple[int, int]]:
        """Multiply-accumulates before and after, by module."""
        return {m.path: (m.macs_before, m.macs_after) for m in self.modules}

    def finish(self) -> nn.Module | None:
        """Take the masks of `unstructured` and `2:4` away; the zeros stay. The model then trains them like others."""
        from deploykit_training.pruning.masks import finish

        return None if self.model is None else finish(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = {name: value for name, value in self.__dict__.items() if name not in ("model", "modules", "gain")}
        gain = None if self.gain is None else {**asdict(self.gain), "speedup": self.gain.speedup}
        totals = {
            name: getattr(self, name) for name in ("parameters_before", "parameters_after", "macs_before", "macs_after")
        }
        rows = [{**asdict(each), "sparsity": each.sparsity} for each in self.modules]
        plain = {name: dict(v) if isinstance(v, Mapping) else v for name, v in found.items()}
        return {**plain, "findings": list(self.findings), **totals, "gain": gain, "modules": rows}

    def __str__(self) -> str:
        return "\n".join([*self._heads(), *self._rows(), *self._kept(), *(f"note: {text}" for text in self.findings)])

    def _heads(self) -> list[str]:
        before, after = self.parameters_before, self.parameters_after
        lines = [
            f"{self.kind} pruning, ratio {self.ratio}: {self.sparsity:.1%} of the weights are gone",
            f"parameters {before:,} -> {after:,}, multiply-accumulates {self.macs_before:,} -> {self.macs_after:,}",
        ]
        if self.gain is not None:
            own = self.gain
            lines.append(
                f"{own.target} {own.precision}: {own.latency_before_ms:.3g} ms -> {own.latency_after_ms:.3g} ms"
                f" ({own.speedup:.2f} x, evidence {own.evidence}),"
                f" {own.size_before_bytes:,} -> {own.size_after_bytes:,} bytes"
            )
        return lines

    def _rows(self) -> list[str]:
        shown = [m for m in self.modules if m.channels_before]
        width = max((len(m.path) for m in shown), default=0)
        return [
            f"  {m.path:{width}}  {m.channels_before:>5} -> {m.channels_after:<5} {m.sparsity:6.1%} gone"
            f"  {m.macs_before:>13,} -> {m.macs_after:,} MACs"
            for m in shown
        ]

    def _kept(self) -> list[str]:
        lines = [f"kept: {path}: {reason}" for path, reason in self.kept.items()]
        left = len(lines) - _MOST_KEPT_SHOWN
        return lines if left <= 0 else [*lines[:_MOST_KEPT_SHOWN], f"kept: {left} more, see .kept"]
