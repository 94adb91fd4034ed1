"""`equalize` and `smooth`: the float graph computes the same, and channels that were far apart lose nothing in int8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit import pipeline
from deploykit.capture import capture
from deploykit.contract.decibels import sqnr_db
from deploykit.contract.errors import UsageError
from deploykit_calibration.algorithms import equalize
from deploykit_calibration.channel_scales import scaled_channels, scaled_weights
from deploykit_calibration.prepared import Prepared
from deploykit_calibration.recipes import recipe_of
from deploykit_calibration.reweigh import with_weights
from deploykit_calibration.weighted_layers import value_of


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Every(nn.Module):
    """Whatever passes the scale of a channel on: each kind of activation, pooling, addition and move."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.b = nn.Conv2d(8, 8, 3, groups=8, padding=1, bias=False)
        self.d, self.p = nn.Conv2d(8, 12, 3, groups=4), nn.PReLU(12)
        self.e, self.f, self.g = nn.Linear(12, 12), nn.Linear(12, 9), nn.Linear(9, 4)
        self.n = nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = self.c(nn.functional.leaky_relu(self.b(x))) - x
        x = self.p(self.d(nn.functional.max_pool2d(x, 2)))
        x = nn.functional.avg_pool2d(x, 2).flatten(2).transpose(1, 2)
        return self.g(self.f(self.n(self.e(x))).relu())


def test_scaled_channels_compute_the_same() -> None:
    x = draw(0, 2, 3, 18, 18)
    captured = capture(Every().eval(), example_inputs=(x,))
    sets = scaled_channels(captured)
    assert [(each.size, len(each.writers), len(each.readers), len(each.norms)) for each in sets] == [
        *((8, 2, 2, 0), (8, 1, 1, 0)),  # around the subtraction, behind the depthwise convolution
        *((12, 1, 1, 0), (12, 0, 1, 1)),  # through PReLU and pooling into the linear layer, behind the norm
        (9, 1, 1, 0),
    ]
    numbers = [(each, draw(k, each.size).double().exp()) for k, each in enumerate(sets)]
    other = with_weights(captured, scaled_weights(captured, numbers))
    for seed in range(3):
        fresh = {captured.inputs[0].name: draw(seed + 10, 2, 3, 18, 18)}
        ((want,), (got,)) = (each.run(fresh).values() for each in (captured, other))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert other.fingerprint != captured.fingerprint


class Through(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), between

    def forward(self, x: Tensor) -> Any:
        return self.b(self.between(self.a(x)))


@pytest.mark.parametrize(
    "between",
    [
        *(nn.ReLU6(), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.Sigmoid()),
        lambda x: x + 1.0,
        lambda x: x * x,
        lambda x: x.flip(1),
        lambda x: x.transpose(1, 2).contiguous().view(x.shape),
        lambda x: torch.cat([x[:, :2], x[:, 2:] * 2], 1),
        lambda x: x + x.mean((2, 3), keepdim=True) if x.shape[1] == 4 else x,
        nn.MultiheadAttention,
    ],
)
def test_what_is_not_homogeneous_keeps_its_channels(between: Any) -> None:
    if between is nn.MultiheadAttention:
        model: nn.Module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        captured = capture(model.eval(), example_inputs=(draw(0, 1, 4, 8),))
        assert [(each.size, len(each.norms)) for each in scaled_channels(captured)] == [(16, 0)]  # behind its ReLU
        return
    captured = capture(Through(between).eval(), example_inputs=(draw(0, 1, 3, 4, 4),))
    assert scaled_channels(captured) == []


def test_what_is_returned_or_shared_keeps_its_channels() -> None:
    class Returned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            h = self.a(x).relu()
            return h, self.b(h)

    class Shared(Returned):
        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(self.a(x).relu()).relu())

    for model in (Returned(), Shared()):
        assert scaled_channels(capture(model.eval(), example_inputs=(draw(0, 2, 4),))) == []
    unbatched = capture(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)).eval(), example_inputs=(draw(0, 3, 4, 4),)
    )
    (found,) = scaled_channels(unbatched)
    assert set(found.tensors.values()) == {0}


def spread(model: nn.Module, example: Tensor, *, norms: bool) -> Any:
    """A captured model that computes the same with channels of very different size."""
    captured = capture(model.eval(), example_inputs=(example,))
    sets = [each for each in scaled_channels(captured) if bool(each.norms) == norms]
    return with_weights(
        captured, scaled_weights(captured, [(each, (3 * draw(7, each.size)).double().exp()) for each in sets])
    )


def quality_db(prepared: Prepared, fresh: Tensor) -> float:
    assert prepared.simulation is not None
    name = prepared.reference.inputs[0].name
    (want,), (got,) = (
        prepared.reference.run({name: fresh}).values(),
        prepared.simulation.run({name: fresh.numpy()}).values(),
    )
    error = want - torch.from_numpy(got)
    return sqnr_db(float(want.square().sum()), float(error.square().sum()))


@pytest.mark.parametrize("target", ["x86-cpu", "jetson-orin"])
@pytest.mark.parametrize("name", ["equalize", "smooth"])
def test_int8_of_spread_channels_is_as_good_as_of_others(name: str, target: str) -> None:
    torch.manual_seed(0)
    if name == "equalize":
        model: nn.Module = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 16, 1)
        )
        shape: tuple[int, ...] = (4, 3, 12, 12)
    else:
        model, shape = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 16)), (4, 8, 16)
    captured = spread(model, draw(0, *shape), norms=name == "smooth")
    run = pipeline.calibrate(captured, [draw(k, *shape) for k in range(1, 9)], progress=False)
    fresh = draw(99, *shape)
    reached = {}
    for algorithms in ((), (name,)):
        prepared = pipeline.prepare(pipeline.request(target, algorithms=algorithms), captured, run)
        reached[algorithms] = quality_db(prepared, fresh)
    assert reached[name,] > reached[()] + 6
    key = captured.inputs[0].name
    (want,), (got,) = (each.run({key: fresh}).values() for each in (captured, prepared.captured))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
    assert prepared.reference is captured


@pytest.mark.parametrize("name", ["equalize", "smooth"])
def test_the_share_that_was_chosen_is_in_the_recipe_and_is_followed(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    norms = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 16))
    model, shape = (convolutions, (2, 3, 8, 8)) if name == "equalize" else (norms, (2, 8, 16))
    captured = spread(model, draw(0, *shape), norms=name == "smooth")
    run = pipeline.calibrate(captured, [draw(k, *shape) for k in range(1, 9)], progress=False)
    first = pipeline.prepare(pipeline.request("x86-cpu", algorithms=(name,)), captured, run)
    recipe = recipe_of(first)
    (step,) = (each for each in recipe.algorithms if each.name == name)
    assert set(step.decided) == {"share"} and 0.0 < step.decided["share"] <= 1.0
    recipe.write(tmp_path / "net.toml")
    assert f"decided = {{ share = {step.decided['share']} }}" in (tmp_path / "net.toml").read_text()

    def followed(share: Any) -> Prepared:
        steps = [replace(s, decided={"share": share}) if s.name == name else s for s in recipe.algorithms]
        request = pipeline.request("x86-cpu", recipe=replace(recipe, algorithms=tuple(steps)))
        return pipeline.prepare(request, captured, run)

    assert followed(step.decided["share"]).captured.fingerprint == first.captured.fingerprint
    assert recipe_of(followed(step.decided["share"])) == recipe
    other = next(share for share in (0.25, 0.75) if share != step.decided["share"])
    assert followed(other).captured.fingerprint != first.captured.fingerprint
    assert followed(0).captured is captured
    for wrong in (2, "half", True):
        with pytest.raises(UsageError, match=f"share of {name}"):
            followed(wrong)


def test_the_weights_of_a_share_that_was_tried_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Prepared] = []
    honest = equalize._scaled

    def scaled(*arguments: Any) -> Prepared:
        made.append(honest(*arguments))
        return made[-1]

    monkeypatch.setattr(equalize, "_scaled", scaled)
    captured = spread(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), draw(0, 2, 3, 8, 8), norms=False
    )
    run = pipeline.calibrate(captured, [draw(k, 2, 3, 8, 8) for k in range(1, 9)], progress=False)
    kept = pipeline.prepare(pipeline.request("x86-cpu", algorithms=("equalize",)), captured, run)
    left = [sum(buffer.numel() for buffer in each.captured.graph_module.buffers()) for each in made]
    assert left[:-1] == [0] * 4 and left[-1] and kept.captured is made[-1].captured
    assert quality_db(kept, draw(99, 2, 3, 8, 8)) > 20, "what they share with the model is still there"


def test_where_nothing_is_better_the_model_stays() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    captured = capture(model.eval(), example_inputs=(draw(0, 2, 8),))
    run = pipeline.calibrate(captured, [draw(k, 2, 8) for k in range(1, 6)], progress=False)
    prepared = pipeline.prepare(pipeline.request("x86-cpu", algorithms=("equalize", "smooth")), captured, run)
    assert prepared.captured is captured and prepared.table is run.table


@pytest.mark.parametrize("target", ["x86-cpu", "jetson-orin"])
def test_a_relu6_passes_on_what_stays_below_six(target: str) -> None:
    """Small channels grow; one that reaches six keeps its size, and the float network computes the same."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU6(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU6(), nn.Conv2d(16, 8, 1)]
    model = nn.Sequential(*layers).eval()
    sizes = torch.logspace(-3, 0, 16)[:, None, None, None]
    with torch.no_grad():
        layers[0].weight.mul_(sizes)
        layers[0].bias.mul_(sizes[:, 0, 0, 0])
        layers[2].weight.div_(sizes)
        layers[0].bias[3] = 8.0  # always at six
    captured = capture(model, example_inputs=(draw(0, 4, 3, 12, 12),))
    assert scaled_channels(captured) == []
    sets = scaled_channels(captured, capped=True)
    assert [(each.size, len(each.capped)) for each in sets] == [(16, 1), (16, 1)]
    run = pipeline.calibrate(captured, [draw(k, 4, 3, 12, 12) for k in range(1, 17)], progress=False)
    reached = {}
    for algorithms in ((), ("equalize",)):
        prepared = pipeline.prepare(pipeline.request(target, algorithms=algorithms), captured, run)
        reached[algorithms] = quality_db(prepared, draw(99, 4, 3, 12, 12))
    assert reached["equalize",] > reached[()] + 6
    weight = [value_of(each, "0.weight") for each in (captured, prepared.captured)]
    assert torch.equal(weight[0][3], weight[1][3]) and float(weight[1][0].abs().max() / weight[0][0].abs().max()) > 50
    key, fresh = captured.inputs[0].name, draw(98, 4, 3, 12, 12)
    (want,), (got,) = (each.run({key: fresh}).values() for each in (captured, prepared.captured))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
