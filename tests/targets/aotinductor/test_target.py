"""AOTInductor artifacts: what is refused without the GPU, and what a package holds."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import deploykit
from deploykit.capture import capture
from deploykit.places.first import Risk
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit.testing.lowering import median_db
from deploykit_calibration.placement import LayerPlacement
from deploykit_targets.aotinductor import AotInductorTarget
from deploykit_targets.aotinductor.count import integer_layers
from deploykit_targets.aotinductor.retype import retyped


def test_a_gpu_target_is_refused_where_the_gpu_is_not(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    model, example_inputs = models.mlp()
    with pytest.raises(deploykit.DeviceError, match="h200 is not here") as caught:
        deploykit.export(
            model, target="h200:aotinductor", precision="fp32", example_inputs=example_inputs,
            output=tmp_path / "never", progress=False,
        )  # fmt: skip
    assert "TensorRT" in str(caught.value.hint)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: a GPU package is compiled on the GPU")
def test_a_gpu_package_runs_and_is_measured(tmp_path: Path) -> None:
    model, example_inputs = models.mlp()
    artifact = deploykit.export(
        model, target="h200:aotinductor", precision="bf16", example_inputs=example_inputs,
        output=tmp_path / "a", progress=False,
    )  # fmt: skip
    assert artifact.profile is not None and artifact.profile.latency_ms.p50 > 0.0


def test_a_package_holds_code_and_no_sources_of_this_machine(tmp_path: Path) -> None:
    model, example_inputs = models.mlp()
    artifact = deploykit.export(
        model, target="x86-cpu:aotinductor", precision="fp32", example_inputs=example_inputs,
        output=tmp_path / "a", progress=False, profile=False,
    )  # fmt: skip
    names = zipfile.ZipFile(artifact.entry).namelist()
    assert any(name.endswith(".so") for name in names)
    assert not any(name.endswith(".pkl") for name in names)
    with zipfile.ZipFile(artifact.entry) as archive:
        sources = [name for name in names if name.endswith(".cpp")]
        assert sources, "PyTorch before 2.13 finds the metadata by their names"
        assert all(archive.read(name) == b"" for name in sources)
        code = b"".join(archive.read(name) for name in names)
    for folder in (tempfile.gettempdir(), str(Path(torch.__file__).parent), str(tmp_path), "torchinductor_"):
        assert folder.encode() not in code, "native code that names a folder of this machine"
    assert artifact.manifest.metadata["compiled_for"].startswith("x86_64")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_narrow_graph_keeps_its_interface(dtype: torch.dtype) -> None:
    model, example_inputs = models.residual_cnn()
    captured = capture(model, example_inputs=example_inputs)
    (got,) = retyped(captured, dtype)(*example_inputs)
    (want,) = captured.graph_module(*example_inputs)
    assert got.dtype is torch.float32
    # relative rounding of 2^-11 and 2^-8, a few layers deep
    torch.testing.assert_close(got, want, rtol=0.1, atol={torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype])
    weights = [value for value in retyped(captured, dtype).state_dict().values() if value.is_floating_point()]
    assert all(value.dtype is dtype for value in weights)
    assert all(value.dtype is not dtype for value in captured.graph_module.state_dict().values())


@pytest.fixture(scope="module")
def int8_artifact(tmp_path_factory: pytest.TempPathFactory) -> deploykit.Artifact:
    model, example_inputs = models.residual_cnn()
    return deploykit.export(
        model, target="x86-cpu:aotinductor", precision="int8", example_inputs=example_inputs,
        calibration=batches(example_inputs, 16), output=tmp_path_factory.mktemp("int8") / "a", progress=False,
        profile=False,
    )  # fmt: skip


def test_int8_is_what_calls_integer_kernels(int8_artifact: deploykit.Artifact) -> None:
    achieved = int8_artifact.achieved
    assert {layer.precision for layer in achieved.layers if layer.macs} == {"int8"}
    assert achieved.source == "the compiler's generated code"


def test_int8_computes_what_was_simulated(int8_artifact: deploykit.Artifact) -> None:
    parity = int8_artifact.parity
    assert parity is not None
    # integers are the same; what is left is the order of float additions
    assert next(median_db(link) for link in parity.chain if "simulated" in link.reference) > 100.0


def call(kind: str, scales: str) -> str:
    return (
        f"    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__q{kind}_pointwise_tensor(buf0, x_scale, x_zp, p0, {scales}));"
    )


@pytest.mark.parametrize(
    ("calls", "integer"),
    [
        ([call("conv", "a_weight_scale, a_weight_zero_point"), call("conv", "b_weight_scale_0, z")], {"a", "b"}),
        ([call("conv", "a_weight_scale, a_weight_zero_point"), call("conv", "buf2, buf3")], {"a", "b"}),
        ([call("conv", "buf2, buf3")], set()),
        ([call("linear", "c_weight_scale, z"), "aoti_torch_cpu_bmm_out(buf1, a_weight_scale)"], {"c"}),
        ([], set()),
    ],
    ids=["by name", "the only one left", "one of two", "other kernels", "none"],
)
def test_calls_are_ascribed_to_layers(tmp_path: Path, calls: list[str], integer: set[str]) -> None:
    package = tmp_path / "model.pt2"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("model/data/wrapper.cpp", "\n".join(calls))
    layers = [
        LayerPlacement(name, name, kind, 1, 1, "int8", "")
        for name, kind in {"a": "conv", "b": "conv", "c": "linear"}.items()
    ]
    assert integer_layers(package, layers) == integer


@pytest.mark.parametrize(("calls", "integer"), [(2, {"a", "b"}), (1, set())])
def test_layers_that_share_a_weight_are_called_as_often(calls: int, integer: set[str], tmp_path: Path) -> None:
    package = tmp_path / "model.pt2"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("model/wrapper.cpp", "aoti_torch_cpu__qlinear_pointwise(x, a_weight_scale);\n" * calls)
    layers = [LayerPlacement(name, name, "linear", 1, 1, "int8", "") for name in ("a", "b")]
    assert integer_layers(package, layers, {"a": "a", "b": "a"}) == integer


@pytest.mark.parametrize(("device", "runtime"), [("cpu", "package"), ("cuda", "package"), ("cpu", "compile")])
def test_packages_are_code_wherever_they_run(device: str, runtime: str) -> None:
    manifest = SimpleNamespace(options={"runtime": runtime}, metadata={"torch_device": device})
    risk = AotInductorTarget().risk(SimpleNamespace(manifest=manifest))  # type: ignore[arg-type]
    assert risk is (Risk.CODE if runtime == "package" else Risk.NONE)


def test_a_program_is_compiled_when_it_is_opened(tmp_path: Path) -> None:
    model, example_inputs = models.mlp()
    artifact = deploykit.export(
        model, target="x86-cpu:aotinductor", precision="bf16", example_inputs=example_inputs,
        options={"runtime": "compile"}, output=tmp_path / "a", progress=False, profile=False,
    )  # fmt: skip
    assert artifact.entry.name == "program.pt2" and artifact.achieved.macs_fraction("bfloat16") == 1.0
    assert artifact.parity is not None and artifact.parity.passed
    with artifact.open() as opened:
        feeds = artifact.golden().inputs[0]
        first = opened.run(feeds)
        kept = {name: array.copy() for name, array in first.items()}
        opened.run({name: array * 2 for name, array in feeds.items()})
        assert all((first[name] == kept[name]).all() for name in kept), "results are the caller's"


def test_a_program_has_no_int8_and_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    model, inputs = models.mlp()
    given = {"example_inputs": inputs, "calibration": "synthetic", "output": tmp_path / "a", "progress": False}
    with pytest.raises(deploykit.UnsupportedPrecisionError, match="no int8"):
        deploykit.export(model, target="x86-cpu:aotinductor", precision="int8", options={"runtime": "compile"}, **given)
    with pytest.raises(deploykit.UsageError, match="runtime"):
        deploykit.export(model, target="x86-cpu:aotinductor", precision="fp32", options={"runtime": "jit"}, **given)
