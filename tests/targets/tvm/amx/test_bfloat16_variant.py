"""The variant that multiplies matrices of bfloat16 in tiles: chosen by CPUID, and what AVX512-BF16 computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

from emulated import with_tiles
from test_variant import MODELS, SCRIPT

import deploykit
from deploykit.contract.decibels import sqnr_db
from deploykit_targets.tvm import processor
from deploykit_targets.tvm.build import recorded


@pytest.mark.parametrize("name", ["ragged", pytest.param("transformer", marks=pytest.mark.nightly)])
def test_tiles_compute_what_vectors_do(
    name: str, amx_emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside tiles run steps that AVX-512 widens or AVX512-BF16 has: the latter is beneath, or the test skips."""
    kinds = processor.X86_BFLOAT16
    if not all(map(processor.this_host().has, dict(kinds)["avx512_bf16"])):
        pytest.skip("this CPU has no AVX512-BF16, which kernels with tiles use beside them")
    monkeypatch.setattr(processor, "X86_BFLOAT16", kinds[:2])  # both that are compared
    model, example = MODELS[name]()
    artifact = deploykit.export(
        model,
        target="x86-cpu:tvm",
        precision="bf16",
        example_inputs=example,
        output=tmp_path / "model",
        profile=False,
        progress=False,
    )
    names = [variant.isa for variant in recorded(artifact).variants]
    assert names == ["amx_bf16", "avx512_bf16"]
    assert any("tdpbf16ps" in said for said in artifact.manifest.metadata["instructions"].values())
    feeds = artifact.golden().inputs[0]
    np.savez(tmp_path / "feeds.npz", **feeds)
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    arguments = (tmp_path / "script.py", json.dumps(names), tmp_path / "feeds.npz", "2")
    variant, products, outputs = json.loads(with_tiles(amx_emulator, artifact.path, tmp_path, *arguments))
    assert variant == "amx_bf16"
    assert products > 40, "the products are tiles'"
    found = dict(np.load(outputs))
    for port, wanted in artifact.golden().outputs[0].items():
        error = float(((wanted - found[port]).astype(np.float64) ** 2).sum())
        assert sqnr_db(float((wanted.astype(np.float64) ** 2).sum()), error) > 45  # sums in another order, then rounded
