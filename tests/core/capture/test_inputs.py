"""Later batches are mapped to flat names: tensors, tuples with labels, dicts with more than is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import CapturedModel, capture
from deploykit.contract.errors import CalibrationError, UsageError


class Nested(nn.Module):
    def forward(self, image: Tensor, extra: dict[str, Any], *, scale: float = 1.0) -> Tensor:
        first, second = extra["pair"]
        return image * scale + first + second + extra["bias"]


@pytest.fixture(scope="module")
def one() -> CapturedModel:
    return capture(nn.Linear(4, 3), example_inputs=(torch.randn(2, 4),))


@pytest.fixture(scope="module")
def two(zoo: Any) -> CapturedModel:
    return zoo("two_inputs_dict_output")[2]


@pytest.fixture(scope="module")
def nested() -> CapturedModel:
    x = torch.randn(2, 4)
    extra = {"pair": (x + 1, x + 2), "bias": x + 3}
    return capture(Nested(), example_inputs={"image": x, "extra": extra, "scale": 2.0})


IMAGE, FEATURES = torch.randn(1, 3, 16, 16), torch.randn(1, 4)


def test_builtin_argument_names_are_kept_as_input_names(one: CapturedModel) -> None:
    assert [spec.name for spec in one.inputs] == ["input"]
    placeholder = next(iter(one.graph_module.graph.nodes))
    assert placeholder.target == "input"


def test_an_output_is_never_called_like_an_input() -> None:
    class Clashing(nn.Module):
        def forward(self, output: Tensor, x: Tensor) -> dict[str, Tensor]:
            return {"x": x + 1, "output": output * 2, "x_1": x}

    captured = capture(Clashing(), example_inputs=(torch.zeros(1, 2), torch.ones(1, 2)))
    assert [spec.name for spec in captured.inputs] == ["output", "x"]
    assert [spec.name for spec in captured.outputs] == ["x_1", "output_1", "x_1_1"]
    found = captured.run({"output": torch.ones(1, 2), "x": torch.ones(1, 2)})
    assert [value[0, 0].item() for value in found.values()] == [2.0, 2.0, 1.0]


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(2, 4),
        np.ones((2, 4), np.float64),
        (torch.ones(2, 4), torch.zeros(2)),
        [torch.ones(2, 4), torch.zeros(2), "meta"],
        {"input": torch.ones(2, 4), "labels": torch.zeros(2)},
        ({"input": torch.ones(2, 4)}, torch.zeros(2)),
    ],
)
def test_one_input(one: CapturedModel, batch: Any) -> None:
    feeds = one.feeds(batch)
    assert list(feeds) == ["input"]
    assert torch.equal(feeds["input"], torch.ones(2, 4))


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGE, FEATURES),
        (IMAGE, FEATURES, torch.zeros(1)),
        ((IMAGE, FEATURES), torch.zeros(1)),
        {"features": FEATURES, "image": IMAGE, "label": 3},
        ({"image": IMAGE, "features": FEATURES}, torch.zeros(1)),
    ],
)
def test_two_inputs(two: CapturedModel, batch: Any) -> None:
    feeds = two.feeds(batch)
    assert list(feeds) == ["image", "features"]
    assert feeds["image"] is not None
    assert torch.equal(feeds["image"], IMAGE)
    assert torch.equal(feeds["features"], FEATURES)


def test_nested_inputs_have_joined_names_and_constants_are_baked_in(nested: CapturedModel) -> None:
    assert [s.name for s in nested.inputs] == ["image", "extra_pair_0", "extra_pair_1", "extra_bias"]
    x = torch.ones(2, 4)
    by_structure = nested.feeds({"image": x, "extra": {"pair": [x, x], "bias": x}})
    by_flat_name = nested.feeds({s.name: x for s in nested.inputs})
    assert list(by_structure) == list(by_flat_name)
    assert torch.equal(nested.run(by_structure)["output"], x * 2 + 3)


def test_the_one_argument_may_be_a_dict() -> None:
    class TakesDict(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["a"] + batch["b"]

    x = torch.ones(2)
    captured = capture(TakesDict(), example_inputs=({"a": x, "b": x},))
    assert [s.name for s in captured.inputs] == ["batch_a", "batch_b"]
    assert list(captured.feeds({"a": x, "b": x, "label": x})) == ["batch_a", "batch_b"]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.ones(2, 5), r"input 'input' has shape \(2, 5\)"),
        (torch.ones(2, 4, dtype=torch.int64), "dtype int64; float32 is expected"),
        ({"x": torch.ones(2, 4)}, "has no input 'input'; it has x"),
        ("text", "a batch is a str"),
        ((), "a batch is a tuple of 0"),
        ({"input": 3}, "must be a tensor, not int"),
        (torch.ones(3, 4), r"has shape \(3, 4\)"),
    ],
)
def test_what_does_not_fit_is_named(one: CapturedModel, batch: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        one.feeds(batch)


@pytest.mark.parametrize(
    ("example", "given", "fits"),
    [
        (torch.zeros(4, dtype=torch.uint8), np.array([0, 1, 128, 255]), True),
        (torch.zeros(4, dtype=torch.uint8), np.array([0, 1, 128, 256]), False),
        (torch.zeros(4, dtype=torch.uint8), np.array([0, 1, 127, -1], np.int8), False),
        (torch.zeros(4, dtype=torch.int16), np.array([0, 1, 128, 32767], np.uint16), True),
        (torch.zeros(4, dtype=torch.int64), np.array([True, False, True, True]), True),
        (torch.zeros(4, dtype=torch.bool), np.array([0, 1, 1, 0]), True),
        (torch.zeros(4, dtype=torch.bool), np.array([0, 1, 2, 0]), False),
        (torch.zeros(4, dtype=torch.uint8), np.array([0.0, 1.0, 2.0, 3.0]), False),
    ],
)
def test_integers_change_their_type_where_every_value_stays(example: Tensor, given: Any, fits: bool) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() * 2

    captured = capture(Doubled(), example_inputs=(example,))
    if fits:
        (fed,) = captured.feeds(given).values()
        assert fed.dtype == example.dtype
        assert fed.tolist() == given.tolist()
    else:
        with pytest.raises(CalibrationError, match="is expected"):
            captured.feeds(given)


def test_a_single_tensor_for_two_inputs_is_refused(two: CapturedModel) -> None:
    with pytest.raises(CalibrationError, match="the model takes 2: image, features"):
        two.feeds(IMAGE)


def test_bigger_batches_are_cut_to_the_captured_size(one: CapturedModel, two: CapturedModel) -> None:
    x = torch.arange(24.0).reshape(6, 4)
    assert torch.equal(torch.cat([f["input"] for f in one.batches((x, torch.zeros(6)))]), x)
    pieces = list(two.batches((torch.randn(3, 3, 16, 16), torch.randn(3, 4))))
    assert [p["image"].shape[0] for p in pieces] == [1, 1, 1]
    with pytest.raises(CalibrationError, match="cannot be cut"):
        list(one.batches(torch.ones(3, 4)))


def test_dynamic_batches_are_not_cut(zoo: Any) -> None:
    captured = zoo("mlp", True)[2]
    assert [f["input"].shape[0] for f in captured.batches(torch.randn(7, 32))] == [7]


def test_names_that_forward_lacks_are_refused() -> None:
    with pytest.raises(UsageError, match="has no argument 'y'; it takes input"):
        capture(nn.Linear(4, 3), example_inputs={"y": torch.randn(2, 4)})


def test_variadic_forward() -> None:
    class Sum(nn.Module):
        def forward(self, *xs: Tensor) -> tuple[Tensor, Tensor]:
            return xs[0] + xs[1], xs[2] * 2

    captured = capture(Sum(), example_inputs=(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 3)), dynamic_batch=True)
    assert [str(s) for s in captured.inputs] == [
        "xs_0: float32[batch, 2]",
        "xs_1: float32[batch, 2]",
        "xs_2: float32[batch, 3]",
    ]
    assert [s.name for s in captured.outputs] == ["output_0", "output_1"]
