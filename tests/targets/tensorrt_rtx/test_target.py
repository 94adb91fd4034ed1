"""What an export for an RTX GPU holds, claims and refuses, without a GPU."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deploykit
from deploykit.artifact.manifest import NEEDS_DEVICE_BUILD
from deploykit.contract.precision import Evidence
from deploykit.contract.requirements import Requirements
from deploykit.plugin.artifact import Artifact
from deploykit.plugin.registry import toolchain
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit_targets._tensorrt import compiled, compiler
from deploykit_targets._tensorrt.requirements import ARCHITECTURES
from deploykit_targets.tensorrt_rtx import convert
from deploykit_targets.tensorrt_rtx.scheme import SCHEME_TURING, architectures_of

needs_compiler = pytest.mark.skipif(
    not compiler.is_installed(), reason="NVIDIA's compiler is not installed: deploykit[tensorrt-rtx]"
)
PLUGIN = toolchain("tensorrt-rtx")
DEVICES = PLUGIN.capabilities().devices


def export(
    output: Path, precision: str = "int8", *, target: str = "rtx-4090", model: Any = None, **more: Any
) -> Artifact:
    found, inputs = model or models.residual_cnn()
    given = {"calibration": batches(inputs)} if precision in ("int8", "mixed", "fp8") else {}
    return deploykit.export(
        found,
        target=target,
        precision=precision,
        example_inputs=inputs,
        output=output,
        progress=False,
        **{"profile": False, **given, **more},
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(tmp_path_factory.mktemp("ada") / "artifact", options={"compute_capabilities": ["sm_120", "sm_86"]})


@needs_compiler
def test_the_engine_is_compiled_here_for_all_that_were_asked_for(artifact: Artifact) -> None:
    assert artifact.status == NEEDS_DEVICE_BUILD and artifact.evidence is Evidence.COMPILED
    assert (artifact.path / "model.engine").stat().st_size > 10_000
    assert "model.engine" in {file.path for file in artifact.manifest.files}, "hashed like every other file"
    blueprint = json.loads((artifact.path / "blueprint.json").read_text())
    assert blueprint["compute_capabilities"] == ["sm_86", "sm_89", "sm_120"]
    assert (blueprint["library"], blueprint["engine"], blueprint["arch"]) == ("tensorrt_rtx", "model.engine", "sm_89")
    (note,) = (note for note in artifact.achieved.notes if note.startswith("compiled for"))
    assert note.startswith("compiled for sm_89, in one engine with sm_86, sm_120 (TensorRT for RTX 1.7")
    assert artifact.achieved.macs_fraction("int8") > 0.9
    build = artifact.manifest.build
    assert build is not None and "the engine is compiled, and is finished and proved on the GPU" in build.reason


@needs_compiler
def test_it_needs_the_gpu_to_run_and_says_what_to_do(artifact: Artifact) -> None:
    with pytest.raises(deploykit.DeviceError, match="build it on rtx-4090") as caught:
        artifact.open()
    assert caught.value.hint is not None and "deploykit build" in caught.value.hint
    assert artifact.parity is not None and artifact.parity.evidence is Evidence.REFERENCE
    assert any("nothing was run on the device" in note for note in artifact.parity.notes)


@needs_compiler
def test_a_build_without_a_driver_says_so(artifact: Artifact, tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(deploykit.DeviceError, match="no NVIDIA driver"):
        deploykit.build(artifact.path, output=tmp_path / "built")


@needs_compiler
@pytest.mark.parametrize("options", [{"compute_capabilities": ["sm_80"]}, {"block_size": 32}])
def test_a_build_cannot_change_what_is_of_the_export(
    artifact: Artifact, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(deploykit.UsageError, match=f"{next(iter(options))} is of the export"):
        deploykit.build(artifact.path, output=tmp_path / "built", options=options)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 3, stride=2)
        self.a, self.b = nn.Linear(16, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(torch.relu(self.conv(x)).mean((2, 3)))))


@needs_compiler
def test_turing_multiplies_linear_layers_in_int8_with_float16_around_them(tmp_path: Path) -> None:
    model = (Head(), (torch.randn(1, 3, 9, 9),))
    found = export(tmp_path / "a", target="rtx-2080", model=model)
    layers = {layer.name: layer for layer in found.achieved.layers}
    assert [layers[name].precision for name in ("linear", "linear_1", "conv2d")] == ["int8", "int8", "float16"]
    assert "no int8 convolution for Turing" in layers["conv2d"].reason
    assert SCHEME_TURING.between == "float16"


class Products(nn.Module):
    """A product of activations, one whose weights fit no block of 128, and one that a pattern keeps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.odd = nn.Linear(256, 256), nn.Linear(256, 256, bias=False), nn.Linear(96, 256)
        self.last = nn.Linear(256, 64)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x)) + self.odd(y)
        return self.last(torch.matmul(torch.softmax(torch.matmul(h, h.mT), -1), self.b(h)))


@needs_compiler
@pytest.mark.parametrize(("target", "bits"), [("rtx-4090", 4), ("rtx-3080", 8), ("rtx-2080", 8)])
def test_held_weights_are_multiplied_from_4_and_8_bits(target: str, bits: int, tmp_path: Path) -> None:
    model = (Products(), (torch.randn(1, 8, 256), torch.randn(1, 8, 96)))
    found = export(tmp_path / "a", f"int{bits}-weight-only", target=target, model=model, exclude=["last"], profile=True)
    layers = {layer.module_path: layer for layer in found.achieved.layers if layer.op == "linear"}
    assert layers["a"].precision == f"int{bits}-weights"
    assert layers["odd"].precision == "int8-weights" and ("no multiple of a block of 128" in layers["odd"].reason) is (
        bits == 4
    )
    assert layers["last"].precision == "float16" and layers["last"].by_request
    products = [layer for layer in found.achieved.layers if layer.op == "matmul"]
    assert {layer.precision for layer in products} == {"float16"} and all(layer.reason for layer in products)
    assert found.evidence is Evidence.COMPILED and found.parity is not None and found.parity.passed
    assert found.profile is not None and found.profile.evidence is Evidence.ESTIMATE
    assert PLUGIN.lint(found.entry) == (), "a file of ours keeps its own rules"


def test_blocks_are_of_the_sizes_that_the_kernels_have(tmp_path: Path) -> None:
    with pytest.raises(deploykit.UsageError, match="48"):
        export(tmp_path / "a", "int4-weight-only", options={"block_size": 48})
    with pytest.raises(deploykit.UnsupportedPrecisionError, match="rtx-2080 has no int4-weight-only"):
        export(tmp_path / "a", "int4-weight-only", target="rtx-2080")


@needs_compiler
def test_a_cnn_in_int8_on_turing_is_refused_with_what_serves_it(tmp_path: Path) -> None:
    with pytest.raises(deploykit.PlacementError, match=r"no int8 convolution for Turing; fp16 there, or .*:tensorrt"):
        export(tmp_path / "a", target="rtx-2080")


@needs_compiler
def test_what_the_compiler_refuses_is_an_error_with_module_and_source_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise deploykit.ConversionError("Cannot compile operation 'conv2d' for this")

    monkeypatch.setattr(compiled, "compile_engine", refuse)
    with pytest.raises(
        deploykit.ConversionError, match=r"compiler refuses conv2d \(aten\.conv2d\.default in conv \(test_target\.py:"
    ):
        export(tmp_path / "a", model=(Head(), (torch.randn(1, 3, 9, 9),)))
    assert not (tmp_path / "a").exists()


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (compiled, convert):
        monkeypatch.setattr(module, "is_installed", lambda: False)


def test_without_the_compiler_the_engine_is_left_to_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    found = export(tmp_path / "a", target="a100:tensorrt-rtx")
    assert found.evidence is Evidence.REFERENCE and not (found.path / "model.engine").exists()
    assert any('pip install "deploykit[tensorrt-rtx]"' in note for note in found.achieved.notes)
    build = found.manifest.build
    assert build is not None and build.reason.startswith("the engine is compiled on the GPU that runs it")
    with pytest.raises(deploykit.MissingDependencyError, match="compile for several GPUs"):
        export(tmp_path / "b", options={"compute_capabilities": ["sm_86"]})


def test_what_is_finished_at_export_needs_the_bindings_by_the_name_that_pip_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is imported as `tensorrt_rtx...`, and no distribution is called so."""

    def finished(*arguments: Any) -> Any:
        return replace(arguments[2], requirements=Requirements(gpu="sm_89", packages={"tensorrt_rtx": "==1.7.1.116"}))

    monkeypatch.setattr(convert, "build_at_export", finished)
    needs = export(tmp_path / "a", "fp16").manifest.requirements
    assert needs is not None and needs.packages == {"tensorrt_rtx_cu13_bindings": "==1.7.1.116"}


WRONG = [
    ("rtx-4090", {"compute_capabilities": ["sm_90"]}, "'sm_90' is not an architecture.*sm_89, sm_120"),
    ("rtx-4090", {"compute_capabilities": ["8.6"]}, "'8.6' is not an architecture"),
    ("rtx-4090", {"compute_capabilities": ["sm_75"]}, "Turing .* shares no engine with sm_89"),
    ("rtx-2080", {"compute_capabilities": ["sm_86"]}, "Turing .* shares no engine with sm_86"),
    ("rtx-4090", {"max_batch": 0}, "1 or more"),
    ("rtx-4090", {"shapes": ["nope"]}, "not NAME=MIN:OPT:MAX"),
    ("rtx-4090", {"dla": 0}, "unknown option dla"),
]


@pytest.mark.parametrize(("target", "options", "words"), WRONG)
def test_options_that_cannot_be_are_refused_before_the_model_is_touched(
    target: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(deploykit.UsageError) as caught:
        deploykit.export("no.such:model", target=target, precision="fp16", options=options, output=tmp_path / "never")
    assert re.search(words, f"{caught.value.message} {caught.value.hint or ''}")


def test_no_engine_is_for_a_gpu_that_lacks_the_precision(tmp_path: Path) -> None:
    with pytest.raises(deploykit.UsageError, match="sm_86 has no fp8") as caught:
        export(tmp_path / "a", "fp8", options={"compute_capabilities": ["sm_86"]})
    assert caught.value.hint is not None and "leave sm_86 out" in caught.value.hint


@pytest.mark.parametrize(("device", "precision"), [("rtx-3080", "fp8"), ("rtx-2080", "fp32"), ("rtx-2080", "bf16")])
def test_precisions_are_those_that_the_compiler_has_for_the_gpu(device: str, precision: str, tmp_path: Path) -> None:
    with pytest.raises(deploykit.UnsupportedPrecisionError, match=f"tensorrt-rtx on {device} has no {precision}"):
        deploykit.export("no.such:model", target=device, precision=precision, output=tmp_path / "never")


def test_names_alone_mean_it_for_geforce_cards_and_tensorrt_for_the_data_centre() -> None:
    meant = {info.device: info.name for info in deploykit.targets() if info.toolchain == "tensorrt-rtx"}
    assert {name for name, typed in meant.items() if typed != name} == {"a100", "l4"}
    assert meant["l4"] == "l4:tensorrt-rtx"


def test_every_device_has_an_architecture_that_is_compiled_for() -> None:
    assert {device.arch for device in DEVICES.values()} <= set(ARCHITECTURES)
    assert architectures_of(DEVICES["rtx-4090"], ["sm_120", "sm_89", "sm_80"]) == ("sm_80", "sm_89", "sm_120")


def test_rates_are_those_of_the_units_and_clocks_that_the_source_names() -> None:
    """Per SM and clock: 2048 int8 operations in every generation, a quarter of it in float16 with float32 sums."""
    checked = 0
    for device in DEVICES.values():
        found = re.search(r"(\d+) SM at (\d+) MHz.*memory: (\d+) bit at ([\d.]+) Gbit/s", device.source)
        if found is None:
            continue
        units, clock_hz, bits, gbit = int(found[1]), int(found[2]) * 1e6, int(found[3]), float(found[4])
        rates, cores = device.peak_tops, 64 if device.arch == "sm_75" else 128
        assert rates["int8"] == pytest.approx(units * clock_hz * 2048 / 1e12, rel=3e-3), device.name
        assert rates["fp16"] == pytest.approx(rates["int8"] / 4, rel=3e-3), device.name
        assert rates["fp32"] == pytest.approx(units * clock_hz * cores * 2 / 1e12, rel=3e-3), device.name
        assert device.memory_gb_per_s == pytest.approx(bits / 8 * gbit), device.name
        checked += 1
    assert checked == len(DEVICES) - 2, "all but the data-centre cards, whose data sheets say the rates"


def test_figures_that_both_toolchains_have_are_the_same() -> None:
    others = toolchain("tensorrt").capabilities().devices
    shared = DEVICES.keys() & others.keys()
    assert shared == {"a100", "l4", "rtx-2080", "rtx-2080-ti", "rtx-4090", "rtx-5090"}
    for name in shared:
        one, other = DEVICES[name], others[name]
        assert (one.arch, one.peak_tops, one.memory_gb_per_s) == (other.arch, other.peak_tops, other.memory_gb_per_s)
        assert one.last_level_cache_mib == other.last_level_cache_mib
        lacking = {"fp32"} if one.arch == "sm_75" else set()
        assert set(other.precisions) - lacking <= set(one.precisions), "weight-only is of TensorRT for RTX"
