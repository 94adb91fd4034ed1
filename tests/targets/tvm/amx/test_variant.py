"""The variant of an artifact that multiplies matrices in tiles: chosen by CPUID, and the same bits as that of VNNI."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

import torch
from emulated import with_tiles
from torch import nn

import deploykit
from deploykit.testing import models
from deploykit_targets.tvm import processor
from deploykit_targets.tvm.build import recorded
from deploykit_targets.tvm.session import NativeSession

SCRIPT = """
import ctypes, json, sys
from pathlib import Path
import numpy as np
from deploykit_targets.tvm.native import Model

names, feeds, threads, folder = json.loads(sys.argv[1]), dict(np.load(sys.argv[2])), int(sys.argv[3]), Path(sys.argv[4])
model = Model(folder, threads, names)
outputs = model.run(feeds)
np.savez(folder / "outputs.npz", **outputs)
products = ctypes.CDLL(None).amx_products
products.restype = ctypes.c_ulong
print(json.dumps([model.variant, products(), str(folder / "outputs.npz")]))
"""


def ragged() -> Any:
    """Stretches that tiles fill and do not, groups, dilation, columns that 16 divides and do not, dense layers."""
    with models.seeded(4):
        convolutions = (
            *(nn.Conv2d(3, 40, 5, 2, 1), nn.ReLU(), nn.Conv2d(40, 40, 3, 1, 1, groups=40), nn.ReLU()),
            *(nn.Conv2d(40, 72, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(72, 24, 1), nn.ReLU()),
            *(nn.Conv2d(24, 48, 3, groups=2), nn.ReLU(), nn.Conv2d(48, 130, 3, 2), nn.ReLU()),
        )
        model = nn.Sequential(*convolutions, nn.Flatten(2), nn.Linear(16, 100), nn.ReLU(), nn.Linear(100, 7))
        return model.eval(), (torch.randn(1, 3, 23, 23),)


MODELS: dict[str, Callable[[], Any]] = {
    "ragged": ragged,
    "residual": models.residual_cnn,
    "transformer": models.transformer_encoder,
}


def examples(example: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, ...]]:
    (x,) = example
    generator = torch.Generator().manual_seed(1)
    if x.is_floating_point():
        return [(torch.randn(x.shape, generator=generator),) for _ in range(8)]
    return [(torch.randint(0, 64, x.shape, generator=generator),) for _ in range(8)]


@pytest.mark.parametrize(
    "name", [pytest.param("residual", marks=pytest.mark.nightly), "transformer"]
)  # the tests of kernels have more shapes, emulated, too
def test_tiles_compute_the_same_bits(
    name: str, amx_emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "X86_ISAS", processor.X86_ISAS[:2])  # both that are compared
    model, example = MODELS[name]()
    artifact = deploykit.export(
        model,
        target="x86-cpu:tvm",
        precision="int8",
        example_inputs=example,
        calibration=examples(example),
        output=tmp_path / "model",
        strict=False,
        profile=False,
        progress=False,
    )
    names = [variant.isa for variant in recorded(artifact).variants]
    assert names == ["amx_int8", "avx512_vnni"]
    feeds = artifact.golden().inputs[0]
    np.savez(tmp_path / "feeds.npz", **feeds)
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    arguments = (tmp_path / "script.py", json.dumps(names), tmp_path / "feeds.npz", "2")
    variant, products, outputs = json.loads(with_tiles(amx_emulator, artifact.path, tmp_path, *arguments))
    assert variant == "amx_int8"
    assert products > 40, "the products are tiles'"
    found = np.load(outputs)
    with NativeSession(artifact, 1, variant="avx512_vnni") as session:
        for port, wanted in session.run(feeds).items():
            np.testing.assert_array_equal(found[port], wanted)
            assert np.ptp(wanted) > 0
