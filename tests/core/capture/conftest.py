"""Captures of the zoo, made once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from deploykit.capture import CapturedModel, capture
from deploykit.testing.models import ZOO

Zoo = Callable[..., tuple[torch.nn.Module, Any, CapturedModel]]


@pytest.fixture(scope="session")
def zoo() -> Zoo:
    """`zoo(name, dynamic_batch=False)` -> (module, example inputs, capture); each made once."""

    @cache
    def made(name: str, dynamic_batch: bool = False) -> tuple[torch.nn.Module, Any, CapturedModel]:
        module, example = ZOO[name]()
        return module, example, capture(module, example_inputs=example, dynamic_batch=dynamic_batch)

    return made
