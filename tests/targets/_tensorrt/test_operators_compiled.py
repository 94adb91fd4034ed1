"""Every operator case through NVIDIA's compiler, in float32, float16 and, where anything is placed, int8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from lowered_cases import lowered_cases
from op_cases import CASES

from deploykit.contract.errors import ConversionError
from deploykit_targets._onnx.lint import lint, load_rules
from deploykit_targets._tensorrt import compiler
from deploykit_targets._tensorrt.listing import parse_listing

HERE = Path(__file__).parent
ARCH = "sm_86"
NOT_IN_THE_PARSER = {"bitwise_ints"}
"""Cases that the lint refuses: the parser has no bitwise operators, by its table and by the compiler."""

pytestmark = pytest.mark.skipif(
    not compiler.is_installed(), reason="NVIDIA's compiler is not installed: deploykit[tensorrt-compile]"
)


def compiled(files: list[Path], arch: str = ARCH) -> dict[str, dict[str, Any]]:
    """What the compiler said of each file; a process that dies takes only the file that it died over along."""
    found: dict[str, dict[str, Any]] = {}
    while left := [file for file in files if file.name not in found]:
        command = [sys.executable, str(HERE / "compile_many.py"), arch, *map(str, left)]
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=paths)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"file"')]
        found |= {line["file"]: line for line in lines}
        if len(lines) < len(left):
            found[left[len(lines)].name] = {"error": f"ended the process with {done.returncode}"}
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """By name of the file: how each case was placed or why it was not written, and what the compiler said of it."""
    folder = tmp_path_factory.mktemp("operators")
    written = dict(lowered_cases(folder))
    files = [folder / name for name, made in written.items() if not isinstance(made, ConversionError)]
    return written, compiled(files)


@pytest.mark.nightly
def test_every_case_compiles_in_every_precision(table: Any, record_property: Any) -> None:
    written, said = table
    refused = {name: found["error"] for name, found in said.items() if "error" in found}
    counts = Counter(name.split(".")[1] for name in said)
    record_property("compiled", dict(counts))
    assert not refused
    not_written = {name.split(".")[0] for name, made in written.items() if isinstance(made, ConversionError)}
    assert not_written == NOT_IN_THE_PARSER
    assert counts["fp32"] == counts["fp16"] == len(CASES) - len(NOT_IN_THE_PARSER)
    assert counts["int8"] > 10, "products, convolutions and attention are placed"


@pytest.mark.nightly
def test_products_that_are_placed_in_int8_multiply_in_int8(table: Any) -> None:
    written, said = table
    for name, placed in written.items():
        kinds = {} if isinstance(placed, ConversionError) else dict(placed)
        if not {"conv", "matmul", "linear"} & set(kinds):
            continue
        layers = parse_listing(said[name]["listing"])
        assert "int8" in {layer.precision for layer in layers if layer.role == "multiplies"}, name
    assert not {name for name, placed in written.items() if name.startswith("conv_transpose") and placed}, (
        "what the compiler computes in float is not placed"
    )


@pytest.mark.parametrize("op", ["ArgMax", "Softmax", "LogSoftmax", "Hardmax"])
def test_the_lint_and_the_compiler_agree_on_vectors(op: str, tmp_path: Path) -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [8])
    y = onnx.helper.make_tensor_value_info(
        "y", onnx.TensorProto.INT64 if op == "ArgMax" else x.type.tensor_type.elem_type, None
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node(op, ["x"], ["y"], axis=0)], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, tmp_path / "v.onnx")
    assert [finding.rule for finding in lint(model, load_rules("tensorrt"))] == ["vector"]
    assert "at least 2 dimensions" in compiled([tmp_path / "v.onnx"])["v.onnx"]["error"]


def test_vectors_are_lowered_as_rows(tmp_path: Path) -> None:
    cases = {
        "softmax": (lambda a: torch.softmax(a, 0), (torch.randn(8),)),
        "log_softmax": (lambda a: torch.log_softmax(a, -1), (torch.randn(8),)),
        "argmax": (lambda a: a.argmax(), (torch.randn(8),)),
        "max": (lambda a: a.max(0)[1], (torch.randn(8),)),
        "topk": (lambda a: a.topk(3)[0], (torch.randn(8),)),
    }
    written = dict(lowered_cases(tmp_path, cases, precisions=("fp32",)))
    said = compiled([tmp_path / name for name in written])
    assert {name: found.get("error") for name, found in said.items()} == dict.fromkeys(written)
