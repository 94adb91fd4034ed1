"""`RunsCompiled`: where a compiled artifact is run, and what running it there proves.

In this process where the artifact is code for this architecture; on a board that the user names; else under emulation
of the board's CPU, whose results count and whose times do not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.precision import Evidence
from deploykit.contract.requirements import Missing, Preflight, Requirements, check
from deploykit.judge.profiling import DEFAULT_EFFORT, Effort, Profile
from deploykit.places import qemu
from deploykit.places.first import Risk
from deploykit.places.qemu import Qemu
from deploykit.plugin.estimate import estimate
from deploykit.plugin.target import Target

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.contract.session import Session
    from deploykit.places.peer import BoardProgram
    from deploykit.places.place import Place


class RunsCompiled(Target):
    """Base of the plugin: everything that has to do with running."""

    def place(self, artifact: StoredArtifact) -> Place:
        """See `Target.place`; a program for another architecture is run under emulation."""
        from deploykit_targets.tvm.build import RUNNER, recorded
        from deploykit_targets.tvm.session import is_native

        library = recorded(artifact)
        foreign = RUNNER in library.runtime_files and not (is_native(artifact) or self._by_reference(artifact))
        return Qemu(*library.emulators) if foreign and self._place.is_here else self._place

    def board_program(self, artifact: StoredArtifact) -> BoardProgram | None:
        """See `Target.board_program`: what Arm boards and emulators start."""
        from deploykit_targets.tvm.session import program_of

        return program_of(artifact)

    def needs(self, artifact: StoredArtifact) -> Requirements:
        """See `Target.needs`; older versions recorded the processor."""
        from deploykit_targets.tvm.build import recorded
        from deploykit_targets.tvm.processor import requirements_of

        library = recorded(artifact)
        return artifact.manifest.requirements or requirements_of(library.isa, library.arch)

    def preflight(self, artifact: StoredArtifact) -> Preflight:
        """See `Target.preflight`."""
        from deploykit_targets.tvm.session import is_outdated

        if self._by_reference(artifact):
            note = (
                f"code for {artifact.manifest.device} is run by kernels of this machine, compiled from the same program"
            )
            elsewhere = replace(self.needs(artifact), arch=(), isa=(), os=())
            found = check(elsewhere, self.host())
            return replace(found, notes=(f"{note}: right results, and no times",), native=False)
        found = super().preflight(artifact)
        if self.place(artifact).is_here or not is_outdated(artifact):
            return found
        old = Missing("its program is older than the protocol that this deploykit speaks", "export the model again")
        return replace(found, missing=(*found.missing, old))

    def risk(self, artifact: StoredArtifact) -> Risk:
        """See `Target.risk`: a library is code."""
        return Risk.CODE

    def evidence(self, artifact: StoredArtifact) -> Evidence:
        """`device` on a board and where the artifact is code for this architecture; else `emulator`.

        `reference` where there was no emulator at export: its kernels are those of the exporting machine.
        """
        return Evidence.REFERENCE if self._by_reference(artifact) else super().evidence(artifact)

    def _by_reference(self, artifact: StoredArtifact) -> bool:
        from deploykit_targets.tvm.session import is_native

        made = "reference_library" in artifact.manifest.metadata
        return made and self._place.is_here and not is_native(artifact) and not qemu.EMULATOR.installed

    def profile(
        self,
        artifact: StoredArtifact,
        *,
        baseline: tuple[str, StoredArtifact] | None = None,
        effort: Effort = DEFAULT_EFFORT,
    ) -> Profile:
        """See `Target.profile`; kernels of this machine say nothing of the speed of another's."""
        device = self.capabilities().devices.get(artifact.manifest.device)
        if self._by_reference(artifact) and device is not None and device.peak_tops:
            return estimate(artifact, device, baseline=baseline)
        return super().profile(artifact, baseline=baseline, effort=effort)

    def _open(self, artifact: StoredArtifact, threads: int) -> Session:
        if self._by_reference(artifact):
            from deploykit_targets.tvm.reference import open_reference

            return open_reference(artifact, threads)
        from deploykit_targets.tvm.session import NativeSession

        return NativeSession(artifact, threads)
