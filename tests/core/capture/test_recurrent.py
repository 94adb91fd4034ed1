"""LSTM and GRU stay one op; unrolling gives plain ops with the same outputs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import CapturedModel, capture, unroll_recurrent
from deploykit.capture.recurrent import OF_THIS_GRAPH
from deploykit.capture.recurrent_cells import RECURRENT
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


class Stacked(nn.Module):
    """Recurrent layers one on the other: transposes between them go where both are unrolled."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(3, 4, 2, batch_first=True)
        self.second = nn.GRU(4, 4, batch_first=True, bidirectional=True)
        self.third = nn.RNN(8, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.third(self.second(self.first(x)[0])[0])[0])
        return found


def values_of(captured: CapturedModel, x: Tensor) -> dict[str, Tensor]:
    """The value of each node by name, but for names that are of one graph alone."""
    values: dict[str, Tensor] = {}

    class Kept(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            found = super().run_node(n)
            if n.op == "call_function" and isinstance(found, Tensor) and not n.name.endswith(OF_THIS_GRAPH):
                values[n.name] = found
            return found

    with torch.no_grad():
        Kept(captured.graph_module).run(x)
    return values


def test_a_name_is_of_one_value_whichever_layers_are_unrolled() -> None:
    """Statistics are taken by name of the form that has all steps, and serve every other."""
    torch.manual_seed(0)
    captured = capture(Stacked().eval(), example_inputs=(torch.randn(1, 5, 3),))
    layers = [node.name for node in captured.graph_module.graph.nodes if node.target in RECURRENT]
    x = torch.randn(1, 5, 3)
    known = values_of(unroll_recurrent(captured), x)
    assert len(layers) == 3 and len(known) > 200
    for count in (1, 2):
        for chosen in itertools.combinations(layers, count):
            found = values_of(unroll_recurrent(captured, chosen), x)
            shared = found.keys() & known.keys()
            steps = {name for name in found if name.startswith(tuple(f"{layer}_" for layer in chosen))}
            assert len(steps - known.keys()) <= 2 * count, "all but what turns a layer's input and output round"
            for name in shared:
                torch.testing.assert_close(found[name], known[name], rtol=0.0, atol=1e-6, msg=name)


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
