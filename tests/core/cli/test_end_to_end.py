"""The commands in a row on a real target: export, verify, inspect, run, compare, and what a missed gate leaves."""

import importlib.metadata
import sys

import numpy as np
import pytest

from deploykit.plugin import registry

FACTORY = """
import torch
from torch import nn

def make_model():
    print("the factory talks on standard output")
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )
"""


@pytest.fixture
def project(install, tmp_path, monkeypatch):
    """A folder with a model and data, and the ONNX Runtime target, also where this checkout is not installed."""
    for module in ("torch", "onnx", "onnxruntime", "deploykit_calibration", "deploykit_targets"):
        pytest.importorskip(module)
    if not importlib.metadata.entry_points(group=registry.GROUP, name="onnxruntime"):
        install("a-checkout", {"onnxruntime": "deploykit_targets.onnxruntime:OnnxRuntimeTarget"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tiny_project.py").write_text(FACTORY)
    images = np.random.default_rng(0).standard_normal((16, 3, 8, 8), np.float32)
    np.savez(tmp_path / "data.npz", input=images, labels=np.zeros(16, np.int64))
    yield tmp_path
    sys.modules.pop("tiny_project", None)


def test_from_a_factory_to_a_comparison(cli, project):
    base = ["export", "tiny_project:make_model", "--target", "x86-cpu", "--calibration", "data.npz"]
    exported = cli(*base, "--precision", "int8", "-o", "out/int8", "--json")
    assert exported.code == 0, exported.err
    assert exported.document["status"] == "verified" and exported.document["achieved"]["macs"]["int8"] > 0
    assert exported.document["profile"]["worth_it"] > 0
    assert "the factory talks" in exported.err

    page = cli(*base, "--precision", "fp32", "-o", "out/fp32", "--no-profile")
    assert page.code == 0 and "verified" in page.out and "fp32" in page.out

    assert cli("verify", "out/int8", "--json").document["metrics"]["sqnr_db"] > 30
    shown = cli("inspect", "out/int8").out
    assert "data, 8 samples (8 more held out for parity)" in shown
    assert "samples (held-out calibration data" in shown and "that its ranges were taken from (8)" in shown
    assert "the lower end is gated" in shown and "of each sample" in shown

    assert cli("run", "out/int8", "--input", "data.npz", "--output", "scores.npz").code == 0
    with np.load(project / "scores.npz") as scores:
        assert scores["output"].shape == (16, 5)

    compared = cli("compare", "out/int8", "out/fp32", "--json").document
    int8 = compared["artifacts"][0]
    seen, held_out = "calibration data that its ranges were taken from", "held-out calibration data"
    others = {one["data"]: one["samples"] for one in int8["sqnr_db_of_others"]}
    judged = int8["parity_samples"]
    assert judged == {"data": held_out, "samples": 8}
    assert others == {seen: 8, "example inputs": 1}
    low, high = int8["sqnr_db_interval"]
    assert low <= int8["sqnr_db"] <= high and len(int8["sqnr_db_of_each_sample"]) == judged["samples"]
    assert "SQNR of other samples" in cli("compare", "out/int8", "out/fp32").out
    assert [one["precision"] for one in compared["artifacts"]] == ["int8", "fp32"]
    assert compared["artifacts"][1]["sqnr_db"] > compared["artifacts"][0]["sqnr_db"]


def test_a_missed_gate_keeps_the_candidate_and_nothing_else(cli, project):
    arguments = ["export", "tiny_project:make_model", "--calibration", "data.npz", "--no-profile", "-o", "out/x"]
    result = cli(*arguments, "--min-sqnr-db", "150", "--json")
    assert result.code == 6
    assert result.document["error"]["candidate"] == str(project / "out" / "x.failed")
    assert [path.name for path in (project / "out").iterdir()] == ["x.failed"]
    assert cli("inspect", "out/x.failed", "--json").document["status"] == "failed"


def test_what_a_user_can_get_wrong_in_a_model(cli, project):
    (project / "broken_project.py").write_text("raise ImportError('a typo')\n")
    for model, words in (
        ("tiny_project", "package.module:factory"),
        ("tiny_project:make_modle", "make_modle"),
        ("no_such_project:make", "no_such_project"),
        ("broken_project:make", "a typo"),
        ("tiny_project:torch", "torch"),
    ):
        result = cli("export", model, "--precision", "fp32", "-o", "out/x")
        assert result.code == 2 and words in result.err and "Traceback" not in result.err
    result = cli("export", "tiny_project:make_model", "--precision", "fp32", "-o", "out/x")
    assert result.code == 2 and "does not tell its inputs" in result.err
    assert not (project / "out").exists()


def test_static_int8_without_data_is_refused(cli, project):
    (project / "telling_project.py").write_text(
        "import torch\nfrom torch import nn\ndef make():\n    return nn.Linear(4, 2), (torch.ones(1, 4),)\n"
    )
    result = cli("export", "telling_project:make", "-o", "out/x")
    assert result.code == 5 and "synthetic" in result.err
    assert not (project / "out").exists()
