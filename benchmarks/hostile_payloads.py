"""Altered payloads whose hashes fit, as a forger writes them, handed to the real runtimes: what comes back.

python benchmarks/hostile_payloads.py x86-cpu x86-cpu:openvino android x86-cpu:aotinductor [--count 200]

Each artifact is opened and run as a user does, in a caller's process that may die; it is then started again behind the
mutation that it died of. `refused`: a DeploykitError; `ran`: outputs came back; `raw`: another exception; `crashed`:
the caller's process died; `hung`: no answer within two minutes.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from harness import report, scratch

import deploykit
from deploykit.artifact.manifest import GOLDEN_NAME, MANIFEST_NAME
from deploykit.artifact.storage import sha256_of
from deploykit.testing import models
from deploykit.testing.conformance import batches

_HANG_S = 120.0
_HUNG = 1  # exit code of `faulthandler`


def altered(data: bytes, rng: random.Random) -> bytes:
    """One to eight bytes set at random, a part left out, doubled, or filled with zeros or ones."""
    place, length = rng.randrange(len(data)), rng.choice([1, 4, 64, 4096])
    kind = rng.randrange(8)
    if kind < 4:
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(changed)
    if kind == 4:
        return data[:place]
    if kind == 5:
        return data[:place] + data[place + length :]
    if kind == 6:
        return data[:place] + data[place : place + length] + data[place:]
    return data[:place] + rng.choice([b"\x00", b"\xff"]) * len(data[place : place + length]) + data[place + length :]


def forge(whole: Path, folder: Path, seed: str) -> None:
    """A copy of an artifact with one payload file altered and its manifest made to fit."""
    rng = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    payload = [entry for entry in manifest["files"] if entry["path"] != GOLDEN_NAME and entry["size"]]
    entry = rng.choice(payload)
    path = folder / entry["path"]
    path.write_bytes(altered(path.read_bytes(), rng))
    entry.update(size=path.stat().st_size, sha256=sha256_of(path))
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def call(whole: Path, first: int, count: int) -> None:
    """The caller's process: opens and runs one forged artifact after the other, and says of each what came of it."""
    feeds = deploykit.load(whole).golden().inputs[0]
    for index in range(first, count):
        faulthandler.dump_traceback_later(_HANG_S, exit=True)
        forge(whole, whole.with_name("forged"), str(index))
        try:
            with deploykit.load(whole.with_name("forged"), allow_native=True).open(threads=1) as session:
                session.run(feeds)
            said = "ran"
        except deploykit.DeploykitError as error:
            said = f"refused {type(error).__name__}"
        except Exception as error:  # what is counted here
            said = f"raw {type(error).__name__}: {str(error)[:200]}"
        print(f"\nanswer {index} {json.dumps(said)}", flush=True)


def hand_over(whole: Path, count: int) -> list[str]:
    """What came of each mutation, in order."""
    answers: list[str] = []
    while len(answers) < count:
        command = [sys.executable, __file__, "--call", str(whole), str(len(answers)), str(count)]
        environment = {**os.environ, "DEPLOYKIT_CHILD_TIMEOUT_S": str(_HANG_S)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
            assert process.stdout is not None
            found = process.stdout.read().decode(errors="replace").splitlines()
        answers += [json.loads(line.split(" ", 2)[2]) for line in found if line.startswith("answer ")]
        if len(answers) < count:
            code = process.returncode
            answers.append("hung" if code == _HUNG else f"crashed with {code}")
    return answers


def tried(target: str, folder: Path, count: int) -> dict[str, Any]:
    """Export a small int8 model for a target, and hand `count` forgeries of it to its runtime."""
    model, example = models.residual_cnn()
    deploykit.export(
        model, target, "int8", example_inputs=example, calibration=batches(example), output=folder / "whole",
        profile=False, progress=False,
    )  # fmt: skip
    answers = hand_over(folder / "whole", count)
    kinds = Counter(answer.split(" ")[0] for answer in answers)
    others = [f"{index}: {said}" for index, said in enumerate(answers) if said.startswith(("raw", "crashed", "hung"))]
    return {
        "target": target,
        "mutations": count,
        **{k: kinds[k] for k in ("ran", "refused", "raw", "crashed", "hung")},
    } | {"first": others[:3]}


def main() -> None:
    """Measure, print, and write results/hostile_payloads.json."""
    if sys.argv[1:2] == ["--call"]:
        call(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--count", type=int, default=200, help="mutations of each target")
    given = parser.parse_args()
    rows = []
    for target in given.targets:
        with scratch() as folder:
            rows.append(tried(target, folder, given.count))
    report("hostile_payloads", rows, notes=["raw and crashed: what a caller would see that is no DeploykitError"])


if __name__ == "__main__":
    main()
