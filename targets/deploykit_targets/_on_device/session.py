"""A session whose engine lives in a child process that runs a build program.

A vendor library that crashes on a foreign engine ends that process, and becomes a `DeviceError` here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import DeviceError, UsageError
from deploykit.contract.host import this_host
from deploykit.contract.precision import Evidence
from deploykit.contract.session import OpTime
from deploykit.contract.tensors import Feeds
from deploykit.judge.profiling import Percentiles, Profile, batch_size
from deploykit.places import frames
from deploykit.places.frames import Frame
from deploykit.places.peer import Peer, RemoteSession
from deploykit.places.process import Process, time_limit
from deploykit_targets._on_device.host import failure_of, program_command

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.judge.profiling import Effort

_TIMEOUT_S = 1800.0  # of opening an engine, or of one answer


class ProgramSession(RemoteSession):
    """Talks to `<build program> --serve`.

    Args:
        artifact: a built one.
        program: the build program; a name is of the artifact's own.
        python: interpreter that has the vendor library; None for ours.

    Raises:
        DeviceError, MissingDependencyError: the child could not open the engine.
    """

    def __init__(self, artifact: StoredArtifact, program: str | Path, python: str | None) -> None:
        toolchain = artifact.manifest.toolchain
        self._module_paths = artifact.achieved.module_paths
        command = program_command(artifact.path / program, ["--artifact", str(artifact.path), "--serve"], python=python)
        process = Process(
            command,
            what=f"the {toolchain} process",
            failed=lambda code, log: failure_of(None, code, log, toolchain=toolchain),
            timeout_s=time_limit(_TIMEOUT_S),
        )
        peer = Peer(process, failure=lambda facts: failure_of(facts, 0, "", toolchain=toolchain))
        super().__init__(artifact, peer, {"threads": 1})

    def times_ms(self, feeds: Feeds, *, runs: int) -> list[float]:
        """See `Session.times_ms`: on the device's clock."""
        return [float(value) for value in self.measured(feeds, runs=runs)["run_ms"]]

    def measured(self, feeds: Feeds, *, runs: int) -> dict[str, Any]:
        """The program's own timing on the device: latency in ms, throughput, memory, and microseconds by layer."""
        with self._turns:
            return self._measured(feeds, runs)

    def _measured(self, feeds: Feeds, runs: int) -> dict[str, Any]:
        return self._peer.ask(Frame(frames.PROFILE, {}, dict(feeds), runs=runs)).facts

    def _op_times(self, feeds: Feeds, runs: int) -> tuple[OpTime, ...]:
        return self.op_times_of(self._measured(feeds, runs))

    def op_times_of(self, report: dict[str, Any]) -> tuple[OpTime, ...]:
        """Time per layer of a report, slowest first."""
        times = [
            OpTime(name, "layer", self._module_paths.get(name.split(" ")[0], ""), median_us)
            for name, median_us in report.get("layers", {}).items()
        ]
        return tuple(sorted(times, key=lambda time: -time.median_us))


def _check_baseline(name: str, baseline: StoredArtifact, feeds: Feeds) -> None:
    """Refuse what cannot be measured beside the artifact before anything is."""
    build = baseline.manifest.build
    if build is not None:
        message = f"the baseline {name} is not runnable yet: {build.reason}"
        raise DeviceError(message, hint=f"deploykit build {name}, and name what that makes as the baseline")
    if not all(spec.name in feeds and spec.accepts(feeds[spec.name].shape) for spec in baseline.inputs):
        expected = ", ".join(map(str, baseline.inputs))
        message = f"the baseline {name} cannot take the artifact's golden inputs; it takes {expected}"
        raise UsageError(message, hint="name a build of the same model as the baseline")


def measure(
    artifact: StoredArtifact,
    program: str | Path,
    python: str | None,
    effort: Effort,
    baseline: tuple[str, StoredArtifact] | None = None,
) -> Profile:
    """Profile a built artifact by its own build program on the device, and a float build of the same model after it.

    Raises:
        DeviceError: the baseline is not built, or the child could not open an engine.
        UsageError: the baseline has other inputs.
    """
    feeds = artifact.golden().inputs[0]
    if baseline is not None:
        _check_baseline(*baseline, feeds)
    with ProgramSession(artifact, program, python) as session:
        report = session.measured(feeds, runs=effort.max_runs)
        op_times = session.op_times_of(report)
    other = None
    if baseline is not None:
        with ProgramSession(baseline[1], program, python) as session:
            other = Percentiles(**session.measured(feeds, runs=effort.max_runs)["latency_ms"])
    rows = batch_size(artifact.inputs, feeds)
    return Profile(
        latency_ms=Percentiles(**report["latency_ms"]),
        batch_size=rows,
        throughput_per_s=report["throughput_per_s"],
        throughput_by_batch={str(rows): report["throughput_per_s"]},
        peak_memory_bytes=report["device_memory_bytes"],
        size_bytes=artifact.size_bytes,
        evidence=Evidence.DEVICE,
        threads=1,
        warm_up=report["warm_up"],
        runs=report["runs"],
        host=this_host(),
        op_times=op_times,
        baseline=baseline[0] if baseline else "",
        baseline_latency_ms=other,
        baseline_size_bytes=baseline[1].size_bytes if baseline else None,
        notes=tuple(report["notes"]),
    )
