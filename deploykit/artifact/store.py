"""`Artifact`: an exported model on disk, with its manifest, golden data and how to open it.

An artifact is a folder. Loading trusts nothing: no pickle, no path outside the folder, no links, sizes and hashes
checked before a runtime sees a byte. What is refused is refused with the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from deploykit.artifact import manifest as layout
from deploykit.artifact.choice import Choice, read_choice
from deploykit.artifact.golden import Golden, read_golden
from deploykit.artifact.manifest import Manifest
from deploykit.artifact.seal import Seal, sealed
from deploykit.artifact.storage import sha256_of, write_file
from deploykit.contract.achieved import Achieved
from deploykit.contract.arguments import path as path_of
from deploykit.contract.errors import ArtifactError
from deploykit.contract.precision import Evidence
from deploykit.contract.reading import MAX_JSON_BYTES, decode_json, read_bytes
from deploykit.contract.recipe import Recipe
from deploykit.contract.tensors import TensorSpec
from deploykit.judge.parity import ParityReport
from deploykit.judge.profiling import Profile

_ATTEMPTS = 20


class StoredArtifact:
    """An exported model on disk: what its manifest, records and golden data say. Opens nothing.

    Args:
        path: its folder.
        manifest: its validated manifest.
        seal: the seal of the files as they were when they were loaded; None where they are being made.
        vouched: who answers for native code that it holds, as the end of a sentence; "" for nobody: then it is opened
            only where it was made here (`deploykit.artifact.made`).
    """

    def __init__(self, path: Path, manifest: Manifest, *, seal: Seal | None = None, vouched: str = "") -> None:
        self.path = path
        self.manifest = manifest
        self.vouched = vouched
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
    def recipe(self) -> Recipe | None:
        """What was decided for it, enough to make it again: `export(model, recipe=artifact.recipe)`; None in artifacts
        that older versions wrote.
        """
        return self.manifest.recipe

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
    def manifest_digest(self) -> str:
        """sha256 of the manifest that was read, whatever lies in the folder now; of the file where none was read."""
        return self._seal.manifest if self._seal is not None and self._seal.manifest else self.fingerprint

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

    def check_unaltered(self) -> None:
        """Refuse to go on where a file is another one than was loaded; see `deploykit.artifact.seal`.

        Raises:
            ArtifactError: names the file.
        """
        if self._seal is not None:
            self._seal.check(self.manifest.files)

    def golden(self) -> Golden:
        """Read the golden inputs and outputs.

        Raises:
            ArtifactError: the file is not valid safetensors or lacks a tensor.
        """
        return read_golden(self.path / layout.GOLDEN_NAME, self.inputs, self.outputs)

    def save_profile(self, profile: Profile) -> None:
        """Keep `profile` beside the manifest (atomically)."""
        record = {"artifact": self.fingerprint, "profile": profile}
        write_file(self.path / layout.PROFILE_NAME, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")

    def __repr__(self) -> str:
        return f"<Artifact {self.target} {self.precision} {self.status} at {str(self.path)!r}>"


def read(path: str | Path, agrees: Callable[[Manifest], None]) -> tuple[Path, Manifest, Seal]:
    """Folder, manifest and seal of an artifact whose every file has the size and hash that the manifest says.

    Args:
        agrees: raises what is to be raised of a manifest that means nothing here.
    Raises:
        ArtifactError: not an artifact, damaged, truncated, with a path that leaves the folder, a link, or written by
            a newer deploykit; the message says which and what to do.
    """
    folder = path_of("path", path)
    for _ in range(_ATTEMPTS):
        before = _identity(folder)
        try:
            data = _manifest_bytes(folder)
            manifest = Manifest.from_json(data)
            agrees(manifest)
            whole = folder.resolve()
            seal = replace(check_files(whole, manifest), manifest=hashlib.sha256(data).hexdigest())
            return whole, manifest, seal
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
        raise ArtifactError(f"{str(folder)!r} is no path: it has a NUL character", hint="pass the exported folder")
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
