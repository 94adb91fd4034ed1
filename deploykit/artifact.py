"""`Artifact`: an exported model on disk, with its manifest, golden data and how to open it.

An artifact is a folder. Loading trusts nothing: no pickle, no path outside the folder, no links, sizes and hashes
checked before a runtime sees a byte. What is refused is refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from deploykit import manifest as layout
from deploykit.achieved import Achieved
from deploykit.choice import Choice, read_choice
from deploykit.decibels import SQNR_CAP_DB
from deploykit.errors import ArtifactError, ParityError, UsageError
from deploykit.host import this_host
from deploykit.manifest import Manifest
from deploykit.parity import DEFAULT_TOLERANCES, Metrics, ParityReport, Tolerance, compare_sessions, failures_of
from deploykit.precision import Evidence, Precision
from deploykit.profiling import Profile
from deploykit.reading import MAX_JSON_BYTES, convert, decode_json, read_bytes, read_tensors
from deploykit.requirements import Missing, Preflight, Requirements, check
from deploykit.seal import Seal, sealed
from deploykit.session import FunctionSession, Session
from deploykit.slower import time_shares
from deploykit.storage import sha256_of, write_file
from deploykit.tensors import TensorSpec

if TYPE_CHECKING:
    from deploykit.target import Target

GOLDEN_DB = "golden_min_sqnr_db"
"""Key of an artifact's metadata: from which SQNR in dB golden outputs count as reproduced on its device."""

_ATTEMPTS = 20


@dataclass(frozen=True)
class Golden:
    """Inputs and the outputs that the artifact gave for them when it was made; one dict per sample."""

    inputs: tuple[dict[str, np.ndarray], ...]
    outputs: tuple[dict[str, np.ndarray], ...]


class Artifact:
    """An exported model. Made by `deploykit.export`, read back by `deploykit.load`.

    Args:
        path: its folder.
        manifest: its validated manifest.
        board: address of the machine that it is run on; None for this one. See `on_board`.
        seal: of the files as they were when they were loaded; None where they are being made.
    """

    def __init__(self, path: Path, manifest: Manifest, *, board: str | None = None, seal: Seal | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self._board = board
        self._seal = seal

    @property
    def target(self) -> str:
        """What the user asked for, such as `x86-cpu` or `x86-cpu:openvino`."""
        return self.manifest.target

    @property
    def precision(self) -> str:
        """The requested precision, such as `int8`; see `achieved` for what the file computes in."""
        return self.manifest.precision.value

    @property
    def achieved(self) -> Achieved:
        """Operators, weights and multiply-accumulates by the precision they really run in."""
        return self.manifest.achieved

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the inputs, in order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the outputs, in order."""
        return self.manifest.outputs

    @property
    def parity(self) -> ParityReport | None:
        """The parity report of the export; None only where nothing could be run."""
        return self.manifest.parity

    @property
    def evidence(self) -> Evidence:
        """The best evidence there is of anything in it: of its outputs (`parity`), or of what it computes in."""
        found = {self.parity.evidence if self.parity else None, self.achieved.evidence}
        return next((level for level in Evidence if level in found), Evidence.ESTIMATE)

    @property
    def status(self) -> str:
        """`verified`, `failed` or `needs device build`."""
        return self.manifest.status

    @property
    def profile(self) -> Profile | None:
        """The last measured profile, or None. A record beside the manifest: it differs from run to run."""
        return _read_profile(self.path / layout.PROFILE_NAME, self.fingerprint)

    @property
    def choice(self) -> Choice | None:
        """What the toolchains reached among which `target="device:fastest"` chose; None where one was named."""
        return read_choice(self.path)

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest, which holds the hashes of all payload files."""
        return sha256_of(self.path / layout.MANIFEST_NAME)

    @property
    def size_bytes(self) -> int:
        """Size of the payload, golden data excluded."""
        return sum(entry.size for entry in self.manifest.files if entry.path != layout.GOLDEN_NAME)

    @property
    def entry(self) -> Path:
        """The file that the runtime opens."""
        return self.path / self.manifest.entry

    def entry_bytes(self) -> bytes:
        """The bytes of the entry file, which are those that the manifest vouches for.

        Raises:
            ArtifactError: it is another file than was loaded.
        """
        wanted = {entry.path: entry.sha256 for entry in self.manifest.files}.get(self.manifest.entry)
        try:
            data = self.entry.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{self.entry} cannot be read: {error.strerror or error}") from error
        if hashlib.sha256(data).hexdigest() != wanted:
            raise ArtifactError(f"{self.entry} was altered since it was loaded", hint="deploykit.load it again")
        return data

    def open(self, *, threads: int | None = None) -> Session:
        """Open the artifact in its runtime.

        Args:
            threads: for the runtime; None for all cores that this process may use.
        Raises:
            MissingDependencyError: the runtime is not installed.
            DeviceError: the artifact must first be built on its device, or this machine lacks what it needs; see
                `preflight`.
        """
        return self.plugin().open(self, threads=threads)

    @property
    def requirements(self) -> Requirements:
        """What the artifact needs of the machine that runs it; `preflight` compares that with this machine."""
        try:
            return self.plugin().needs(self)
        except UsageError:  # no such toolchain is installed here
            return self.manifest.requirements or Requirements()

    def preflight(self) -> Preflight:
        """Whether this machine (or the board) has what the artifact needs, and what is done without; opens nothing."""
        try:
            return self.plugin().preflight(self)
        except UsageError as error:
            found = check(self.requirements, this_host())
            return replace(found, missing=(*found.missing, Missing(error.message, error.hint or "install its plugin")))

    def on_board(self, address: str) -> Artifact:
        """The same artifact, opened, verified and profiled on a board; see `Target.on_board`.

        Its program is copied to the board over SSH and executed there.

        Args:
            address: as for `ssh`, such as `user@host`.
        """
        return Artifact(self.path, self.manifest, board=address, seal=self._seal)

    def check_unaltered(self) -> None:
        """Refuse to go on where a file is another one than was loaded; see `deploykit.seal`.

        Raises:
            ArtifactError: names the file.
        """
        if self._seal is not None:
            self._seal.check(self.manifest.files)

    def plugin(self) -> Target:
        """The toolchain that it was made with and is run by."""
        from deploykit.registry import check_agreement, toolchain

        check_agreement(self.manifest)
        found = toolchain(self.manifest.toolchain)
        return found if self._board is None else found.on_board(self._board)

    def golden(self) -> Golden:
        """Read the golden inputs and outputs.

        Raises:
            ArtifactError: the file is not valid safetensors or lacks a tensor.
        """
        return _read_golden(self)

    def verify(self) -> Metrics:
        """Check every hash, then run the golden inputs and compare with the golden outputs.

        Returns:
            The worst figures of the artifact here against the artifact where it was made.
        Raises:
            ArtifactError: a file is damaged.
            ParityError: this machine computes something else than the one that made the artifact.
        """
        check_files(self.path, self.manifest)
        golden = self.golden()
        recorded = iter(golden.outputs)
        reference = FunctionSession(lambda _: next(recorded), self.inputs, self.outputs)
        with self.open() as session:
            link = compare_sessions(reference, session, golden.inputs)
        misses = failures_of(link, golden_tolerance(self.manifest.precision, self.manifest.metadata))
        if misses:
            message = f"{self.path.name} gives other outputs here than where it was made: {'; '.join(misses)}"
            raise ParityError(message, report=self._require_parity(), candidate=self)
        return link.worst

    def save_profile(self, profile: Profile) -> None:
        """Keep `profile` beside the manifest (atomically)."""
        record = {"artifact": self.fingerprint, "profile": profile}
        write_file(self.path / layout.PROFILE_NAME, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")

    def summary(self) -> dict[str, Any]:
        """Plain data for `--json` and tables: the manifest plus path and profile."""
        data: dict[str, Any] = json.loads(self.manifest.to_json())
        data["path"] = str(self.path)
        data["size_bytes"] = self.size_bytes
        data["profile"] = msgspec.to_builtins(self.profile)
        data["choice"] = msgspec.to_builtins(self.choice)
        if self.profile:
            data["profile"]["worth_it"] = self.profile.worth_it
        shares = time_shares(self.profile, self.achieved)
        for each in data["achieved"].setdefault("float_activations", []):  # older manifests have none
            each["time_share"] = shares.get(each["name"])
        found = self.preflight()
        data["preflight"] = {**msgspec.to_builtins(found), "ok": found.ok}
        return data

    def __repr__(self) -> str:
        return f"<Artifact {self.target} {self.precision} {self.status} at {str(self.path)!r}>"

    def _require_parity(self) -> ParityReport:
        if self.manifest.parity is None:
            raise ArtifactError(f"{self.path.name} carries no parity report; it was never run")
        return self.manifest.parity


def golden_tolerance(precision: Precision, metadata: Mapping[str, Any] | None = None) -> Tolerance:
    """How close a re-run of golden data must be: kernels may differ by rounding, not by more.

    Integer kernels of two instruction sets agree up to one LSB, which a network spreads to some 35 dB; where the gate
    of the precision is higher, that gate holds.

    Args:
        metadata: of the manifest; its `GOLDEN_DB` takes the place of the precision's gate.
    """
    default = DEFAULT_TOLERANCES[precision].min_sqnr_db or 0.0
    gate = convert((metadata or {}).get(GOLDEN_DB, default), float, what=f"metadata {GOLDEN_DB!r}")
    whole = replace(DEFAULT_TOLERANCES[precision], min_sqnr_db=max(gate, 30.0), min_cosine=None)
    return replace(whole, min_part_sqnr_db=-SQNR_CAP_DB)  # an LSB weighs more in a part


def load(path: str | Path) -> Artifact:
    """Read an artifact and check every file's size and hash before anything uses it.

    Raises:
        ArtifactError: not an artifact, damaged, truncated, with a path that leaves the folder, a link, or written by
            a newer deploykit; the message says which and what to do.
    """
    from deploykit.registry import check_agreement

    folder = Path(path)
    for _ in range(_ATTEMPTS):
        before = _identity(folder)
        try:
            manifest = Manifest.from_json(_manifest_bytes(folder))
            check_agreement(manifest)
            whole = folder.resolve()
            return Artifact(whole, manifest, seal=check_files(whole, manifest))
        except (OSError, ArtifactError) as error:
            if before == _identity(folder):
                if isinstance(error, ArtifactError):
                    raise
                message = f"cannot read {folder}: {error.strerror or error}"
                raise ArtifactError(message, hint="check permissions") from error
    raise ArtifactError(f"{folder} is replaced all the time", hint="load it when the exports have ended")


def _identity(folder: Path) -> tuple[int, ...]:
    """Which folder it is: an export that ends meanwhile puts another in its place, and that is not an alteration."""
    try:
        found = folder.lstat()
    except (OSError, ValueError):
        return ()
    return (found.st_dev, found.st_ino, found.st_ctime_ns)


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / layout.MANIFEST_NAME
    if "\0" in str(folder):
        raise ArtifactError(f"{str(folder)!r} is no path: it has a NUL character")
    if folder.is_symlink() or path.is_symlink():
        raise ArtifactError(f"{folder} or its manifest is a symbolic link; artifacts hold no links")
    if not path.is_file():
        lacks = f"it has no {layout.MANIFEST_NAME}" if folder.exists() else "there is no such folder"
        raise ArtifactError(f"{folder} is not an artifact: {lacks}", hint="pass the exported folder")
    return read_bytes(path, limit=MAX_JSON_BYTES)


def check_files(folder: Path, manifest: Manifest) -> Seal:
    """Compare every file with the manifest.

    Returns:
        What tells later whether they are still the same.
    Raises:
        ArtifactError: a file is missing, a link, truncated, altered, or not listed.
    """
    known = {entry.path for entry in manifest.files}
    if manifest.entry not in known:
        raise ArtifactError(f"the manifest's entry {manifest.entry!r} is not among its files")
    if layout.GOLDEN_NAME not in known and (folder / layout.GOLDEN_NAME).exists():  # no hash would vouch for it
        raise ArtifactError(f"the manifest does not list {layout.GOLDEN_NAME}", hint="export the model again")
    return sealed(folder, manifest.files)


def golden_bytes(golden: Golden) -> bytes:
    """Serialise golden data as safetensors: `input.<sample>.<name>` and `output.<sample>.<name>`."""
    from safetensors.numpy import save

    tensors = {
        f"{kind}.{index}.{name}": np.asarray(array, order="C")
        for kind, samples in (("input", golden.inputs), ("output", golden.outputs))
        for index, sample in enumerate(samples)
        for name, array in sample.items()
    }
    return save(tensors)


def _read_golden(artifact: Artifact) -> Golden:
    tensors = read_tensors(artifact.path / layout.GOLDEN_NAME)
    count = len({name.split(".", 2)[1] for name in tensors if name.count(".") >= 2})
    if not count:  # comparing nothing would pass
        raise ArtifactError(f"{layout.GOLDEN_NAME} holds no samples", hint="export the model again")
    try:
        inputs = tuple(_sample(tensors, "input", i, artifact.inputs) for i in range(count))
        outputs = tuple(_sample(tensors, "output", i, artifact.outputs) for i in range(count))
    except KeyError as error:
        raise ArtifactError(f"{layout.GOLDEN_NAME} lacks tensor {error}") from error
    return Golden(inputs, outputs)


def _sample(
    tensors: Mapping[str, np.ndarray], kind: str, index: int, specs: tuple[TensorSpec, ...]
) -> dict[str, np.ndarray]:
    sample = {spec.name: tensors[f"{kind}.{index}.{spec.name}"] for spec in specs}
    for spec in specs:
        shape = sample[spec.name].shape
        if not spec.accepts(shape):
            raise ArtifactError(f"{layout.GOLDEN_NAME}: {kind} {index} of shape {list(shape)} does not fit {spec}")
    return sample


@dataclass(frozen=True)
class _ProfileRecord:
    artifact: str
    profile: Profile


def _read_profile(path: Path, fingerprint: str) -> Profile | None:
    if not path.is_file() or path.is_symlink():
        return None
    # records of builds that kept means: the figure is read as what a runtime without single runs tells
    text = read_bytes(path, limit=MAX_JSON_BYTES).replace(b'"mean_us"', b'"median_us"')
    hint = "run `deploykit profile --save` again"
    record = decode_json(text, _ProfileRecord, what=path.name, hint=hint, verdict="is damaged")
    if record.artifact != fingerprint:
        raise ArtifactError(f"{path.name} belongs to another artifact", hint="run `deploykit profile --save` again")
    return record.profile
