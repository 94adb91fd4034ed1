"""Seeded mutations of everything that is read: refused in words, or read as something whole; never another exception.

`DEPLOYKIT_MUTATIONS=100000 pytest tests/core/test_mutations.py` runs more of them, `DEPLOYKIT_MUTATIONS_SEED=1` others.
No native runtime is involved; `benchmarks/hostile_payloads.py` hands altered payloads to those.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from deploykit.artifact import manifest as layout
from deploykit.artifact.choice import Candidate, Choice, read_choice
from deploykit.artifact.golden import golden_tolerance
from deploykit.artifact.manifest import Manifest
from deploykit.artifact.storage import sha256_of
from deploykit.cli.arrays import read_arrays
from deploykit.contract.errors import DeploykitError
from deploykit.plugin.artifact import Artifact, load
from deploykit.plugin.estimate import estimate, traffic_in
from deploykit_calibration import data_files
from deploykit_calibration import table as tables
from deploykit_calibration.channel_sums import ChannelSums
from deploykit_calibration.statistics import TensorStatistics
from deploykit_calibration.table import CalibrationTable

COUNT = int(os.environ.get("DEPLOYKIT_MUTATIONS", "2000"))
SEED = os.environ.get("DEPLOYKIT_MUTATIONS_SEED", "0")
HANG_S = 60
ODD = [
    *(None, True, -1, 0, 2**40, 2**63, 10**39, 1e308, -0.5, "", "\x00", "\x1b[2J", "../x", "a:b", "é" * 300, "nan"),
    *([], {}, [[]], {"a": []}, [None] * 3, {"": {"": {}}}, "0" * 64, "float32", [-1], [2**62, 2**62], "x" * 70_000),
]


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """One value of the document replaced, left out, repeated, or put under another name."""
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
    kind = rng.random()
    if kind < 0.2:
        del place[key]
    elif kind < 0.3 and isinstance(place, list):
        place *= rng.choice([2, 50])
    elif kind < 0.3:
        place[rng.choice(["", "\x00", "x" * 300, f"{key}2"])] = place.pop(key)
    elif kind < 0.4 and isinstance(place[key], int | float):
        place[key] = place[key] * rng.choice([-1, 2, 1 << 33]) + rng.choice([0, 1])
    else:
        place[key] = rng.choice(ODD)
    return json.dumps(document).encode()


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut, repeated, or nested deeply."""
    at = rng.randrange(len(data))
    if rng.random() < 0.3:  # headers are short, and where the decisions are
        at %= 200
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at]
    if kind in (1, 2):
        return data[:at] + bytes([rng.randrange(256) for _ in range(kind * kind)]) + data[at + kind * kind :]
    return data[:at] + (data[at : at + 40] if kind == 3 else b"[" * 5000) + data[at:]


def mutated(data: bytes, rng: random.Random) -> bytes:
    return mutated_json(data, rng) if data[:1] in b"{[" and rng.random() < 0.8 else mutated_bytes(data, rng)


@dataclass
class Subject:
    """Something that is read.

    Attributes:
        data: of a whole one.
        read: of the bytes of an altered one; what it returns is whole.
        mutate: for a format with hashes inside, makes bytes whose hashes fit, as a forger does.
    """

    data: bytes
    read: Callable[[bytes], object]
    mutate: Callable[[bytes, random.Random], bytes] = mutated


def at(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Reads by way of a file. A new one each time: file systems flush one that is cut to nothing and written again."""

    def written(data: bytes) -> object:
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        return read(path)

    return written


def whole(folder: Path) -> Artifact:
    artifact = load(folder)
    assert Manifest.from_json(artifact.manifest.to_json()) == artifact.manifest
    artifact.summary()
    artifact.golden()
    golden_tolerance(artifact.manifest.precision, artifact.manifest.facts.golden_min_sqnr_db)
    return artifact


def manifest(toy: Any, folder: Path) -> Subject:
    path = toy.write_artifact(folder / "a").path / layout.MANIFEST_NAME
    return Subject(path.read_bytes(), at(path, lambda _: whole(path.parent)))


def profile(toy: Any, folder: Path) -> Subject:
    path = toy.write_artifact(folder / "a", profile=toy.make_profile()).path / layout.PROFILE_NAME
    return Subject(path.read_bytes(), at(path, lambda _: whole(path.parent)))


def choice(toy: Any, folder: Path) -> Subject:
    path = toy.write_artifact(folder / "a").path / layout.CHOICE_NAME
    candidate = Candidate("toy-board", "verified", 34.5, 1000, toy.make_profile().latency_ms)
    record = Choice("toy-board", 2, (candidate, Candidate("other", "refused", reason="no kernel")))

    def read(path: Path) -> None:
        whole(path.parent)
        if read_choice(path.parent) is None:
            raise DeploykitError("a damaged record is as none")

    return Subject(msgspec.json.encode(record), at(path, read))


def golden(toy: Any, folder: Path) -> Subject:
    path = toy.write_artifact(folder / "a").path / layout.GOLDEN_NAME
    manifest = json.loads((path.parent / layout.MANIFEST_NAME).read_bytes())

    def sealed_again(path: Path) -> object:
        for entry in manifest["files"]:
            if entry["path"] == layout.GOLDEN_NAME:
                entry.update(size=path.stat().st_size, sha256=sha256_of(path))
        at(path.with_name(layout.MANIFEST_NAME), Path.touch)(json.dumps(manifest).encode())
        return whole(path.parent)

    return Subject(path.read_bytes(), at(path, sealed_again), mutated_tensors)


def mutated_tensors(data: bytes, rng: random.Random) -> bytes:
    """Also the header alone, with its length made to fit."""
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.5:
        return mutated_bytes(data, rng)
    header = mutated_json(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


ARRAYS = {"x": np.ones((40, 4), np.float32), "y": np.arange(40, dtype=np.int64).reshape(40, 1)}


def npz(folder: Path, *, packed: bool = False) -> bytes:
    (np.savez_compressed if packed else np.savez)(folder / "made.npz", **ARRAYS)
    return (folder / "made.npz").read_bytes()


def feeds_npz(_: Any, folder: Path) -> Subject:
    return Subject(npz(folder), at(folder / "feeds.npz", lambda path: read_arrays(str(path))))


def feeds_npy(_: Any, folder: Path) -> Subject:
    np.save(folder / "made.npy", ARRAYS["x"])
    return Subject((folder / "made.npy").read_bytes(), at(folder / "feeds.npy", lambda path: read_arrays(str(path))))


def feeds_safetensors(_: Any, folder: Path) -> Subject:
    path = folder / "feeds.safetensors"
    return Subject(save_tensors(ARRAYS), at(path, lambda path: read_arrays(str(path))), mutated_tensors)


def rows(path: Path) -> None:
    for batch in data_files.open_file(path, ["x", "y"])():
        assert batch.keys() == ARRAYS.keys() and all(len(array) <= 40 for array in batch.values())


def calibration_npz(_: Any, folder: Path) -> Subject:
    return Subject(npz(folder, packed=True), at(folder / "data.npz", rows))


def calibration_safetensors(_: Any, folder: Path) -> Subject:
    pytest.importorskip("torch", reason="such files are read by way of PyTorch")
    return Subject(save_tensors(ARRAYS), at(folder / "data.safetensors", rows), mutated_tensors)


def table(_: Any, folder: Path) -> Subject:
    rng = np.random.default_rng(0)
    positive = TensorStatistics.of(np.abs(rng.standard_normal(1000)).astype(np.float32))
    made = CalibrationTable(
        model_fingerprint="ab" * 32,
        data_fingerprint="1" * 64,
        samples=4,
        statistics={"x": TensorStatistics.of(rng.standard_normal(99).astype(np.float32)), "y": positive, "z": positive},
        layer_inputs={"fc": ChannelSums.of(rng.standard_normal(5), 9)},
    )

    def read(path: Path) -> None:
        found = CalibrationTable.load(path)
        assert CalibrationTable.load(found.save(folder / "again.calibration")) == found
        found.merge(made)
        for name in found.statistics:
            low, high = found.range(name, symmetric=False)
            assert math.isfinite(low) and math.isfinite(high) and low <= 0.0 <= high

    return Subject(made.save(folder / "made.calibration").read_bytes(), at(folder / "a.calibration", read), forged)


def forged(data: bytes, rng: random.Random) -> bytes:
    """A table whose digest fits what was altered: its header, or numbers of its arrays."""
    if rng.random() < 0.2:
        return mutated_tensors(data, rng)
    arrays = {name: array.copy() for name, array in load_tensors(data).items()}
    header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][tables._HEADER])
    if rng.random() < 0.4:
        header = json.loads(mutated_json(json.dumps(header).encode(), rng))
    else:
        name = rng.choice(sorted(arrays))
        array = arrays[name]
        if rng.random() < 0.2:
            arrays[name] = rng.choice([array[..., :-1], array[:0], array.astype(np.float16), array.reshape(-1)])
        else:
            values = [-1, 0, 1, 2**40, 2**62, -(2**63), *((np.nan, np.inf, -1e308) if array.dtype.kind == "f" else ())]
            array.flat[rng.randrange(array.size)] = rng.choice(values)
    if isinstance(header, dict):
        header["sha256"] = tables._digest(header, arrays)
    return save_tensors(arrays, metadata={tables._HEADER: json.dumps(header, sort_keys=True)})


def program(_: Any, folder: Path) -> Subject:
    pytest.importorskip("torch", reason="targets are not without PyTorch")
    from deploykit_targets.tvm.build import read_program
    from deploykit_targets.tvm.program import Operand, Port, Program, Region, Step

    operands = (Operand(Region.CONSTANTS, 64, 16, "int8"), Operand(Region.ARENA, 0, 16, "int8"))
    ports = [Port("x", (1, 4), "float32", 0)], [Port("y", (1, 3), "float32", 64)]
    made = Program(tuple(ports[0]), tuple(ports[1]), (Step("fc_0", operands, "fc", "matmul", 12, True),), 128, 256)
    return Subject(msgspec.json.encode(made), at(folder / "program.json", read_program))


# What targets record in a manifest's metadata, and what reads it.
METADATA: dict[str, dict[str, Any]] = {
    "x86-cpu:onnxruntime": {"traffic": {"fc": [4, 3, 12]}, "notes": ["said"]},
    "x86-cpu:openvino": {"traffic": {"fc": [4, 3, 12]}},
    "x86-cpu:aotinductor": {"torch_device": "cpu", "compiled_for": "x86_64 avx512 of torch 2.9"},
    "x86-cpu:tvm": {
        "library": {"arch": "x86_64", "isa": "avx2", "emulators": ["Haswell"], "runtime_files": {"model.so": 9}}
    },
    "litert": {
        "file": {
            "operators": {"CONV_2D": 3},
            "inputs": [{"dtype": "int8", "layout": "nhwc", "scale": 0.5, "zero_point": -3}],
            "outputs": [{"dtype": "float32"}],
            "rounded_at_run_time": ["fc"],
        }
    },
    "coreml": {
        "ops": {"conv": 3},
        "weight_bytes": 9,
        "activation_bytes": 9,
        "os_floor": "iOS 17",
        "batch_sizes": [1, 4],
        "made_for": {"units": "all"},
    },
    "jetson-orin": {"lint": {"verdict": "parses"}, "compiled": {"note": "of 10.3"}, "traffic": {"fc": [4, 3, 12]}},
    "amd-mi300x": {"lint": {"verdict": "parses"}, "notes": ["said"], "golden_min_sqnr_db": 25.0},
}


def readers_of_metadata(toolchain: str) -> list[tuple[Any, str | None]]:
    from deploykit_targets._on_device import target as built
    from deploykit_targets.aotinductor import session as aotinductor
    from deploykit_targets.coreml import session as coreml
    from deploykit_targets.coreml import target as coreml_target
    from deploykit_targets.litert import session as litert
    from deploykit_targets.litert import target as litert_target
    from deploykit_targets.tvm import build

    own: dict[str, list[tuple[Any, str | None]]] = {
        "aotinductor": [(aotinductor.Compiled, None)],
        "coreml": [(coreml.MadeFor, None), (coreml_target._Facts, None), (coreml_target._BatchSizes, None)],
        "litert": [(litert.Interface, "file"), (litert_target.Operators, "file")],
        "migraphx": [(built._Verdict, "lint")],
        "tensorrt": [(built._Verdict, "lint"), (built._Compiled, built.COMPILED)],
        "tvm": [(build.Recorded, build.METADATA)],
    }
    return [(layout.Facts, None), *own.get(toolchain, [])]


def metadata(target: str) -> Callable[[Any, Path], Subject]:
    def subject(toy: Any, folder: Path) -> Subject:
        from deploykit.plugin.registry import resolve

        pytest.importorskip("torch", reason="targets are not without PyTorch")
        meant = resolve(target)
        names = {"target": target, "toolchain": meant.target.name, "device": meant.device.name}
        build = layout.PendingBuild("deploykit build .", "there is no device") if "sm" in meant.device.arch else None
        path = toy.write_artifact(folder / "a", **names, build=build, metadata=METADATA[target]).path
        document = json.loads((path / layout.MANIFEST_NAME).read_bytes())
        readers = readers_of_metadata(meant.target.name)

        def read(data: bytes) -> None:
            document["metadata"] = json.loads(data)
            at(path / layout.MANIFEST_NAME, Path.touch)(json.dumps(document).encode())
            artifact = load(path)
            with refusals() as refused:
                for kind, key in readers:
                    with refused():
                        artifact.manifest.recorded(kind, key)
                with refused():
                    artifact.summary()
                with refused():
                    traffic_in(artifact)
                with refused():
                    golden_tolerance(artifact.manifest.precision, artifact.manifest.facts.golden_min_sqnr_db)
                if meant.device.peak_tops:
                    with refused():
                        estimate(artifact, meant.device)

        return Subject(json.dumps(METADATA[target]).encode(), read, mutated_json)

    return subject


@contextmanager
def refusals() -> Iterator[Callable[[], Any]]:
    """Everything inside is asked, whatever of it refuses; the first refusal is raised at the end."""
    found: list[DeploykitError] = []

    @contextmanager
    def refused() -> Iterator[None]:
        try:
            yield
        except DeploykitError as error:
            found.append(error)

    yield refused
    if found:
        raise found[0]


SUBJECTS: dict[str, Callable[[Any, Path], Subject]] = {
    **{each.__name__: each for each in (manifest, profile, choice, golden, table, program)},
    **{each.__name__: each for each in (feeds_npz, feeds_npy, feeds_safetensors)},
    **{each.__name__: each for each in (calibration_npz, calibration_safetensors)},
    **{f"metadata of {target}": metadata(target) for target in METADATA},
}


@contextmanager
def alarm(what: Callable[[], str]) -> Iterator[None]:
    def hang(*_: object) -> None:
        raise TimeoutError(f"hangs: {what()}")

    before = signal.signal(signal.SIGALRM, hang)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # zipfile and NumPy, of junk
@pytest.mark.parametrize("name", SUBJECTS)
def test_no_mutation_raises_anything_but_our_own(toy, tmp_path, monkeypatch, name):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a table is written again; its durability is not looked at here
    subject = SUBJECTS[name](toy, tmp_path)
    subject.read(subject.data)
    rng, count, refused = random.Random(f"{name} {SEED}"), math.ceil(COUNT / len(SUBJECTS)), 0
    with alarm(lambda: f"mutation {turn} of {name}"):
        for turn in range(count):
            data = subject.mutate(subject.data, rng)
            signal.alarm(HANG_S)
            try:
                subject.read(data)
            except DeploykitError:
                refused += 1
            except Exception as error:
                error.add_note(f"mutation {turn} of {name}: {data[:2000]!r}")
                raise
    assert refused, "something is refused"
