"""The arm64 root: made once from the machine's own package sources, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit.artifact.storage import cache_folder
from deploykit.contract.errors import DeviceError, MissingDependencyError
from deploykit.places.arm_root import ArmRoot, _published, arm_root

Put = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def root() -> ArmRoot:
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("needs the Debian package qemu-user-static")
    try:
        return arm_root()
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(error.message)


def test_python_is_an_arm_one(root: ArmRoot) -> None:
    done = root.run_python("cortex-a76", "-c", "import platform, ssl; print(platform.machine())")
    assert (done.stdout, done.returncode) == ("aarch64\n", 0)


@pytest.mark.parametrize(("cpu", "part"), [("cortex-a72", "0xd08"), ("cortex-a76", "0xd0b")])
def test_programs_see_the_emulated_cpu_in_proc(root: ArmRoot, cpu: str, part: str) -> None:
    done = root.run_python(cpu, "-c", "print(open('/proc/cpuinfo').read())")
    assert f"CPU part\t: {part}" in done.stdout
    assert ("asimddp" in done.stdout) == (cpu == "cortex-a76")


def test_environment(root: ArmRoot) -> None:
    done = root.with_environment(OWN="x").run_python("max", "-c", "import os; print(os.environ['OWN'])")
    assert done.stdout == "x\n"


def test_it_is_made_once(root: ArmRoot, on_path: Put) -> None:
    on_path("apt-get", "exit 1")
    assert arm_root() == root


def test_no_packages_is_an_error_and_leaves_nothing(tmp_path: Path, on_path: Put) -> None:
    on_path("apt-get", "echo 'E: no network' >&2; exit 100")
    with pytest.raises(DeviceError, match=r"lists of arm64 packages cannot be fetched: E: no network"):
        arm_root(cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_sources_without_arm64(tmp_path: Path, on_path: Put) -> None:
    on_path("apt-get", "exit 0")
    on_path("apt-cache", "echo 'N: nothing' >&2; exit 0")
    with pytest.raises(DeviceError, match="apt knows no Python for arm64"):
        arm_root(cache=tmp_path / "cache")


def test_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependencyError, match="apt-get is needed"):
        arm_root(cache=tmp_path)


def test_who_comes_second_takes_what_the_first_made(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with _published(tmp_path / "folder") as folder:
            (folder / "file").write_text(text, encoding="ascii")
    assert (tmp_path / "folder/file").read_text(encoding="ascii") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_where_roots_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEPLOYKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "deploykit"
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
