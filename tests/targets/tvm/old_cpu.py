"""Opens an artifact as a CPU without VNNI would: in a process of its own, emulated where this CPU has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from other_cpu import without_vnni

_SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from deploykit_targets.tvm.native import Model

model = Model(Path(sys.argv[1]), 1, json.loads(sys.argv[2]))
found = model.run(dict(np.load(sys.argv[3])))
print(json.dumps([model.variant, {name: array.tolist() for name, array in found.items()}]))
"""


def opened_without_vnni(
    artifact: Any, names: Sequence[str], folder: Path
) -> tuple[str, dict[str, NDArray[np.float32]]]:
    """The variant that it takes of those in `names`, and what it computes of the first golden inputs."""
    script, feeds = folder / "script.py", folder / "feeds.npz"
    script.write_text(_SCRIPT, encoding="utf-8")
    np.savez(feeds, **artifact.golden().inputs[0])
    variant, found = json.loads(without_vnni(script, artifact.path, json.dumps(names), feeds))
    return variant, {name: np.asarray(array, np.float32) for name, array in found.items()}
