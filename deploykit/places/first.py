"""What may crash is opened in a child process first: where it crashes, that is an error and not the end.

A library may be damaged, of another processor or of another version of its runtime; the system's loader, or the first
run, then ends the process with a signal. Readers of model files are known to do the same over damaged ones. The child
opens the artifact and runs it once, on zeros. What went well is remembered for this machine, so that the price is paid
once for each artifact; what crashed is not, and is asked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from deploykit.artifact.storage import cache_folder
from deploykit.contract.errors import DeviceError
from deploykit.contract.host import this_host
from deploykit.contract.optional import versions
from deploykit.places import frames
from deploykit.places.frames import Frame
from deploykit.places.place import Child, opening
from deploykit.places.process import EndedError

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.contract.tensors import TensorSpec

_TIMEOUT_S = 600.0
_known: set[str] = set()


class Risk(Enum):
    """What opening an artifact may do to the process that opens it."""

    NONE = "nothing"
    READER = "the reader of its file is known to end the process over damaged content"
    CODE = "machine code that it holds is run"


def check_opens(artifact: StoredArtifact, risk: Risk, *, threads: int) -> None:
    """Open a risky artifact in a child process, unless that went well before.

    Raises:
        DeviceError: the child crashed, or did not end.
    """
    if risk is Risk.NONE:
        return
    key = _key(artifact)
    mark = cache_folder() / "opened" / key
    if key in _known or mark.exists():
        return
    try:
        if not _opens(artifact, threads):
            return
    except EndedError as end:
        message = f"{artifact.path.name} cannot be opened here: the process that opened and ran it first {end.how}"
        hint = "copy the artifact again, or export it again, for this processor" + (f"\n{end.said}" if end.said else "")
        raise DeviceError(message, hint=hint) from end
    _known.add(key)
    with contextlib.suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def trust(artifact: StoredArtifact, risk: Risk) -> None:
    """Take a file that this process has written as opened well: it is whole. Code may crash all the same."""
    if risk is Risk.READER:
        _known.add(_key(artifact))


def _opens(artifact: StoredArtifact, threads: int) -> bool:
    """Whether a child opens and runs it; what it refuses in words is for this process's own attempt to say."""
    peer = Child(timeout_s=_TIMEOUT_S).start(artifact)
    try:
        steps = Frame(frames.OPEN, opening(artifact, threads)), Frame(frames.RUN, {}, zeros(artifact.inputs))
        return all(peer.exchange(step).kind == frames.ANSWER for step in steps)
    finally:
        peer.close()


def _key(artifact: StoredArtifact) -> str:
    files = sorted(
        (entry.path, entry.sha256) for entry in artifact.manifest.files if entry.path != "golden.safetensors"
    )
    facts = [
        files,
        artifact.manifest.toolchain,
        this_host().arch,
        this_host().isa,
        sys.version,
        versions("torch", "numpy", "deploykit"),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def zeros(specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    """Zeros of every input; dynamic axes have one element."""
    return {s.name: np.zeros([n if isinstance(n, int) else 1 for n in s.shape], s.dtype) for s in specs}
