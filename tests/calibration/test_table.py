"""`CalibrationTable` on disk and in merges: identity, determinism, atomicity, and refusals that say why."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deploykit.contract.errors import CalibrationError
from deploykit_calibration import table as table_module
from deploykit_calibration.channel_sums import ChannelSums
from deploykit_calibration.sample_extremes import SampleExtremes
from deploykit_calibration.statistics import TensorStatistics
from deploykit_calibration.table import CalibrationTable, is_table_file

MODEL = "ab" * 32


def make_table(seed: int = 0, *, model: str = MODEL, source: str = "data") -> CalibrationTable:
    rng = np.random.default_rng(seed)
    relu = TensorStatistics.of(np.maximum(rng.standard_normal(1000), 0).astype(np.float32))
    inputs = ChannelSums.of(rng.standard_normal(5), 9)
    return CalibrationTable(
        model_fingerprint=model,
        data_fingerprint=f"{seed + 1:064x}",
        samples=4,
        source=source,
        statistics={"x": TensorStatistics.of(rng.standard_normal(99).astype(np.float32)), "relu": relu, "view": relu},
        layer_inputs={"query": inputs, "key": inputs, "conv": ChannelSums.of(rng.standard_normal(3), 7)},
    )


def test_saving_and_loading_is_the_identity_and_deterministic(tmp_path: Path) -> None:
    table = make_table()
    loaded = CalibrationTable.load(table.save(tmp_path / "deep" / "a.calibration"))
    assert loaded == table
    assert loaded.statistics["relu"] is loaded.statistics["view"], "aliases are stored once"
    assert loaded.layer_inputs["query"] is loaded.layer_inputs["key"]
    loaded.save(tmp_path / "b.calibration")
    assert (tmp_path / "deep/a.calibration").read_bytes() == (tmp_path / "b.calibration").read_bytes()
    assert is_table_file(tmp_path / "b.calibration")


def test_an_empty_table_round_trips_and_is_the_identity_of_merge(tmp_path: Path) -> None:
    empty = CalibrationTable(model_fingerprint=MODEL)
    assert CalibrationTable.load(empty.save(tmp_path / "e")) == empty
    assert make_table().merge(empty) == make_table() == empty.merge(make_table())


def test_merge_is_associative_and_commutative() -> None:
    a, b, c = make_table(0), make_table(1, source="synthetic"), make_table(2)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).samples == 8
    assert a.merge(b).source == "synthetic"
    merged = a.extend(b)
    assert merged.statistics["relu"] is merged.statistics["view"]
    assert merged.layer_inputs["query"] is merged.layer_inputs["key"]
    assert merged.layer_inputs["conv"].count == 14


def test_a_table_of_another_model_is_refused_by_both_names() -> None:
    with pytest.raises(CalibrationError, match=r"cdcdcdcd.*abababab"):
        make_table().merge(make_table(model="cd" * 32))


def test_ranges_come_from_the_statistics() -> None:
    table = make_table()
    s = table.statistics["x"]
    assert table.range("x", method="minmax", symmetric=False) == (s.minimum, s.maximum)
    lo, hi = table.range("relu", method="mse", symmetric=True)
    assert -lo == hi > 0
    with pytest.raises(CalibrationError, match=r"no tensor 'rellu'.*relu"):
        table.range("rellu", method="minmax", symmetric=True)


def test_a_range_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []
    search = table_module.choose_range

    def counted(statistics: TensorStatistics, method: str, **form: Any) -> tuple[float, float]:
        searched.append(method)
        return search(statistics, method, **form)

    monkeypatch.setattr(table_module, "choose_range", counted)
    table = make_table()
    ranges = [
        table.range("x", method=method, symmetric=symmetric)
        for method in ("mse", "entropy", "mse")
        for symmetric in (True, False, True)
    ]
    assert len(searched) == 4, "each method, symmetric and not"
    assert ranges[:3] == ranges[6:]
    assert ranges[0] == search(table.statistics["x"], "mse", symmetric=True)
    assert ranges[1] == search(table.statistics["x"], "mse", symmetric=False)
    wider = replace(table, statistics={"x": TensorStatistics.of(np.float32([-7.0, 7.0]))})
    assert wider.range("x", method="mse", symmetric=True) == search(wider.statistics["x"], "mse", symmetric=True)


def test_the_summary_says_what_is_in_it() -> None:
    assert "4 samples (synthetic), 3 tensors" in make_table(source="synthetic").summary()
    assert "from cache" in make_table().marked_from_cache().summary()
    assert make_table().marked_from_cache() == make_table()


def test_statistics_cannot_be_replaced() -> None:
    with pytest.raises(TypeError):
        make_table().statistics["x"] = TensorStatistics.empty()  # type: ignore[index]


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = make_table().save(tmp_path / "t")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CalibrationError, match=r"t: cannot load.*(damaged|cut short)"):
        CalibrationTable.load(path)


def test_every_damaged_part_of_a_file_is_noticed(tmp_path: Path) -> None:
    path = make_table().save(tmp_path / "t")
    good = path.read_bytes()
    for at in range(0, len(good), 41):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x21]) + good[at + 1 :])
        with contextlib.suppress(CalibrationError):
            assert CalibrationTable.load(path) == make_table(), f"the flip at byte {at} changed the table unnoticed"


def test_other_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read"):
        CalibrationTable.load(tmp_path / "missing")
    (tmp_path / "p").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CalibrationError, match="no calibration table"):
        CalibrationTable.load(tmp_path / "p")
    save_file({"a": np.zeros(2)}, tmp_path / "s.safetensors")
    with pytest.raises(CalibrationError, match="safetensors file, but no calibration table"):
        CalibrationTable.load(tmp_path / "s.safetensors")
    assert not is_table_file(tmp_path / "s.safetensors")
    assert not is_table_file(tmp_path / "p")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    header = {"deploykit_calibration": json.dumps({"schema_version": 99})}
    save_file({"a": np.zeros(2)}, tmp_path / "n", metadata=header)
    with pytest.raises(CalibrationError, match="schema version is 99, this deploykit reads up to 3"):
        CalibrationTable.load(tmp_path / "n")


OF_THE_SECOND, OF_THE_THIRD = ("layer_inputs", "channels", "sums"), ("sample_counts", "sample_extremes")


@pytest.mark.parametrize(("version", "without"), [(1, (*OF_THE_SECOND, *OF_THE_THIRD)), (2, OF_THE_THIRD)])
def test_tables_of_earlier_schemas_are_read(
    version: int, without: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def earlier(header: dict[str, Any], arrays: dict[str, Any]) -> str:
        header["schema_version"] = version
        for name in without:
            header.pop(name, None)
            arrays.pop(name, None)
        return digest(header, arrays)

    digest, content = table_module._digest, make_table()
    with monkeypatch.context() as patched:
        patched.setattr(table_module, "_digest", earlier)
        (tmp_path / "old").write_bytes(table_module._encode(content))
    known = {name: replace(found, samples=SampleExtremes()) for name, found in content.statistics.items()}
    inputs = content.layer_inputs if version > 1 else {}
    assert CalibrationTable.load(tmp_path / "old") == replace(content, layer_inputs=inputs, statistics=known)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("layer_inputs", {"conv": 9}),
        ("layer_inputs", {"conv": -1}),
        ("layer_inputs", {"conv": True}),
        ("layer_inputs", ["conv"]),
        ("channels", np.array([[9, 5], [7, 4]])),
        ("channels", np.array([[9, 5], [7, -3]])),
        ("channels", np.array([[0, 5], [7, 3]])),
        ("sums", np.zeros((2, 8))),
        ("sums", np.zeros((2, 9), dtype=np.int64)),
    ],
    ids=str,
)
def test_sums_that_fit_nothing_are_refused(part: str, value: Any, tmp_path: Path) -> None:
    """Also where whoever changed the file wrote a new sha256."""
    header, arrays = table_module._read(make_table().save(tmp_path / "t"))
    (header if part in header else arrays)[part] = value
    header["sha256"] = table_module._digest(header, arrays)
    save_file(arrays, tmp_path / "t", metadata={"deploykit_calibration": json.dumps(header, sort_keys=True)})
    with pytest.raises(CalibrationError, match="its content is inconsistent"):
        CalibrationTable.load(tmp_path / "t")


X = 0  # row of the first tensor: count, batches, exponent, zeros, nonfinite, and the span of its histogram


@pytest.mark.parametrize(
    ("part", "where", "value"),
    [
        *[("integers", (X, column), -1) for column in (0, 1, 3, 4)],
        *[("integers", (X, column), 2**62) for column in (0, 1, 3, 4)],
        *[("integers", (X, 2), exponent) for exponent in (2**40, -(2**40), 1025)],
        *[("integers", (X, column), bound) for column in (5, 6) for bound in (-7, 2**40)],
        *[("extremes", (X, column), value) for column in (0, 1) for value in (np.nan, np.inf, -np.inf, 1e300)],
        ("extremes", (X, 0), 1e9),
        *[("sample_counts", X, count) for count in (-1, 0, 31, 2**62)],
        *[("sample_extremes", (0, X), value) for value in (np.nan, -np.inf, -1e9, 1e9)],
        *[("sample_extremes", (1, X), value) for value in (np.nan, np.inf, -1e9, 1e9)],
        ("counts", 0, -1),
        ("counts", 0, 2**62),
        ("channels", (0, 0), -1),
        ("samples", None, -1),
        ("samples", None, 2**62),
        ("samples", None, True),
        ("samples", None, 1.5),
        ("source", None, "somebody"),
        ("data_fingerprint", None, "-1"),
        ("data_fingerprint", None, "f" * 65),
    ],
    ids=str,
)
def test_what_no_calibration_can_have_seen_is_refused(part: str, where: Any, value: Any, tmp_path: Path) -> None:
    """Also where whoever made the file wrote a sha256 that fits."""
    header, arrays = table_module._read(make_table().save(tmp_path / "t"))
    arrays = {name: array.copy() for name, array in arrays.items()}
    if where is None:
        header[part] = value
    else:
        arrays[part][where] = value
    header["sha256"] = table_module._digest(header, arrays)
    save_file(arrays, tmp_path / "t", metadata={"deploykit_calibration": json.dumps(header, sort_keys=True)})
    with pytest.raises(CalibrationError, match="its content is inconsistent"):
        CalibrationTable.load(tmp_path / "t")


def test_merging_past_all_bounds_is_refused() -> None:
    """Numbers of 64 bits would turn negative, and be ranges that no data had."""
    many = replace(make_table(), samples=2**62 - 1)
    with pytest.raises(CalibrationError, match="cannot be merged"):
        many.merge(make_table(1))
    full = replace(make_table().statistics["x"], count=2**62 - 1)
    with pytest.raises(CalibrationError, match="cannot be merged"):
        replace(make_table(), statistics={"x": full}).merge(make_table(1))


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_table(0).save(tmp_path / "t")
    before = path.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_table(1).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t"]


def test_an_unwritable_place_is_a_calibration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match="cannot write"):
        make_table().save(tmp_path / "file" / "t")


def test_tables_need_no_torch(tmp_path: Path) -> None:
    path = make_table().save(tmp_path / "t")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from deploykit_calibration.table import CalibrationTable\n"
        f"print(CalibrationTable.load({str(path)!r}).range('x', method='mse', symmetric=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
