"""What float16 cannot hold stays float32, on every target, with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deploykit
from deploykit.capture import capture
from deploykit.contract.request import Request
from deploykit.contract.scheme import IN_FLOAT
from deploykit.plugin.registry import resolve
from deploykit_calibration.prepared import Prepared
from deploykit_targets._float16 import Float16Plan, plan_float16
from deploykit_targets._float16 import plan as plan_module
from deploykit_targets._float16.values import fits_float16

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Behind(nn.Module):
    """A linear layer, and a function of what it gives."""

    def __init__(self, function: Callable[[Tensor], Any], factor: float = 1.0) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(8, 16), function
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(16, 8, generator=torch.Generator().manual_seed(1)) * factor)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


def rms(h: Tensor) -> Tensor:
    h = h * 300.0
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def silent(h: Tensor) -> Tensor:
    """One channel is zero, whatever comes in."""
    h = torch.cat([h, h[:, :1] * 0], -1)
    return h / (h.abs().amax(0, keepdim=True) + 1e-8)


def plan(model: nn.Module, x: Tensor = X) -> Float16Plan:
    captured = capture(model.eval(), example_inputs=(x,))
    request = Request("any", "any", None, deploykit.Precision.FP16)  # type: ignore[arg-type]
    return plan_float16(Prepared(request, captured, IN_FLOAT, captured))


def test_values_are_seen_once_for_all_that_is_prepared_of_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    watched = plan_module.observe
    monkeypatch.setattr(plan_module, "observe", lambda *given: runs.append(1) or watched(*given))
    captured = capture(Behind(lambda h: (h * 200).square().mean(-1)).eval(), example_inputs=(X,))
    request = Request("any", "any", None, deploykit.Precision.FP16)  # type: ignore[arg-type]
    one = Prepared(request, captured, IN_FLOAT, captured)
    large = ({"x": X * 1e4},)
    plans = [
        plan_float16(each) for each in (one, replace(one, kept={"linear": "by hand"}), replace(one, samples=large))
    ]
    assert len(runs) == 2, "once for a set of samples"
    assert plans[0].kept == plans[1].kept
    assert set(plans[2].kept) > set(plans[0].kept), "samples of another size were looked at"


OVERFLOWS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "rms": (rms, "pow_1"),
    "cube": (lambda h: (h * 20).pow(3) * 1e-6, "pow_1"),
    "square": (lambda h: (h * 200).square().mean(-1) * 1e-4, "square"),
    "product": (lambda h: (h * 200) * (h * 200) * 1e-5, "mul_2"),
    "softmax by hand": (lambda h: (h * 9).exp() / (h * 9).exp().sum(-1, keepdim=True), "exp"),
    "cumsum": (lambda h: (h.abs() + 5000).cumsum(-1) / 1e5, "cumsum"),
    "sum": (lambda h: (h.abs() + 5000).sum(-1) / 1e5, "sum_1"),
    "constant": (lambda h: h * 200000.0 / 200000.0, "mul"),
    "output": (lambda h: h * 60000.0, "mul"),
    "variance": (lambda h: (h * 400).var(-1) / 1e5, "var"),
    "layer norm of large values": (lambda h: nn.functional.layer_norm(h * 400, (16,)), "layer_norm"),
    "norm of large values": (lambda h: (h * 400).norm(dim=-1), "linalg_vector_norm"),
    "small factor": (lambda h: (h * 1e-9) * 1e9, "mul"),
}


@pytest.mark.parametrize(("function", "culprit"), OVERFLOWS.values(), ids=OVERFLOWS)
def test_what_leaves_the_range_is_kept_with_its_value(function: Callable[[Tensor], Any], culprit: str) -> None:
    found = plan(Behind(function)).kept
    assert any(name.startswith(culprit) for name in found), found
    assert all(any(digit.isdigit() for digit in why) for why in found.values())
    assert "linear" not in found


GUARDS: dict[str, Callable[[Tensor], Any]] = {
    "added": lambda h: h / (h.std(0, keepdim=True) + 1e-8),
    "under a root": lambda h: h / (h.var(0, keepdim=True) + 1e-8).sqrt(),
    "reciprocal root": lambda h: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-8),
    "negative power": lambda h: h * (h.pow(2).mean(-1, keepdim=True) + 1e-8).pow(-0.5),
    "clamped": lambda h: h / h.norm(dim=-1, keepdim=True).clamp(min=1e-12),
    "normalize": nn.functional.normalize,
    "logarithm": lambda h: torch.log(h.relu() + 1e-9),
    "where": lambda h: 1.0 / torch.where(h > 0, h, 1e-10),
    "maximum": lambda h: 1.0 / torch.maximum(h, torch.tensor(1e-10)),
    "reciprocal": lambda h: (h.abs() + 1e-10).reciprocal(),
}


@pytest.mark.parametrize("function", GUARDS.values(), ids=GUARDS)
def test_a_small_number_that_guards_a_denominator_is_kept_unseen(function: Callable[[Tensor], Any]) -> None:
    """No sample has a silent channel: the number alone says that one may come."""
    found = plan(Behind(function)).kept
    assert any("guards a denominator" in why for why in found.values()), found
    assert "linear" not in found


ORDINARY: dict[str, nn.Module] = {
    "layers": nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4), nn.Softmax(-1)),
    "mask": Behind(lambda h: torch.softmax(h.masked_fill(h > 0, -1e9), -1)),
    "smallest": Behind(lambda h: torch.softmax(h.masked_fill(h > 0, torch.finfo(torch.float32).min), -1)),
    "layer scale": Behind(lambda h: h + 1e-7 * torch.tanh(h)),
    "harmless small sum": Behind(lambda h: (h + 1e-8).relu()),
}


@pytest.mark.parametrize("model", ORDINARY.values(), ids=ORDINARY)
def test_what_float16_holds_is_not_kept(model: nn.Module) -> None:
    kept = {name: why for name, why in plan(model).kept.items() if not name.startswith("mul")}
    assert not kept


def test_inputs_and_weights_beyond_the_range_and_below_it() -> None:
    assert "linear" in plan(Behind(lambda h: h * 1e-6), X * 1e5).kept
    assert "linear" in plan(Behind(lambda h: h * 1e9, factor=1e-9)).kept
    heavy = Behind(lambda h: h * 1e-6)
    with torch.no_grad():
        heavy.layer.weight[0, 0] = 2e5
    assert "200000" in plan(heavy, X * 1e-3).kept["linear"] or "2e+05" in plan(heavy, X * 1e-3).kept["linear"]


def test_weights_fit_or_do_not() -> None:
    assert fits_float16(np.array([0.0, 1.0, -3.14159], np.float32))
    assert not fits_float16(np.array([1e-8, 2e-8], np.float32))
    assert not fits_float16(np.array([1.0, 7e4], np.float32))


TARGETS = (*("x86-cpu", "x86-cpu:openvino", "jetson-orin", "amd-mi300x", "iphone-15", "android"),)
CASES = {"rms": rms, "silent": silent}


# half a minute each: C++ is compiled
_COMPILED = pytest.param("x86-cpu:aotinductor", marks=pytest.mark.nightly)


@pytest.mark.parametrize("function", CASES.values(), ids=CASES)
@pytest.mark.parametrize("target", [*TARGETS, _COMPILED])
def test_every_target_keeps_it(target: str, function: Callable[[Tensor], Any], tmp_path: Path) -> None:
    try:
        resolve(target).target.check_installed(export=True)
    except deploykit.MissingDependencyError as error:
        pytest.skip(str(error))
    artifact = deploykit.export(
        Behind(function), target, "fp16", example_inputs=(X,), output=tmp_path / "a", profile=False, progress=False,
        min_placement=0.0,
    )  # fmt: skip
    assert artifact.parity is not None
    # without units for float16 OpenVINO computes in float32, or in bfloat16 where the CPU has that, and says so
    narrower = artifact.achieved.macs_fraction("bfloat16") > 0
    assert artifact.parity.sqnr_db > (40.0 if narrower else 60.0)
    reasons = " ".join(layer.reason for layer in artifact.achieved.not_as_requested)
    said = reasons + " ".join(artifact.achieved.notes)
    assert "guards a denominator" in said or "float16 ends at 65504" in said


def test_the_old_form_of_core_ml_is_refused_with_layer_and_value(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    with pytest.raises(deploykit.ConversionError, match=r"pow.*reach .*neural network is float16 throughout"):
        deploykit.export(
            Behind(rms), "iphone-15", "fp16", example_inputs=(X,), output=tmp_path / "a", profile=False,
            options={"form": "neuralnetwork"},
        )  # fmt: skip


@pytest.mark.parametrize("function", [torch.sin, torch.cos, torch.tan])
def test_large_angles_and_what_they_are_computed_of_are_kept(function: Callable[[Tensor], Tensor]) -> None:
    """Float16 has steps of a radian and more there; up to the layer that gives them, as that rounds them, too."""
    kept = plan(Behind(lambda h: function(h.reshape(4, 2, 8) * 1000.0) * 2.0)).kept
    assert {"linear", "mul", function.__name__} <= kept.keys() and "mul_1" not in kept
    assert "radians, where float16 has steps of 2" in kept["mul"] or "steps of 4" in kept["mul"]
    assert not plan(Behind(function)).kept, "small angles lose what everything does"


def test_positions_in_sines_are_right_in_float16(tmp_path: Path) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rates", torch.logspace(0, 2.5, 8))
            self.layer = nn.Linear(16, 4)

        def forward(self, time: Tensor) -> Tensor:
            angles = time[:, None] * self.rates
            result: Tensor = self.layer(torch.cat([angles.sin(), angles.cos()], -1))
            return result

    model = Positions().eval()
    made = deploykit.export(
        *(model, "jetson-orin", "fp16"),
        example_inputs=(torch.linspace(0, 10, 4),),
        output=tmp_path / "a",
        progress=False,
    )
    assert made.parity is not None and made.parity.sqnr_db > 55
    assert any("radians" in layer.reason for layer in made.achieved.not_as_requested)
