"""`RunsCompiled`: where a compiled artifact is run, and what running it there proves.

In this process where the artifact is code for this architecture; on a board that the user names; else under emulation
of the board's CPU, whose results count and whose times do not.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.precision import Evidence
from deploykit.contract.requirements import Preflight, Requirements, check
from deploykit.judge.profiling import DEFAULT_EFFORT, MIN_RUNS, WARM_UP_RUNS, Effort, Percentiles, Profile, batch_size
from deploykit.plugin.estimate import estimate
from deploykit.plugin.target import Target

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.contract.host import Host
    from deploykit.contract.session import Session
    from deploykit.contract.tensors import Feeds
    from deploykit.places.ssh import Board
    from deploykit_targets.tvm.runner import BoardSession, Timing


class RunsCompiled(Target):
    """Base of the plugin: everything that has to do with running."""

    _board: Board | None = None

    def on_board(self, address: str) -> Target:
        """See `Target.on_board`."""
        from deploykit.places.ssh import Board

        other = copy.copy(self)
        other._board = Board(address)
        return other

    def open(self, artifact: StoredArtifact, *, threads: int | None = None) -> Session:
        """See `Target.open`; all cores are those of the machine that runs the artifact."""
        if threads is None and self._board is not None:
            threads = self._board.cores()
        return super().open(artifact, threads=threads)

    def host(self) -> Host:
        """See `Target.host`."""
        return super().host() if self._board is None else self._board.host()

    def needs(self, artifact: StoredArtifact) -> Requirements:
        """See `Target.needs`; older versions recorded the processor."""
        from deploykit_targets.tvm.build import recorded
        from deploykit_targets.tvm.processor import requirements_of

        library = recorded(artifact)
        return artifact.manifest.requirements or requirements_of(library.isa, library.arch)

    def preflight(self, artifact: StoredArtifact) -> Preflight:
        """See `Target.preflight`; code for another architecture is run under emulation, which needs nothing of it."""
        from deploykit_targets.tvm.session import is_native

        if self._board is not None:  # whose memory is not this machine's, and which needs no package
            return check(replace(self.needs(artifact), memory_bytes=0, packages={}), self.host())
        if is_native(artifact):
            return super().preflight(artifact)
        how = (
            "by kernels of this machine, compiled from the same program" if self._by_reference(artifact) else "in QEMU"
        )
        note = f"code for {artifact.manifest.device} is run {how}: right results, and no times"
        elsewhere = replace(self.needs(artifact), arch=(), isa=(), os=())
        return replace(check(elsewhere, self.host()), notes=(note,), native=False)

    def runs_native_code(self, artifact: StoredArtifact) -> bool:
        """See `Target.runs_native_code`: not on a board or under emulation, which have processes of their own."""
        from deploykit_targets.tvm.session import is_native

        return self._board is None and (is_native(artifact) or self._by_reference(artifact))

    def evidence(self, artifact: StoredArtifact) -> Evidence:
        """`device` on a board and where the artifact is code for this architecture; else `emulator`.

        `reference` where there was no emulator at export: its kernels are those of the exporting machine.
        """
        from deploykit_targets.tvm.session import is_native

        if self._board is not None or is_native(artifact):
            return super().evidence(artifact)
        return Evidence.REFERENCE if self._by_reference(artifact) else Evidence.EMULATOR

    def _by_reference(self, artifact: StoredArtifact) -> bool:
        from deploykit.places.emulator import EMULATOR
        from deploykit_targets.tvm.session import is_native

        made = "reference_library" in artifact.manifest.metadata
        return made and self._board is None and not is_native(artifact) and not EMULATOR.installed

    def profile(
        self,
        artifact: StoredArtifact,
        *,
        baseline: tuple[str, StoredArtifact] | None = None,
        effort: Effort = DEFAULT_EFFORT,
    ) -> Profile:
        """See `Target.profile`; a board measures with its own clock, without what the network takes."""
        device = self.capabilities().devices.get(artifact.manifest.device)
        if self._by_reference(artifact) and device is not None and device.peak_tops:
            return estimate(artifact, device, baseline=baseline)
        if self._board is None:
            return super().profile(artifact, baseline=baseline, effort=effort)
        return measure_on_board(self._board, artifact, effort, baseline)

    def _open(self, artifact: StoredArtifact, threads: int) -> Session:
        if self._board is not None:
            from deploykit_targets.tvm.runner import BoardSession

            return BoardSession(artifact, threads, self._board)
        if self._by_reference(artifact):
            from deploykit_targets.tvm.reference import open_reference

            return open_reference(artifact, threads)
        from deploykit_targets.tvm.session import open_session

        return open_session(artifact, threads)


def measure_on_board(
    board: Board, artifact: StoredArtifact, effort: Effort, baseline: tuple[str, StoredArtifact] | None = None
) -> Profile:
    """Profile an artifact on a board, and a float build of the same model after it.

    The time is for inputs that are in the program's memory to outputs that are: no network, no Python.
    """
    from deploykit_targets.tvm.runner import BoardSession

    threads = effort.threads or board.cores()
    feeds = artifact.golden().inputs[0]
    with BoardSession(artifact, threads, board) as session:
        timing = _timed(session, feeds, effort)
        op_times = session.op_times_from(timing)
    other = None
    if baseline is not None:
        with BoardSession(baseline[1], threads, board) as session:
            other = Percentiles.of(_timed(session, feeds, effort).run_ms.tolist())
    latency = Percentiles.of(timing.run_ms.tolist())
    rows = batch_size(artifact.inputs, feeds)
    return Profile(
        latency_ms=latency,
        batch_size=rows,
        throughput_per_s=rows / (latency.mean / 1e3),
        throughput_by_batch={str(rows): rows / (latency.mean / 1e3)},
        peak_memory_bytes=timing.peak_bytes,
        size_bytes=artifact.size_bytes,
        evidence=Evidence.DEVICE,
        threads=threads,
        warm_up=WARM_UP_RUNS,
        runs=len(timing.run_ms),
        host=board.host(),
        op_times=op_times,
        baseline=baseline[0] if baseline else "",
        baseline_latency_ms=other,
        baseline_size_bytes=baseline[1].size_bytes if baseline else None,
        notes=(f"measured on {board} with its own clock; memory is that of the whole program",),
    )


def _timed(session: BoardSession, feeds: Feeds, effort: Effort) -> Timing:
    """As many runs as fit the effort's time."""
    once_ms = float(session.timed(feeds, runs=1).run_ms[0])
    return session.timed(feeds, runs=min(effort.max_runs, max(MIN_RUNS, int(effort.seconds * 1e3 / once_ms))))
