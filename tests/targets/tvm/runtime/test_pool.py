"""The thread pool under stress, as it is and under GCC's sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from deploykit_targets.tvm.runtime import table

SOURCES = Path(table.__file__).parent
HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["", "thread", "address,undefined"], ids=lambda name: name or "plain")
def stress(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs the Debian package gcc")
    program = tmp_path_factory.mktemp("stress") / "stress"
    flags = ["-std=c11", "-O1", "-g", "-pthread", f"-I{SOURCES}"]
    flags += [f"-fsanitize={request.param}"] if request.param else []
    files = [str(HERE / "pool_stress.c"), str(SOURCES / "pool.c")]
    done = subprocess.run(["gcc", *flags, "-o", str(program), *files], capture_output=True, text=True, check=False)
    if done.returncode and "cannot find" in done.stderr:
        pytest.skip(f"this GCC has no sanitizer {request.param}")
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_every_part_runs_once(stress: Path, threads: int) -> None:
    command = [str(stress), str(threads), "2000" if threads < 16 else "200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr[-3000:]
