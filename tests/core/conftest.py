"""The toy toolchain for tests of the core, registered as a third party's plugin would be: by a `.dist-info` folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploykit.plugin import registry

TOY_FOLDER = Path(__file__).parent / "toy"
TOY = {"toy": "toy_toolchain:ToyTarget", "absent": "toy_toolchain:AbsentTarget"}


def write_distribution(folder: Path, name: str, entries: dict[str, str], group: str = registry.GROUP) -> Path:
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {value}" for key, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    return folder


@pytest.fixture
def install(tmp_path_factory, monkeypatch) -> Iterator[Callable[..., Path]]:
    """Register plugins for one test: `install("a-distribution", {"name": "module:Class"})`; returns the folder."""

    def add(name: str, entries: dict[str, str], group: str = registry.GROUP) -> Path:
        folder = write_distribution(tmp_path_factory.mktemp("site"), name, entries, group)
        monkeypatch.syspath_prepend(folder)
        registry._plugins.cache_clear()
        return folder

    yield add
    registry._plugins.cache_clear()


@pytest.fixture
def toy_path(install, monkeypatch) -> list[Path]:
    """The toy toolchain and one whose packages are missing; returns what a child process needs on PYTHONPATH."""
    monkeypatch.syspath_prepend(TOY_FOLDER)
    return [install("toy-plugin", TOY), TOY_FOLDER]


@pytest.fixture
def toy(toy_path):
    """The module of the toy toolchain, registered."""
    import toy_toolchain

    return toy_toolchain
