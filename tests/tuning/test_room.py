"""The room is found where the wheel has it."""

from __future__ import annotations

import deploykit_tuning


def test_it_says_what_it_is_for() -> None:
    assert deploykit_tuning.__doc__
