"""Native code of an artifact is opened in a child process first: where it crashes, that is an error and not the end.

So is a file whose reader is known to end its process on damaged content, unless this process wrote it. A library may be
damaged, of another processor or of another version of its runtime; the system's loader, or the first run, then ends the
process with a signal. The child opens the artifact and runs it once, on zeros. What went well is remembered for this
machine, so that the price is paid once for each artifact.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.artifact.storage import cache_folder
from deploykit.contract.errors import DeviceError
from deploykit.contract.host import this_host
from deploykit.places.process import Process, ending, module_command, time_limit

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.contract.tensors import TensorSpec

PROBING = "DEPLOYKIT_PROBING"
_TIMEOUT_S = 600.0
_known: set[str] = set()


def probe(artifact: StoredArtifact, *, threads: int) -> None:
    """Open an artifact in a child process, unless that went well before.

    Raises:
        DeviceError: the child crashed, or did not end.
    """
    key = _key(artifact)
    mark = cache_folder() / "opened" / key
    if PROBING in os.environ or key in _known or mark.exists():
        return
    with tempfile.TemporaryDirectory(prefix="deploykit-probe-") as folder:
        manifest = Path(folder) / "manifest.json"
        manifest.write_bytes(artifact.manifest.to_json())
        child = Process(
            module_command(__name__, artifact.path, manifest, str(threads)),
            what=f"the process that opens {artifact.path.name} first",
            timeout_s=time_limit(_TIMEOUT_S),
            environment={**os.environ, PROBING: "1"},
            answers=False,
        )
        try:
            code = child.finish()
            said = child.log.strip()[-1500:]
        finally:
            child.close()
    if code < 0:
        message = f"{artifact.path.name} cannot be opened here: the process that opened and ran it first {ending(code)}"
        hint = "copy the artifact again, or export it again, for this processor" + (f"\n{said}" if said else "")
        raise DeviceError(message, hint=hint)
    _known.add(key)
    with contextlib.suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def trust(artifact: StoredArtifact) -> None:
    """Take an artifact that this process has written as opened well: its reader needs no child for it."""
    _known.add(_key(artifact))


def _key(artifact: StoredArtifact) -> str:
    files = sorted(
        (entry.path, entry.sha256) for entry in artifact.manifest.files if entry.path != "golden.safetensors"
    )
    facts = [files, artifact.manifest.toolchain, this_host().arch, this_host().isa, sys.version, _versions()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _versions() -> dict[str, str]:
    from deploykit.contract.optional import versions

    return versions("torch", "numpy", "deploykit")


def zeros(specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    """Zeros of every input; dynamic axes have one element."""
    return {s.name: np.zeros([n if isinstance(n, int) else 1 for n in s.shape], s.dtype) for s in specs}


def main(folder: Path, manifest: Path, threads: int) -> None:
    """The child: open, and run once. What it raises is for the parent's own attempt to say."""
    from deploykit.artifact.manifest import Manifest
    from deploykit.plugin.artifact import Artifact

    artifact = Artifact(folder, Manifest.from_json(manifest.read_bytes()))
    with artifact.open(threads=threads) as session:
        session.run(zeros(session.inputs))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
