"""Which outputs stay float."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402  (after the check that it is there)

from deploykit.capture import capture  # noqa: E402
from deploykit.contract.request import Request  # noqa: E402
from deploykit.pipeline.plan import make_request  # noqa: E402
from deploykit_targets.litert.scheme import scheme_of  # noqa: E402


def asked(io: str) -> Request:
    return make_request("android", options={"io": io})


IMAGE = (torch.zeros(1, 3, 8, 8),)


@pytest.mark.parametrize(
    ("layers", "float_outputs"),
    [
        ([nn.Flatten(), nn.Linear(192, 4)], True),
        ([nn.Flatten(), nn.Linear(192, 4), nn.ReLU()], True),
        ([nn.Conv2d(3, 2, 1), nn.Flatten()], False),
        ([nn.Conv2d(3, 2, 1), nn.Sigmoid()], False),
    ],
)
def test_linear_outputs_are_float_and_those_of_convolutions_are_not(
    layers: list[nn.Module], float_outputs: bool
) -> None:
    captured = capture(nn.Sequential(*layers).eval(), example_inputs=IMAGE)
    assert scheme_of(asked("float"), captured).float_outputs is float_outputs
    assert scheme_of(asked("int8"), captured).float_outputs is False
