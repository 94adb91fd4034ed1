"""A project of a user with tiny networks, and its release file."""

from __future__ import annotations

import importlib.util
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

_CORE = Path(__file__).parents[1] / "core" / "conftest.py"
_spec = importlib.util.spec_from_file_location("deploykit_core_fixtures", _CORE)
_core = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_core)
install, toy_path, toy = _core.install, _core.toy_path, _core.toy

NETS = '''
"""Two tiny networks; every call of a factory is one line of a file."""
import os
from pathlib import Path

import torch
from torch import nn

from settings import WIDTH


def _made(name, seed):
    with open(Path(__file__).with_name("calls.txt"), "a") as file:
        file.write(name + "\\n")
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.Flatten(), nn.Linear(WIDTH * 36, 5))
    return nn.Sequential(*layers).eval(), (torch.zeros(1, 3, 8, 8),)


def one():
    return _made("one", 0)


def two():
    return _made("two", 1)


def dies():
    os.kill(os.getpid(), 9)


def refuses():
    raise ValueError("no weights today")


def exits():
    raise SystemExit(3)


def top1(session):
    data = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(5)).numpy()
    name, out = session.inputs[0].name, session.outputs[0].name
    return [float(session.run({name: row[None]})[out].argmax() == 2) for row in data]


falling = iter([1.0, 0.5])


def bad_metric(session):
    return next(falling)
'''

MODELS = """
[model.one]
factory = "nets:one"
calibration = "cal.npz"
[model.two]
factory = "nets:two"
calibration = "cal.npz"
"""

MATRIX = """
[[cell]]
models = ["one", "two"]
targets = ["x86-cpu"]
precisions = ["fp32", "int8"]
"""


@dataclass(frozen=True)
class Project:
    """The user's folder."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "release.toml"

    @property
    def store(self) -> Path:
        return self.folder / "out" / "store"

    @property
    def calls(self) -> list[str]:
        """Factories that were called, in order."""
        path = self.folder / "calls.txt"
        return path.read_text().split() if path.is_file() else []

    def write(self, cells: str = MATRIX, models: str = MODELS, settings: str = "profile = false") -> Path:
        self.file.write_text(f"[release]\n{settings}\n{models}\n{textwrap.dedent(cells)}")
        return self.file


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "settings.py").write_text("WIDTH = 8\n")
    data = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "cal.npz", input=data)
    made = Project(tmp_path)
    made.write()
    return made
