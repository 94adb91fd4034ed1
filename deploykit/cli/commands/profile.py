"""`deploykit profile`: measure an artifact on this machine, or on a board."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import Answer, note
from deploykit.cli.parameters import ArtifactPath, Board, Debug, Json, Threads, load_on
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit.artifact import Artifact
    from deploykit.profiling import Profile

_OPS_SHOWN = 10


def profile(
    artifact: ArtifactPath,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Time for the measured runs.")] = 1.0,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Another artifact, measured in turns with this one.")
    ] = None,
    board: Board = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the profile in the artifact.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Measure the speed of an artifact here, or on a board.

    Latency, throughput and memory, on the golden inputs.
    """
    from deploykit.artifact import load
    from deploykit.profiling import Effort
    from deploykit.progress import Steps

    found = load_on(artifact, board)
    other = None if baseline is None else (baseline, _same_toolchain(load(baseline), found))
    effort = Effort(seconds=seconds, threads=threads)
    with Steps().step("measuring"):
        measured = found.plugin().profile(found, baseline=other, effort=effort)
    if save:
        found.save_profile(measured)
        if other is None:
            note("the saved profile has no baseline; `--baseline ARTIFACT` measures one in turns")
    document = {"path": artifact, "profile": with_worth_it(measured), "saved": save}
    return Answer(document, profile_page(measured))


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


def profile_page(measured: Profile) -> list[RenderableType]:
    """A profile for people."""
    from deploykit.cli import figures
    from deploykit.cli.tables import grid, pairs

    latency = measured.latency_ms
    rows = [
        ("evidence", measured.evidence.value),
        ("latency p50 / p90 / p99", " / ".join(map(figures.milliseconds, (latency.p50, latency.p90, latency.p99)))),
        ("throughput", ", ".join(f"{figures.rate(v)} at batch {b}" for b, v in measured.throughput_by_batch.items())),
        ("peak memory", figures.size(measured.peak_memory_bytes)),
        ("size", figures.size(measured.size_bytes)),
        (
            "measured",
            f"{measured.runs} runs after {measured.warm_up}, batch {measured.batch_size}, {measured.threads} threads",
        ),
        ("host", str(measured.host)),
    ]
    if measured.baseline_latency_ms is not None:
        against = f"{figures.milliseconds(measured.baseline_latency_ms.p50)} p50 of the {measured.baseline}"
        rows.append(("worth it", f"{figures.times(measured.worth_it)} as fast ({against})"))
    rows += [("note", text) for text in measured.notes]
    page: list[RenderableType] = [pairs("Profile", rows)]
    if measured.op_times:
        slowest = [
            [op.name, op.op, op.module_path or figures.UNKNOWN, f"{op.mean_us:,.0f}"]
            for op in measured.op_times[:_OPS_SHOWN]
        ]
        page.append(grid("Slowest operators", ["node", "operator", "module", "mean us"], slowest, right=["mean us"]))
    return page
