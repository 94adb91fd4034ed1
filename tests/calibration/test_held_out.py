"""Which samples calibration does not see: by position alone, never all of them, and handed back whole."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="calibration needs PyTorch")

import torch
from torch import nn

from deploykit.capture import CapturedModel, capture
from deploykit_calibration.held_out import HELD_SAMPLES
from deploykit_calibration.observe import calibrate, run_calibration


@pytest.fixture(scope="module")
def graphs() -> dict[str, CapturedModel]:
    model = nn.Linear(3, 2).eval()
    return {
        "static": capture(model, example_inputs=(torch.zeros(1, 3),)),
        "of four": capture(model, example_inputs=(torch.zeros(4, 3),)),
        "dynamic": capture(model, example_inputs=(torch.zeros(2, 3),), dynamic_batch=True),
    }


def numbered(count: int) -> torch.Tensor:
    return torch.arange(1.0, count + 1)[:, None].expand(count, 3).contiguous()


def held(captured: CapturedModel, data: object) -> list[int]:
    """The numbers of the samples that were held back."""
    run = run_calibration(captured, data, progress=False, hold_out=True)
    return sorted({int(row[0]) - 1 for feeds in run.held_out for row in feeds[captured.inputs[0].name]})


@pytest.mark.parametrize("graph", ["static", "of four", "dynamic"])
@pytest.mark.parametrize(
    ("count", "positions"),
    [(1, []), (2, [1]), (3, [1]), (4, [1, 3]), (9, [1, 3, 5, 7]), (50, [*range(1, 16, 2), 19, 23, 27, 31, 39, 47])],
)
def test_positions_decide_however_data_are_batched(
    graph: str, count: int, positions: list[int], graphs: dict[str, CapturedModel]
) -> None:
    data = numbered(count)
    captured = graphs[graph]
    for batches in (data, data.split(5), data.split(1), iter(data.split(3))):
        assert held(captured, batches) == positions
    seen = run_calibration(captured, data, progress=False, hold_out=True).table
    assert seen.samples == count - len(positions)


def test_what_is_held_back_has_no_part_in_the_table(graphs: dict[str, CapturedModel]) -> None:
    data = numbered(12)
    table = run_calibration(graphs["dynamic"], data, progress=False, hold_out=True).table
    rest = torch.stack([row for i, row in enumerate(data) if i % 2 == 0])
    same = calibrate(graphs["dynamic"], rest, progress=False)
    assert table.data_fingerprint == same.data_fingerprint
    assert table.statistics.keys() == same.statistics.keys()
    assert {s.maximum for s in table.statistics.values()} == {s.maximum for s in same.statistics.values()}


def test_no_more_than_a_number(graphs: dict[str, CapturedModel]) -> None:
    assert len(held(graphs["dynamic"], numbered(1000))) == HELD_SAMPLES


def test_a_table_from_the_cache_has_the_same_samples_apart(graphs: dict[str, CapturedModel], tmp_path: object) -> None:
    arguments = {"progress": False, "cache_dir": tmp_path, "hold_out": True}
    first = run_calibration(graphs["static"], numbered(8), **arguments)
    again = run_calibration(graphs["static"], numbered(8), **arguments)
    assert again.table.from_cache and again.table == first.table
    assert len(again.held_out) == len(first.held_out) == 4
    assert not run_calibration(graphs["static"], numbered(8), progress=False, cache_dir=tmp_path).table.from_cache


def test_nothing_is_held_back_unasked(graphs: dict[str, CapturedModel]) -> None:
    run = run_calibration(graphs["static"], numbered(8), progress=False)
    assert (run.table.samples, run.held_out) == (8, [])
