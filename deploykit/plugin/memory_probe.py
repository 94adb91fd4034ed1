"""Child process of `profiling.peak_memory_bytes`: open an artifact, run its golden inputs, print the growth in JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(path: str) -> None:
    """Print `{"peak_memory_bytes": n}`: peak resident memory minus what it was before the runtime was loaded."""
    import psutil

    from deploykit.artifact import manifest as layout
    from deploykit.artifact.manifest import Manifest
    from deploykit.contract.reading import MAX_JSON_BYTES, read_bytes
    from deploykit.plugin.artifact import Artifact

    folder = Path(path)
    artifact = Artifact(folder, Manifest.from_json(read_bytes(folder / layout.MANIFEST_NAME, limit=MAX_JSON_BYTES)))
    golden = artifact.golden()
    before = psutil.Process().memory_info().rss
    with artifact.open() as session:
        for feeds in golden.inputs * 2:
            session.run(feeds)
    print(json.dumps({"peak_memory_bytes": max(0, _peak_bytes() - before)}))


def _peak_bytes() -> int:
    """Peak resident memory of this program.

    On Linux from VmHWM, because `ru_maxrss` of a child also counts what its parent had before the exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main(sys.argv[1])
