"""What signing and checking cost beyond hashing, and whether any altered byte passes.

python benchmarks/trust.py [--flips 1000] [--mib 100] [--rounds 15]

Times are medians of rounds in which all are taken in turns, in milliseconds of processor time and of the clock. The
artifact is a payload of noise with a manifest of the `onnxruntime` target; nothing is opened. Altered bytes: of every
file and signature in the folder, and of every blob and manifest of a registry on loopback, one byte set to another
value each time.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

import deploykit
from deploykit.artifact.golden import Golden, golden_bytes
from deploykit.artifact.manifest import GOLDEN_NAME, MANIFEST_NAME, VERIFIED, Manifest
from deploykit.artifact.storage import sha256_of
from deploykit.contract.achieved import Achieved
from deploykit.contract.errors import DeploykitError
from deploykit.contract.host import this_host
from deploykit.contract.precision import Precision
from deploykit.contract.tensors import TensorSpec
from deploykit.pipeline.staging import list_files
from deploykit_trust.oci.pull import pull
from deploykit_trust.oci.push import push
from deploykit_trust.signing import sign
from deploykit_trust.verifying import check_signature

REGISTRY = Path(__file__).parents[1] / "tests" / "trust" / "registry.py"


def artifact(folder: Path, size: int) -> Path:
    """A whole artifact whose payload is noise."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(random.Random(0).randbytes(size))
    sample = {"x": np.ones((1, 4), np.float32)}
    (folder / GOLDEN_NAME).write_bytes(golden_bytes(Golden((sample,), (sample,))))
    manifest = Manifest(
        deploykit_version="0.1.0",
        target="x86-cpu",
        toolchain="onnxruntime",
        device="x86-cpu",
        precision=Precision.FP32,
        status=VERIFIED,
        entry="model.onnx",
        inputs=(TensorSpec("x", (1, 4), "float32"),),
        outputs=(TensorSpec("x", (1, 4), "float32"),),
        files=list_files(folder),
        achieved=Achieved.count("fp32", (), source="noise"),
        tool_versions={"torch": "2.13.0"},
        fingerprints={"model": "0" * 64, "recipe": "1" * 64},
    )
    (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
    return folder


def keys(folder: Path) -> tuple[Path, Path]:
    """A private key and its public one, as the README makes them."""
    private, public = folder / "k.pem", folder / "pub.pem"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]
    subprocess.run(make, check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, stderr=subprocess.DEVNULL)
    return private, public


def spent(act: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of processor time and of the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    act()
    return (time.process_time() - cpu) * 1e3, (time.perf_counter() - clock) * 1e3


def times(folder: Path, private: Path, public: Path, rounds: int) -> None:
    """Print what signing and checking take, and what they take beyond the hashing that every load does."""
    sign(folder, private)
    loaded = deploykit.load(folder)
    acts: dict[str, Callable[[], object]] = {
        "hash the files": lambda: [sha256_of(path) for path in folder.iterdir()],
        "load": lambda: deploykit.load(folder),
        "load with a key": lambda: deploykit.load(folder, key=public),
        "check the signature of what is loaded": lambda: check_signature(loaded, public),
        "sign": lambda: sign(folder, private),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in acts}
    for _ in range(rounds):
        for name, act in acts.items():
            found[name].append(spent(act))
    middle = {name: [median(one[i] for one in each) for i in (0, 1)] for name, each in found.items()}
    for name, (cpu, clock) in middle.items():
        print(f"  {name:40} {cpu:8.1f} ms of CPU {clock:8.1f} ms of the clock")
    for name, whole in (("sign", "sign"), ("load with a key", "load with a key")):
        cpu, clock = (median(b[i] - a[i] for a, b in zip(found["load"], found[whole], strict=True)) for i in (0, 1))
        print(f"  {name + ' beyond load':40} {cpu:8.1f} ms of CPU {clock:8.1f} ms of the clock")


def altered(data: bytes, rng: random.Random) -> bytes:
    """One byte set to another value."""
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    return bytes(changed)


def refused(act: Callable[[], object]) -> bool:
    """Whether it ends in an error that was meant."""
    try:
        act()
    except DeploykitError:
        return True
    return False


def flips_on_disk(folder: Path, public: Path, count: int) -> None:
    """Alter a byte of a file of the artifact, and load it with the key."""
    rng, passed, records = random.Random(1), [], {"profile.json", "convert.log", "choice.json"}
    paths = sorted(path for path in folder.iterdir() if path.name not in records)
    for number in range(count):
        path = paths[number % len(paths)]
        whole = path.read_bytes()
        path.write_bytes(altered(whole, rng))
        if not refused(lambda: deploykit.load(folder, key=public)):
            passed.append(path.name)
        path.write_bytes(whole)
    names = ", ".join(path.name for path in paths)
    print(f"  {count} bytes of {names}: {count - len(passed)} refused, {len(passed)} passed {passed or ''}")


def flips_in_registry(folder: Path, public: Path, count: int, scratch: Path) -> None:
    """Alter a byte of a blob or a manifest in a registry that serves it under the old digest, and pull it."""
    spec = importlib.util.spec_from_file_location("own_registry", REGISTRY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    registry = module.Registry().start()
    place = f"{registry.host}/team/net:v1"
    digest = push(folder, place).digest
    image, rng, passed = registry.manifests["v1"], random.Random(2), []
    blobs = {one["digest"] for one in registry.image()["layers"]}

    def serve(handler: object) -> bool:
        if not handler.path.endswith("/manifests/v1"):  # type: ignore[attr-defined]
            return False
        handler.send(200, registry.manifests["v1"], Docker_Content_Digest=digest)  # type: ignore[attr-defined]
        return True

    registry.faults.append(serve)
    things = ["manifest", *sorted(blobs)]
    whole, got = dict(registry.blobs), scratch / "got"
    for number in range(count):
        thing, signed = things[number % len(things)], number % 2
        if thing == "manifest":
            registry.manifests["v1"] = altered(image, rng)
        else:
            registry.blobs[thing] = altered(whole[thing], rng)
        if not refused(partial(pull, place, got, key=public if signed else None)) or got.exists():
            passed.append(thing)
            shutil.rmtree(got, ignore_errors=True)
        registry.blobs, registry.manifests["v1"] = dict(whole), image
    assert not refused(partial(pull, place, got, key=public)), "what is whole must pass"
    registry.stop()
    told = f"{count} bytes of the manifest and {len(blobs)} blobs in a registry, pulled with and without a key"
    print(f"  {told}: {count - len(passed)} refused, {len(passed)} passed {passed or ''}")


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    print(f"{this_host().kind}")
    with tempfile.TemporaryDirectory(prefix="deploykit-trust-") as name:
        scratch = Path(name)
        os.environ |= {"DEPLOYKIT_CACHE": str(scratch / "cache"), "DOCKER_CONFIG": str(scratch / "docker")}
        private, public = keys(scratch)
        for size in (1 << 16, given.mib << 20):
            folder = artifact(scratch / f"net{size}", size)
            print(f"an artifact of {size / 2**20:.2f} MiB:")
            times(folder, private, public, given.rounds)
        small = artifact(scratch / "small", 1 << 12)
        sign(small, private)
        print("altered bytes:")
        flips_on_disk(small, public, given.flips)
        flips_in_registry(small, public, given.flips, scratch)


if __name__ == "__main__":
    main()
