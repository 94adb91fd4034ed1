"""What coremltools cannot convert is an error of ours, with op, module and source line."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from conversions import NEEDS_COREMLTOOLS, convert

import deploykit
from deploykit_targets.coreml import prescan
from deploykit_targets.coreml.mil_evaluator.milproto import import_coremltools

pytestmark = NEEDS_COREMLTOOLS


class Bessel(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x) + torch.special.bessel_j1(x)


class Holder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.odd = Bessel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.odd(self.linear(x))


def test_every_op_without_a_converter_is_named_with_module_and_line(tmp_path: Path) -> None:
    with pytest.raises(deploykit.ConversionError) as caught:
        convert((Holder(), (torch.randn(1, 4),)), tmp_path)
    message = str(caught.value)
    assert "bessel_j0" in message and "bessel_j1" in message
    assert "in odd (test_prescan.py:" in message
    assert "Core ML has no form for" in message and caught.value.hint
    assert not list(tmp_path.iterdir())


def test_an_input_type_that_core_ml_lacks_is_named(tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return x * scale.to(torch.float32)

    with pytest.raises(deploykit.ConversionError, match=r"no uint32 input, which 'scale' is"):
        convert((Scaled(), (torch.randn(1, 4), torch.ones(1, 4).to(torch.uint32))), tmp_path)


class _Masked(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = torch.where(mask & (x > 0), x, x * 2)
        return wide.float() * mask.any(-1, keepdim=True), ~mask, mask.sum(-1)


def test_truth_values_and_doubles_are_taken_as_what_core_ml_has(tmp_path: Path) -> None:
    mask = torch.tensor([[True, False, True, False]])
    artifact = deploykit.export(
        _Masked(),
        target="coreml",
        precision="fp32",
        example_inputs=(torch.randn(1, 4, dtype=torch.float64), mask),
        output=tmp_path / "out",
        profile=False,
        progress=False,
    )
    assert [spec.dtype for spec in artifact.inputs] == ["float64", "bool"]
    assert artifact.parity is not None and artifact.parity.sqnr_db is not None and artifact.parity.sqnr_db > 100.0


def test_a_refusal_inside_coremltools_names_the_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import_coremltools()
    registry = importlib.import_module("coremltools.converters.mil.frontend.torch.torch_op_registry")

    def refuse(context: object, node: object) -> None:
        raise ValueError("no such form")

    monkeypatch.setitem(registry._TORCH_OPS_REGISTRY.name_to_func_mapping, "tanh", refuse)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
    with pytest.raises(deploykit.ConversionError, match=r"aten\.tanh\.default in 1 .*no such form"):
        convert((model, (torch.randn(1, 4),)), tmp_path)


def test_lstm_is_registered_once() -> None:
    import_coremltools()
    prescan.register_lstm()
    prescan.register_lstm()


class Echo(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 2, x


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x * 2
        return y, y


class Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return x * factor


@pytest.mark.parametrize(
    ("model", "example", "said"),
    [
        (Echo(), (torch.randn(2, 3),), "the output 'output_1' is the input 'x' itself"),
        (Twice(), (torch.randn(2, 3),), "'output_0' and 'output_1' are the same tensor"),
        (Scaled(), (torch.randn(2, 3), torch.tensor(2.0)), "no input without axes, which 'factor' is"),
    ],
)
@pytest.mark.parametrize("form", ["mlprogram", "neuralnetwork"])
def test_inputs_and_outputs_that_core_ml_cannot_have_are_named(
    model: torch.nn.Module, example: tuple[torch.Tensor, ...], said: str, form: str, tmp_path: Path
) -> None:
    with pytest.raises(deploykit.ConversionError, match=said) as caught:
        convert((model, example), tmp_path, options={"form": form})
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


class Nothing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :0]


def test_a_model_that_means_something_else_in_core_ml_is_not_published(tmp_path: Path) -> None:
    """The old form has no empty tensors: an end of 0 is the end of the axis there."""
    with pytest.raises(deploykit.ArtifactError, match=r"gives 'output' in shape \(2, 3\)"):
        deploykit.export(
            Nothing(),
            "coreml",
            "fp32",
            example_inputs=(torch.randn(2, 3),),
            options={"form": "neuralnetwork"},
            output=tmp_path / "out",
            progress=False,
        )
    assert not (tmp_path / "out").exists()
