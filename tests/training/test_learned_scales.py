"""Scales of activations that are learned: exact at the start, better where ranges were bad, and exported as ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deploykit
from deploykit.contract.errors import UsageError
from deploykit_calibration.ranges import given_range, range_method
from deploykit_calibration.simulate import fake_quantize
from deploykit_training.learned import quantize


def far_off(images: Tensor) -> list[Tensor]:
    """Calibration data with one image that is far too bright: min-max ranges are up to 40 times too wide."""
    first = images[:32].clone()
    first[0] *= 40.0
    return [first, images[32:64]]


def started(net: nn.Module, images: Tensor, **options: Any) -> Any:
    given = {"calibration": far_off(images), "calibration_method": "minmax", "progress": False, "scales": "learned"}
    return deploykit.qat(net, "x86-cpu", example_inputs=(images[:1],), **{**given, **options})


def test_rounding_with_a_learned_scale_is_the_simulations() -> None:
    x = torch.linspace(-3, 3, 2001).requires_grad_(True)
    scale = torch.tensor(0.0173, requires_grad=True)
    y = quantize(x, scale, -100, 127)
    assert torch.equal(y, fake_quantize(x.detach(), float(scale.detach()), -100, 127))
    y.sum().backward()
    inside = (x.detach() / 0.0173 >= -100) & (x.detach() / 0.0173 <= 127)
    assert x.grad is not None and torch.equal(x.grad > 0.5, inside)
    steps = (x.detach() / 0.0173).clamp(-100, 127)
    each = torch.where(inside, steps.round() - steps, steps)  # LSQ: what was rounded off inside, the limit outside
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, each.sum() / (2001 * 127) ** 0.5, rtol=1e-3, atol=1e-5)


class _Summed(nn.Module):
    """Sums and averages of integers, which some targets compute in units of other scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.mix, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        h = torch.relu(self.mix(torch.relu(h + self.side(h))))
        return self.head(nn.functional.adaptive_avg_pool2d(h, 1).flatten(1))


@pytest.mark.parametrize(
    ("target", "package"),
    [("iphone-15", "coremltools"), ("android", "litert_torch"), ("jetson-orin", "onnx"), ("x86-cpu", "onnx")],
)
def test_scales_are_learned_as_every_target_computes_and_stay_exact(target: str, package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, images = _Summed().train(False), torch.randn(32, 1, 12, 12)
    wanted = net(images).detach()
    run = deploykit.qat(
        net, target, example_inputs=(images[:1],), calibration=far_off(images.repeat(2, 1, 1, 1)), progress=False,
        calibration_method="minmax", scales="learned",
    )  # fmt: skip
    with run as trained:
        optimizer = torch.optim.Adam(trained.scales, lr=0.1)
        losses = []
        for _ in range(25):
            loss = nn.functional.mse_loss(trained.model(images), wanted)
            optimizer.zero_grad()
            loss.backward()
            assert all(scale.grad is not None and bool(scale.grad.isfinite()) for scale in trained.scales)
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    trained.prepared()  # placed with what was learned: refused unless every bit is that of the trained graph


def test_learning_the_scales_alone_mends_ranges_that_were_far_off(make_net: Any, digits: Any, tmp_path: Path) -> None:
    net, (images, _) = make_net(), digits
    wanted = net(images[:128]).detach()
    with started(net, images) as trained:
        fixed = started(make_net(), images, scales="fixed").session()
        (start,) = fixed.run({fixed.inputs[0].name: images[:7].numpy()}).values()
        with torch.no_grad():
            assert torch.equal(trained.model(images[:7]), torch.from_numpy(start))
        optimizer = torch.optim.Adam([{"params": trained.scales, "weight_decay": 0.0}], lr=0.1)
        losses = []
        for _ in range(40):
            loss = nn.functional.mse_loss(trained.model(images[:128]), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    artifact = trained.export(output=tmp_path / "a", profile=False, progress=False, strict=False)
    assert artifact.recipe is not None and all(given_range(each.method) for each in artifact.recipe.ranges)
    again = deploykit.export(
        net,
        "x86-cpu",
        recipe=artifact.recipe,
        example_inputs=(images[:1],),
        calibration=far_off(images),
        output=tmp_path / "b",
        profile=False,
        progress=False,
        strict=False,
    )
    assert again.entry.read_bytes() == artifact.entry.read_bytes()


def test_a_given_range_is_read_as_it_was_written_and_refused_where_it_is_none() -> None:
    assert given_range(range_method(-0.1, 1 / 3)) == (-0.1, 1 / 3)
    assert given_range("mse") is None
    for wrong in ("range", "range:1", "range:1:2", "range:-1:x", "range:0:0", "range:-inf:1", "range:-1:2:3"):
        with pytest.raises(UsageError, match="no range that holds zero"):
            given_range(wrong)


def test_what_is_neither_fixed_nor_learned_is_refused(make_net: Any, digits: Any) -> None:
    with pytest.raises(UsageError, match="scales is 'free'"):
        deploykit.qat(make_net(), example_inputs=(digits[0][:1],), scales="free")  # type: ignore[arg-type]
