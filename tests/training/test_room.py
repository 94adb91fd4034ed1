"""The room is found where the wheel has it."""

from __future__ import annotations

import deploykit_training


def test_it_says_what_it_is_for() -> None:
    assert deploykit_training.__doc__
