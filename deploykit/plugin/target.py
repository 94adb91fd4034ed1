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
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec

from deploykit.artifact import made
from deploykit.artifact.manifest import PendingBuild
from deploykit.contract.achieved import Achieved
from deploykit.contract.devices import Device
from deploykit.contract.errors import (
    ArtifactError,
    DeviceError,
    MissingDependencyError,
    UnsupportedPrecisionError,
    UsageError,
)
from deploykit.contract.findings import Finding
from deploykit.contract.host import ARCHITECTURES, Host, this_host
from deploykit.contract.optional import Requirement, SystemTool
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.request import NoOptions, Request
from deploykit.contract.requirements import Missing, Preflight, Requirements, check, lacking
from deploykit.contract.scheme import IN_FLOAT, Scheme
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
from deploykit.judge.profiling import DEFAULT_EFFORT, Baseline, Effort, Measuring, Profile, measure
from deploykit.places.first import Risk, check_opens
from deploykit.places.memory import peak_memory_bytes
from deploykit.places.peer import Wants
from deploykit.places.place import Here, Place
from deploykit.plugin.estimate import estimate

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit.places.peer import Program
    from deploykit_calibration.prepared import Prepared


# Runtimes start as many as they are told; some hang the machine long before they refuse.
_MAX_THREADS = 1024


@dataclass(frozen=True)
class Capabilities:
    """What a toolchain can do.

    Attributes:
        summary: one line for listings.
        precisions: all it can produce, best known first.
        devices: by name.
        export_extra, runtime_extra: names of the extras that install what exporting and running need.
        export_requires, runtime_requires: the packages behind those extras.
        evidence: the best evidence level that running here gives.
        dynamic_batch: whether a dynamic batch axis survives conversion.
        distribution: that has the extras.
        opens: suffixes of model files, made by others too, that `open_file` runs.
        compile_extra, compile_requires: the extra, and its packages, with which the vendor's compiler reads every
            export on any machine (evidence `compiled`); empty where there is no such compiler.
        system_tools: programs that pip does not install (a cross compiler, an emulator); `doctor` checks them.
    """

    summary: str
    precisions: tuple[Precision, ...]
    devices: Mapping[str, Device]
    export_extra: str
    runtime_extra: str
    export_requires: tuple[Requirement, ...]
    runtime_requires: tuple[Requirement, ...]
    evidence: Evidence = Evidence.DEVICE
    dynamic_batch: bool = True
    distribution: str = "deploykit"
    opens: tuple[str, ...] = ()
    system_tools: tuple[SystemTool, ...] = ()
    compile_extra: str = ""
    compile_requires: tuple[Requirement, ...] = ()


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
class Payload:
    """What a lowering wrote, and what is known of it.

    Attributes:
        entry: payload file, relative to the folder, that the runtime opens.
        achieved: counted in the produced file.
        tool_versions: distributions that took part, by name.
        build: what is left to do on the device; None where the artifact runs as it is.
        log: what the converter printed, kept beside the artifact and never shown on success.
        requirements: what the payload needs of a machine; None for what `Target.requirements` says.
        traffic: what layers move, by name; see `deploykit.artifact.manifest.Facts`.
        golden_min_sqnr_db: SQNR in dB from which golden outputs count as reproduced on the device; None for the gate
            of the precision.
        notes: what must be said beside the figures.
        metadata: facts that only this toolchain reads (JSON values).
    """

    entry: str
    achieved: Achieved
    tool_versions: dict[str, str]
    build: PendingBuild | None = None
    log: str = ""
    requirements: Requirements | None = None
    traffic: Mapping[str, Sequence[int]] = field(default_factory=dict)
    golden_min_sqnr_db: float | None = None
    notes: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


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
        seen: which of the others calibration saw: they must pass the gate, too; "" for none.
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


class Target(ABC):
    """Base of all toolchain plugins. Subclass it, write the hooks, register it under `deploykit.targets`."""

    name: ClassVar[str]
    options_type: ClassVar[type[Any]] = NoOptions
    _place: Place = Here()

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Say what this toolchain supports. Cheap: no vendor package is imported."""

    # -- checks ---------------------------------------------------------------------------------------------

    def check_precision(self, precision: Precision, device: Device) -> None:
        """Refuse a precision that the toolchain or the device's silicon lacks.

        Raises:
            UnsupportedPrecisionError: names those that both have.
        """
        both = [p for p in self.capabilities().precisions if p in device.precisions]
        if precision not in both:
            raise UnsupportedPrecisionError(
                f"{self.name} on {device.name} has no {precision}; it has {', '.join(map(str, both))}",
                hint=f'precision="{both[0]}"' if both else None,
            )

    def unavailable_here(self, device: Device) -> str:
        """Why nothing can be exported to `device` on this machine although every package is here; "" where it can.

        Cheap, as `capabilities`: listings ask it for every device. Override where exporting needs more than packages.
        """
        del device
        return ""

    def precisions_here(self, device: Device) -> tuple[Precision, ...]:
        """What an export to `device` can be on this machine: what listings offer, and cheap as `capabilities`.

        Others that both have may be asked for, too; their export says why it is none of its precision. Override where a
        runtime takes files of a precision and computes them in another.
        """
        return tuple(p for p in self.capabilities().precisions if p in device.precisions)

    def check_installed(self, *, export: bool) -> None:
        """Refuse early where a package for exporting (or for running) is missing.

        Raises:
            MissingDependencyError: with the pip command.
        """
        own = self.capabilities()
        requires, extra = (
            (own.export_requires, own.export_extra) if export else (own.runtime_requires, own.runtime_extra)
        )
        for requirement in requires:
            if not requirement.installed:
                purpose = f"{'export to' if export else 'run artifacts of'} {self.name}"
                raise MissingDependencyError(
                    requirement.project,
                    extra=extra,
                    purpose=purpose,
                    distribution=own.distribution,
                    command=requirement.how or None,
                )

    def parse_options(self, options: object | Mapping[str, Any] | None) -> Any:
        """Turn a mapping (of the command line, say) into the toolchain's options dataclass.

        Raises:
            UsageError: an unknown name or a value of the wrong type; the message lists the options there are.
        """
        if options is None:
            return self.options_type()
        if isinstance(options, self.options_type):
            return options
        known = {f: str(t) for f, t in self.options_type.__annotations__.items()}
        listed = f"options of {self.name}: {known or 'none'}"
        if not isinstance(options, Mapping):
            raise UsageError(f"options must be a mapping or {self.options_type.__name__}, not {type(options).__name__}")
        unknown = sorted(options.keys() - known.keys())
        if unknown:
            raise UsageError(f"unknown option {', '.join(unknown)}", hint=listed)
        try:
            return msgspec.convert(dict(options), self.options_type, strict=False)
        except msgspec.ValidationError as error:
            raise UsageError(f"bad option value: {error}", hint=listed) from error

    def check_options(self, options: Any, device: Device) -> None:
        """Refuse values that the device cannot take; override where the type of an option does not say it all.

        Args:
            options: the toolchain's options dataclass.
        Raises:
            UsageError: names the option, the device and what is allowed.
        """
        del options, device  # any value of the right type will do

    def check_runnable(self, artifact: StoredArtifact) -> None:
        """Refuse early where a package for running `artifact` is missing; override where that depends on its build.

        Raises:
            MissingDependencyError: with the command that installs it.
        """
        self.check_installed(export=False)

    def requirements(self, device: Device, precision: Precision) -> Requirements:
        """What a payload for `device` in `precision` needs of a machine, as far as that is known without the file.

        Of an artifact that older versions wrote this is all that is known. Override it for more than its packages.
        """
        del device, precision
        return Requirements(packages={one.project: "" for one in self.capabilities().runtime_requires})

    def needs(self, artifact: StoredArtifact) -> Requirements:
        """What `artifact` needs: as its manifest says, or for one without, as `requirements` says."""
        manifest = artifact.manifest
        device = self.capabilities().devices.get(manifest.device)
        if manifest.requirements is None and device is not None:
            return self.requirements(device, manifest.precision)
        return manifest.requirements or Requirements()

    def preflight(self, artifact: StoredArtifact) -> Preflight:
        """Whether this machine has what `artifact` needs; nothing is opened.

        Override it where something else than this machine's own processor runs the payload.
        """
        place, needs = self.place(artifact), self.needs(artifact)
        found = place.preflight(artifact, self._wants(artifact)) or check(needs, self.host())
        build = artifact.manifest.build
        if build is not None:
            pending = Missing(f"it is not runnable yet: {build.reason}", build.command_for(artifact.path))
            return replace(found, missing=(*found.missing, pending))
        if not place.is_here:
            return found
        try:
            self.check_runnable(artifact)
        except MissingDependencyError as error:
            absent = Missing(error.message, error.command, error.package)
            return replace(found, missing=(*found.missing, absent))
        return found

    def host(self) -> Host:
        """The machine that this process runs on."""
        return this_host()

    # -- steps ----------------------------------------------------------------------------------------------

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
        found = prepared.simulation
        return found if found is not None and found.rounds else None

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
            artifact: with a pending build.
            folder: empty staging folder that takes the payload files of the built artifact.
            options: the toolchain's options dataclass.

        Raises:
            DeviceError, MissingDependencyError: no device, driver or vendor library here.
            ConversionError: the vendor's builder refused.
            ArtifactError: it would run a program of an artifact that nobody vouches for.
        """
        self.check_vouched(artifact, build=True)
        return self._build(artifact, folder, options)

    def open(self, artifact: StoredArtifact, *, threads: int | None = None) -> Session:
        """Open an artifact in its runtime.

        Args:
            threads: None for all cores that this process may use.
        Raises:
            DeviceError: the artifact must first be built on its device, or this machine lacks what it needs.
            MissingDependencyError: the runtime is not installed, or too old.
            ArtifactError: it holds native code that nobody vouches for; see `native_code`.
        """
        build = artifact.manifest.build
        if build is not None:
            raise DeviceError(
                f"{artifact.path.name} is not runnable yet: {build.reason}", hint=build.command_for(artifact.path)
            )
        if not artifact.entry.is_file():
            raise ArtifactError(f"{artifact.entry} is gone; was the artifact moved?", hint="deploykit.load(new path)")
        self.check_vouched(artifact)
        place = self.place(artifact)
        if place.is_here:
            self.check_runnable(artifact)
        self._refuse_missing(artifact, place)
        if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= _MAX_THREADS):
            raise UsageError(f"threads must be a whole number from 1 to {_MAX_THREADS}, not {threads!r}")
        artifact.check_unaltered()
        session = place.open(artifact, self._wants(artifact), threads) or self._open_here(artifact, threads, place)
        try:
            artifact.check_unaltered()  # what was opened is what was hashed
        except BaseException:
            session.close()
            raise
        return session

    def _open_here(self, artifact: StoredArtifact, threads: int | None, place: Place) -> Session:
        threads = threads or this_host().cores
        if isinstance(place, Here) and place.first:
            check_opens(artifact, self.risk(artifact), threads=threads)
        return self._open(artifact, threads)

    def _refuse_missing(self, artifact: StoredArtifact, place: Place) -> None:
        found = self.preflight(artifact)
        if found.ok:
            return
        first = found.missing[0]
        if place.is_here and all(one.package for one in found.missing):
            extra, purpose = self.capabilities().runtime_extra, f"open {artifact.path.name}: {first.what}"
            raise MissingDependencyError(first.package, extra=extra, purpose=purpose, command=first.next, outdated=True)
        where = "here" if place.is_here else f"on {place}"
        message = f"{artifact.path.name} cannot run {where}: {'; '.join(one.what for one in found.missing)}"
        steps = "; ".join(dict.fromkeys(one.next for one in found.missing))
        raise DeviceError(message, hint=steps if place.is_here else f"{where}: {steps}")

    def risk(self, artifact: StoredArtifact) -> Risk:
        """What opening `artifact` may do to the process that does it; a child then does it first."""
        return Risk.NONE

    def native_code(self, artifact: StoredArtifact) -> str:
        """What opening `artifact` executes of it, as the object of "runs ..."; "" where a runtime reads it as data.

        Where there is something, an artifact that was made elsewhere is opened only after a signature (`key=`) or with
        `allow_native=True`.
        """
        return f"the machine code in {artifact.manifest.entry}" if self.risk(artifact) is Risk.CODE else ""

    def build_code(self, artifact: StoredArtifact) -> str:
        """The same of `build`."""
        del artifact
        return ""

    def check_vouched(self, artifact: StoredArtifact, *, build: bool = False) -> None:
        """Run no code of an artifact that was not made here, unless it is signed or allowed; called by open and build.

        Raises:
            ArtifactError: says what it would run, and how to allow it.
        """
        code = self.build_code(artifact) if build else self.native_code(artifact)
        if not code or artifact.vouched or made.is_own(artifact):
            return
        doing = "building" if build else "opening"
        message = f"{doing} {artifact.path.name} runs {code}, and it was not made here by this account"
        hint = "give key= (--key) of who signed it; or, where you trust its maker, allow_native=True (--allow-native)"
        raise ArtifactError(message, hint=hint)

    # -- places ---------------------------------------------------------------------------------------------

    def at(self, place: Place) -> Target:
        """This toolchain with another place as the one that its artifacts are opened in.

        Args:
            place: see `deploykit.places`; nothing is contacted before an artifact is opened, or asked about.
        """
        found = copy.copy(self)
        found._place = place
        return found

    def on_board(self, address: str) -> Target:
        """This toolchain with a board on the network as the machine that its artifacts are run on.

        Using it copies the artifact to the board and executes code there.

        Args:
            address: as for `ssh`, such as `user@host`; or `adb:SERIAL`.
        Raises:
            UsageError: this is no address.
        """
        from deploykit.places.address import board_at

        return self.at(board_at(address))

    def place(self, artifact: StoredArtifact) -> Place:
        """Where `artifact` is opened; override it where this machine's own processor cannot run it."""
        return self._place

    def board_program(self, artifact: StoredArtifact) -> Program | None:
        """The program of `artifact` that speaks the session protocol itself; None where deploykit's server opens it."""
        return None

    def _wants(self, artifact: StoredArtifact) -> Wants:
        program = None if self.place(artifact).is_here else self.board_program(artifact)
        return Wants(self.needs(artifact), program, self.capabilities().runtime_extra)

    def host_of(self, artifact: StoredArtifact) -> Host:
        """The machine that runs `artifact`."""
        return self.host() if self.place(artifact).is_here else self.preflight(artifact).host

    def open_file(self, path: Path, *, threads: int | None = None) -> Session:
        """Open a model file that need not come from deploykit; of a suffix in `capabilities().opens`.

        Raises:
            ArtifactError: the file is missing or damaged.
            MissingDependencyError: what runs it is not installed.
        """
        if not path.exists():
            raise ArtifactError(f"there is no {path}")
        self.check_installed(export=False)
        return self._open_file(path, threads or this_host().cores)

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

    def open_for_parity(self, artifact: StoredArtifact) -> Session:
        """The session that parity and golden data are taken from.

        The artifact's own runtime by default, on one thread: results are then the same on every machine, and idle
        threads do not spin against PyTorch, which runs beside it. A toolchain whose runtime cannot be here overrides
        this with another runtime over the same payload, and `evidence` with `reference`.
        """
        return self.open(artifact, threads=1)

    def validate(self, artifact: StoredArtifact, validation: Validation, session: Session) -> ParityReport:
        """Compare float model, simulated graph and artifact on the samples, and judge.

        Args:
            session: of `open_for_parity`, which golden data and the task metric are taken from, too.
        """
        report = judge(session, self.evidence(artifact), validation)
        return replace(report, notes=(*report.notes, *self.notes_on_evidence(artifact)))

    def profile(
        self,
        artifact: StoredArtifact,
        *,
        baseline: tuple[str, StoredArtifact] | None = None,
        effort: Effort = DEFAULT_EFFORT,
    ) -> Profile:
        """Measure an artifact on its golden inputs, in turns with a float build where given.

        Where running it here means emulation, whose speed says nothing, it is an estimate from the device table.

        Args:
            baseline: what to call it, and the float build.
        Raises:
            DeviceError: neither is possible: under emulation, and the table has no rates.
        """
        if self.evidence(artifact) is Evidence.EMULATOR:
            return estimate(artifact, self.capabilities().devices[artifact.manifest.device], baseline=baseline)
        self.check_vouched(artifact)  # before its memory is measured, in a process that asks nobody
        feeds = artifact.golden().inputs[0]
        here, host = self.place(artifact).is_here, self.host_of(artifact)
        memory = peak_memory_bytes(artifact) if here else None
        note = () if here else (f"measured on {self.place(artifact)} with its own clock, without what lies between",)
        measuring = Measuring(artifact.size_bytes, self.evidence(artifact), memory, effort, host, note)
        with self.open(artifact, threads=effort.threads) as session:
            if baseline is None:
                return measure(session, feeds, measuring)
            with self.open(baseline[1], threads=effort.threads) as other:
                return measure(session, feeds, measuring, Baseline(baseline[0], other, baseline[1].size_bytes))

    def evidence(self, artifact: StoredArtifact) -> Evidence:
        """Evidence level of running `artifact` here; override where something else than this machine runs it.

        Never `device` where this machine lacks what the device has, or computes otherwise without it.
        """
        place = self.place(artifact)
        if place.is_emulated:
            return Evidence.EMULATOR
        told = place.evidence(artifact, self._wants(artifact))
        if told is not None:
            return told
        best = self.capabilities().evidence
        short = best is Evidence.DEVICE and (self._lacking(artifact) or not self.preflight(artifact).native)
        return Evidence.REFERENCE if short else best

    def notes_on_evidence(self, artifact: StoredArtifact) -> tuple[str, ...]:
        """Why running `artifact` here is not what its device would do, or is done otherwise; empty where it is."""
        found = self.preflight(artifact)
        lacks = self._lacking(artifact)
        device = artifact.manifest.device
        own = (f"evidence is not `device`: {device} has {', '.join(lacks)}, this machine does not",) if lacks else ()
        return (*own, *found.adapted, *found.notes)

    def _lacking(self, artifact: StoredArtifact) -> tuple[str, ...]:
        """What the device of `artifact` has and this machine lacks: its architecture, or instruction sets."""
        device, host = self.capabilities().devices.get(artifact.manifest.device), self.host_of(artifact)
        if device is None:
            return ()
        if device.arch in ARCHITECTURES and host.family != device.arch:
            return (device.arch,)
        return lacking(device.features, host)

    # -- hooks ----------------------------------------------------------------------------------------------

    def _build(self, artifact: StoredArtifact, folder: Path, options: Any) -> Payload:
        raise UsageError(f"{self.name} builds nothing on the device")

    @abstractmethod
    def _open(self, artifact: StoredArtifact, threads: int) -> Session: ...

    def _open_file(self, path: Path, threads: int) -> Session:
        """Override together with `Capabilities.opens`."""
        raise UsageError(f"{self.name} opens artifacts only, not {path.name}")

    def _lint(self, path: Path) -> Sequence[Finding]:
        raise UsageError(f"{self.name} has no lint", hint="name a toolchain that has: --for tensorrt")


_UNROUNDED = "no layer of the model is quantised: there is no simulation to compare with"


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
