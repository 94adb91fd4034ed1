"""Every translation against PyTorch: the operator in a one-line model, captured, lowered, run step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

from execution import execute, host_isa, sqnr_db
from op_cases import CASES, Apply

from deploykit.capture import capture
from deploykit.contract.errors import ConversionError
from deploykit_targets.tvm.kernels.isa import isa
from deploykit_targets.tvm.lower import lower

REFUSED = {name: f"aten.{name}" for name in ("topk", "sort", "scatter", "index_put")}
"""Cases that no kernel computes; their error names the operator and the line."""


@pytest.mark.parametrize("name", CASES)
def test_operator_equals_pytorch(name: str) -> None:
    function, args = CASES[name]
    model = Apply(function)
    captured = capture(model, example_inputs=args)
    if name in REFUSED:
        with pytest.raises(ConversionError, match=REFUSED[name]):
            lower(captured, isa(host_isa()))
        return
    with torch.no_grad():
        wanted = model(*args)
    wanted = list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]
    feeds = {name: tensor.numpy() for name, tensor in captured.example_feeds().items()}
    outputs = execute(lower(captured, isa(host_isa())), feeds)
    for want, got in zip(wanted, outputs.values(), strict=True):
        assert tuple(got.shape) == tuple(want.shape)
        assert got.dtype == want.numpy().dtype
        if want.dtype.is_floating_point:  # float32 rounding, order of sums: -100 dB
            assert sqnr_db(want.numpy(), got) > 100
        else:
            assert np.array_equal(want.numpy(), got)
