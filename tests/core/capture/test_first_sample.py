"""Models that do not tell their inputs are captured with the first sample of the calibration data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import deploykit
from deploykit.capture import open_model
from deploykit.contract.errors import CalibrationError, UsageError


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class Two(One):
    def forward(self, x: Tensor, scale: Tensor) -> Any:  # type: ignore[override]
        return self.layer(x) * scale


class Masked(One):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:  # type: ignore[override]
        return self.layer(x if mask is None else x * mask)


class AnyNumber(One):
    def forward(self, *parts: Tensor) -> Any:  # type: ignore[override]
        return self.layer(torch.cat(parts, -1))


class ByName(One):
    def forward(self, x: Tensor, *, scale: Tensor) -> Any:  # type: ignore[override]
        return self.layer(x) * scale


X, SCALE, LABELS = torch.randn(6, 4), torch.rand(6, 1), torch.arange(6)


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return zip(X, LABELS, strict=True)


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        raise OSError("no such image")


def shapes(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: tuple(value.shape) for name, value in inputs.items()}
    return None if inputs is None else [tuple(value.shape) for value in inputs]


@pytest.mark.parametrize(
    ("module", "data", "found"),
    [
        (One, X, [(1, 4)]),
        (One, X.numpy(), [(1, 4)]),
        (One, {"x": X, "label": LABELS}, {"x": (1, 4)}),
        (One, DataLoader(TensorDataset(X, LABELS), batch_size=3, shuffle=True), [(1, 4)]),
        (One, DataLoader(TensorDataset(X), batch_size=3), [(1, 4)]),
        (One, DataLoader(Streamed(), batch_size=3), [(1, 4)]),
        (One, DataLoader(TensorDataset(X, LABELS), batch_size=None), [(4,)]),
        (One, DataLoader([{"x": X[0], "y": LABELS[0]}], batch_size=1), {"x": (1, 4)}),  # type: ignore[arg-type]
        (One, lambda: DataLoader(TensorDataset(X, LABELS), batch_size=3), [(1, 4)]),
        (One, [X, X], [(6, 4)]),
        (One, [(X, LABELS)], [(6, 4)]),
        (One, lambda: [X], [(6, 4)]),
        (Two, [(X, SCALE)], [(6, 4), (6, 1)]),
        (Two, [(X, SCALE, LABELS)], [(6, 4), (6, 1)]),
        (Two, [((X, SCALE), LABELS)], [(6, 4), (6, 1)]),
        (Two, [({"x": X, "scale": SCALE}, LABELS)], {"x": (6, 4), "scale": (6, 1)}),
        (Two, {"x": X, "scale": SCALE}, {"x": (1, 4), "scale": (1, 1)}),
        (Two, {"x": X, "scale": torch.ones(1, 2)}, {"x": (6, 4), "scale": (1, 2)}),  # axis 0 counts no samples
        (Masked, [X], [(6, 4)]),
        (Masked, {"x": X, "mask": X}, {"x": (1, 4), "mask": (1, 4)}),
    ],
)  # fmt: skip
def test_inputs_are_told_by_the_data(module: type[nn.Module], data: Any, found: Any) -> None:
    assert shapes(open_model(module(), None, data)[1]) == found


@pytest.mark.parametrize(
    ("module", "data"),
    [
        (Masked, [(X, LABELS)]),  # a label, or a mask
        (Two, [X]),
        (Two, {"x": X}),
        (Two, [(X, ["a", "b"])]),
        (AnyNumber, [(X, X)]),
        (ByName, [(X, SCALE)]),
        (One, ["a", "b"]),
        (One, [{"image": X}]),
        (One, 3),
        (One, "synthetic"),
    ],
)
def test_what_leaves_a_doubt_tells_nothing(module: type[nn.Module], data: Any) -> None:
    assert open_model(module(), None, data)[1] is None


def test_what_the_model_tells_goes_before() -> None:
    class Telling(One):
        example_input_array = torch.zeros(2, 4)

    assert open_model(Telling(), None, DataLoader(Broken()))[1] is None
    assert open_model(One(), (X,), DataLoader(Broken()))[1] == (X,)


def test_an_iterator_comes_back_whole() -> None:
    batches = ((x[None], 0) for x in X)
    _, inputs, data = open_model(One(), None, batches)
    assert inputs is not None and torch.equal(inputs[0], X[:1])
    assert [torch.equal(batch[0], x[None]) for batch, x in itertools.zip_longest(data, X)] == [True] * len(X)


def test_doubles_of_numpy_become_floats_and_those_of_pytorch_stay() -> None:
    assert open_model(One(), None, np.ones((3, 4)))[1][0].dtype == np.float32
    assert open_model(One(), None, torch.ones(3, 4, dtype=torch.float64))[1][0].dtype == torch.float64


def test_a_shuffled_loader_gives_the_same_order_afterwards() -> None:
    module, loader = One(), DataLoader(TensorDataset(X), batch_size=1, shuffle=True)
    torch.manual_seed(3)
    expected = [batch[0] for batch in loader]
    torch.manual_seed(3)
    open_model(module, None, loader)
    assert all(torch.equal(one[0], other) for one, other in zip(loader, expected, strict=True))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "is empty"),
        (iter(()), "is empty"),
        (DataLoader(TensorDataset(X[:0]), batch_size=2), "is empty"),
        (DataLoader(Broken()), "OSError: no such image"),
        (lambda: {}["x"], "KeyError"),
    ],
)
def test_data_that_gives_no_batch_is_refused(data: Any, words: str) -> None:
    with pytest.raises(CalibrationError, match=words) as caught:
        open_model(One(), None, data)
    assert caught.value.hint


@pytest.mark.parametrize("call", ["export", "sensitivity", "tune"])
def test_calls_need_no_example_inputs_beside_a_loader(call: str, tmp_path: Any) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    loader = DataLoader(TensorDataset(torch.randn(48, 4), torch.zeros(48)), batch_size=16)
    to: dict[str, Any] = {"calibration": loader, "output": tmp_path / "a", "profile": False, "progress": False}
    calls: dict[str, Callable[[], Any]] = {
        "export": lambda: deploykit.export(net, "x86-cpu", "int8", **to),
        "sensitivity": lambda: deploykit.sensitivity(net, "x86-cpu", loader, progress=False),
        "tune": lambda: deploykit.tune(net, "x86-cpu", "int8", min_sqnr_db=20, **to).best,
    }
    found = calls[call]()
    if call != "sensitivity":
        assert [tuple(spec.shape) for spec in found.inputs] == [(1, 4)]
    else:
        assert found.layers


def test_the_refusal_says_what_data_could_have_told() -> None:
    with pytest.raises(UsageError, match="does not tell its inputs") as caught:
        deploykit.sensitivity(Masked(), "x86-cpu", [(X, LABELS)], progress=False)
    assert "(x, mask)" in caught.value.hint and "labels" in caught.value.hint
