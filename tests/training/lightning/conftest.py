"""A few digits as Lightning takes them, and one warning of its data loaders that is no news here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader, TensorDataset


@pytest.fixture
def loader(digits: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(digits[0][:96], digits[1][:96]), batch_size=32)


@pytest.fixture(autouse=True)
def one_thread_of_data() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        yield
