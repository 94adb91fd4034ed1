"""Tests of the shared contract that a target's own tests cover, or that cost it minutes, run at night."""

from __future__ import annotations

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """A class names those of its tests that are `nightly` as `at_night`."""
    cls = getattr(item, "cls", None)
    if getattr(item, "originalname", None) in getattr(cls, "at_night", ()):
        item.add_marker("nightly")
