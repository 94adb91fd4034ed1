"""Dynamic axes: named in inputs and outputs, kept by the graph and by a re-export, right for sizes never traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from deploykit.capture import capture
from deploykit.contract.errors import CaptureError, UsageError

FAMILIES = ["residual_cnn", "squeeze_excite_cnn", "mlp", "transformer_encoder", "two_inputs_dict_output"]


def batch_of(example: Any, size: int) -> tuple[Tensor, ...]:
    values = example.values() if isinstance(example, dict) else example
    return tuple(
        torch.cat([x[:1] + (i if not x.is_floating_point() else i * 0.1) for i in range(size)]) for x in values
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_any_batch_size_gives_the_modules_outputs(zoo: Any, name: str) -> None:
    module, example, captured = zoo(name, True)
    for spec in (*captured.inputs, *captured.outputs):
        assert spec.shape[0] == "batch"
    assert captured.dynamic_axes == {spec.name: {0: "batch"} for spec in captured.inputs}
    for size in (1, 3):
        batch = tuple(x % 64 if not x.is_floating_point() else x for x in batch_of(example, size))
        with torch.no_grad():
            want = module(*batch)
        have = captured.run(dict(zip((s.name for s in captured.inputs), batch, strict=True)))
        for name_, value in want.items() if isinstance(want, dict) else [("output", want)]:
            torch.testing.assert_close(have[name_], value, rtol=1e-4, atol=1e-4)


def test_example_inputs_stay_the_users_own(zoo: Any) -> None:
    assert zoo("residual_cnn", True)[2].example_inputs[0].shape[0] == 1


@pytest.mark.parametrize("name", ["residual_cnn", "transformer_encoder"])
def test_reexport_keeps_the_dynamic_axis(zoo: Any, name: str) -> None:
    captured = zoo(name, True)[2]
    program = captured.export_program()
    x = torch.cat([captured.example_inputs[0]] * 5)
    with torch.no_grad():
        assert program.module()(x)[0].shape[0] == 5


def test_recurrent_state_follows_the_batch(zoo: Any) -> None:
    module, (x,), captured = zoo("gru_classifier", True)
    batch = torch.randn(4, *x.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(captured.run({"x": batch})["output"], module(batch), rtol=1e-5, atol=1e-5)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)

    def forward(self, tokens: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(tokens) * scale
        return torch.cat([x, x], dim=0).flatten(1), x.mean(1)


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_dynamic_shapes_as_torch_export_takes_them(form: str) -> None:
    batch, length = Dim("batch", min=1, max=8), Dim("length", min=2, max=16)
    shapes: Any = {"tokens": {0: batch, 1: length}, "scale": None}
    example = (torch.randint(0, 16, (1, 6)), torch.ones(1))
    captured = capture(
        Tokens(), example_inputs=example, dynamic_shapes=shapes if form == "dict" else tuple(shapes.values())
    )
    assert [str(s) for s in captured.inputs] == ["tokens: int64[batch, length]", "scale: float32[1]"]
    assert [s.shape for s in captured.outputs] == [("2*batch", "8*length"), ("batch", 8)]
    assert captured.dynamic_axes == {"tokens": {0: "batch", 1: "length"}}
    assert captured.symbol_ranges == {"batch": (1, 8), "length": (2, 16)}
    outputs = captured.run({"tokens": torch.randint(0, 16, (3, 9)), "scale": torch.ones(1)})
    assert outputs["output_0"].shape == (6, 72)
    assert captured.export_program().module()(torch.randint(0, 16, (3, 9)), torch.ones(1))[1].shape == (3, 8)


def test_masks_that_are_equal_for_every_sample_are_constants() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            positions = torch.arange(x.shape[1]).unsqueeze(0).expand(x.shape[0], -1)
            mask = positions[:, None, :] <= positions[:, :, None]
            return (x[:, None, :] * mask).sum(-1)

    captured = capture(Masked(), example_inputs=(torch.randn(2, 5),), dynamic_batch=True)
    assert [o.op for o in captured.origins.values()] == [
        "aten.unsqueeze.default",
        "aten.mul.Tensor",
        "aten.sum.dim_IntList",
    ]


def test_a_model_that_fixes_its_batch_is_told_so() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 2, 4) + torch.ones(2, 2, 4)

    with pytest.raises(CaptureError, match="dynamic_batch"):
        capture(Fixed(), example_inputs=(torch.randn(4, 4),), dynamic_batch=True)


def test_contradictions_are_usage_errors() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(UsageError, match="exclude each other"):
        capture(nn.Linear(4, 2), example_inputs=(x,), dynamic_batch=True, dynamic_shapes={"input": {0: Dim("n")}})
    with pytest.raises(UsageError, match="names y, which example_inputs lacks"):
        capture(nn.Linear(4, 2), example_inputs=(x,), dynamic_shapes={"y": {0: Dim("n")}})
    with pytest.raises(UsageError, match="their sizes differ"):
        capture(nn.Bilinear(4, 4, 2), example_inputs=(x, torch.randn(1, 4)), dynamic_batch=True)
    program = torch.export.export(nn.Linear(4, 2).eval(), (x,))
    with pytest.raises(UsageError, match="fixed when it is exported"):
        capture(program, dynamic_batch=True)
