"""Models in bfloat16: against the graph that rounds where kernels do, and one artifact for every CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

import execution
import torch
from old_cpu import opened_without_vnni
from torch import Tensor, nn

import deploykit
from deploykit.capture import capture
from deploykit.contract.errors import DeviceError, UnsupportedPrecisionError
from deploykit.contract.host import this_host
from deploykit.places import Qemu
from deploykit.testing.models import ZOO
from deploykit_targets.tvm import TvmTarget
from deploykit_targets.tvm.bfloat16 import in_bfloat16, is_narrowing, is_widening
from deploykit_targets.tvm.build import CONSTANTS, recorded
from deploykit_targets.tvm.kernels.isa import isa
from deploykit_targets.tvm.lower import lower
from deploykit_targets.tvm.native import Model
from deploykit_targets.tvm.processor import ARM_BFLOAT16, X86_BFLOAT16
from deploykit_targets.tvm.session import NativeSession

X86_NAMES, ARM_NAMES = ([name for name, _ in kinds] for kinds in (X86_BFLOAT16, ARM_BFLOAT16))
IS_X86 = this_host().has("avx2")


class Blocks(nn.Module):
    """What products read comes from everywhere: an image, a sum, a pool, a concatenation, arithmetic, a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 3, 1, 1), nn.Conv2d(16, 24, 1)
        self.depthwise = nn.Conv2d(48, 48, 3, 1, 1, groups=48)
        self.back = nn.ConvTranspose2d(48, 7, 2, 2)
        self.query, self.up, self.down = nn.Linear(7, 7), nn.Linear(7, 30), nn.Linear(30, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2) - 0.5
        x = torch.cat([self.left(x) + self.right(x), torch.sigmoid(self.right(x))], 1)
        x = self.back(nn.functional.relu6(self.depthwise(x)) + x)
        rows = x.flatten(2).transpose(1, 2)
        scores = torch.softmax(self.query(rows) @ rows.transpose(1, 2) / 3, -1) @ rows
        return rows + scores + self.down(nn.functional.gelu(self.up(nn.functional.layer_norm(scores, (7,)))))


def test_kernels_compute_what_the_rounded_graph_says(monkeypatch: pytest.MonkeyPatch) -> None:
    if not IS_X86:
        pytest.skip("this is no x86 CPU with AVX2")
    name = next(n for n, features in X86_BFLOAT16 if n != "amx_bf16" and all(map(this_host().has, features)))
    torch.manual_seed(0)
    captured = capture(Blocks().eval(), example_inputs=(torch.randn(2, 3, 24, 24),))
    graph = in_bfloat16(captured.graph_module)
    feeds = captured.example_feeds()
    with torch.no_grad():
        (rounded,), (exact,) = graph(*feeds.values()), captured.run(feeds).values()
    monkeypatch.setattr(execution, "host_isa", lambda: name)
    finished = lower(captured, isa(name), graph)
    (found,) = execution.execute(finished, {key: tensor.numpy() for key, tensor in feeds.items()}).values()
    assert execution.sqnr_db(rounded, found) > 65  # a tie here and there is rounded the other way
    assert 35 < execution.sqnr_db(exact, found) < 60  # eight bits
    products = [step for step in finished.program.steps if step.macs]
    assert len(products) == 10 and all(step.computes == "bfloat16" for step in products)


def test_what_products_read_is_rounded_once_and_nothing_else() -> None:
    torch.manual_seed(0)
    captured = capture(Blocks().eval(), example_inputs=(torch.randn(1, 3, 24, 24),))
    before = str(captured.graph_module.graph)
    graph = in_bfloat16(captured.graph_module).graph
    assert str(captured.graph_module.graph) == before, "the captured graph stays as it is"
    rounded = [node.args[0] for node in graph.nodes if is_narrowing(node)]
    assert len(set(rounded)) == len(rounded)
    kinds = {str(node.target) for node in rounded if node.op == "call_function"}
    assert kinds.isdisjoint({"aten.max_pool2d.default", "aten.cat.default", "aten.flatten.using_ints"})
    assert {"aten.gelu.default", "aten.sigmoid.default", "aten.softmax.int"} < kinds
    norm = next(node for node in graph.nodes if "layer_norm" in str(node.target))
    assert not is_widening(norm.args[0]), "what no product reads stays float32"


def test_what_is_added_to_a_normalised_stream_is_not_rounded() -> None:
    class PostNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x) + x)
            return self.second(x) + x

    captured = capture(PostNorm(), example_inputs=(torch.randn(2, 8),))
    nodes = list(in_bfloat16(captured.graph_module).graph.nodes)
    sums = [node for node in nodes if "add" in str(node.target)]
    products = [node for node in nodes if "linear" in str(node.target)]
    assert len(sums) == len(products) == 2
    assert not any(is_widening(source) for node in sums for source in node.all_input_nodes)
    assert all(is_widening(node.args[0]) and is_widening(node.args[1]) for node in products)


def test_the_precision_is_declared_where_the_silicon_may_have_it() -> None:
    capabilities = TvmTarget().capabilities()
    names = {name for name, device in capabilities.devices.items() if "bf16" in device.precisions}
    assert names == {"x86-cpu", "arm-cpu", "graviton3"}
    rates = capabilities.devices["graviton3"].peak_tops
    assert rates["bf16"] == 4 * rates["fp32"]
    model, example = ZOO["mlp"]()
    with pytest.raises(UnsupportedPrecisionError, match="raspberry-pi-5"):
        deploykit.export(model, target="raspberry-pi-5", precision="bf16", example_inputs=example)


@pytest.fixture(scope="module")
def on_x86(tmp_path_factory: pytest.TempPathFactory, export_of_variants: Callable[..., Any]) -> Any:
    if not IS_X86:
        pytest.skip("this is no x86 CPU with AVX2")
    return export_of_variants("x86-cpu:tvm", tmp_path_factory.mktemp("x86") / "model", "bf16")


def test_every_x86_cpu_runs_it_and_all_variants_agree(on_x86: Any) -> None:
    library = recorded(on_x86)
    assert [variant.isa for variant in library.variants] == X86_NAMES
    assert library.isa == "avx2" and library.variants[-1].needs == ("avx2", "fma", "bmi2")
    assert on_x86.parity.evidence == "device" and on_x86.parity.passed
    assert on_x86.achieved.macs_fraction("bfloat16") == 1.0
    for variant in library.variants:
        if variant.sqnr_db is None:
            with pytest.raises(DeviceError, match="this CPU has no"):
                Model(on_x86.path, 1, X86_NAMES, variant=variant.isa)
        else:
            assert variant.sqnr_db > 40  # a tie here and there
            with NativeSession(on_x86, 2, variant=variant.isa) as session:
                _check(on_x86, session.run(on_x86.golden().inputs[0]))


def test_weights_are_half_of_float32_and_there_once(on_x86: Any) -> None:
    layers = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 72, 3), nn.Linear(72, 10)
    weights = sum(layer.weight.numel() for layer in layers)
    bytes_of_constants = recorded(on_x86).runtime_files[CONSTANTS]
    assert 2 * weights < bytes_of_constants < 3 * weights, "columns fill vectors, and narrow layers are packed twice"


def test_instructions_are_in_the_manifest(on_x86: Any) -> None:
    said = on_x86.manifest.metadata["instructions"]
    assert all("vdpbf16ps" in said[name].split(";")[1] for name in ("conv2d", "conv2d_2", "linear"))
    assert "tdpbf16ps" in said["conv2d_2"].split(";")[0], "96 inputs fill matrices"
    assert "bf16ps" not in said["conv2d_1"], "a depthwise layer is as fast in float32 registers"
    assert all("bf16ps" not in part for name in said for part in said[name].split(";")[2:])


def test_a_cpu_without_bfloat16_widens_it(on_x86: Any, tmp_path: Path) -> None:
    variant, found = opened_without_vnni(on_x86, X86_NAMES, tmp_path)
    assert variant == "avx2"
    _check(on_x86, found)


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory: pytest.TempPathFactory, export_of_variants: Callable[..., Any]) -> Any:
    if not all(map(shutil.which, ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"))):
        pytest.skip("needs the Debian packages gcc-aarch64-linux-gnu and qemu-user-static")
    return export_of_variants("arm-cpu:tvm", tmp_path_factory.mktemp("arm") / "model", "bf16")


def test_every_arm_cpu_runs_it(on_arm: Any) -> None:
    library = recorded(on_arm)
    assert [variant.isa for variant in library.variants] == ARM_NAMES
    assert all(variant.sqnr_db is not None and variant.sqnr_db > 40 for variant in library.variants)
    assert on_arm.parity.evidence == "emulator" and on_arm.parity.passed
    sizes = [variant.constant_bytes for variant in library.variants]
    assert library.runtime_files[CONSTANTS] < 1.02 * max(sizes), "both read the same weights"
    said = on_arm.manifest.metadata["instructions"]
    assert "bfmmla" in said["conv2d"] and "bfdot" in said["linear"]


@pytest.mark.parametrize(("cpu", "variant"), [("max", "neon_bf16"), ("cortex-a72", "neon")])
def test_an_arm_cpu_takes_its_best(on_arm: Any, cpu: str, variant: str) -> None:
    with TvmTarget().at(Qemu(cpu)).open(on_arm, threads=2) as session:
        assert session.variant == variant  # type: ignore[attr-defined]
        _check(on_arm, session.run(on_arm.golden().inputs[0]))


def test_a_transformer_for_a_server(tmp_path: Path) -> None:
    """Products of two activations by `bfmmla`."""
    if not all(map(shutil.which, ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"))):
        pytest.skip("needs the Debian packages gcc-aarch64-linux-gnu and qemu-user-static")
    model, example = ZOO["transformer_encoder"]()
    artifact = deploykit.export(
        model, target="graviton3", precision="bf16", example_inputs=example, output=tmp_path / "out",
        profile=False, progress=False,
    )  # fmt: skip
    assert artifact.parity is not None and artifact.parity.passed
    assert artifact.achieved.macs_fraction("bfloat16") == 1.0
    said = artifact.manifest.metadata["instructions"]
    assert all("bfmmla" in said[name] for name in said if name.startswith("matmul"))


def _check(artifact: Any, found: dict[str, np.ndarray]) -> None:
    for name, wanted in artifact.golden().outputs[0].items():
        np.testing.assert_allclose(found[name], wanted, atol=0.02 * np.abs(wanted).max())
