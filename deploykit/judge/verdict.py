"""The verdict on an artifact: float model, simulated graph and open session on the same samples, and the gate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deploykit.contract.host import this_host
from deploykit.contract.precision import Evidence
from deploykit.contract.session import FunctionSession, Session
from deploykit.contract.tensors import Feeds
from deploykit.judge.parity import (
    FLOAT,
    SIMULATED,
    ChainComparison,
    LayerParity,
    Link,
    OtherSamples,
    ParityReport,
    Stage,
    Tolerance,
    compare_chain,
    failures_of,
    remarks_on,
)

_UNROUNDED = "no layer of the model is quantised: there is no simulation to compare with"


class Simulation(Protocol):
    """The q/dq graph run in PyTorch: the reference for a quantised artifact.

    One that has `float_activations` says with them what the placement leaves in float beside its integer layers. One
    whose `rounds` is False has no integer layers, and is left out of the chain.
    """

    def run(self, feeds: Feeds) -> Mapping[str, Any]:
        """Run one set of named arrays to named arrays."""

    def compare_layers(self, samples: Iterable[Feeds]) -> Sequence[LayerParity]:
        """SQNR per layer against the float graph, worst first."""


@dataclass(frozen=True, eq=False)
class Validation:
    """What parity is judged on.

    Attributes:
        reference: the float model as a session.
        samples: feeds, all compared.
        data: says what the samples are, such as "calibration data".
        tolerance: the gate.
        simulation: the quantised graph in PyTorch, or None.
        others: further samples, by what they are; compared.
        seen: the name of those of the others that calibration saw: they must pass the gate, too; "" for none.
        begins_with: what the reference is, as the chain's first link names it.
        foreseen: the simulation as it would meet further samples, run on those at hand; bounds what is expected of
            others (`Spread.low_db`); None where they are expected to be like these.
    """

    reference: Session
    samples: Sequence[Feeds]
    data: str
    tolerance: Tolerance
    simulation: Simulation | None = None
    others: Mapping[str, Sequence[Feeds]] = field(default_factory=dict)
    seen: str = ""
    begins_with: str = FLOAT
    foreseen: Simulation | None = None


def judge(session: Session, evidence: Evidence, validation: Validation) -> ParityReport:
    """Run the chain over an open session, and apply the gate to its end-to-end figures."""
    simulation = validation.simulation
    unrounded = simulation is not None and not getattr(simulation, "rounds", True)
    simulation = None if unrounded else simulation
    stages = [Stage(validation.begins_with, validation.reference, Evidence.REFERENCE)]
    if simulation is not None:
        simulated = FunctionSession(simulation.run, session.inputs, session.outputs)
        stages.append(Stage(SIMULATED, simulated, Evidence.REFERENCE))
    stages.append(Stage("artifact", session, evidence))
    comparison = ChainComparison(stages)
    comparison.add(validation.samples)
    ends = (stages[0], stages[-1])
    chain = _bounded(comparison.links(), stages[0], session, validation)
    links = {name: compare_chain(ends, samples) for name, samples in validation.others.items()}
    others = tuple(OtherSamples(name, count, found[-1].worst) for name, (found, count) in links.items())
    whole, seen = chain[-1].worst, links.get(validation.seen)
    failures = failures_of(chain[-1], validation.tolerance, of_others=True) or _failures_of_seen(seen, validation)
    layers = tuple(simulation.compare_layers(validation.samples[:4])) if simulation is not None else ()
    return ParityReport(
        passed=not failures,
        evidence=evidence,
        sqnr_db=whole.sqnr_db,
        cosine=whole.cosine,
        max_abs=whole.max_abs,
        top1_agreement=whole.top1_agreement,
        chain=chain,
        layers=layers,
        failures=failures,
        tolerance=validation.tolerance,
        samples=comparison.count,
        data=validation.data,
        host=this_host(),
        notes=(*remarks_on(chain[-1]), *((_UNROUNDED,) if unrounded else ())),
        other_samples=others,
    )


def _bounded(chain: tuple[Link, ...], first: Stage, session: Session, validation: Validation) -> tuple[Link, ...]:
    """The chain with what is expected of other samples bounded by what is foreseen of them."""
    if validation.foreseen is None:
        return chain
    simulated = FunctionSession(validation.foreseen.run, session.inputs, session.outputs)
    foreseen = Stage("foreseen", simulated, first.evidence)
    known = (*validation.samples, *validation.others.get(validation.seen, ()))
    found = compare_chain((first, foreseen), known)[0][-1]
    return (*chain[:-1], chain[-1].bounded(found))


def _failures_of_seen(seen: tuple[tuple[Link, ...], int] | None, validation: Validation) -> tuple[str, ...]:
    """The gates that samples which calibration saw miss: what is no good on these is good by chance on others."""
    found = failures_of(seen[0][-1], validation.tolerance) if seen else ()
    return tuple(f"{failure}, on {validation.seen}" for failure in found)
