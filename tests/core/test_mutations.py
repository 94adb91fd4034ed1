"""Seeded mutations of everything that is read: refused in words, or read; never another exception.

`DEPLOYKIT_MUTATIONS=100000 pytest tests/core/test_mutations.py` runs more of them.
"""

import json
import os
import random
from pathlib import Path

import pytest

from deploykit import manifest as layout
from deploykit.artifact import load
from deploykit.cli.commands.run import _read
from deploykit.errors import DeploykitError
from deploykit.storage import sha256_of

COUNT = int(os.environ.get("DEPLOYKIT_MUTATIONS", "1000"))
ODD = [None, True, -1, 2**63, 10**39, 1e308, "", "\x00", "\x1b[2J", "../x", "é" * 300, [], {}, [[]], {"a": []}]


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """One value of the document replaced, or left out."""
    document = json.loads(data)
    place, key = document, None
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return data
        key = rng.choice(list(keys))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(ODD)
    return json.dumps(document).encode()


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut, repeated, or nested deeply."""
    at = rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    return data[:at] + (data[at : at + 40] if kind == 2 else b"[" * 5000) + data[at:]


def read_all(folder: Path) -> None:
    artifact = load(folder)
    artifact.summary()
    artifact.golden()


@pytest.mark.parametrize("name", [layout.MANIFEST_NAME, layout.PROFILE_NAME, layout.GOLDEN_NAME, "feeds.npz"])
def test_no_mutation_raises_anything_but_our_own(toy, tmp_path, name):
    import numpy as np

    folder = toy.write_artifact(tmp_path / "a", profile=toy.make_profile()).path
    path = folder / name if name != "feeds.npz" else tmp_path / name
    np.savez(tmp_path / "feeds.npz", x=np.ones((2, 4), np.float32))
    original, manifest = path.read_bytes(), json.loads((folder / layout.MANIFEST_NAME).read_bytes())
    rng, read = random.Random(name), 0
    for _ in range(max(1, COUNT // 4)):
        mutate = mutated_json if name.endswith(".json") and rng.random() < 0.7 else mutated_bytes
        path.write_bytes(mutate(original, rng))
        if name == layout.GOLDEN_NAME:  # as a forger would, so that the content is read at all
            for entry in manifest["files"]:
                if entry["path"] == name:
                    entry.update(size=path.stat().st_size, sha256=sha256_of(path))
            (folder / layout.MANIFEST_NAME).write_text(json.dumps(manifest))
        try:
            _read(str(path)) if name == "feeds.npz" else read_all(folder)
            read += 1
        except DeploykitError:
            pass
    assert read < max(1, COUNT // 4), "something is refused"
