"""Families of networks, lowered for this machine: float32 against PyTorch, int8 against the simulated q/dq graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

import torch
from execution import execute, host_isa, sqnr_db
from torch import Tensor, nn

import deploykit
from deploykit.capture import capture, unroll_recurrent
from deploykit.contract.errors import ConversionError, UsageError
from deploykit.contract.host import this_host
from deploykit.testing.conformance import batches
from deploykit.testing.models import ZOO, seeded
from deploykit_calibration.observe import run_calibration
from deploykit_calibration.placement import place
from deploykit_calibration.simulate import SimulatedModel
from deploykit_targets.tvm.kernels.isa import isa
from deploykit_targets.tvm.lower import lower
from deploykit_targets.tvm.program import Program, Region
from deploykit_targets.tvm.scheme import TVM, TVM_X86


def vit_like() -> Any:
    """Patches of 8x8 by a convolution, a class token, one post-norm block of PyTorch's own, a head."""

    class VitLike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 32, 8, 8)
            self.token = nn.Parameter(torch.randn(1, 1, 32))
            self.positions = nn.Parameter(torch.randn(1, 17, 32) * 0.1)
            self.block = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=True)
            self.norm = nn.LayerNorm(32)
            self.head = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.patches(x).flatten(2).transpose(1, 2)
            rows = torch.cat([self.token.expand(x.shape[0], -1, -1), rows], 1) + self.positions
            return self.head(self.norm(self.block(rows))[:, 0])  # type: ignore[no-any-return]

    with seeded(10):
        return VitLike().eval(), (torch.randn(2, 3, 32, 32),)


MODELS = {**ZOO, "vit_like": vit_like}


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Any:
    """(captured, example inputs, feeds, float32 results)."""
    model, example = MODELS[request.param]()
    captured = unroll_recurrent(capture(model, example_inputs=example))
    feeds = {name: tensor.numpy() for name, tensor in captured.example_feeds().items()}
    wanted = {name: tensor.numpy() for name, tensor in captured.run(captured.example_feeds()).items()}
    return captured, example, feeds, wanted


def test_float32_equals_pytorch(case: Any) -> None:
    captured, _, feeds, wanted = case
    finished = lower(captured, isa(host_isa()))
    _check_memory(finished.program)
    found = execute(finished, feeds)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert sqnr_db(array, found[name]) > 100  # float32 rounding in another order


def test_int8_equals_the_simulation(case: Any) -> None:
    captured, example, feeds, _ = case
    run = run_calibration(captured, batches(example), progress=False)
    kernels = isa(host_isa())
    quantized = place(captured, run.table, TVM if kernels.int8.activation == "int8" else TVM_X86)
    simulated = SimulatedModel(captured, quantized).run(feeds)
    finished = lower(captured, kernels, quantized.graph_module)
    found = execute(finished, feeds)
    for output, array in simulated.items():
        assert sqnr_db(array, found[output]) > 60  # a unit here and there, where a sum lies at a tie
    products = [step for step in finished.program.steps if step.macs]
    placed = {layer.name: layer.precision for layer in quantized.layers}
    assert all(step.integer == (placed[step.node] == "int8") for step in products)


def _check_memory(program: Program) -> None:
    """No step writes over what it reads, and nothing lies beyond the arena."""
    for step in program.steps:
        ends = [(o.offset, o.offset + o.elements * np.dtype(o.dtype).itemsize, o.region) for o in step.operands]
        assert all(end <= program.arena_bytes for _, end, region in ends if region == Region.ARENA)
        written, read = ends[-1], ends[:-1]
        overlap = [r for r in read if r[2] == Region.ARENA and r[0] < written[1] and written[0] < r[1]]
        assert not overlap, f"{step.symbol} of {step.node} writes over what it reads"


def test_an_operator_without_kernels_names_the_line() -> None:
    class Sorts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(x, 1)[0]

    captured = capture(Sorts(), example_inputs=(torch.randn(2, 4),))
    with pytest.raises(ConversionError, match=r"aten\.sort\.default .*test_models\.py:\d+ in forward"):
        lower(captured, isa(host_isa()))


def test_a_cpu_without_vnni_multiplies_bytes_of_seven_bits(tmp_path: Path) -> None:
    """A convolution and, with all eight bits, a product of two activations; whatever x86 CPU runs this."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv1d(16, 32, 1), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).transpose(1, 2)
            return self.out(torch.softmax(y @ y.transpose(1, 2) / 6, -1) @ y)

    if not this_host().has("avx2"):
        pytest.skip("this machine has no AVX2")
    torch.manual_seed(0)
    data = [torch.randn(1, 16, 12) for _ in range(8)]
    artifact = deploykit.export(
        Attends(),
        target="x86-cpu-avx2:tvm",
        precision="int8",
        example_inputs=(data[0],),
        calibration=data,
        output=tmp_path / "out",
        profile=False,
        progress=False,
    )
    instructions = artifact.manifest.metadata["instructions"]
    assert all("vpmaddubsw" in instructions[name] for name in ("conv1d", "linear"))
    assert all("vpmaddubsw" not in instructions[name] for name in instructions if name.startswith("matmul"))
    assert artifact.parity is not None and artifact.parity.chain[1].worst.sqnr_db > 35.0  # one unit at a tie


def test_dynamic_batches_are_refused_with_a_way_out(tmp_path: Path) -> None:
    model, example = ZOO["mlp"]()
    with pytest.raises(UsageError, match="dynamic") as caught:
        deploykit.export(
            model,
            target="x86-cpu:tvm",
            precision="fp32",
            example_inputs=example,
            dynamic_batch=True,
            output=tmp_path / "out",
        )
    assert "batch size" in str(caught.value)


def test_a_model_is_trained_in_batches_and_exported_for_one_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 4))
    model, images = torch.nn.Sequential(*layers).eval(), torch.randn(16, 3, 8, 8)
    run = deploykit.qat(model, "x86-cpu:tvm", example_inputs=(images[:1],), calibration=[images], progress=False)
    with run:
        model(images[:7]).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None and bool(parameter.grad.any())
                parameter.sub_(0.1 * parameter.grad)
    artifact = run.export(output=tmp_path / "a", profile=False, progress=False)
    assert artifact.parity is not None and artifact.parity.chain[0].reference == "trained graph"
