"""What the wheel holds and asks for."""

from __future__ import annotations

import configparser
import zipfile
from email.message import Message
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

from deploykit import Precision
from deploykit.plugin.registry import toolchain

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("calibration", "fleet", "serving", "targets", "training", "trust", "tuning")
PACKAGES = {"deploykit", *(f"deploykit_{room}" for room in ROOMS)}
CORE = {"numpy", "safetensors", "msgspec", "typer", "rich", "psutil"}
TORCH_FREE = ["test", "lint", *(f"{name}-runtime" for name in ("onnxruntime", "openvino", "litert", "coreml"))]


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _requirements(metadata: Message, extra: str = "") -> set[str]:
    parsed = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    if extra:
        return {r.name for r in parsed if r.marker is not None and r.marker.evaluate({"extra": extra})}
    return {r.name for r in parsed if r.marker is None}


def test_nothing_generic_lands_on_the_top_level(names: set[str]) -> None:
    top = {PurePosixPath(name).parts[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES


def test_all_sources_and_data_are_in_and_nothing_else(names: set[str]) -> None:
    held = {name for name in names if ".dist-info/" not in name}
    bases = {"deploykit": ROOT, **{f"deploykit_{room}": ROOT / room for room in ROOMS}}
    sources = {
        path.relative_to(base).as_posix()
        for package, base in bases.items()
        for path in (base / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == sources
    expected = {".py", ".toml", ".md", ".typed", ".json", ".c", ".h", ".map", ".css", ".js"}
    assert {PurePosixPath(name).suffix for name in held} <= expected


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_types_are_shipped(names: set[str], package: str) -> None:
    assert f"{package}/py.typed" in names
    assert f"{package}/__init__.py" in names


def test_every_registered_target_ships_its_files(wheel: Path, names: set[str]) -> None:
    points = configparser.ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        path = next(path for path in names if path.endswith(".dist-info/entry_points.txt"))
        points.read_string(archive.read(path).decode())
    registered = dict(points["deploykit.targets"])
    assert {"onnxruntime", "openvino"} <= registered.keys()
    for name, value in registered.items():
        folder = value.split(":")[0].replace(".", "/")
        assert folder == f"deploykit_targets/{name.replace('-', '_')}", "the folder is called like the toolchain"
        files = ["__init__.py", "target.py", "convert.py", "session.py", "devices.toml", "README.md"]
        quantises = Precision.INT8 in toolchain(name).capabilities().precisions
        for file in [*files, "scheme.py"] if quantises else files:
            assert f"{folder}/{file}" in names, f"{name} lacks {file}"


def test_the_core_asks_for_little(metadata: Message) -> None:
    assert _requirements(metadata) == CORE


@pytest.mark.parametrize("extra", TORCH_FREE)
def test_extras_without_pytorch(metadata: Message, extra: str) -> None:
    assert "torch" not in _requirements(metadata, extra)
    assert _requirements(metadata, extra)


@pytest.mark.parametrize("extra", ["onnxruntime", "openvino", "tensorrt", "migraphx", "litert", "coreml", "tvm"])
def test_extras_for_exporting_bring_pytorch(metadata: Message, extra: str) -> None:
    assert "torch" in _requirements(metadata, extra)


def test_readme_and_licence_are_in_the_metadata(metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert str(metadata.get_payload()).startswith("# deploykit")
