"""`deploykit compare`: several artifacts in one table, with the evidence of every figure.

Figures that do not compare (other evidence, machine, threads, batch size or model) are shown, labelled, and noted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import Answer, note
from deploykit.cli.parameters import Debug, Json
from deploykit.cli.words import spoken
from deploykit.judge import figures

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from deploykit.artifact.choice import Choice
    from deploykit.judge.parity import ParityReport
    from deploykit.judge.profiling import Profile
    from deploykit.plugin.artifact import Artifact


@dataclass(frozen=True)
class Column:
    """One artifact of the table."""

    name: str
    artifact: Artifact
    parity: ParityReport | None
    profile: Profile | None


def compare(
    artifacts: Annotated[list[str], typer.Argument(metavar="ARTIFACT...", help="Folders of exported artifacts.")],
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Show artifacts side by side in one table."""
    from deploykit.plugin.artifact import load

    columns = [column(name, load(name)) for name in artifacts]
    notes = caveats(columns)
    return Answer(
        {"artifacts": [record(one) for one in columns], "notes": notes},
        [comparison_table(columns), *(f"note: {text}" for text in notes)],
    )


def column(name: str, artifact: Artifact) -> Column:
    """Read what the table shows of one artifact."""
    return Column(name, artifact, artifact.parity, artifact.profile)


def published(artifact: Artifact) -> Answer:
    """The answer of a command that made `artifact`."""
    from deploykit.artifact.manifest import FAILED

    if artifact.status == FAILED:
        failures = artifact.parity.failures if artifact.parity else ()
        for failure in failures or ("it missed a placement or performance gate",):
            note(spoken(f"the artifact is marked failed: {failure}"))
    slower = [finding.message for finding in artifact.profile.findings] if artifact.profile else []
    said = (*artifact.achieved.notes, *(artifact.parity.notes if artifact.parity else ()), *slower)
    for remark in dict.fromkeys(said):
        note(spoken(remark))
    page: list[RenderableType] = [comparison_table([column(str(shown_path(artifact)), artifact)])]
    if artifact.choice is not None:
        page.append(choice_table(artifact.choice))
    return Answer(artifact.summary(), page)


def choice_table(choice: Choice) -> Table:
    """The toolchains, or precisions, that were tried, fastest first."""
    from deploykit.cli.tables import grid

    heads, rows = choice.table
    return grid(choice.title, heads, rows, right=heads[2:5])


def shown_path(artifact: Artifact) -> Path:
    """Where an artifact lies, from the current folder where it is below it."""
    here = Path.cwd()
    return artifact.path.relative_to(here) if artifact.path.is_relative_to(here) else artifact.path


def record(one: Column) -> dict[str, Any]:
    """One artifact as JSON values."""
    parity, profile = one.parity, one.profile
    manifest = one.artifact.manifest
    return {
        "path": one.name,
        "target": manifest.target,
        "toolchain": manifest.toolchain,
        "device": manifest.device,
        "precision": manifest.precision,
        "status": manifest.status,
        "size_bytes": one.artifact.size_bytes,
        "achieved_macs": {name: manifest.achieved.macs_fraction(name) for name in manifest.achieved.macs},
        "achieved_evidence": one.artifact.achieved.evidence,
        "parity_evidence": parity and parity.evidence,
        "sqnr_db": parity and parity.sqnr_db,
        "sqnr_db_interval": parity and parity.spread and [parity.spread.low_db, parity.spread.high_db],
        "sqnr_db_of_each_sample": parity and parity.spread and list(parity.spread.sample_db),
        "parity_samples": parity and {"data": parity.data, "samples": parity.samples},
        "sqnr_db_of_others": parity
        and [{"data": o.data, "samples": o.samples, "sqnr_db": o.worst.sqnr_db} for o in parity.other_samples],
        "parity_notes": parity and list(parity.notes),
        "cosine": parity and parity.cosine,
        "max_abs": parity and parity.max_abs,
        "top1_agreement": parity and parity.top1_agreement,
        "metric": asdict(parity.metric) if parity and parity.metric else None,
        "profile_evidence": profile and profile.evidence,
        "latency_ms": profile and asdict(profile.latency_ms),
        "throughput_per_s": profile and profile.throughput_per_s,
        "batch_size": profile and profile.batch_size,
        "threads": profile and profile.threads,
        "peak_memory_bytes": profile and profile.peak_memory_bytes,
        "worth_it": profile and profile.worth_it,
        "baseline": profile.baseline or None if profile else None,
        "fingerprint": one.artifact.fingerprint,
    }


def comparison_table(columns: Sequence[Column]) -> Table:
    """Figures downwards, artifacts to the right: a few artifacts with many figures fit an ordinary terminal."""
    from deploykit.cli.tables import grid

    rows = [[name, *(show(one) for one in columns)] for name, show in _ROWS.items()]
    shown = [row for row in rows if row[0] not in _OPTIONAL or any(str(cell) != figures.UNKNOWN for cell in row[1:])]
    return grid("", ["", *(one.name for one in columns)], shown)


def _status(one: Column) -> Text:
    from deploykit.cli.tables import status_text

    return status_text(one.artifact.status)


def _parity(pick: Callable[[ParityReport], str]) -> Callable[[Column], str]:
    return lambda one: figures.UNKNOWN if one.parity is None else _labelled(pick(one.parity), one.parity.evidence)


def _profile(pick: Callable[[Profile], str]) -> Callable[[Column], str]:
    return lambda one: figures.UNKNOWN if one.profile is None else _labelled(pick(one.profile), one.profile.evidence)


def _labelled(figure: str, evidence: str) -> str:
    """Figures that were not taken on the real device say so in their own cell."""
    from deploykit.contract.precision import Evidence

    return figure if figure == figures.UNKNOWN or evidence == Evidence.DEVICE else f"{figure} ({evidence})"


def _evidence(one: Column) -> str:
    parts = (
        ("achieved", one.artifact.achieved.evidence),
        ("parity", one.parity and one.parity.evidence),
        ("profile", one.profile and one.profile.evidence),
    )
    found = {what: str(evidence) for what, evidence in parts if evidence}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{what} {evidence}" for what, evidence in found.items()) or figures.UNKNOWN


def _sqnr(report: ParityReport) -> str:
    """Over the samples compared, and the lower end of what they tell of others."""
    spread = report.spread
    least = (
        f"\nat least {figures.decibel(spread.low_db)} on others" if spread and spread.low_db < spread.high_db else ""
    )
    return figures.decibel(report.sqnr_db) + least


def _others(report: ParityReport) -> str:
    """The same figure on samples that the verdict does not rest on."""
    found = [f"{figures.decibel(other.worst.sqnr_db)} on {other.data}" for other in report.other_samples]
    return "\n".join(found) or figures.UNKNOWN


def _metric(report: ParityReport) -> str:
    if report.metric is None:
        return figures.UNKNOWN
    return f"{figures.plain(report.metric.artifact)} (float {figures.plain(report.metric.reference)})"


def _latency(profile: Profile) -> str:
    """An estimate has no percentiles."""
    from deploykit.contract.precision import Evidence

    latency = profile.latency_ms
    return figures.milliseconds(latency.p50) if profile.evidence == Evidence.ESTIMATE else figures.latencies(latency)


def _worth_it(profile: Profile) -> str:
    return figures.UNKNOWN if profile.worth_it is None else f"{figures.times(profile.worth_it)} the {profile.baseline}"


def _float_activations(artifact: Artifact) -> str:
    """How many there are between integer layers, and what they cost."""
    from deploykit.judge.slower import time_shares

    beside = artifact.achieved.float_activations
    if not beside:
        return figures.UNKNOWN
    shares = time_shares(artifact.profile, artifact.achieved)
    share = f", {figures.share(sum(shares.values()))} of the time" if shares else ""
    return f"{len(beside)}, moving {figures.size(sum(each.bytes for each in beside))}{share}"


_ROWS: dict[str, Callable[[Column], str | Text]] = {
    "target": lambda one: one.artifact.target,
    "precision": lambda one: one.artifact.precision,
    "status": _status,
    "evidence": _evidence,
    "size": lambda one: figures.size(one.artifact.size_bytes),
    "achieved (MACs)": lambda one: figures.achieved(one.artifact.achieved),
    "float activations": lambda one: _float_activations(one.artifact),
    "SQNR": _parity(_sqnr),
    "SQNR of other samples": _parity(_others),
    "cosine": _parity(lambda report: figures.cosine(report.cosine)),
    "top-1 agreement": _parity(lambda report: figures.share(report.top1_agreement)),
    "task metric": _parity(_metric),
    "latency p50 / p99": _profile(_latency),
    "throughput": _profile(lambda profile: figures.rate(profile.throughput_per_s)),
    "peak memory": _profile(lambda profile: figures.size(profile.peak_memory_bytes)),
    "worth it": _profile(_worth_it),
}
_OPTIONAL = frozenset({"float activations", "top-1 agreement", "task metric", "peak memory"})


def caveats(columns: Sequence[Column]) -> list[str]:
    """Why some of the figures must not be compared."""
    parities = [one.parity for one in columns if one.parity]
    profiles = [one.profile for one in columns if one.profile]
    facts = (
        ("the artifacts are of different models", {one.artifact.manifest.fingerprints.get("model") for one in columns}),
        ("the parity figures have different evidence", {str(report.evidence) for report in parities}),
        ("the speed figures have different evidence", {str(profile.evidence) for profile in profiles}),
        ("the speed figures are of different machines", {str(profile.host) for profile in profiles}),
        ("the speed figures are of different thread counts", {str(profile.threads) for profile in profiles}),
        ("the speed figures are of different batch sizes", {str(profile.batch_size) for profile in profiles}),
    )
    return [f"{text}, and do not compare" for text, values in facts if len(values) > 1]
