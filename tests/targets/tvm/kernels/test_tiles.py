"""The tile is chosen without TVM: these run anywhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit_targets.tvm.kernels.tiles import choose_tile, fold_rows, join_lines


def dot(vectors: int = 32, *, rows: int = 1, x86: bool = False, **registers: int) -> Any:
    """As much of a `Dot` as the choice looks at."""
    held = {"matrices": 0, "pipeline": 8, "wide": 1, "parted": False} | registers
    return SimpleNamespace(
        registers=SimpleNamespace(vectors=vectors, **held),
        sums=SimpleNamespace(rows=rows, parts=1),
        multiplies_matrices=held["matrices"] > 0,
        fills_lines=x86,
        saturate=None,
    )


VNNI, SDOT, SMMLA, AMX = dot(x86=True), dot(wide=4), dot(rows=2), dot(matrices=8, x86=True)


@settings(deadline=None)
@given(rows=st.integers(1, 60), vectors=st.integers(1, 40), dot=st.sampled_from([VNNI, SDOT]))
def test_a_tile_fits_the_registers_and_the_result(rows: int, vectors: int, dot: Any) -> None:
    r, v = choose_tile(rows, vectors, dot)
    assert 1 <= r <= rows and 1 <= v <= vectors
    assert r * v + v + (r if dot.registers.wide > 1 else 1) <= dot.registers.vectors


def test_a_single_row_is_spread_over_many_columns() -> None:
    assert choose_tile(1, 63, SDOT)[1] >= 8  # else the latency of the multiply-accumulate shows


def test_a_single_row_reads_few_columns_of_cache_lines_beside_each_other() -> None:
    assert choose_tile(1, 63, VNNI) == (1, 4)
    assert choose_tile(2, 63, VNNI)[1] > 4


@pytest.mark.parametrize("count", [1, 49, 97, 196, 3136, 12544])
def test_folded_lines_hold_all_pixels(count: int) -> None:
    lines, pixels = fold_rows(count, 16, VNNI)
    assert lines * pixels == count


def test_many_pixels_become_many_lines() -> None:
    assert fold_rows(3136, 16, VNNI)[0] >= 8  # work for eight threads


@given(images=st.integers(1, 3), height=st.integers(1, 60), width=st.integers(1, 60))
def test_joined_lines_hold_all_pixels_of_images_that_stay_apart(images: int, height: int, width: int) -> None:
    _, _, lines, pixels = join_lines((images * height, width), 4, VNNI, within=height)
    assert lines * pixels == images * height * width
    assert height * width % pixels == 0


def test_lines_are_joined_where_a_tile_does_not_divide_them() -> None:
    avx2 = dot(16, pipeline=12, x86=True)
    assert join_lines((7, 7), 64, avx2, by=2, within=7) == (6, 2, 1, 49)  # 9 tiles of six, and not 14
    assert join_lines((12, 12), 8, avx2, by=2, within=12)[3] == 12


@given(rows=st.integers(2, 60), vectors=st.integers(1, 40))
def test_steps_of_two_rows_get_tiles_of_pairs(rows: int, vectors: int) -> None:
    r, v = choose_tile(rows, vectors, SMMLA)
    assert r % 2 == 0
    assert r * v + r // 2 + 2 <= SMMLA.registers.vectors


@given(rows=st.integers(1, 200), vectors=st.integers(1, 40))
def test_tiles_of_matrices_fit_their_eight_registers(rows: int, vectors: int) -> None:
    r, v = choose_tile(rows, vectors, AMX)
    high = -(-r // 16)
    assert 1 <= r <= rows and high * v + high + v <= 8


def test_matrices_are_two_by_two_where_there_is_enough() -> None:
    assert choose_tile(256, 16, AMX) == (32, 2)
    assert choose_tile(49, 32, AMX) == (25, 2)  # two tiles of rows that overlap in one, instead of 32 and 17
