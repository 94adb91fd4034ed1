"""What of a graph is data, whatever dtype it passes through, and what are masks, positions and angles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from schemes import SCHEMES
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit.contract.errors import CalibrationError
from deploykit.contract.scheme import Scheme
from deploykit_calibration.graph_view import GraphView
from deploykit_calibration.observe import calibrate
from deploykit_calibration.placement import place
from deploykit_targets.litert.scheme import LITERT

CHANNELS_OF_NORM = torch.tensor([0.5, 0.4, 0.3]).reshape(3, 1, 1)


class Flow(nn.Module):
    """`function(model, *inputs)` with a convolution, linear layers and constants to use."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.image, self.audio = nn.Conv2d(3, 16, 3, 2), nn.Conv1d(9, 16, 3)
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Conv2d(16, 16, 3)
        self.codes = nn.Parameter(torch.randn(20, 16))
        self.window, self.frequencies = nn.Buffer(torch.hann_window(16)), nn.Buffer(0.1 ** torch.arange(8.0))
        self.norm = nn.Buffer(CHANNELS_OF_NORM)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def _camera(m: Any, image: Tensor) -> Tensor:
    return m.head(torch.relu(m.image(image.float() / 255)))  # type: ignore[no-any-return]


def _normalised_camera(m: Any, image: Tensor) -> Tensor:
    x = (image.permute(0, 3, 1, 2).to(torch.float32) / 255 - m.norm) / (m.norm * 0.5)
    return m.head(torch.relu(m.image(x)))  # type: ignore[no-any-return]


def _thresholded(m: Any, image: Tensor) -> Tensor:
    return m.head(torch.relu(m.image((image > 128).float())))  # type: ignore[no-any-return]


def _spectrogram(m: Any, audio: Tensor) -> Tensor:
    frames = torch.stft(audio.float() / 32768, 16, 4, window=m.window, return_complex=True)
    return torch.relu(m.audio(torch.view_as_real(frames).square().sum(-1).log1p()))


def _spectrum(m: Any, x: Tensor) -> Tensor:
    return m.two(torch.relu(m.one(torch.fft.rfft(x, n=30).abs())))  # type: ignore[no-any-return]


def _codebook(m: Any, x: Tensor) -> Tensor:
    nearest = (m.one(x).unsqueeze(-2) - m.codes).square().sum(-1).argmin(-1)
    return m.two(m.codes[nearest])  # type: ignore[no-any-return]


def _finite_scalar(m: Any, x: Tensor) -> Tensor:
    return m.two(torch.round(m.one(x) * 4).int().clamp(-8, 8).float() / 4)  # type: ignore[no-any-return]


def _gated(m: Any, x: Tensor) -> Tensor:
    return m.two(m.one(x) * (x > 0).bool())  # type: ignore[no-any-return]


def _one_hot(m: Any, ids: Tensor) -> Tensor:
    return m.two(torch.relu(m.one(nn.functional.one_hot(ids, 16).float())))  # type: ignore[no-any-return]


def _scored(m: Any, x: Tensor) -> Tensor:
    best = m.one(x).argmax(-1)
    return m.two(nn.functional.embedding(best, m.codes))  # type: ignore[no-any-return]


def _timesteps(m: Any, x: Tensor, time: Tensor) -> Tensor:
    angles = time.float()[:, None] * m.frequencies
    return m.two(torch.relu(m.one(torch.cat([angles.cos(), angles.sin()], -1)) + x))  # type: ignore[no-any-return]


def _integers(high: int, *shape: int, dtype: torch.dtype = torch.int64, low: int = 0) -> Tensor:
    return torch.randint(low, high, shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


PIXELS, SAMPLES = _integers(256, 1, 3, 16, 16, dtype=torch.uint8), _integers(999, 1, 64, dtype=torch.int16, low=-999)
FLOATS = torch.linspace(-2, 2, 64).reshape(4, 16)

FLOWS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], int]] = {
    "uint8 camera": (_camera, (PIXELS,), 2),
    "uint8 camera, channels last, normalised": (_normalised_camera, (PIXELS.permute(0, 2, 3, 1),), 2),
    "int8 camera": (_camera, (PIXELS.to(torch.int8),), 2),
    "thresholded image": (_thresholded, (PIXELS,), 2),
    "int16 audio through stft": (_spectrogram, (SAMPLES,), 1),
    "rfft": (_spectrum, (FLOATS,), 2),
    "codebook": (_codebook, (FLOATS,), 2),
    "rounded to integers and back": (_finite_scalar, (FLOATS,), 2),
    "multiplied with truth values": (_gated, (FLOATS,), 2),
    "one-hot": (_one_hot, (_integers(16, 4),), 2),
    "best score to embedding": (_scored, (FLOATS,), 2),
    "embedded time steps": (_timesteps, (FLOATS, _integers(999, 4)), 2),
}
"""Name -> (function, inputs, layers that int8 must reach)."""


@pytest.mark.parametrize("name", FLOWS)
def test_what_passes_through_integers_and_complex_numbers_is_data(case_of: Callable[..., Any], name: str) -> None:
    function, inputs, layers = FLOWS[name]
    # A layer whose output may not be rounded stays float in some schemes, so the last one is not the output.
    model = Flow(lambda m, *x: torch.relu(function(m, *x)).sum(-1))
    case = case_of(model, inputs)
    for scheme in SCHEMES.values():
        found = {
            layer.name: (layer.precision, layer.reason)
            for layer in place(case.captured, case.table, scheme).layers
            if layer.kind in ("conv", "linear")
        }
        assert list(found.values()) == [("int8", "")] * layers, (scheme.name, found)


def _additive(m: Any, x: Tensor, mask: Tensor) -> Tensor:
    scores = m.one(x) @ m.two(x).mT + (1.0 - mask.float()) * torch.finfo(torch.float32).min
    return scores.softmax(-1) @ x


def _pooled(m: Any, x: Tensor, mask: Tensor) -> Tensor:
    """The mask also takes the mean of what it lets through: there a layer multiplies it."""
    return mask.float() @ _additive(m, x, mask) / mask.sum()


def _from_padding(m: Any, x: Tensor) -> Tensor:
    padding = (x.abs().sum(-1) != 0).float()
    return ((m.one(x) @ m.two(x).mT) / 4 + (1 - padding) * -1e9).softmax(-1) @ x


def _given(m: Any, x: Tensor, bias: Tensor) -> Tensor:
    return ((m.one(x) @ m.two(x).mT).view(1, 4, 4) + bias.unsqueeze(0)).softmax(-1) @ x


def _rotary(m: Any, x: Tensor, positions: Tensor) -> Tensor:
    angles = (m.frequencies[:, None] @ positions[None].float()).mT
    cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
    turned = torch.cat([-x[..., 8:], x[..., :8]], -1)
    return m.two(m.one(x * cos + turned * sin))  # type: ignore[no-any-return]


def _rotary_by_row(m: Any, x: Tensor, positions: Tensor) -> Tensor:
    """As a product with a constant on the right, which capture makes a linear layer of."""
    angles = positions[:, None].float() @ m.frequencies[None]
    turn = torch.polar(torch.ones_like(angles), angles)
    return m.two(m.one(torch.view_as_real(torch.view_as_complex(x.view(4, 8, 2)) * turn).flatten(-2)))  # type: ignore[no-any-return]


MASK = torch.tensor([1, 1, 1, 0])
FLOAT_ONLY: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], frozenset[str]]] = {
    "mask of integers": (_additive, (FLOATS, MASK), frozenset({"to_copy", "rsub", "mul"})),
    "mask that also takes a mean": (_pooled, (FLOATS, MASK), frozenset({"rsub", "mul"})),
    "mask from padding": (_from_padding, (FLOATS,), frozenset({"to_copy", "rsub", "mul"})),
    "mask of floats": (
        _given,
        (FLOATS, torch.where(MASK > 0, 0.0, -1e4).expand(4, 4)),
        frozenset({"inputs_1", "unsqueeze"}),
    ),
    "rotary angles": (_rotary, (FLOATS, torch.arange(4)), frozenset({"to_copy", "matmul", "cos", "sin"})),
    "rotary angles by row": (
        _rotary_by_row,
        (FLOATS, torch.arange(4)),
        frozenset({"to_copy", "linear", "cos", "sin"}),
    ),
}


@pytest.mark.parametrize("name", FLOAT_ONLY)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_masks_positions_and_angles_are_never_rounded(case_of: Callable[..., Any], name: str, scheme: Scheme) -> None:
    function, inputs, names = FLOAT_ONLY[name]
    case = case_of(Flow(function), inputs)
    graph = place(case.captured, case.table, scheme).graph_module.graph
    rounded = {node.args[0].name for node in graph.nodes if "quantize_per_tensor" in str(node.target)}
    assert names <= {node.name for node in graph.nodes}, "the names that this test looks for"
    assert not rounded & names
    assert any(name.startswith(("linear", "inputs_0")) for name in rounded), "the data beside them is"


def test_sizes_and_positions_computed_from_them_are_no_data() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            places = torch.arange(x.shape[1], dtype=torch.float32) / 9
            return self.one(x) * places.cos().unsqueeze(-1)  # type: ignore[no-any-return]

    shapes = {"x": {1: torch.export.Dim("length", min=2, max=64)}}
    captured = capture(Counted(), example_inputs=(torch.randn(2, 5, 8),), dynamic_shapes=shapes)
    names = {node.name for node in GraphView(captured.graph_module.graph).activations}
    assert "linear" in names
    assert not any(name.startswith(("arange", "cos", "div", "sym_size")) for name in names)


def test_a_mask_may_hold_infinity_and_what_it_reaches_is_not_rounded(case_of: Callable[..., Any]) -> None:
    """Also where the model shows no softmax to tell a mask by: the example has -inf where others may have it."""
    mask = torch.where(MASK > 0, 0.0, -torch.inf).expand(4, 4)
    for function in (Flow(_given), Flow(lambda m, x, bias: (m.one(x) @ m.two(x).mT + bias).amax(-1))):
        captured = capture(function, example_inputs=(FLOATS, mask))
        table = calibrate(captured, [(FLOATS, mask), (FLOATS * 2, mask)], progress=False)
        assert table.statistics["inputs_1"].nonfinite == 8
        quantized = place(captured, table, LITERT)
        rounded = {
            node.args[0].name
            for node in quantized.graph_module.graph.nodes
            if "quantize_per_tensor" in str(node.target)
        }
        assert "inputs_0" in rounded
        assert not {name for name in rounded if table.statistics.get(name) and table.statistics[name].nonfinite}
    with pytest.raises(CalibrationError, match="'inputs_1' holds NaN"):
        calibrate(captured, [(FLOATS, mask * torch.nan)], progress=False)
    with pytest.raises(CalibrationError, match="'inputs_0' holds infinity"):
        calibrate(captured, [(FLOATS / 0, mask)], progress=False)
