"""LSTM and GRU stay one op; unrolling gives plain ops with the same outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import capture, unroll_recurrent
from deploykit.contract.errors import CaptureError


@pytest.mark.parametrize("name", ["lstm_classifier", "gru_classifier"])
def test_unrolled_outputs_are_equal(zoo: Any, name: str) -> None:
    module, (x,), captured = zoo(name)
    unrolled = unroll_recurrent(captured)
    ops = {origin.op for origin in unrolled.origins.values()}
    assert not ops & {"aten.lstm.input", "aten.gru.input"}
    assert "aten.linear.default" in ops
    assert unrolled.fingerprint != captured.fingerprint
    other = torch.randn_like(x)
    with torch.no_grad():
        torch.testing.assert_close(unrolled.run({"x": other})["output"], module(other), rtol=1e-5, atol=1e-6)
    assert {o.module_path for o in unrolled.origins.values()} <= {"rnn", "fc", ""}


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, 4, bias=False),
        nn.GRU(3, 4, bidirectional=True),
        nn.RNN(3, 4, nonlinearity="relu", num_layers=2),
        nn.RNN(3, 4, batch_first=True),
    ],
)
def test_every_form_unrolls_with_final_states(layer: nn.Module) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)

    captured = capture(Both(), example_inputs=(torch.randn(5, 2, 3),))
    unroll_recurrent(captured)  # checks the outputs itself


def test_a_model_without_recurrence_comes_back_as_it_is(zoo: Any) -> None:
    captured = zoo("mlp")[2]
    assert unroll_recurrent(captured) is captured


@pytest.mark.parametrize("name", ["lstm_classifier", "gru_classifier"])
def test_batches_may_be_dynamic(zoo: Any, name: str) -> None:
    module, (x,), captured = zoo(name, True)
    unrolled = unroll_recurrent(captured)
    several = torch.randn(3, *x.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(unrolled.run({"x": several})["output"], module(several), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [nn.LSTM(3, 4), nn.LSTM(3, 4, proj_size=2), nn.GRU(3, 4), nn.RNN(3, 4)], ids=repr)
def test_dynamic_lengths_are_not_captured(layer: nn.Module) -> None:
    """PyTorch fixes them, so that what is captured can be unrolled."""
    length = torch.export.Dim("length", min=2, max=9)
    with pytest.raises(CaptureError, match="Constraints violated") as caught:
        capture(layer, example_inputs=(torch.randn(5, 2, 3),), dynamic_shapes=({0: length},))
    assert "dynamic_shapes" in caught.value.hint


def test_layers_that_are_not_named_stay() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.GRU(3, 4), nn.LSTM(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.second(self.first(x)[0])[0]
            return found

    captured = capture(Two(), example_inputs=(torch.randn(5, 2, 3),))
    (name,) = [name for name, origin in captured.origins.items() if origin.module_path == "first" and "gru" in name]
    kept = {origin.op for origin in unroll_recurrent(captured, {name}).origins.values()}
    assert "aten.lstm.input" in kept and "aten.gru.input" not in kept
    assert unroll_recurrent(captured, ()) is captured


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"bidirectional": True, "num_layers": 2}, {"batch_first": True, "num_layers": 2}],
    ids=str,
)
def test_an_lstm_with_a_projection_is_always_unrolled(options: dict[str, Any]) -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(3, 5, proj_size=2, **options)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)

    model, x = Projected().eval(), torch.randn(4, 4, 3)
    captured = capture(model, example_inputs=(torch.randn(4, 4, 3),))
    assert not {origin.op for origin in captured.origins.values()} & {"aten.lstm.input"}
    with torch.no_grad():
        y, (hidden, cell) = model(x)
    for want, got in zip((y, hidden, cell), captured.graph_module(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_projection_is_unrolled_over_a_dynamic_batch() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(3, 5, proj_size=2, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)[0]

    model, several = Projected().eval(), torch.randn(5, 4, 3)
    captured = capture(model, example_inputs=(torch.randn(2, 4, 3),), dynamic_batch=True)
    with torch.no_grad():
        torch.testing.assert_close(captured.run({"x": several})["output"], model(several), rtol=1e-5, atol=1e-6)


def test_packed_sequences_are_refused_with_a_way_out() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(3, 5, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2]), batch_first=True)
            return nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]

    with pytest.raises(CaptureError, match="feed padded tensors"):
        capture(Packed(), example_inputs=(torch.randn(2, 4, 3),))


def test_names_mean_what_they_meant_before() -> None:
    """Statistics are by node name: the classifier behind an LSTM keeps its own, and no step takes it."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]

    captured = capture(Classifier().eval(), example_inputs=(torch.randn(1, 4, 16),))
    unrolled = unroll_recurrent(captured)
    before, after = ({n.name: n for n in c.graph_module.graph.nodes} for c in (captured, unrolled))
    both = {name for name in before.keys() & after.keys() if before[name].op == "call_function"}
    assert "linear" in both
    for name in both:
        assert before[name].meta["val"].shape == after[name].meta["val"].shape
        assert captured.origins[name].module_path == unrolled.origins[name].module_path
