"""What people type for a model, and the next step that each gets."""

from __future__ import annotations

import sys

import pytest

from deploykit.capture.factories import made_by
from deploykit.contract.errors import UsageError

MODULE = """
import torch

class Net:
    def __init__(self, width): ...

def make():
    return "a model"

def needs(width):
    return width

def _hidden(): ...
"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "newcomers_model.py").write_text(MODULE)
    (tmp_path / "needy_model.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "broken_model.py").write_text("raise ValueError('no weights')\n")
    yield
    for name in ("newcomers_model", "needy_model", "broken_model"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "message", "step"),
    [
        ("w.pt", "a file of weights, which has no code", "load_state_dict"),
        ("w.safetensors", "a file of weights", "my_model:make"),
        ("w.pt", "nor is there such a file", "load_state_dict"),
        ("model.onnx", "is an ONNX file", "deploykit lint model.onnx"),
        ("net.pt2", "exported program", "torch.export.load"),
        ("net.tflite", "another framework or runtime", "nn.Module"),
        ("newcomers_model.py:make", "is a file", "give newcomers_model:make"),
        ("newcomers_model.py", "is a file", "give newcomers_model:make"),
        ("./newcomers_model:make", "is a path", "give newcomers_model:make"),
        ("./newcomers_model", "is a path", "give newcomers_model:make"),
        ("./nowhere_at_all:make", "is not of the form", "my_model:make"),
        ("src/other.py:build", "is a file", "give other:build in the folder src"),
        ("newcomers_model", "is not of the form", "newcomers_model:make"),
        ("newcomers_model:", "is not of the form", "newcomers_model:make"),
        ("nothing", "is not of the form", "such as my_model:make"),
        ("newcomers_model:mak", "has no 'mak'", "did you mean newcomers_model:make?"),
        ("newcomers_model:typo", "has no 'typo'", "it has Net, make, needs"),
        ("newcomer_model:make", "No module named", "did you mean newcomers_model:make"),
        ("needy_model:make", "no_such_package_at_all", "install it where deploykit is installed"),
        ("broken_model:make", "ValueError: no weights", "shows where it fails"),
        ("newcomers_model:needs", "failed when called", "def make(): return needs(...)"),
        ("newcomers_model:Net", "failed when called", "def make(): return Net(...)"),
        ("nowhere_at_all:f", "cannot be imported", "run from the folder"),
    ],
)
def test_the_next_step(text, message, step):
    with pytest.raises(UsageError) as caught:
        made_by(text)
    assert message in caught.value.message and step in (caught.value.hint or ""), caught.value


def test_a_factory_is_called_from_the_working_directory():
    assert made_by("newcomers_model:make") == "a model"


def test_nothing_is_unpickled(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(UsageError, match="not unpickled"):
        made_by("w.pt")
