"""`deploykit profile`: measure an artifact on this machine, or on a board."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import Answer, note
from deploykit.cli.parameters import AllowNative, ArtifactPath, Board, Debug, Json, Key, Threads, load_on
from deploykit.contract.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType
    from rich.table import Table

    from deploykit.judge.profiling import Percentiles, Profile
    from deploykit.plugin.artifact import Artifact

_OPS_SHOWN = 10


def profile(
    artifact: ArtifactPath,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Time for the measured runs.")] = 1.0,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Another artifact, measured in turns with this one.")
    ] = None,
    board: Board = None,
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch",
            min=1.0,
            metavar="SECONDS",
            help="Run it this long instead, and read the machine's sensors: memory, power, temperature, throttling.",
        ),
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the profile in the artifact.")] = False,
    key: Key = None,
    allow_native: AllowNative = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Measure the speed of an artifact here, or on a board.

    Latency, throughput and memory, on the golden inputs.
    Native code (tvm, aotinductor, built engines) of an artifact that was not made here runs only with --key or
    --allow-native, which hold for the baseline, too.
    """
    from deploykit.judge.profiling import Effort
    from deploykit.judge.slower import explained
    from deploykit.pipeline.progress import Steps
    from deploykit.plugin.artifact import load

    if watch is not None:
        if board is not None or baseline is not None or save:
            raise UsageError(
                "--watch goes with none of --board, --baseline, --save", hint="call it on the board itself"
            )
        return _watched(load_on(artifact, None, key=key, allow_native=allow_native), watch, threads)
    found = load_on(artifact, board, key=key, allow_native=allow_native)
    other = None
    if baseline is not None:
        other = (baseline, _same_toolchain(load(baseline, key=key, allow_native=allow_native), found))
    effort = Effort(seconds=seconds, threads=threads)
    with Steps().step("measuring"):
        measured = found.plugin().profile(found, baseline=other, effort=effort)
    measured = replace(
        measured,
        findings=explained(measured, found.achieved),
        baseline_fingerprint=other[1].fingerprint if other else "",
    )
    if save:
        found.save_profile(measured)
        if other is None:
            note("the saved profile has no baseline; `--baseline ARTIFACT` measures one in turns")
    document = {"path": artifact, "profile": with_worth_it(measured), "saved": save}
    taken = found.achieved.delegation
    return Answer(document, [*profile_page(measured), *([] if taken is None else ["", f"note: {taken.described}"])])


def _watched(found: Artifact, seconds: float, threads: int | None) -> Answer:
    """The artifact run for a while on its golden inputs, with what the machine tells meanwhile."""
    import msgspec

    from deploykit.cli.watching import watch_page
    from deploykit.pipeline.progress import Steps
    from deploykit_serving.monitor.watch import watch as run

    with Steps().step(f"watching for {seconds:g} s"), found.open(threads=threads) as session:
        seen = run(session, found.golden().inputs, seconds)
    return Answer({"path": str(found.path), "watch": msgspec.to_builtins(seen)}, watch_page(seen))


def _same_toolchain(baseline: Artifact, found: Artifact) -> Artifact:
    if baseline.manifest.toolchain != found.manifest.toolchain:
        raise UsageError(
            f"the baseline is of {baseline.manifest.toolchain}, the artifact of {found.manifest.toolchain}",
            hint="profile each on its own, and show both with `deploykit compare`",
        )
    return baseline


def with_worth_it(measured: Profile) -> dict[str, Any]:
    """The profile as JSON values, with the ratio that is computed from it."""
    import msgspec

    return {**msgspec.to_builtins(measured), "worth_it": measured.worth_it}


def profile_page(found: Profile) -> list[RenderableType]:
    """A profile for people."""
    from deploykit.cli.tables import pairs
    from deploykit.contract.precision import Evidence

    rows = _computed(found) if found.evidence is Evidence.ESTIMATE else _measured(found)
    rows += _over_time(found)
    rows += [("note", text) for text in found.notes]
    rows += [(finding.severity, finding.message) for finding in found.findings]
    page: list[RenderableType] = [pairs("Profile", rows)]
    if found.latency_by_threads_ms:
        page.append(_by_threads(found.latency_by_threads_ms))
    if found.op_times:
        page.append(_slowest(found, "us (estimate)" if found.evidence is Evidence.ESTIMATE else "median us"))
    return page


def _measured(found: Profile) -> list[tuple[str, str]]:
    from deploykit.judge import figures

    latency = found.latency_ms
    rows = [
        ("evidence", found.evidence.value),
        ("latency p50 / p90 / p99", " / ".join(map(figures.milliseconds, (latency.p50, latency.p90, latency.p99)))),
        ("throughput", ", ".join(f"{figures.rate(v)} at batch {b}" for b, v in found.throughput_by_batch.items())),
        ("peak memory", figures.size(found.peak_memory_bytes)),
        ("size", figures.size(found.size_bytes)),
        ("measured", f"{found.runs} runs after {found.warm_up}, batch {found.batch_size}, {found.threads} threads"),
        ("host", str(found.host)),
    ]
    if found.operators:
        rows.append(("operators", ", ".join(f"{count} {kind}" for kind, count in found.operators.items())))
    if found.baseline_latency_ms is not None:
        against = f"{figures.milliseconds(found.baseline_latency_ms.p50)} p50 of the {found.baseline}"
        rows.append(("worth it", f"{figures.times(found.worth_it)} as fast ({against})"))
    return rows


def _over_time(found: Profile) -> list[tuple[str, str]]:
    """What became of it while it ran: heat, clock, and the last minute against the first."""
    from deploykit.judge import figures

    rows = [] if found.conditions is None else found.conditions.rows()
    if (kept := found.sustained) is not None:
        medians = " to ".join(figures.milliseconds(one.p50) for one in (kept.first_ms, kept.last_ms))
        window = f"{kept.window_s:g} s of {kept.seconds:.0f}"
        rows.append(("sustained", f"p50 {medians}, {figures.times(kept.slowdown)} (first and last {window})"))
    return rows


def _computed(found: Profile) -> list[tuple[str, str]]:
    """An estimate has no runs, threads, percentiles or memory."""
    from deploykit.judge import figures

    rows = [
        ("evidence", f"{found.evidence.value}: computed from the {found.host.os}; nothing was run"),
        ("latency", figures.milliseconds(found.latency_ms.p50)),
        ("throughput", f"{figures.rate(found.throughput_per_s)} at batch {found.batch_size}"),
        ("size", figures.size(found.size_bytes)),
    ]
    if found.baseline_latency_ms is not None:
        against = f"{figures.milliseconds(found.baseline_latency_ms.p50)} of the {found.baseline}"
        rows.append(("worth it", f"{figures.times(found.worth_it)} as fast ({against})"))
    return rows


def _by_threads(found: Mapping[str, Percentiles]) -> Table:
    from deploykit.cli.tables import grid
    from deploykit.judge import figures

    rows = [[threads, *map(figures.significant, (own.p50, own.p90, own.p99))] for threads, own in found.items()]
    heads = ["threads", "p50 ms", "p90 ms", "p99 ms"]
    return grid("Latency by threads", heads, rows, right=heads)


def _slowest(found: Profile, head: str) -> Table:
    from deploykit.cli.tables import grid
    from deploykit.judge import figures

    rows = [
        [op.name, op.op, op.module_path or figures.UNKNOWN, figures.significant(op.median_us)]
        for op in found.op_times[:_OPS_SHOWN]
    ]
    return grid("Slowest operators", ["node", "operator", "module", head], rows, right=[head])
