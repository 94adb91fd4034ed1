"""An artifact computes what its simulation does on every x86 CPU: those with VNNI, and those whose sums saturate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("onnxruntime", reason="these exports run in ONNX Runtime")

import cpu_cases
from other_cpu import without_vnni

import deploykit
from deploykit.contract.host import this_host

# Emulated, each case takes seconds, and so does the start: those that a kernel of its own computes, and one of weights
# that are shared; all others at night.
_EMULATED = {"int8": ("linear", "attention", "shared_conv"), "int8-dynamic": ("lstm",)}
_AT_NIGHT = {"int8": ("groups",), "int8-dynamic": ("attention",)}
_WITHIN_DB = 1.0
_DYNAMIC_DB = 30.0  # all of them have 36 to 50 dB; saturated, 9 to 31


def check_case(found: dict[str, Any]) -> None:
    if found["simulated"] is None:
        assert found["artifact"] > _DYNAMIC_DB, found
    else:
        assert found["artifact"] > found["simulated"] - _WITHIN_DB, found
    assert found["evidence"] == "device", found  # the device is any x86-64 CPU with AVX2


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
@pytest.mark.parametrize("name", list(cpu_cases.CASES))
def test_here(name: str, precision: str, tmp_path: Path) -> None:
    artifact = cpu_cases.export(name, "x86-cpu", precision, tmp_path)
    check_case(cpu_cases.figures(artifact))
    assert artifact.verify().sqnr_db > 60.0


@pytest.mark.parametrize("cases", [_EMULATED, pytest.param(_AT_NIGHT, marks=pytest.mark.nightly)], ids=["some", "more"])
def test_without_vnni_and_back(cases: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
    """Made on a CPU without VNNI: right there, and its golden outputs are reproduced here."""
    words = [f"{precision}:{name}" for precision, names in cases.items() for name in names]
    lines = without_vnni(cpu_cases.__file__, "x86-cpu", tmp_path, *words).splitlines()
    found = {f"{case['precision']}:{case['name']}": case for case in map(json.loads, lines)}
    assert list(found) == words
    for case in found.values():
        assert not case["vnni"], "the CPU was not asked itself"
        check_case(case)
        assert any("no vnni" in note and "x86-cpu-avx2" in note for note in case["notes"]), case
        assert deploykit.load(tmp_path / case["precision"] / case["name"]).verify().sqnr_db > 60.0


_VERIFY = """
import sys, deploykit
for path in sys.argv[1:]:
    artifact = deploykit.load(path)
    print(artifact.verify().sqnr_db, artifact.preflight().verdict, sep="|")
"""


def test_made_here_verified_without_vnni(tmp_path: Path) -> None:
    made = [cpu_cases.export("attention", "x86-cpu", "int8", tmp_path)]
    made += [cpu_cases.export("lstm", "x86-cpu", "int8-dynamic", tmp_path)]
    lines = without_vnni("-c", _VERIFY, *(artifact.path for artifact in made)).splitlines()
    for line in lines:
        sqnr, verdict = line.split("|")
        assert float(sqnr) > 60.0
        assert verdict.startswith("yes; this CPU has no vnni")
    assert len(lines) == len(made)


def test_what_is_needed_is_said(tmp_path: Path) -> None:
    needs = cpu_cases.export("linear", "x86-cpu", "int8", tmp_path).requirements
    assert (needs.packages, needs.opset, needs.isa) == ({"onnxruntime": ">=1.20"}, {"ai.onnx": 21}, ())
    assert [one.isa for one in needs.best_with] == ["vnni"]
    assert not cpu_cases.export("linear", "x86-cpu-avx2", "int8", tmp_path).requirements.best_with
    assert not cpu_cases.export("linear", "x86-cpu", "fp32", tmp_path).requirements.best_with


def test_a_file_of_an_older_version_is_refused_where_it_would_saturate(tmp_path: Path, monkeypatch: Any) -> None:
    """Its products share a zero point, and ONNX Runtime opens no such file in the exact form."""
    from dataclasses import replace

    import onnx

    from deploykit.plugin.artifact import Artifact
    from deploykit_targets.onnxruntime import session

    made = cpu_cases.export("two_activations", "x86-cpu", "int8", tmp_path)
    model = onnx.load(str(made.entry))
    weights = [
        node for node in model.graph.node if node.op_type == "DequantizeLinear" and "zero_point" in node.input[2]
    ]
    for node in weights:
        node.input[2] = weights[0].input[2]
    onnx.save(model, str(made.entry))
    old = Artifact(made.path, replace(made.manifest, requirements=None))
    monkeypatch.setattr(session, "needs_exact", lambda host: host == this_host())
    refused = None
    try:
        old.open().close()
    except deploykit.DeviceError as error:  # where ONNX Runtime has two ways to sum, which is for it to say
        refused = error
    if refused is None:
        assert this_host().has("vnni") and not this_host().has("amx_int8"), "one way to sum, which is exact"
    else:
        assert "older deploykit" in str(refused) and "x86-cpu-avx2" in str(refused.hint)
