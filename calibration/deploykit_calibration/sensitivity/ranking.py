"""The ranking of layers by what their rounding does to the outputs, and the predictions that follow from it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit.contract.decibels import SQNR_CAP_DB
from deploykit.contract.errors import UsageError
from deploykit.contract.printable import aligned, layer_labels
from deploykit.contract.recipe import WIDE
from deploykit_calibration.sensitivity.candidates import Candidate, front
from deploykit_calibration.sensitivity.costs import Costs, costs_of
from deploykit_calibration.sensitivity.ends import End, ends_of
from deploykit_calibration.sensitivity.exchange import exchanged
from deploykit_calibration.sensitivity.noise import NoiseModel, decibels
from deploykit_calibration.sensitivity.search import Move, moves_of, pruned, sequence

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit_calibration.placement import LayerPlacement
    from deploykit_calibration.prepared import Prepared

SAMPLES = 32
"""Of the calibration data, that the simulated graph is measured on; gradients are taken of the first of them."""
_NEAR_DB = (1.5, 3.0)
"""How far below and above a wanted gain candidates are made cheaper: predictions are off by about as much."""
_ABOUT_DB = (-0.25, 0.0, 0.25, 0.75)
"""How far beyond a wanted gain the candidates are whose layers are exchanged for cheaper ones."""
_SPARE_DB = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
"""How much less noise the sets have that are pruned down to that of a candidate."""


@dataclass(frozen=True)
class LayerSensitivity:
    """One quantised layer.

    Attributes:
        name: node name in the captured graph.
        module_path: dotted path of the module, "" for the root.
        kind: such as `conv`.
        macs: multiply-accumulates at the captured input sizes.
        share: the share of the noise at the worst output, 0 to 1: what goes where this layer alone is kept in float,
            with all that its neighbours then do not round either. Shares need not add up to 1.
        gain_db: the same as the SQNR gained.
        cost: what keeping it takes, in the unit of the costs.
        alone: share of the noise that its own input, weight and output make, whoever else asks for them: what is
            gained by it is overestimated where a neighbour keeps rounding.
        gradient: square of the plain gradient of its weight, as a share of all layers': the ranking of the articles,
            which knows nothing of roundings; 0 without a weight.
    """

    name: str
    module_path: str
    kind: str
    macs: int
    share: float
    gain_db: float
    cost: float
    alone: float
    gradient: float


class Sensitivity:
    """What the roundings of a prepared model do to its outputs.

    Attributes:
        sqnr_db: the SQNR of the simulated graph on the samples, of the worst output or part of one; measured.
        ends: the outputs, and parts of outputs, that noise is measured at.
        layers: the quantised layers, those whose keeping gains most first.
        costs: what layers cost quantised and in float.
        samples: how many were used.
        seconds: the time that scoring and planning took, on this machine.
    """

    def __init__(self, prepared: Prepared, samples: Sequence[Mapping[str, Tensor]], costs: Costs) -> None:
        began = time.perf_counter()
        self.costs = costs
        self.samples = len(samples)
        self._noise = NoiseModel(prepared, samples, ends_of(prepared, samples), widens=costs.rest == WIDE)
        self.ends: tuple[End, ...] = self._noise.ends
        self.sqnr_db = min(end.sqnr_db for end in self.ends)
        scored = time.perf_counter()
        self.layers = tuple(self._ranked())
        self.seconds = {"scoring": scored - began, "planning": time.perf_counter() - scored}

    def predict(self, kept: Collection[str]) -> Candidate:
        """What keeping some layers in float gains and costs.

        Args:
            kept: names of layers' nodes, or module paths.
        Raises:
            UsageError: there is no such quantised layer.
        """
        return self._candidate(self._names(kept), self.costs)

    def keep(self, count: int) -> Candidate:
        """The layers whose keeping gains most, found one after the other and planned again at each step.

        Args:
            count: how many at most; fewer where no further layer gains anything.
        """
        steps = [(), *sequence(self._moves(), self._noise.relative, len, count)]
        return self._candidate(steps[-1], self.costs)

    def front(
        self, costs: Costs | None = None, *, least_share: float = 0.0, near_db: float | None = None
    ) -> tuple[Candidate, ...]:
        """The candidates that no other beats in predicted SQNR, cost and quantised share, cheapest first.

        Args:
            costs: others than those of the device table.
            least_share: the least share of the multiply-accumulates that must stay quantised, 0 to 1.
            near_db: a gain that is wanted: cheaper ways to what candidates about it gain are looked for.
        """
        costs = costs if costs is not None else self.costs
        extra = {name: cost.extra for name, cost in costs.layers.items()}
        dearest = sum(extra.values()) or 1.0
        weigh = lambda move: sum(extra.get(name, 0.0) for name in move) / dearest + 1e-3 * len(move)  # noqa: E731
        moves, most = self._moves(), len(self.layers)
        found: dict[frozenset[str], Move] = {frozenset(): ()}
        for weight in (weigh, len):
            for kept in sequence(moves, self._noise.relative, weight, most):
                found.setdefault(frozenset(kept), kept)
        if near_db is not None:
            for kept in list(self._cheaper(tuple(found.values()), weigh, near_db)):
                found.setdefault(frozenset(kept), kept)
        candidates = [self._candidate(kept, costs) for kept in found.values()]
        if near_db is not None:
            candidates = self._steadied(candidates, near_db)
            candidates += self._exchanged(front(candidates), costs, weigh, near_db)
        return front(each for each in candidates if each.quantized_share >= least_share)

    def _steadied(self, candidates: Sequence[Candidate], near_db: float) -> list[Candidate]:
        """The candidates about a gain with what random directions tell of all of them, in place of each one's luck.

        Neighbours differ by powers; what errors have in common with each other they have alike.
        """
        low, high = near_db - 2 * _NEAR_DB[0], near_db + 2 * _NEAR_DB[1]
        about = {id(each) for each in candidates if each.kept and low <= each.gain_db <= high}
        powers_db = {id(each): -decibels(self._noise.relative(each.kept)) for each in candidates}
        beyond = [each.gain_db - powers_db[id(each)] for each in candidates if id(each) in about]
        middle = statistics.median(beyond) if beyond else 0.0
        return [self._gaining(each, powers_db[id(each)] + middle) if id(each) in about else each for each in candidates]

    def _gaining(self, candidate: Candidate, gain_db: float) -> Candidate:
        sqnr_db = min(self.sqnr_db + gain_db, SQNR_CAP_DB)
        return replace(candidate, sqnr_db=sqnr_db, gain_db=sqnr_db - self.sqnr_db)

    def _exchanged(
        self, candidates: Sequence[Candidate], costs: Costs, weight: Callable[[Move], float], near_db: float
    ) -> Iterator[Candidate]:
        """What exchanges of layers make of candidates that gain enough, at gains about the one that is wanted."""
        names, noise = [layer.name for layer in self.layers], self._noise.relative
        for wanted in (near_db + more for more in _ABOUT_DB):
            start = next((each for each in candidates if each.gain_db >= wanted), None)
            if start is None or not start.kept:
                continue
            allowed = noise(start.kept) * 10.0 ** ((start.gain_db - wanted) / 10.0)
            kept = exchanged(start.kept, names, noise, weight, allowed)
            more_db = decibels(noise(start.kept)) - decibels(noise(kept))
            yield self._gaining(self._candidate(kept, costs), start.gain_db + more_db)

    def _cheaper(self, sets: Sequence[Move], weight: Callable[[Move], float], near_db: float) -> Iterator[Move]:
        """For those of about a gain, what is left of sets of less noise that were pruned down to theirs."""
        noise, dearness = self._noise.relative, {kept: weight(kept) for kept in sets}
        for kept in sets:
            gain_db = self._noise.predicted_db(kept) - self.sqnr_db
            if not near_db - _NEAR_DB[0] <= gain_db <= near_db + _NEAR_DB[1]:
                continue
            for spare_db in _SPARE_DB:
                least = noise(kept) * 10.0 ** (-spare_db / 10.0)
                quieter = [each for each in sets if noise(each) <= least]
                if quieter:
                    yield pruned(min(quieter, key=dearness.__getitem__), noise, weight, noise(kept))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return {
            "sqnr_db": self.sqnr_db,
            "outputs": [{"name": end.name, "sqnr_db": end.sqnr_db} for end in self.ends],
            "samples": self.samples,
            "passes": self._noise.passes,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "cost_unit": self.costs.unit,
            "rest": self.costs.rest,
            "layers": [asdict(layer) for layer in self.layers],
            "front": [candidate.to_dict() for candidate in self.front()],
        }

    def __str__(self) -> str:
        head = f"{self.sqnr_db:.1f} dB on {self.samples} samples; cost of keeping a layer in {self.costs.rest}: "
        rows = [("share", "gain", "cost", "alone", "gradient", "kind", "layer")]
        rows += [
            (
                f"{layer.share:.1%}",
                f"{layer.gain_db:.2f} dB",
                f"{layer.cost:.3g}",
                f"{layer.alone:.1%}",
                f"{layer.gradient:.1%}",
                layer.kind,
                label,
            )
            for label, layer in zip(layer_labels(self.layers), self.layers, strict=True)
        ]
        return f"{head}{self.costs.unit}\n{aligned(rows)}"

    def _ranked(self) -> Iterator[LayerSensitivity]:
        layers, slopes = self._noise.candidates, self._noise.slopes
        steepest = sum(slopes.get(layer.name, 0.0) for layer in layers) or 1.0
        gains = {layer.name: 1.0 - self._noise.relative((layer.name,)) for layer in layers}
        for layer in sorted(layers, key=lambda each: -gains[each.name]):
            yield LayerSensitivity(
                name=layer.name,
                module_path=layer.module_path,
                kind=layer.kind,
                macs=layer.macs,
                share=gains[layer.name],
                gain_db=self._candidate((layer.name,), self.costs).gain_db,
                cost=self.costs.layers[layer.name].extra if layer.name in self.costs.layers else 0.0,
                alone=self._noise.alone(layer.name),
                gradient=slopes.get(layer.name, 0.0) / steepest,
            )

    def _moves(self) -> tuple[Move, ...]:
        return moves_of([layer.name for layer in self.layers], self._noise.base.hangs)

    def _candidate(self, kept: Move, costs: Costs) -> Candidate:
        planned = self._noise.planned(kept)
        predicted = min(self._noise.predicted_db(kept), SQNR_CAP_DB)
        return Candidate(
            kept=kept,
            sqnr_db=predicted,
            gain_db=predicted - self.sqnr_db,
            cost=costs.of(planned.layers, planned.widened),
            quantized_share=_share(planned.layers, apart=planned.widened),
            rest=costs.rest,
        )

    def _names(self, asked: Collection[str]) -> Move:
        known = {layer.name: layer.name for layer in self.layers}
        found: list[str] = []
        for text in asked:
            inside = [layer.name for layer in self.layers if layer.module_path == text]
            names = [known[text]] if text in known else inside
            if not names:
                raise UsageError(f"there is no quantised layer {text!r}", hint=f"such as {', '.join(list(known)[:5])}")
            found += names
        return tuple(dict.fromkeys(found))


def sensitivity(
    prepared: Prepared,
    samples: Sequence[Mapping[str, Tensor]] = (),
    *,
    costs: Costs | None = None,
    rest: str = "",
) -> Sensitivity:
    """Find which layers of a prepared model make its noise.

    Args:
        prepared: in a precision that is placed; whatever stays float in it stays so.
        samples: feeds by input name; those that it was prepared with, or its example inputs, where none are given.
            The first `SAMPLES` are used.
        costs: what layers cost; by the device table where nothing is given.
        rest: what a kept layer becomes: float in the type that the target's file has between its integers, where
            nothing is given; `int8-weights` where weights are narrower, and the target writes both.
    Raises:
        UsageError: nothing of it is quantised, no weight of it can be wider than others, or `rest` is neither.
        CalibrationError: the model has no floating output, or an operator without a gradient.
    """
    if rest not in ("", WIDE):
        raise UsageError(
            f"a kept layer cannot become {rest!r}",
            hint=f'rest="{WIDE}", or nothing: float layers have the type of the target\'s file ("mixed" has float16)',
        )
    if prepared.simulation is None or not prepared.simulation.rounds:
        raise UsageError(
            f"{prepared.precision} rounds nothing of this model on {prepared.request.target}: no layer is sensitive",
            hint=_no_noise(prepared),
        )
    chosen = list(samples or prepared.samples)[:SAMPLES] or [prepared.captured.example_feeds()]
    found = Sensitivity(prepared, chosen, costs if costs is not None else costs_of(prepared, rest))
    if found.costs.rest == WIDE and not found.layers:
        raise UsageError(
            f"{prepared.precision} of {prepared.request.toolchain} writes weights of one width: none can be {WIDE}",
            hint="leave rest= out: layers are kept in float; or take onnxruntime with int4-weight-only",
        )
    return found


def _no_noise(prepared: Prepared) -> str:
    """What to do where nothing is rounded: no precision that rounds was asked for, or no layer has a kernel in it."""
    if prepared.precision.row.is_whole:
        return "ask for a precision that is placed, such as int8"
    reasons = dict.fromkeys(layer.reason for layer in prepared.layers if layer.reason)
    said = f" ({'; '.join(list(reasons)[:3])})" if reasons else ""
    return f"every layer stays in float there{said}: ask for another precision or target"


def _share(layers: Sequence[LayerPlacement], apart: Collection[str]) -> float:
    total = sum(layer.macs for layer in layers)
    inside = (layer.macs for layer in layers if layer.precision != "float" and layer.name not in apart)
    return sum(inside) / total if total else 1.0
