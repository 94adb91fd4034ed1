"""`deploykit.prune`: remove channels or weights from a model, prove it, and say what it gained.

Everything is worked out on a copy. The model that was passed is changed at the very end, by giving it the copy's
tensors (or its masks), so that whatever fails leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from deploykit.capture import CapturedModel, capture
from deploykit.capture.sources import Source, resolve
from deploykit.contract.errors import ConversionError, UsageError
from deploykit_training.pruning import masks, weights
from deploykit_training.pruning.calls import Calls
from deploykit_training.pruning.choose import SCOPES, Choice, Ratio, check_ratio, choose, ratios
from deploykit_training.pruning.count import LAYERS, compared, macs_of, nonzero_weights, sizes_of
from deploykit_training.pruning.groups import Dependencies, Group, layers_of
from deploykit_training.pruning.importance import channel_energy
from deploykit_training.pruning.report import PruneReport
from deploykit_training.pruning.rounding import round_to_of
from deploykit_training.pruning.speed import check_gain, check_goal, measure_gain
from deploykit_training.pruning.trial import attempt, masked_error, remove
from deploykit_training.pruning.working_copy import plain_copy, transplant

KINDS = ("structured", "unstructured", "2:4")


def prune(
    model: nn.Module,
    example_inputs: Any = None,
    ratio: Ratio = 0.5,
    kind: str = "structured",
    *,
    calibration: Any = None,
    scope: str = "layer",
    exclude: Sequence[str] = (),
    target: str | None = None,
    precision: str = "fp32",
    round_to: int | None = None,
    profile: bool = False,
    min_speedup: float | None = None,
    inplace: bool = True,
) -> PruneReport:
    """Prune a model.

    Args:
        model: nn.Module or LightningModule; changed in place, at the very end, unless `inplace=False`. An error leaves
            it as it was. Its parameters stay the same objects; after `structured`, an optimizer that has stepped with
            them must be made anew.
        example_inputs: tuple (positional), dict (by name) or one tensor; None asks the model.
        ratio: share above 0 and below 1: of the channels (`structured`) or of the weights (`unstructured`) of each
            layer; 0.5 for `2:4`. A mapping from module-path patterns to ratios prunes what it names and nothing else.
        kind: `structured` removes channels, so that the model is smaller and computes less. `unstructured` holds the
            smallest weights at zero, `2:4` two of every four along the input channels, as sparse tensor cores take
            them. Their masks survive training and are in no `state_dict`; `report.finish()` takes them away.
        calibration: batches like those of `export`; what a channel is worth is measured on them (structured), and
            ranges are taken from them where speed is measured in a static precision. None for the example inputs alone.
        scope: `layer`: every layer loses its ratio. `global`: the model does, where least is lost. `sensitivity`
            (structured): the model does, and each layer so much that all err alike on the outputs.
        exclude: module-path patterns of layers that keep their channels or weights.
        target, precision: what channel counts are rounded for, and what speed is measured with.
        round_to: channel counts become multiples of it, by removing fewer; None for what the target's kernels are made
            for, 1 without a target.
        profile: export the model before and after for the target, and measure both in turns.
        min_speedup: how many times faster it must be there; implies `profile`.
        inplace: False leaves the model alone; the pruned copy, in eval mode on the CPU, is `report.model`.
    Returns:
        What went from where, what stayed and why, and the pruned model.
    Raises:
        UsageError: an argument is malformed or contradicts another, or the model cannot be traced or copied.
        MissingDependencyError: torch-pruning is not installed (`structured`).
        CaptureError: the model cannot be captured, before or after.
        ConversionError: nothing can be removed; every layer is named with its reason.
        PerformanceError: `min_speedup` was missed.
    """
    _check(kind, ratio, scope, round_to)
    check_goal(min_speedup, target, profile=profile)
    source = resolve(model, example_inputs)
    if not isinstance(source.model, nn.Module):
        raise UsageError("an exported program has fixed shapes, and cannot be pruned", hint="prune the nn.Module")
    rounding = _round_to(kind, round_to, target)
    job = _Job(source.model, source, ratio, scope, exclude, rounding, calibration)
    found = job.channels() if kind == "structured" else job.weights(kind)
    gain, findings = None, found.findings
    if target is not None and (profile or min_speedup is not None):
        gain = measure_gain(
            plain_copy(source.model),
            found.pruned,
            example_inputs if example_inputs is not None else (source.args or source.kwargs),
            target=target,
            precision=precision,
            calibration=calibration,
        )
        findings = (*findings, *check_gain(gain, min_speedup, kind))
    before = sizes_of(source.model)
    total, _ = nonzero_weights(source.model)
    if inplace:
        found.apply(source.model)
    pruned = source.model if inplace else found.pruned
    return PruneReport(
        kind=kind,
        ratio=ratio,
        scope=scope,
        round_to=rounding,
        modules=compared(pruned, before, found.macs),
        kept=found.kept,
        removed=found.removed,
        sparsity=1.0 - nonzero_weights(pruned)[1] / max(total, 1),
        gain=gain,
        findings=findings,
        model=pruned,
    )


def replay(model: nn.Module, example_inputs: Any, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """Remove from a model what `prune` removed from another of the same structure, whatever their weights.

    Args:
        model: changed in place.
        removed: `PruneReport.removed`.
    Returns:
        The same model.
    Raises:
        ConversionError: the channels cannot be removed from this model.
    """
    source = resolve(model, example_inputs)
    calls = Calls.of(source)
    groups = {group.root: group for group in Dependencies(model, calls.run).groups()}
    unknown = sorted(set(removed) - set(groups))
    if unknown:
        raise ConversionError(f"the model has no layer {unknown[0]!r} to remove channels from", hint="prune it anew")
    pruned, problem = attempt(model, calls, [Choice(groups[root], tuple(index)) for root, index in removed.items()])
    if pruned is None:
        raise ConversionError(f"what was pruned does not fit this model: {problem}", hint="prune it anew")
    transplant(pruned, model)
    return model


@dataclass(frozen=True)
class _Found:
    """A pruned copy, and how the original becomes like it."""

    pruned: nn.Module
    apply: Callable[[nn.Module], Any]
    macs: tuple[dict[str, int], dict[str, int]]
    kept: dict[str, str]
    removed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Job:
    """One call of `prune`."""

    model: nn.Module
    source: Source
    ratio: Ratio
    scope: str
    exclude: Sequence[str]
    round_to: int
    calibration: Any

    def channels(self) -> _Found:
        """Structured: choose, remove what can be proved, capture what is left."""
        captured, calls = self._capture(self.model), Calls.of(self.source)
        graph = Dependencies(self.model, calls.run)
        groups = graph.groups()
        wanted, kept = ratios(groups, self.ratio, self.exclude)
        forwards = (partial(calls.call, leaves=leaves) for leaves in calls.batches(captured, self.calibration))
        energy = channel_energy(plain_copy(self.model), forwards, groups)
        error = partial(self._error, graph, calls)
        choices, more = choose(groups, wanted, energy, scope=self.scope, round_to=self.round_to, error=error)
        pruned, done, failed = remove(self.model, calls, choices)
        kept |= more | failed
        named = _by_layer(self.model, groups, kept)
        if len(kept) == len(groups):
            self._refuse(named)
        after = self._capture(pruned)
        _same_outputs(captured, after)
        return _Found(
            pruned,
            partial(transplant, pruned),
            (macs_of(captured), macs_of(after)),
            named,
            {c.group.root: c.index for c in done},
        )

    def weights(self, kind: str) -> _Found:
        """Unstructured and 2:4: masks on the layers' weights."""
        if kind == "2:4":
            keep, kept = weights.two_of_four(self.model, self.exclude)
        else:
            keep, kept = weights.smallest(self.model, self.ratio, scope=self.scope, exclude=self.exclude)
        if not keep:
            self._refuse(kept)
        pruned = plain_copy(self.model)
        _attach(keep, pruned)
        macs = macs_of(self._capture(pruned))
        note = "zeros are multiplied like other weights unless a runtime says otherwise: measure with profile=True"
        return _Found(pruned, partial(_attach, keep), (macs, macs), kept, findings=(note,))

    def _capture(self, model: nn.Module) -> CapturedModel:
        return capture(model, example_inputs=self.source.args or self.source.kwargs)

    def _error(self, graph: Dependencies, calls: Calls, choice: Choice) -> float:
        return masked_error(self.model, calls, graph.members(choice.group.root, choice.index))

    def _refuse(self, kept: dict[str, str]) -> None:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(kept.items())[:6])
        raise ConversionError(
            f"nothing of {type(self.model).__name__} can be removed: {reasons or 'it has no layers with weights'}",
            hint="another ratio, round_to=1, or another kind",
        )


def _by_layer(model: nn.Module, groups: Sequence[Group], kept: Mapping[str, str]) -> dict[str, str]:
    """Why layers stay, by the path of each, in the order of the model."""
    found = {path: kept[group.root] for group in groups if group.root in kept for path in group.producers}
    seen = set(layers_of(groups))
    unseen = "Torch-Pruning does not see it: no gradient reaches it, or its weight is used outside of it"
    layers = (path for path, module in model.named_modules() if isinstance(module, LAYERS))
    return {path: found.get(path, unseen) for path in layers if path in found or path not in seen}


def _attach(keep: dict[str, Any], model: nn.Module) -> None:
    for path, each in keep.items():
        masks.attach(model, path, each.clone())


def _same_outputs(before: CapturedModel, after: CapturedModel) -> None:
    shapes = [[spec.shape for spec in each.outputs] for each in (before, after)]
    if shapes[0] != shapes[1]:
        raise ConversionError(
            f"pruned outputs have shapes {shapes[1]} instead of {shapes[0]}", hint="exclude= their layers"
        )


def _check(kind: str, ratio: Ratio, scope: str, round_to: int | None) -> None:
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}", hint=f"one of {', '.join(KINDS)}")
    if scope not in SCOPES:
        raise UsageError(f"unknown scope {scope!r}", hint=f"one of {', '.join(SCOPES)}")
    check_ratio(ratio)
    if kind == "2:4" and (ratio != 0.5 or scope != "layer"):
        raise UsageError('2:4 is half of the weights of each layer: ratio=0.5, scope="layer"', hint="leave both out")
    if kind == "unstructured" and scope == "sensitivity":
        raise UsageError("sensitivity is measured of channels", hint='kind="structured", or scope="global"')
    if round_to is not None and (isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1):
        raise UsageError(f"round_to is a number of channels, 1 or more, not {round_to!r}")


def _round_to(kind: str, round_to: int | None, target: str | None) -> int:
    asked = 1 if target is None else round_to_of(target)
    if kind != "structured":
        return 1
    return asked if round_to is None else round_to
