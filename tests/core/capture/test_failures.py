"""What cannot be captured is told with op, module path, source line and a way out; nothing is captured by halves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.capture import capture, check, fold
from deploykit.contract.errors import CaptureError, UsageError
from deploykit.testing.models import residual_cnn

X = torch.randn(2, 4)


class Inner(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Outer(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Identity(), Inner(function))

    def forward(self, x: Tensor) -> Any:
        return self.block(x)


def branch(m: nn.Module, x: Tensor) -> Tensor:
    if x.sum() > 1000:
        return x + 1
    return x * 2


def item(m: nn.Module, x: Tensor) -> Tensor:
    return x[: int(x.abs().sum().item()) % 2 + 1] * 2


def to_numpy(m: nn.Module, x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() * 2)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            branch,
            ["at aten.item.default in block.1", "test_failures.py:", "in branch: if x.sum() > 1000:", "torch.where"],
        ),
        (item, ["at aten.item.default in block.1", "in item: return x[", "value of an input"]),
        (to_numpy, ["in block.1", "in to_numpy: return torch.from_numpy", "move what is not tensor code"]),
    ],
)
def test_untraceable_code_is_located(function: Any, words: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Outer(function), example_inputs=(X,))
    for word in words:
        assert word in str(caught.value)
    assert caught.value.__cause__ is not None
    assert caught.value.hint


def test_the_op_is_named_where_one_failed() -> None:
    def other_when_traced(m: nn.Module, x: Tensor) -> Tensor:
        return x @ (torch.ones(3, 3) if torch.compiler.is_compiling() else torch.ones(4, 4))

    with pytest.raises(CaptureError, match=r"at aten\.mm\.default in block\.1 .*must have same reduction dim"):
        capture(Outer(other_when_traced), example_inputs=(X,))


@pytest.mark.parametrize(
    ("function", "op"), [(lambda m, x: x[x > 0].sum(), "aten.index"), (lambda m, x: x.unique(), "aten._unique2")]
)
def test_sizes_that_depend_on_values_are_refused(function: Any, op: str) -> None:
    with pytest.raises(CaptureError, match=f"depends on the values of an input: {op}.* in block.1"):
        capture(Outer(function), example_inputs=(X,))


def test_tracing_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError):
        capture(Outer(branch), example_inputs=(X,))
    assert capfd.readouterr() == ("", "")


def test_a_model_that_fails_on_its_examples_is_a_usage_error_with_the_line() -> None:
    module, _ = residual_cnn()
    with pytest.raises(UsageError, match=r"fails on its own example inputs .*in conv1") as caught:
        capture(module, example_inputs=(torch.randn(1, 4, 8, 8),))
    assert "models.py:" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_missing_inputs_name_the_argument_to_pass() -> None:
    class Two(nn.Module):
        def forward(self, image: Tensor, features: Tensor) -> Tensor:
            return image + features

    with pytest.raises(UsageError, match=r"pass example_inputs=.*arguments \(image, features\)"):
        capture(Two())


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda m, x: F.dropout(x, 0.5), "aten.dropout.default"),
        (lambda m, x: x + torch.rand_like(x), "aten.rand_like.default"),
        (lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), "aten.scaled_dot_product"),
    ],
)
def test_randomness_in_eval_mode_is_refused(function: Any, op: str) -> None:
    with pytest.raises(CaptureError, match=f"random in eval mode: {op}.* in block.1"):
        capture(Outer(function), example_inputs=(X,))


def test_state_kept_between_calls_is_refused() -> None:
    def counts(m: nn.Module, x: Tensor) -> Tensor:
        m.count.add_(1)
        return x * m.count

    module = Outer(counts)
    with pytest.raises(CaptureError, match=r"writes into the buffer 'block\.1\.count'"):
        capture(module, example_inputs=(X,))
    assert module.block[1].count.item() == 0


def branches(m: nn.Module, x: Tensor) -> Any:
    return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y * 2, (x,))


def loops(m: nn.Module, x: Tensor) -> Any:
    def more(i: Tensor, y: Tensor) -> Tensor:
        return i < 3

    return torch._higher_order_ops.while_loop(more, lambda i, y: (i + 1, y * 2), (torch.tensor(0), x))[1]


def scans(m: nn.Module, x: Tensor) -> Any:
    return torch._higher_order_ops.scan(lambda c, v: (c + v, c + v), x[0] * 0, x, dim=0)[1]


@pytest.mark.parametrize(
    ("function", "instead"),
    [(branches, "torch.where"), (loops, "fixed number of steps"), (scans, "fixed number of steps")],
)
def test_control_flow_ops_are_refused_with_their_place(function: Any, instead: str) -> None:
    """With the user's own line, not with the code that PyTorch generates while it traces."""
    with pytest.raises(CaptureError, match="control flow") as refused:
        capture(Outer(function), example_inputs=(X,))
    text = str(refused.value)
    assert instead in text and "test_failures.py:" in text
    assert "eval_with_key" not in text


def test_no_tensor_output() -> None:
    with pytest.raises(CaptureError, match="returns no tensor"):
        capture(Outer(lambda m, x: 3), example_inputs=(X,))


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (lambda: torch.randn(0, 3), r"shape \(0, 3\) is an empty batch"),
        (lambda: torch.randn(1, 3).to_sparse(), "the layout torch.sparse_coo"),
        (lambda: torch.randn(1, 3, device="meta"), "holds no values"),
    ],
)
def test_examples_that_nothing_can_be_traced_or_cut_by(example, words):
    """An empty batch once let calibration loop without end: no number of samples fills a batch of none."""
    with pytest.raises(UsageError, match=words):
        capture(torch.nn.Linear(3, 2), example_inputs=(example(),))


def test_no_tensor_input() -> None:
    with pytest.raises(UsageError, match="holds no tensor"):
        capture(Outer(lambda m, x: torch.ones(2) * x), example_inputs=(3,))


def test_a_wrong_pass_is_caught_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        return true_scale(*args, **kwargs) * 1.001

    true_scale = fold.scale_of
    monkeypatch.setattr(fold, "scale_of", broken)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(CaptureError, match=r"after 'fold_batch_norms': output 0 has SQNR \d+"):
        capture(module, example_inputs=(torch.randn(1, 3, 8, 8),))


def test_a_model_that_is_another_when_traced_is_caught() -> None:
    with pytest.raises(CaptureError, match=r"after 'torch\.export'"):
        capture(Outer(lambda m, x: x + 1 if torch.compiler.is_compiling() else x), example_inputs=(X,))


def test_difference_wants_equal_integers_and_equal_non_finite_places() -> None:
    one = torch.tensor([1.0, torch.inf, torch.nan])
    assert check.difference([one], [one.clone()]) is None
    assert "not finite" in str(check.difference([one], [torch.tensor([1.0, 2.0, torch.nan])]))
    assert "integers" in str(check.difference([torch.tensor([1])], [torch.tensor([2])]))
    assert "float32[2]" in str(check.difference([one], [torch.zeros(2)]))
    assert check.difference([torch.zeros(3)], [torch.full((3,), 1e-12)]) is None
