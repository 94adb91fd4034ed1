"""Complex numbers become pairs of real tensors, Fourier transforms matrix products; `capture` compares the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.capture import CapturedModel, capture
from deploykit.contract.errors import CaptureError

WINDOW = torch.hann_window(16)


class Of(nn.Module):
    """A module around a function, with complex weights."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.function, self.linear = function, nn.Linear(16, 16)
        self.weights = nn.Parameter(torch.randn(16, 8, dtype=torch.cfloat, generator=generator))
        self.turns = nn.Buffer(torch.polar(torch.ones(16), torch.arange(16.0) / 5))
        self.complex_linear = nn.Linear(16, 4, dtype=torch.cfloat)
        self.complex_conv = nn.Conv1d(2, 3, 3, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def captured(function: Callable[..., Any], *shape: int) -> CapturedModel:
    example = torch.randn(*(shape or (2, 16)), generator=torch.Generator().manual_seed(0))
    return capture(Of(function), example_inputs=(example,))


def _looped(m: Of, x: Tensor) -> Tensor:
    state, outputs = torch.zeros(2, 16, dtype=torch.cfloat), []
    for _ in range(3):
        state = state * m.turns + x
        outputs.append(state.real)
    return torch.stack(outputs)


def _written(m: Of, x: Tensor) -> Tensor:
    out = torch.zeros(2, 9, dtype=torch.cfloat)
    out[:, :4] = torch.fft.rfft(x)[:, :4]
    return torch.fft.irfft(out, n=16)


def _masked(m: Of, x: Tensor) -> Tensor:
    z = torch.fft.fft(x)
    return torch.where(z.abs() > 3, z, torch.zeros((), dtype=torch.cfloat)).real + z.masked_fill(z.real > 0, 0).imag


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "rotary": lambda m, x: torch.view_as_real(torch.view_as_complex(x.view(2, 8, 2)) * m.turns[:8]).flatten(1),
    "polar": lambda m, x: torch.view_as_real(torch.polar(x.abs(), m.linear(x))),
    "exponential": lambda m, x: torch.exp(1j * m.linear(x)).real,
    "matrix product": lambda m, x: (torch.complex(m.linear(x), x) @ m.weights).abs(),
    "product of two": lambda m, x: (torch.complex(x, m.linear(x)).view(2, 4, 4) @ torch.fft.fft(x).view(2, 4, 4)).imag,
    "einsum": lambda m, x: torch.view_as_real(torch.einsum("bi,io->bo", torch.fft.fft(x), m.weights)),
    "layers": lambda m, x: m.complex_linear(torch.complex(x, m.linear(x))).abs(),
    "convolution": lambda m, x: m.complex_conv(torch.complex(x, -x).view(2, 2, 8)).abs(),
    "quotient": lambda m, x: (torch.fft.fft(x) / (torch.fft.fft(m.linear(x)) + 2)).abs(),
    "powers": lambda m, x: (torch.fft.fft(x) ** 3).real + (torch.fft.fft(x) ** -1).imag,
    "roots": lambda m, x: (x + 0j).sqrt().imag + torch.fft.fft(x).sqrt().real,
    "logarithm": lambda m, x: torch.log(torch.complex(x.abs() + 1, x)).imag,
    "conjugates": lambda m, x: (torch.fft.fft(x) * torch.fft.rfft(x, n=30).conj()).real,
    "adjoint": lambda m, x: torch.fft.fft(x).mH.imag,
    "unit circle": lambda m, x: torch.fft.fft(x).sgn().real,
    "sums": lambda m, x: torch.view_as_real(torch.fft.fft(x).mean(1) + torch.fft.fft(x).sum(1)),
    "mixed with real": lambda m, x: torch.cat([torch.fft.fft(x), x + 0j], 1).real * (x + 2j).imag[:, :1],
    "larger real operand": lambda m, x: torch.view_as_real(x.view(2, 16, 1) + torch.complex(x[0], x[1])).flatten(1),
    "scan": _looped,
    "written into": _written,
    "masks": _masked,
    "cumulative": lambda m, x: torch.polar(torch.ones(2, 16), x).cumprod(-1).real,
    "split": lambda m, x: torch.fft.fft(x).chunk(2, -1)[1].imag,
    "comparison": lambda m, x: (torch.fft.fft(x) == torch.fft.fft(x)).float() + (torch.fft.fft(x) != 0).float(),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic(name: str) -> None:
    assert _is_real(captured(ARITHMETIC[name]))


TRANSFORMS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "rfft": (lambda m, x: torch.view_as_real(torch.fft.rfft(x)), (2, 16)),
    "odd": (lambda m, x: torch.view_as_real(torch.fft.rfft(x)), (2, 15)),
    "of one and two": (lambda m, x: torch.fft.fft(x).real + torch.fft.irfft(torch.fft.rfft(x[:, :1]), n=1), (3, 2)),
    "vector": (lambda m, x: torch.fft.fft(x).imag, (12,)),
    "two factors": (lambda m, x: torch.view_as_real(torch.fft.rfft(x)), (2, 300)),
    "many factors": (lambda m, x: torch.view_as_real(torch.fft.fft(x + 1j * x.flip(-1))), (1, 2**15)),
    "prime": (lambda m, x: torch.view_as_real(torch.fft.rfft(x)), (2, 211)),
    "large prime": (lambda m, x: torch.view_as_real(torch.fft.rfft(x)), (1, 1009)),
    "back": (lambda m, x: torch.fft.ifft(torch.fft.fft(x) * 2j).imag, (2, 300)),
    "real and back": (lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * (1 + 1j), n=x.shape[-1]), (2, 301)),
    "even and back": (lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * (1 + 1j)), (2, 512)),
    "two axes": (lambda m, x: torch.fft.fft2(x).real + torch.fft.ifft2(x).imag, (2, 6, 9)),
    "two axes and back": (lambda m, x: torch.fft.irfft2(torch.fft.rfft2(x), s=(6, 9)), (2, 6, 9)),
    "all axes": (lambda m, x: torch.fft.fftn(x, norm="ortho").abs(), (3, 4, 5)),
    "another axis": (lambda m, x: torch.fft.rfft(x, dim=1, norm="forward").abs(), (2, 12, 3, 2)),
    "padded": (lambda m, x: torch.fft.irfft(torch.fft.rfft(x, n=40), n=40, norm="ortho"), (2, 16)),
    "cut": (lambda m, x: torch.fft.fft(x, n=10).real, (2, 16)),
    "hermitian": (lambda m, x: torch.fft.hfft(torch.fft.ihfft(x), n=16) * 2, (2, 16)),
    "shifted": (lambda m, x: torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1)).abs(), (2, 6, 9)),
    "hilbert": (lambda m, x: torch.fft.ifft(torch.fft.fft(x) * m.turns.real).abs(), (2, 16)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str) -> None:
    function, shape = TRANSFORMS[name]
    assert _is_real(captured(function, *shape))


SHORT_TIME: dict[str, dict[str, Any]] = {
    "plain": {},
    "hop that does not divide": {"hop_length": 6},
    "hop without common factor": {"hop_length": 5, "n_fft": 18, "win_length": 16},
    "short window, normalised": {"win_length": 12, "window": torch.hann_window(12), "normalized": True},
    "not centred": {"center": False, "window": None},
    "two-sided": {"onesided": False, "pad_mode": "constant"},
}


@pytest.mark.parametrize("shape", [(2, 100), (100,)], ids=str)
@pytest.mark.parametrize("name", SHORT_TIME)
def test_short_time(name: str, shape: tuple[int, ...]) -> None:
    options = {"n_fft": 16, "hop_length": 4, "window": WINDOW, **SHORT_TIME[name]}
    assert _is_real(captured(lambda m, x: torch.stft(x, return_complex=True, **options).abs(), *shape))


@pytest.mark.parametrize("name", [name for name in SHORT_TIME if name != "hop without common factor"])
@pytest.mark.parametrize("length", [None, 90, 104])
def test_short_time_and_back(name: str, length: int | None) -> None:
    """A window that leaves gaps cannot be taken back, in PyTorch neither."""
    options = {"n_fft": 16, "hop_length": 4, "window": WINDOW, **SHORT_TIME[name]}
    forward = dict(options)
    options.pop("pad_mode", None)

    def there_and_back(m: Of, x: Tensor) -> Tensor:
        return torch.istft(torch.stft(x, return_complex=True, **forward) * 0.5, length=length, **options)

    assert _is_real(captured(there_and_back, 2, 100))


def test_a_hop_without_common_factor_and_back() -> None:
    def there_and_back(m: Of, x: Tensor) -> Tensor:
        return torch.istft(torch.stft(x, 18, 5, return_complex=True, window=torch.hann_window(18)), 18, 5)

    assert _is_real(captured(there_and_back, 2, 98))


def test_as_real_numbers() -> None:
    function = lambda m, x: torch.stft(x, 16, 4, window=WINDOW, return_complex=False)  # noqa: E731
    assert _is_real(captured(function, 2, 64))


@pytest.mark.parametrize("shape", [(4, 16), (4, 15), (2, 200)], ids=str)
def test_the_angle_of_what_is_exactly_real(shape: tuple[int, ...]) -> None:
    """The first and the middle frequency of a real signal: +pi or -pi depends on the sign of a zero."""
    for function in (torch.fft.rfft, torch.fft.fft):
        model = captured(lambda m, x, f=function: f(x).angle(), *shape).graph_module
        for sign in (-1.0, 1.0):
            x = sign * torch.rand(*shape)
            torch.testing.assert_close(model(x)[0], function(x).angle(), rtol=1e-4, atol=1e-4)


def test_atan2_on_the_axes() -> None:
    pairs = torch.cartesian_prod(torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([-1.0, 0.0, 5.0]))
    y, x = pairs[:, 0], pairs[:, 1]

    class Angle(nn.Module):
        def forward(self, y: Tensor, x: Tensor) -> Tensor:
            return torch.atan2(y, x)

    found = capture(Angle(), example_inputs=(y, x))
    assert "aten.atan2.default" not in {origin.op for origin in found.origins.values()}
    torch.testing.assert_close(found.graph_module(y, x)[0], torch.atan2(y, x))
    assert found.graph_module(torch.zeros(9), torch.full((9,), -1.0))[0][0] == pytest.approx(math.pi)


def test_a_dynamic_batch() -> None:
    model = Of(lambda m, x: F.relu(m.linear(torch.fft.irfft(torch.fft.rfft(x, n=256) * 2, n=256)[..., :16]).abs()))
    found = capture(model, example_inputs=(torch.randn(2, 16),), dynamic_batch=True)
    x = torch.randn(5, 16)
    with torch.no_grad():
        torch.testing.assert_close(found.graph_module(x)[0], model(x), rtol=1e-4, atol=1e-5)


def test_complex_inputs_and_outputs_are_refused() -> None:
    with pytest.raises(CaptureError, match="returns complex numbers") as told:
        captured(lambda m, x: torch.fft.fft(x))
    assert "view_as_real" in str(told.value.hint)
    with pytest.raises(CaptureError, match="'x' is complex"):
        capture(Of(lambda m, x: x.abs()), example_inputs=(torch.randn(2, 3, dtype=torch.cfloat),))


def test_an_operator_without_a_rule_is_named() -> None:
    with pytest.raises(CaptureError, match=r"no real form.*aten\.tan"):
        captured(lambda m, x: torch.fft.fft(x).tan().real)


def _is_real(model: CapturedModel) -> bool:
    values = [node.meta.get("val") for node in model.graph_module.graph.nodes]
    return not any(isinstance(value, Tensor) and value.is_complex() for value in values)
