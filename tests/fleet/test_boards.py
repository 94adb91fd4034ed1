"""What boards say becomes part of a cell; the boards themselves are tested in `tests/fleet/devices`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deploykit.contract.errors import DeviceError, MissingDependencyError, ParityError, UsageError
from deploykit.places.line import LostError
from deploykit_fleet.boards import confirmed
from deploykit_fleet.collect import gc
from deploykit_fleet.devices.lease import BusyError
from deploykit_fleet.devices.registry import Entry, Registry
from deploykit_fleet.outcome import Cell
from deploykit_fleet.release_file import Block
from deploykit_fleet.store import Store


class Board:
    """Stands in for `deploykit.device(name)`: says what it is told to, and counts."""

    def __init__(self, error=None):
        self.error, self.asked = error, 0

    def verify(self, artifact):
        self.asked += 1
        if self.error:
            raise self.error
        return SimpleNamespace(sqnr_db=77.0)


@pytest.fixture
def case(tmp_path, toy, toy_path):
    store = Store(tmp_path / "store")
    store.prepare()
    artifact = toy.write_artifact(tmp_path / "made")
    from deploykit.plugin.artifact import load

    fingerprint = load(tmp_path / "made").fingerprint
    store.keep(tmp_path / "made", fingerprint)
    assert artifact is not None
    return store, Cell(
        model="m", target="toy", precision="fp32", key="k", status="passed", artifact="x", fingerprint=fingerprint
    )


def _block(**changes):
    return Block(models=("m",), targets=("toy",), precisions=("fp32",), device="lab", **changes)


def test_what_a_board_confirmed_is_not_asked_again(case):
    store, cell = case
    board = Board()
    for _ in range(2):
        found = confirmed(cell, _block(), store, profile=False, find=lambda name: board)
        assert found.status == "passed" and found.device.verified and found.device.sqnr_db == 77.0
    assert board.asked == 1 and found.device.device == "lab"


def test_a_board_that_computes_something_else_fails_the_cell_and_is_asked_again(case):
    store, cell = case
    board = Board(ParityError("other outputs", hint="h"))
    for asked in (1, 2):
        found = confirmed(cell, _block(allow_skip=("device",)), store, profile=False, find=lambda name: board)
        assert (found.status, found.device.failure.exit_code, board.asked) == ("failed", 6, asked)


def test_an_absent_board_is_a_failure_unless_the_file_allows_it(case):
    store, cell = case
    board = Board(LostError("no route"))
    failed = confirmed(cell, _block(), store, profile=False, find=lambda name: board)
    skipped = confirmed(cell, _block(allow_skip=("device",)), store, profile=False, find=lambda name: board)
    assert (failed.status, failed.device.failure.exit_code) == ("failed", 10)
    assert (skipped.status, skipped.reason) == ("skipped", "lab: no route")


@pytest.mark.parametrize(
    ("error", "allowed", "status"),
    [
        (BusyError("in use"), ("device",), "skipped"),
        (MissingDependencyError("adb", extra="", purpose="x"), ("missing",), "skipped"),
        (MissingDependencyError("adb", extra="", purpose="x"), ("device",), "failed"),
        (DeviceError("lab: it cannot load the model"), ("device", "missing"), "failed"),
        (ValueError("nonsense from the board"), ("device", "missing"), "failed"),
    ],
)
def test_only_a_board_that_could_not_be_asked_is_skipped(case, error, allowed, status):
    store, cell = case
    found = confirmed(cell, _block(allow_skip=allowed), store, profile=False, find=lambda name: Board(error))
    assert found.status == status and found.device.failure.hint != "the traceback is in the log of the release"


def test_another_board_of_the_same_name_has_confirmed_nothing(case, tmp_path, monkeypatch):
    store, cell = case
    monkeypatch.setenv("DEPLOYKIT_DEVICES", str(tmp_path / "devices.toml"))
    board = Board()
    for address in ("lab@one", "lab@one", "lab@two"):
        Registry().put("lab", Entry(address))
        confirmed(cell, _block(), store, profile=False, find=lambda name: board)
    assert board.asked == 2


def test_what_boards_said_is_collected_with_the_artifact(case):
    store, cell = case
    confirmed(cell, _block(), store, profile=False, find=lambda name: Board())
    assert len(list(store.boards.iterdir())) == 1
    gc(store.root)
    assert not list(store.boards.iterdir()) and not list(store.objects.iterdir())


def test_an_unknown_board_is_a_failure_of_the_cell(case):
    store, cell = case

    def find(name):
        raise UsageError(f"there is no device {name!r}")

    assert confirmed(cell, _block(), store, profile=False, find=find).device.failure.exit_code == 2


def test_nothing_is_asked_where_there_is_no_board_or_no_artifact(case):
    store, cell = case
    block = Block(models=("m",), targets=("toy",), precisions=("fp32",))
    assert confirmed(cell, block, store, profile=True) is cell
