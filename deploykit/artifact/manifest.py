"""`Manifest`: everything an artifact says about itself, as frozen dataclasses and as canonical JSON.

The manifest is identity: same inputs give the same bytes. What differs between two runs of the same export (timings,
converter logs) is therefore kept in records beside it (`profile.json`, `convert.log`), never in it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath, PurePosixPath
from typing import Any, TypeVar

import msgspec

from deploykit.artifact.storage import is_part
from deploykit.contract.achieved import Achieved
from deploykit.contract.errors import ArtifactError, DeploykitError
from deploykit.contract.precision import Precision, known
from deploykit.contract.reading import convert, decode_json
from deploykit.contract.recipe import Recipe
from deploykit.contract.requirements import Requirements
from deploykit.contract.tensors import TensorSpec
from deploykit.judge.parity import ParityReport

T = TypeVar("T")

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.safetensors"
PROFILE_NAME = "profile.json"
LOG_NAME = "convert.log"
CHOICE_NAME = "choice.json"
SIGNATURE_NAME = "model.sig"
LINEAGE_NAME = "lineage.sigstore.json"
UNSIGNED_NAMES = frozenset({PROFILE_NAME, LOG_NAME, CHOICE_NAME})
"""Records that a signature leaves out: they differ from run to run, and nothing is decided by them."""
RECORD_NAMES = frozenset({MANIFEST_NAME, SIGNATURE_NAME, LINEAGE_NAME, *UNSIGNED_NAMES})
BUILD_RECORD_NAMES = frozenset({"build.json", "layers.json", "model.engine", "model.mxr", "timing.cache"})
"""What a build program leaves in its folder when it is run on a device.

Another build of the artifact reads only `timing.cache`: TensorRT takes from it how fast kernels were, as data.
"""
BUILD_CACHE = "cache/"
"""The same, of ONNX Runtime's MIGraphX provider."""

_LARGEST = 1 << 62
_DIGEST = re.compile("[0-9a-f]{64}")

VERIFIED = "verified"
FAILED = "failed"
NEEDS_DEVICE_BUILD = "needs device build"


@dataclass(frozen=True)
class FileEntry:
    """One file of the artifact.

    Attributes:
        path: relative to the artifact, with forward slashes.
        size: in bytes.
        sha256: lower-case hex digest.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class CalibrationInfo:
    """Where the activation ranges came from.

    Attributes:
        source: `data`, or `synthetic` where the user asked for made-up data.
        samples: number of samples seen.
        held_out: number of samples of the data that were kept from it for parity.
        method: how ranges were chosen.
        fingerprint: sha256 over the data.
    """

    source: str
    samples: int
    method: str
    fingerprint: str
    held_out: int = 0


@dataclass(frozen=True)
class PendingBuild:
    """What is still to be done on the device before the artifact runs there.

    Attributes:
        command: the exact command, as typed in the artifact's folder.
        reason: why it could not be done here.
    """

    command: str
    reason: str

    def command_for(self, artifact: PurePath) -> str:
        """The command as it is typed from anywhere: the manifest is identity, and cannot know where it lies."""
        words = self.command.split(" ")
        return " ".join(shlex.quote(str(artifact)) if word == "." else word for word in words)


@dataclass(frozen=True)
class Facts:
    """What every lowering may record beside what only its toolchain reads; see `Manifest.facts`.

    Attributes:
        notes: what must be said beside the figures.
        golden_min_sqnr_db: SQNR in dB from which golden outputs count as reproduced on the device; None for the gate
            of the precision.
        traffic: by layer, elements of tensors between layers that it reads and writes, and bytes of the network's
            inputs and outputs that it reads and writes. Where there are but two numbers, the last is not known, and
            those inputs and outputs are not counted.
    """

    notes: tuple[str, ...] = ()
    golden_min_sqnr_db: float | None = None
    traffic: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """All that is recorded of an artifact.

    Attributes:
        schema_version: the version of this layout; a newer one is refused on load.
        deploykit_version: the version of deploykit that wrote it.
        target, toolchain, device: what the user typed, the plugin, and the device's name.
        precision: the precision that was asked for; `achieved` is what the file really computes in.
        status: `verified`, `failed` (a gate was missed), or `needs device build`.
        entry: the payload file that the runtime opens.
        inputs, outputs: specs, in order.
        files: every payload file with size and hash.
        tool_versions: distributions that took part, by name.
        fingerprints: `model`, `recipe` and, where calibrated, `calibration`; sha256 hex.
        options: the toolchain's options, as given.
        requirements: what the payload needs of a machine; None in artifacts that older versions wrote.
        min_placement: share of multiply-accumulates that was asked for on export, and that a build on the device must
            keep; None for the default of the precision.
        recipe: what was decided, enough to make the artifact again; None in artifacts that older versions wrote.
        parent: fingerprint of the artifact that this one was built from, "" for none.
    """

    deploykit_version: str
    target: str
    toolchain: str
    device: str
    precision: Precision
    status: str
    entry: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[FileEntry, ...]
    achieved: Achieved
    tool_versions: dict[str, str]
    fingerprints: dict[str, str]
    parity: ParityReport | None = None
    calibration: CalibrationInfo | None = None
    build: PendingBuild | None = None
    requirements: Requirements | None = None
    min_placement: float | None = None
    recipe: Recipe | None = None
    parent: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> bytes:
        """Canonical bytes: sorted keys, two-space indent, newline at the end."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"

    def recorded(self, kind: type[T], key: str | None = None) -> T:
        """What a target recorded in `metadata`, checked: a manifest may have been written by anybody.

        Args:
            kind: dataclass of what is read, with a default where a field may be missing; other fields are ignored.
            key: the key of the part of the metadata that is read; None for all of it.
        Raises:
            ArtifactError: a field is missing or of the wrong type.
        """
        part = self.metadata if key is None else self.metadata.get(key)
        what = f"{MANIFEST_NAME}: metadata" + (f" {key!r}" if key else "")
        return convert(part, kind, what=what, hint="export the model again")

    @property
    def facts(self) -> Facts:
        """The facts that are not the toolchain's own, checked.

        Raises:
            ArtifactError: one is of the wrong type.
        """
        return self.recorded(Facts)

    def chosen(self, kind: type[T]) -> T:
        """The `options` as a toolchain's options type, checked; see `recorded`.

        Raises:
            ArtifactError: an option is of the wrong type.
        """
        return convert(self.options, kind, what=f"{MANIFEST_NAME}: options", hint="export the model again")

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read and validate.

        Raises:
            ArtifactError: not JSON, of a newer schema, a field missing or of the wrong type, or an unsafe path;
                the message says which.
        """
        manifest = decode_json(data, cls, what=MANIFEST_NAME, hint=_hint(_checked_head(data)))
        for path in (manifest.entry, *(entry.path for entry in manifest.files)):
            check_relative(path)
        wrong = next(_mistakes(manifest), None)
        if wrong is not None:
            raise ArtifactError(f"{MANIFEST_NAME}: {wrong}", hint="export the model again")
        return manifest


def _mistakes(manifest: Manifest) -> Iterator[str]:
    """What no export writes although the types are right."""
    if manifest.status not in (VERIFIED, FAILED, NEEDS_DEVICE_BUILD):
        yield f"the status {manifest.status!r} is unknown"
    for spec in (*manifest.inputs, *manifest.outputs):
        if not spec.has_known_dtype:
            yield f"{spec} has an unknown dtype"
        if any(isinstance(size, int) and not 0 <= size <= _LARGEST for size in spec.shape):
            yield f"{spec} has an impossible shape"
    seen: set[str] = set()
    for entry in manifest.files:
        if entry.path.casefold() in seen:
            yield f"{entry.path!r} is listed twice, or is the same name to some file systems"
        seen.add(entry.path.casefold())
        if entry.path.casefold() in RECORD_NAMES:
            yield f"{entry.path!r} is the name of a record, which is written beside the manifest and not listed in it"
        if not 0 <= entry.size <= _LARGEST or not _DIGEST.fullmatch(entry.sha256):
            yield f"size or sha256 of {entry.path!r} is impossible"


@dataclass(frozen=True)
class _Head:
    """What is read before the rest, for it decides whether, and with what installed, the rest can be read."""

    schema_version: int
    precision: Any = None


def _checked_head(data: bytes) -> _Head:
    hint = "copy or export the artifact again"
    head = decode_json(data, _Head, what=f"{MANIFEST_NAME}, as an artifact's manifest,", hint=hint)
    if not 1 <= head.schema_version <= SCHEMA_VERSION:
        raise ArtifactError(
            f"{MANIFEST_NAME} has schema version {head.schema_version}; this deploykit reads versions up to"
            f" {SCHEMA_VERSION}",
            hint="pip install --upgrade deploykit",
        )
    return head


def _hint(head: _Head) -> str:
    """What to do about a manifest that cannot be read.

    Raises:
        ArtifactError: its precision is another distribution's, and broken: the decoder would only call it unknown.
    """
    try:
        unknown = isinstance(head.precision, str) and known(head.precision) is None
    except DeploykitError as error:
        raise ArtifactError(f"{MANIFEST_NAME}: {error.message}", hint=error.hint) from error
    if unknown:
        return f"install the distribution that brings precision {head.precision[:80]!r}, or export the model again"
    return "export the model again"


def is_digest(text: str) -> bool:
    """Whether it is a sha256 in lower-case hex."""
    return _DIGEST.fullmatch(text) is not None


def is_part_of_record(path: str) -> bool:
    """Whether a file is what a killed process left of writing a record; see `storage.write_file`."""
    return is_part(path, RECORD_NAMES)


def check_relative(path: str) -> None:
    """Refuse a path that could leave the artifact's folder, means different files on different systems, or makes it a
    git repository, whose settings run programs as soon as git is asked anything in there (by a shell's prompt, say).

    Raises:
        ArtifactError: absolute, empty, with `..` or `.git`, backslash, drive letter, control character or not
            normalised.
    """
    pure = PurePosixPath(path)
    parts = {part.casefold() for part in pure.parts}
    unsafe = not path or pure.is_absolute() or parts & {"..", ".git"} or re.search(r"[\\:\x00-\x1f]", path)
    if unsafe or str(pure) != path or path == ".":
        raise ArtifactError(f"the manifest names an unsafe path {path!r}; the artifact is refused")
