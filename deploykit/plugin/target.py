"""`Target`: the contract between the pipeline and a toolchain plugin.

Public methods check and are written once; a plugin writes the underscored hooks. A plugin's `target.py` imports
nothing heavy at module level, because listing targets loads every plugin.

    capabilities()            what it supports, and what must be installed for it
    scheme(request, captured) how a model is quantised for it, as data
    lower(prepared, folder)   prepared model -> payload files in a staging folder
    build(artifact, ...)      what must be done on the device itself, where a toolchain has such a step
    preflight(artifact)       what this machine lacks of what the artifact needs
    open(artifact)            artifact -> Session, refused where something is lacking
    lint(path)                the toolchain's rules for a model file, whoever wrote it, where it has some
    validate(...)             parity chain with its gate        (one default for all, written over Session)
    profile(...)              measured or estimated speed       (one default for all, written over Session)

What it offers, opens and proves is written in `offers`, `opens` and `proves`; this module adds what makes a payload of
a model. Plugins import every name of the contract from here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import UsageError
from deploykit.contract.findings import Finding
from deploykit.contract.request import Request
from deploykit.contract.scheme import IN_FLOAT, Scheme
from deploykit.judge.verdict import Simulation, Validation
from deploykit.plugin.offers import Capabilities
from deploykit.plugin.payload import Payload
from deploykit.plugin.proves import Proves

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit_calibration.prepared import Prepared

__all__ = ["Capabilities", "Payload", "Simulation", "Target", "Validation"]


class Target(Proves):
    """Base of all toolchain plugins. Subclass it, write the hooks, register it under `deploykit.targets`."""

    def scheme(self, request: Request, captured: CapturedModel) -> Scheme:
        """How the model is quantised for a request; by default not at all, for precisions that are not placed.

        Args:
            request: for a device and a precision of this toolchain.
            captured: the normalised float graph.
        """
        del request, captured
        return IN_FLOAT

    def adapt(self, captured: CapturedModel, request: Request) -> CapturedModel:
        """The model in the form that this toolchain compiles for a request; by default as it was captured.

        Nodes keep their names where they can: statistics are of the captured graph. What is new is observed on the
        samples that calibration kept.
        """
        del request
        return captured

    def simulate(self, prepared: Prepared) -> Simulation | None:
        """The quantised graph in PyTorch, the reference of the parity chain; None where nothing is quantised.

        Override it where the toolchain computes between the integers in something else than float32.
        """
        return prepared.simulation if prepared.rounds else None

    @abstractmethod
    def lower(self, prepared: Prepared, folder: Path) -> Payload:
        """Write the payload of a prepared model.

        Args:
            prepared: graph, layers and simulation of `scheme`, in whatever precision was asked for.
            folder: empty; takes the payload files.
        Raises:
            ConversionError: the converter refused; the message names op, module path and source line.
        """

    def build(self, artifact: StoredArtifact, folder: Path, options: Any) -> Payload:
        """Finish an artifact on its device; see `deploykit.build`.

        Args:
            artifact: the artifact, with a pending build.
            folder: empty staging folder that takes the payload files of the built artifact.
            options: the toolchain's options dataclass.

        Raises:
            DeviceError, MissingDependencyError: no device, driver or vendor library here.
            ConversionError: the vendor's builder refused.
            ArtifactError: it would run a program of an artifact that nobody vouches for.
        """
        self.check_vouched(artifact, build=True)
        return self._build(artifact, folder, options)

    @property
    def has_lint(self) -> bool:
        """Whether `lint` has rules."""
        return type(self)._lint is not Target._lint

    def lint(self, path: Path) -> Sequence[Finding]:
        """Check a model file, which need not come from deploykit, against the rules of the toolchain; runs nothing.

        Returns:
            What is wrong, errors first; empty where every rule holds.
        Raises:
            UsageError: the toolchain has no lint, or the file cannot be read.
            MissingDependencyError: what reads the file is not installed.
        """
        return self._lint(path)

    def _build(self, artifact: StoredArtifact, folder: Path, options: Any) -> Payload:
        raise UsageError(f"{self.name} builds nothing on the device")

    def _lint(self, path: Path) -> Sequence[Finding]:
        raise UsageError(f"{self.name} has no lint", hint="name a toolchain that has: --for tensorrt")
