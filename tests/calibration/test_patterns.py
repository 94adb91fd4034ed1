"""Include and exclude by module path."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from deploykit.contract.errors import UsageError
from deploykit_calibration.patterns import kept_float


@dataclass(frozen=True)
class At:
    module_path: str


ORIGINS = {"conv2d": At("stem.conv"), "conv2d_1": At("layer1.0.conv"), "linear": At("head.fc"), "add": At("")}
NAMES = list(ORIGINS)


def test_nothing_is_kept_without_patterns() -> None:
    assert kept_float(ORIGINS, NAMES, (), ()) == {}


def test_a_module_name_means_everything_in_it() -> None:
    assert kept_float(ORIGINS, NAMES, (), ("layer1",)) == {"conv2d_1": "excluded by pattern 'layer1'"}


def test_wildcards_and_node_names() -> None:
    assert set(kept_float(ORIGINS, NAMES, (), ("*.conv", "add"))) == {"conv2d", "conv2d_1", "add"}


def test_include_keeps_the_rest_and_exclude_wins() -> None:
    kept = kept_float(ORIGINS, NAMES, ("stem", "head"), ("head.fc",))
    assert kept == {
        "conv2d_1": "matches no include pattern",
        "linear": "excluded by pattern 'head.fc'",
        "add": "matches no include pattern",
    }


def test_a_pattern_that_matches_nothing_is_an_error_with_near_misses() -> None:
    with pytest.raises(UsageError, match=r"'layer1\.0\.cnv' matches no layer.*\n.*layer1\.0\.conv"):
        kept_float(ORIGINS, NAMES, (), ("layer1.0.cnv",))
