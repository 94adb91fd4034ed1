"""Parity: how far a deployed model's outputs are from the float model's, as a chain of comparisons with a gate.

    float PyTorch ─▶ simulated q/dq ─▶ artifact in its runtime
          └──────────────────────────────────▲   (this link is gated, the others say where the error arose)

Metrics are accumulated in float64 over all samples, so memory hardly grows with their number (two figures for each).
Nothing here imports a framework: the links are `Session`s.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from deploykit.contract.arguments import number
from deploykit.contract.decibels import SQNR_CAP_DB, sqnr_db
from deploykit.contract.host import Host
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.session import Session
from deploykit.contract.tensors import Feeds, TensorSpec
from deploykit.judge.margins import InDecibels, margin_db, of_cosine, of_share, of_size, of_sqnr
from deploykit.judge.parts import Part, PartSearch
from deploykit.judge.scores import Fall
from deploykit.judge.spread import Spread, spread_of

SIMULATED = "simulated q/dq"
FLOAT, TRAINED = "float PyTorch", "trained graph"
"""What a chain begins with: the model as it was captured, or the quantised graph that training ended with."""
"""What the chain calls the quantised graph run in PyTorch."""


@dataclass(frozen=True)
class Tolerance:
    """The gate. A figure that is None is not gated.

    Attributes:
        min_sqnr_db: signal to quantisation noise ratio of the worst output, in dB. On export, the lower end of what the
            samples tell of others (`Spread.low_db`) must reach it.
        min_cosine: cosine similarity of the worst output, -1 to 1.
        min_top1_agreement: share of samples whose largest class is the same, 0 to 1; not gated without classes.
        min_part_sqnr_db: SQNR of the worst part of an output (`Metrics.part`), in dB; None for `min_sqnr_db`.
        min_equal: share of equal elements of an output of truth values, 0 to 1.
    """

    min_sqnr_db: float | None = None
    min_cosine: float | None = None
    min_top1_agreement: float | None = None
    min_part_sqnr_db: float | None = None
    min_equal: float | None = None

    def __post_init__(self) -> None:
        """Plain floats, whatever kind of number was given.

        Raises:
            UsageError: a bound is no finite number, or nothing can reach it.
        """
        for each in fields(self):
            most = SQNR_CAP_DB if each.name.endswith("_db") else 1.0
            such = f"pass a number up to {most:g}, such as {each.name}={30.0 if each.name.endswith('_db') else 0.99}"
            object.__setattr__(self, each.name, number(each.name, getattr(self, each.name), such, most=most))

    def misses(self, metrics: Metrics, *, of_others: bool = False) -> tuple[str, ...]:
        """Say in words which figures of `metrics` are below the gate; empty where all pass.

        Args:
            of_others: judge the SQNR by what the samples tell of other samples.
        """
        return tuple(
            f"{name} {value:.4g}{unit} is below {gate:.4g}{unit}"
            for name, value, gate, unit, _ in self._gated(metrics, of_others)
            if not value >= gate
        )

    def margins_db(self, metrics: Metrics, *, of_others: bool = False) -> tuple[float, ...]:
        """By how many dB each figure that is gated passes, or misses (below 0); see `deploykit.judge.margins`.

        Args:
            of_others: as `misses` has it.
        """
        gated = self._gated(metrics, of_others)
        return tuple(margin_db(value, gate, in_decibels) for _, value, gate, _, in_decibels in gated)

    def _gated(self, metrics: Metrics, of_others: bool) -> Iterator[tuple[str, float, float, str, InDecibels]]:
        """The figures that are gated: what each is called, figure, gate, unit, and how it counts in dB."""
        part, spread = metrics.part, metrics.spread if of_others else None
        of_whole = (
            ("SQNR", metrics.sqnr_db)
            if spread is None or metrics.sqnr_db is None
            else (
                f"SQNR to expect of other samples ({metrics.sqnr_db:.4g} dB on these {spread.samples})",
                spread.low_db,
            )
        )
        least = self.min_sqnr_db if self.min_part_sqnr_db is None else self.min_part_sqnr_db
        gates = (
            (*of_whole, self.min_sqnr_db, " dB", of_sqnr),
            (f"SQNR of {part}", part.sqnr_db if part else None, least, " dB", of_sqnr),
            ("cosine", metrics.cosine, self.min_cosine, "", of_cosine),
            ("top-1 agreement", metrics.top1_agreement, self.min_top1_agreement, "", of_share),
            ("share of equal elements", metrics.equal, self.min_equal, "", of_share),
        )
        for name, value, gate, unit, in_decibels in gates:
            if gate is not None and value is not None:
                yield name, value, gate, unit, in_decibels


def tolerance_of(precision: Precision) -> Tolerance:
    """The default gate of a precision."""
    row = precision.row
    return Tolerance(min_sqnr_db=row.min_sqnr_db, min_cosine=row.min_cosine, min_equal=row.min_equal)


@dataclass(frozen=True)
class Metrics:
    """Comparison of one output (or the worst of several) with its reference.

    Attributes:
        sqnr_db: 10 log10(sum(ref^2) / sum((ref - got)^2)), capped at ±`SQNR_CAP_DB`; None where it says nothing: the
            reference is zero everywhere, or holds truth values.
        cosine: dot(ref, got) / (|ref| |got|).
        max_abs: largest absolute difference, in the output's unit.
        top1_agreement: share of rows with the same argmax; None where the output has no classes.
        part: the worst of the parts of different SQNR that the output falls into (`deploykit.judge.parts`); None where
            it is of one kind.
        equal: share of equal elements, of integers and truth values; None of floats.
        constant: the only value that the reference ever had; None where it varies.
        largest: largest magnitude of the reference.
        spread: what the samples tell of others, and the figure of each; None of one sample, of integers, and
            where nothing differs.
    """

    sqnr_db: float | None
    cosine: float
    max_abs: float
    top1_agreement: float | None = None
    part: Part | None = None
    equal: float | None = None
    constant: float | None = None
    largest: float | None = None
    spread: Spread | None = None


@dataclass(frozen=True)
class Link:
    """One comparison of the chain.

    Attributes:
        reference, candidate: what was compared, such as "float PyTorch" and "simulated int8".
        evidence: how the candidate was run.
        worst: the worst figure of each kind over all outputs.
        outputs: the figures of each output.
    """

    reference: str
    candidate: str
    evidence: Evidence
    worst: Metrics
    outputs: dict[str, Metrics]

    def bounded(self, foreseen: Link) -> Link:
        """The link with the lower end of each output's spread at most at what another link reaches on it."""
        outputs = {name: _bounded(found, foreseen.outputs[name].sqnr_db) for name, found in self.outputs.items()}
        return replace(self, worst=worst_of(outputs.values()), outputs=outputs)


def _bounded(metrics: Metrics, most: float | None) -> Metrics:
    spread = metrics.spread
    if spread is None or most is None or most >= spread.low_db:
        return metrics
    return replace(metrics, spread=replace(spread, low_db=most))


@dataclass(frozen=True)
class OtherSamples:
    """The same comparison, float PyTorch against the artifact, on samples that the verdict does not rest on.

    Attributes:
        data: what they are, such as "seen by calibration".
        samples: how many.
        worst: the worst figure of each kind over all outputs.
    """

    data: str
    samples: int
    worst: Metrics


@dataclass(frozen=True)
class LayerParity:
    """SQNR of one layer's output in the simulated graph against the float graph.

    Attributes:
        name: node name in the captured graph.
        module_path: dotted path of the module, "" for the root.
        op: kind of operator.
        sqnr_db: in dB, capped like `Metrics.sqnr_db`.
    """

    name: str
    module_path: str
    op: str
    sqnr_db: float


NO_FIGURE = -sys.float_info.max
"""Stands for a metric that is not finite, which is the worst there can be: a manifest holds finite figures only."""


@dataclass(frozen=True)
class TaskMetric:
    """The user's own metric on the float model and on the artifact (higher is better).

    Attributes:
        reference, artifact: the figures that `evaluate` returned; with a score for each sample, their means.
        max_drop: largest allowed `reference - artifact`, in the metric's own unit.
        fall: the interval of the drop; None where `evaluate` returns one number.
    """

    reference: float
    artifact: float
    max_drop: float
    fall: Fall | None = None

    @property
    def drop(self) -> float:
        """How much worse the artifact is; negative where it is better."""
        return self.reference - self.artifact

    @property
    def passed(self) -> bool:
        """Whether the drop is allowed; NaN never passes."""
        return self.drop <= self.max_drop

    @property
    def miss(self) -> str:
        """What is wrong with a drop that is not allowed."""
        if self.artifact == NO_FIGURE:
            return f"evaluate= returned no finite figure, where it gave {self.reference:.4g} for the float model"
        return f"task metric fell from {self.reference:.4g} to {self.artifact:.4g} ({self.described})"

    @property
    def described(self) -> str:
        """The drop, what the samples tell of it, and what is allowed."""
        told = "" if self.fall is None else f", {self.fall}"
        return f"by {self.drop:.4g}{told}; {self.max_drop:.4g} is allowed"


@dataclass(frozen=True)
class ParityReport:
    """The verdict on an artifact, and all figures behind it.

    Attributes:
        passed: whether no gate was missed.
        evidence: how the artifact was run.
        sqnr_db, cosine, max_abs, top1_agreement: float PyTorch against the artifact, worst output, over `samples`.
        chain: every comparison, in the order of the pipeline.
        layers: SQNR per layer of the simulated graph, worst first; empty where nothing is quantised.
        failures: the missed gates in words.
        tolerance: the gate that was used.
        samples: number of samples compared, and `data` says which: those that calibration did not see, where there are.
        other_samples: the same figures on samples that calibration saw, and on the example inputs.
        host: the machine that ran the artifact.
        metric: the task metric where one was given.
    """

    passed: bool
    evidence: Evidence
    sqnr_db: float | None
    cosine: float
    max_abs: float
    top1_agreement: float | None
    chain: tuple[Link, ...]
    layers: tuple[LayerParity, ...]
    failures: tuple[str, ...]
    tolerance: Tolerance
    samples: int
    data: str
    host: Host
    metric: TaskMetric | None = None
    notes: tuple[str, ...] = field(default=())
    other_samples: tuple[OtherSamples, ...] = ()

    def with_metric(self, metric: TaskMetric) -> ParityReport:
        """The report with a task metric added; a drop beyond its bound fails it."""
        missed = () if metric.passed else (metric.miss,)
        failures = self.failures + missed
        return replace(self, metric=metric, failures=failures, passed=not failures)

    @property
    def spread(self) -> Spread | None:
        """What the samples tell of others: the interval of `sqnr_db`, whose lower end is gated; None of one sample."""
        return self.chain[-1].worst.spread if self.chain else None

    @property
    def quantization(self) -> Link | None:
        """Float PyTorch against the simulation: what the quantisation costs. None where nothing is simulated."""
        return next((link for link in self.chain if link.candidate == SIMULATED), None)

    @property
    def lowering(self) -> Link | None:
        """The simulation against the artifact: what the target computes otherwise. None where nothing is simulated."""
        return next((link for link in self.chain if link.reference == SIMULATED), None)

    def worst_layers(self, count: int = 3) -> tuple[LayerParity, ...]:
        """The `count` layers with the lowest SQNR."""
        return self.layers[:count]


class OutputComparison:
    """Streaming comparison of one output: feed batches with `add`, read `metrics` at the end.

    Args:
        name: the output's name; rank-2 floats and anything named `logits` count as class scores for top-1.
        batch: whether axis 0 counts samples.
    """

    def __init__(self, name: str, *, batch: bool = True) -> None:
        self._name = name
        self._signal = self._noise = self._dot = self._power = 0.0
        self._max_abs, self._lowest, self._highest = 0.0, np.inf, -np.inf
        self._rows = self._agree = self._equal = 0
        self._values = self._nans = self._compared = 0
        self._finite, self._kind = True, "f"
        self._parts, self._by_rows = PartSearch(batch), batch
        self._powers: tuple[list[float], list[float]] = ([], [])  # signal and noise of each sample

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Accumulate one batch; the arrays have the same shape.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != candidate.shape:
            raise ValueError(f"output {self._name!r}: shape {candidate.shape}, expected {reference.shape}")
        if self._has_classes(reference):
            agree = reference.argmax(axis=-1) == candidate.argmax(axis=-1)
            self._rows += agree.size
            self._agree += int(agree.sum())
        self._kind = reference.dtype.kind
        self._values += reference.size
        if reference.size:
            self._equal += int(np.count_nonzero(reference == candidate))
            self._accumulate(reference.astype(np.float64), candidate.astype(np.float64))

    @np.errstate(over="ignore")  # sums that overflow are found in `metrics`
    def _accumulate(self, ref: np.ndarray, got: np.ndarray) -> None:
        both = np.isfinite(ref) & np.isfinite(got)
        if not both.all():  # equal infinities (attention masks) are no difference; anything else is a failure
            same = (ref == got) | (np.isnan(ref) & np.isnan(got))
            self._finite = self._finite and bool((both | same).all())
            self._nans += int(np.isnan(ref).sum())
            ref, got = np.where(both, ref, 0.0), np.where(both, got, 0.0)
        noise = ref - got
        if self._kind == "f":
            self._parts.add(ref, noise)
            self._note_samples(ref, noise)
        self._lowest = min(self._lowest, float(ref.min(initial=np.inf, where=both)))
        self._highest = max(self._highest, float(ref.max(initial=-np.inf, where=both)))
        self._compared += int(np.count_nonzero(both))
        ref, got, noise = ref.ravel(), got.ravel(), noise.ravel()
        self._signal += float(ref @ ref)
        self._noise += float(noise @ noise)
        self._dot += float(ref @ got)
        self._power += float(got @ got)
        self._max_abs = max(self._max_abs, float(np.abs(noise).max()))

    def _note_samples(self, ref: np.ndarray, noise: np.ndarray) -> None:
        for powers, values in zip(self._powers, (ref, noise), strict=True):
            rows = values.reshape(len(values) if self._by_rows and values.ndim else 1, -1)
            powers.extend(np.square(rows).sum(axis=1).tolist())

    def _has_classes(self, array: np.ndarray) -> bool:
        ranked = array.ndim == 2 or (self._name.endswith("logits") and array.ndim > 2)
        return ranked and array.shape[-1] > 1 and array.dtype.kind == "f"

    @property
    def metrics(self) -> Metrics:
        """The figures over everything added so far; a non-finite output is the worst, and so is nothing but NaN."""
        agreement = self._agree / self._rows if self._rows else None
        equal = self._equal / self._values if self._values and self._kind in "iub" else None
        nothing = 0 < self._values == self._nans  # agreeing on NaN everywhere proves nothing
        if nothing or not (self._finite and np.isfinite(self._signal + self._power + self._noise)):
            return Metrics(
                -SQNR_CAP_DB, 0.0, float(np.finfo(np.float64).max), agreement, equal=equal, largest=self._largest
            )
        constant = self._lowest if self._lowest == self._highest else None
        if constant == 0.0 or self._kind == "b" or not self._compared:  # no elements, or none finite: no SQNR
            return Metrics(None, 1.0, self._max_abs, agreement, None, equal, constant, self._largest)
        decibels, part = sqnr_db(self._signal, self._noise), self._parts.worst
        spread = spread_of(*self._powers)
        return Metrics(decibels, self._cosine, self._max_abs, agreement, part, equal, constant, self._largest, spread)

    @property
    def _cosine(self) -> float:
        if self._noise == 0.0:  # exactly 1 where nothing differs, whatever the roots round to
            return 1.0
        norms = float(np.sqrt(self._signal) * np.sqrt(self._power))
        return float(np.clip(self._dot / norms, -1.0, 1.0)) if norms else 0.0

    @property
    def _largest(self) -> float:
        return max(abs(self._lowest), abs(self._highest)) if np.isfinite(self._lowest) else 0.0


_SAME_NUMBERS = 0.99  # from this share of equal integers on, those that differ are indices that lie anywhere


def worst_of(outputs: Iterable[Metrics]) -> Metrics:
    """The worst figure of each kind over several outputs (at least one); None of a kind that none has."""
    outputs = list(outputs)
    judged = [m for m in outputs if m.equal is None or not _SAME_NUMBERS <= m.equal < 1.0]
    parts = [m.part for m in judged if m.part is not None]
    constants = {m.constant for m in outputs}
    return Metrics(
        _least(m.sqnr_db for m in judged),
        min((m.cosine for m in judged), default=1.0),
        max(m.max_abs for m in outputs),
        _least(m.top1_agreement for m in outputs),
        min(parts, key=lambda part: part.sqnr_db, default=None),
        _least(m.equal for m in outputs if m.sqnr_db is None),
        constants.pop() if len(constants) == 1 else None,
        max((m.largest for m in outputs if m.largest is not None), default=None),
        min((m.spread for m in judged if m.spread is not None), key=lambda spread: spread.low_db, default=None),
    )


def _least(figures: Iterable[float | None]) -> float | None:
    return min((figure for figure in figures if figure is not None), default=None)


@dataclass(frozen=True)
class Stage:
    """One stage of the chain: a session, what to call it, and the evidence level of what it computes."""

    name: str
    session: Session
    evidence: Evidence


class ChainComparison:
    """Runs samples through every stage of a chain; compares each stage with the one before, the last with the first.

    Args:
        stages: at least two; the first is the reference.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._pairs = [(i, i + 1) for i in range(len(stages) - 1)]
        if len(stages) > 2:
            self._pairs.append((0, len(stages) - 1))
        specs = [(spec.name, is_batch(stages[0].session.inputs, spec)) for spec in stages[0].session.outputs]
        self._outputs = {pair: {n: OutputComparison(n, batch=batch) for n, batch in specs} for pair in self._pairs}
        self.count = 0

    def add(self, samples: Iterable[Feeds]) -> None:
        """Run and compare samples, feeds by input name; consumed once."""
        for feeds in samples:
            results = [stage.session.run(feeds) for stage in self._stages]
            for (first, second), outputs in self._outputs.items():
                for name, comparison in outputs.items():
                    comparison.add(results[first][name], results[second][name])
            self.count += 1

    def links(self) -> tuple[Link, ...]:
        """The comparisons so far; the last one is always first stage against last stage."""
        return tuple(_link(self._stages[a], self._stages[b], self._outputs[a, b]) for a, b in self._pairs)


def compare_chain(stages: Sequence[Stage], samples: Iterable[Feeds]) -> tuple[tuple[Link, ...], int]:
    """Compare the stages of a chain over samples, see `ChainComparison`; the links and the number of samples."""
    comparison = ChainComparison(stages)
    comparison.add(samples)
    return comparison.links(), comparison.count


def is_batch(inputs: Sequence[TensorSpec], output: TensorSpec) -> bool:
    """Whether axis 0 of an output counts samples: it is as long as that of every input."""
    sizes = {spec.shape[0] if spec.shape else None for spec in inputs}
    return bool(output.shape) and sizes == {output.shape[0]}


def failures_of(link: Link, tolerance: Tolerance, *, of_others: bool = False) -> tuple[str, ...]:
    """The missed gates of a comparison in words; empty where all pass.

    Args:
        of_others: judge the SQNR by what the samples tell of other samples.

    An output that is zero everywhere has no SQNR. It may differ by as much of the largest value of the model's outputs
    (of 1, where all are zero) as the SQNR gate allows of noise.
    """
    zeros = tuple(
        f"{name} is zero everywhere in {link.reference}, and differs by up to {differs:.3g} ({allowed:.3g} is allowed)"
        for name, differs, allowed in _zeros(link, tolerance)
        if differs > allowed
    )
    return tolerance.misses(link.worst, of_others=of_others) + zeros


def margin_of(link: Link, tolerance: Tolerance, *, of_others: bool = False) -> float:
    """By how many dB the nearest gate of a comparison is passed, or missed (below 0); infinite where none is set.

    Args:
        of_others: as `failures_of` has it, which names a gate wherever this is below 0.
    """
    zeros = (margin_db(allowed, differs, of_size) for _, differs, allowed in _zeros(link, tolerance))
    return min((*tolerance.margins_db(link.worst, of_others=of_others), *zeros), default=math.inf)


def _zeros(link: Link, tolerance: Tolerance) -> Iterator[tuple[str, float, float]]:
    """Outputs that are zero everywhere: by how much each differs, and may."""
    allowed = (link.worst.largest or 1.0) * 10.0 ** (-(tolerance.min_sqnr_db or 0.0) / 20.0)
    for name, found in link.outputs.items():
        if tolerance.min_sqnr_db is not None and found.constant == 0.0:
            yield name, found.max_abs, allowed


def remarks_on(link: Link) -> tuple[str, ...]:
    """What a reader of the figures must know: outputs whose reference never varied, or had nothing to compare."""
    constant = tuple(
        f"{name} is {'zero' if found.constant == 0.0 else f'{found.constant:g}'} everywhere in {link.reference}: "
        + ("it has no SQNR" if found.constant == 0.0 else "its SQNR says nothing about what varies")
        + f", the largest difference is {found.max_abs:.3g}"
        for name, found in link.outputs.items()
        if found.constant is not None and found.equal is None
    )
    empty = tuple(
        f"{name} has no finite element in {link.reference}: it has no SQNR"
        for name, found in link.outputs.items()
        if found.constant is None and found.sqnr_db is None and found.equal is None
    )
    return constant + empty


def _link(reference: Stage, candidate: Stage, outputs: Mapping[str, OutputComparison]) -> Link:
    metrics = {name: comparison.metrics for name, comparison in outputs.items()}
    return Link(reference.name, candidate.name, candidate.evidence, worst_of(metrics.values()), metrics)


def compare_sessions(reference: Session, candidate: Session, samples: Iterable[Feeds]) -> Link:
    """`candidate` against `reference` over `samples`."""
    stages = (
        Stage("reference", reference, Evidence.REFERENCE),
        Stage("candidate", candidate, Evidence.DEVICE),
    )
    return compare_chain(stages, samples)[0][-1]
