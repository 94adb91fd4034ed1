"""Formats: what follows from a row, and precisions that another distribution brings."""

import copy
import json
import pickle
import sys
import threading
from dataclasses import replace

import msgspec
import pytest

from deploykit.artifact.manifest import Manifest
from deploykit.contract import formats
from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.devices import load_devices
from deploykit.contract.errors import ArtifactError, DeploykitError, PlacementError, UsageError
from deploykit.contract.formats import FLOAT8, FLOAT32, Format, PerAxis, PerGroup, PerTensor, TensorScheme
from deploykit.contract.precision import GROUP, Precision, known, registered
from deploykit.judge.parity import Tolerance, tolerance_of
from deploykit.pipeline.gates import Gates
from deploykit.pipeline.plan import Goals, _gates, precision_of
from deploykit.plugin.registry import resolve, targets, toolchain

ROWS = """
from deploykit.contract.formats import FLOAT32, Format, PerGroup, TensorScheme

INT5 = TensorScheme("int5", quant_min=-15, quant_max=15, granularity=PerGroup(32))
GATE = {"min_sqnr_db": 14.0, "min_cosine": 0.97, "min_equal": 0.9}
WEIGHTS = Format(summary="int5 weights", weights=INT5, activations=FLOAT32, further=("int8", "no-such"), **GATE)
BOTH = Format(summary="int5 throughout", weights=INT5, activations=INT5, ranges="static", **GATE)
NOTHING = object()
"""


@pytest.fixture
def row(install, tmp_path, monkeypatch):
    """`row("int5-weight-only", "WEIGHTS")` registers a precision for one test."""
    (tmp_path / "rows_of_a_stranger.py").write_text(ROWS)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(Precision._value2member_map_)

    def register(name, which, owner="a-stranger"):
        install(owner, {name: f"rows_of_a_stranger:{which}"}, group=GROUP)
        return name

    yield register
    Precision._value2member_map_.clear()
    Precision._value2member_map_.update(before)
    sys.modules.pop("rows_of_a_stranger", None)


# -- what follows from a row ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "bits", "is_float"),
    [
        ("int8", 8, False),
        ("uint8", 8, False),
        ("int4", 4, False),
        ("int16", 16, False),
        ("palette6", 6, False),
        ("float32", 32, True),
        ("bfloat16", 16, True),
        ("float8_e4m3fn", 8, True),
    ],
)
def test_the_width_is_in_the_name(dtype, bits, is_float):
    scheme = TensorScheme(dtype)
    assert (scheme.bits, scheme.bytes, scheme.is_float) == (bits, bits / 8, is_float)


@pytest.mark.parametrize("dtype", ["", "float", "int0"])
def test_a_dtype_without_a_width_is_refused(dtype):
    with pytest.raises(ValueError, match="does not say its width"):
        TensorScheme(dtype)


def test_granularities_are_values():
    assert PerGroup(32) == PerGroup(32) != PerGroup(64)
    assert len({PerTensor(), PerAxis(), PerAxis(1), PerGroup(32)}) == 4


@pytest.mark.parametrize("precision", Precision)
def test_a_precision_is_one_of_whole_static_dynamic_and_weight_only(precision):
    row = precision.row
    assert [row.is_whole, row.is_static, row.ranges == "dynamic", row.is_weight_only].count(True) == 1
    assert (precision.is_static, precision.is_weight_only) == (row.is_static, row.is_weight_only)
    assert row.summary and row.rest in ("float32", "float16", "bfloat16")
    assert {*row.further, *row.gentler} <= set(Precision) - {precision}
    assert tolerance_of(precision) == Tolerance(row.min_sqnr_db, row.min_cosine, min_equal=row.min_equal)


def test_what_loses_less_has_no_lower_gate():
    order = [Precision(name).row.min_sqnr_db for name in ("int4-weight-only", *Precision.INT4_WEIGHT_ONLY.row.gentler)]
    assert order[0] == min(order) and order[-1] == max(order) == Precision.FP32.row.min_sqnr_db


@pytest.mark.parametrize(
    ("precision", "fulfilled", "not_fulfilled"),
    [
        (Precision.FP32, "float32 float64 tf32", "float16 int8"),
        (Precision.FP16, "float16 float16-weights", "bfloat16 float32 int8"),
        (Precision.BF16, "bfloat16", "float16 bfloat16-weights"),
        (Precision.FP8, "fp8", "int8 float16"),
        (Precision.INT16X8, "int16x8 int16 int8", "float32 int8-weights int4"),
        (Precision.INT8, "int8 uint8 int4", "int16 int8-weights float32 unknown"),
        (Precision.INT8_WEIGHT_ONLY, "int8 int8-weights int4-weights", "float16-weights int16-weights"),
        (Precision.INT4_WEIGHT_ONLY, "int4 int4-weights", "int8 int8-weights"),
        (Precision.INT4_PALETTE, "int4", "int6"),
    ],
)
def test_what_counts_as_it(precision, fulfilled, not_fulfilled):
    assert all(precision.row.counts_as(found) for found in fulfilled.split())
    assert not any(precision.row.counts_as(found) for found in not_fulfilled.split())


def test_palettes_count_by_their_bits_and_only_where_weights_are_asked_for():
    assert Precision.INT6_PALETTE.row.counts_as("6-bit palette")
    assert not Precision.INT4_PALETTE.row.counts_as("6-bit palette")
    assert not Precision.INT8.row.counts_as("6-bit palette")


def test_a_float_type_counts_as_itself():
    row = Format(summary="", weights=FLOAT8, activations=FLOAT32, min_sqnr_db=1.0, min_cosine=0.5, min_equal=0.5)
    assert row.is_weight_only and row.counts_as("float8_e4m3fn") and not row.counts_as("int8")


def test_rates_of_a_dtype_are_its_own_and_then_wider_ones():
    assert formats.rates_of("int8") == ("int8", "fp16", "tf32", "fp32")
    assert formats.rates_of("fp8") == ("fp8", "fp16", "tf32", "fp32")
    assert formats.rates_of("float16") == ("fp16", "tf32", "fp32")
    assert formats.rates_of("bfloat16") == ("bf16", "fp16", "tf32", "fp32")
    assert formats.rates_of("float32") == formats.rates_of("int16") == formats.rates_of("whatever") == ("tf32", "fp32")
    assert {rate: formats.rate_bytes(rate) for rate in ("int8", "fp8", "fp16", "bf16", "tf32", "fp32", "int4")} == {
        **{"int8": 1, "fp8": 1, "fp16": 2, "bf16": 2, "tf32": 4, "fp32": 4},
        "int4": None,
    }


@pytest.mark.parametrize(
    ("found", "bytes", "held"),
    [
        ("int8-weights", 2.0, 1.0),
        ("int4-weights", 2.0, 0.5),
        ("uint5-weights", 2.0, 0.625),
        ("6-bit palette", 2.0, 0.75),
        ("int8", 1.0, 1.0),
        ("int4", 0.5, 0.5),
        ("uint6", 0.75, 0.75),
        ("float32", 4.0, 4.0),
        ("whatever", 4.0, 4.0),
    ],
)
def test_widths_are_in_the_name_and_stored_weights_stand_beside_float16(found, bytes, held):
    dtype = formats.dtype_of(found)
    assert (dtype.bytes, dtype.weight_bytes) == (bytes, held)
    assert formats.rates_of(found)[0] == ("fp16" if held < bytes else "int8" if bytes <= 1 else "tf32")


# -- members ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", Precision)
def test_the_value_is_the_plain_name(precision):
    assert type(precision.value) is str and str(precision) == precision.value
    assert msgspec.json.encode(precision) == f'"{precision.value}"'.encode()
    assert type(msgspec.to_builtins(precision)) is str
    assert msgspec.json.decode(msgspec.json.encode(precision), type=Precision) is precision
    assert pickle.loads(pickle.dumps(precision)) is precision is copy.deepcopy(precision)


def test_what_is_no_precision():
    for name in ("int3", "", "INT8", 8, None):
        with pytest.raises(ValueError, match="is not a valid Precision"):
            Precision(name)
    assert known("int3") is None and known("int8") is Precision.INT8
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'"int3"', type=Precision)
    with pytest.raises(UsageError) as caught:
        precision_of("int3")
    assert caught.value.hint.endswith(f"one of {', '.join(Precision)}")


def manifest_of(toy, precision: str) -> bytes:
    return json.dumps({**json.loads(toy.make_manifest().to_json()), "precision": precision}).encode()


def test_a_manifest_of_an_unknown_precision_says_what_may_be_missing(toy):
    with pytest.raises(ArtifactError, match="Invalid enum value 'int5'") as caught:
        Manifest.from_json(manifest_of(toy, "int5"))
    assert caught.value.hint == "install the distribution that brings precision 'int5', or export the model again"


# -- a precision of another distribution ------------------------------------------------------------------------


def test_a_registered_precision_is_one_member(row):
    name = row("int5-weight-only", "WEIGHTS")
    found = Precision(name)
    assert isinstance(found, Precision) and found == name and str(found) == name and found.name == "INT5_WEIGHT_ONLY"
    assert found is Precision(name) is known(name) is msgspec.json.decode(b'"int5-weight-only"', type=Precision)
    assert pickle.loads(pickle.dumps(found)) is found is copy.deepcopy(found)
    assert msgspec.json.encode({"precision": found}) == b'{"precision":"int5-weight-only"}'
    assert found.is_weight_only and not found.is_static and found.row.weights.granularity == PerGroup(32)
    assert found not in list(Precision) and registered() == (name,)
    assert Precision(row("int5", "BOTH", "another")).is_static
    assert registered() == ("int5", "int5-weight-only")


def test_threads_that_ask_at_once_get_the_same_member(row):
    name, found, start = row("int5", "BOTH"), [], threading.Barrier(8)

    def ask():
        start.wait()
        found.append(Precision(name))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(member) for member in found}) == 1 and len(found) == 8


def test_an_unknown_name_is_answered_with_registered_ones_too(row):
    row("int5", "BOTH")
    with pytest.raises(UsageError) as caught:
        precision_of("int3")
    assert caught.value.hint.endswith(f"one of {', '.join(Precision)}, int5")


def test_a_device_table_and_a_target_have_it(row, toy, tmp_path, monkeypatch):
    name = row("int5-weight-only", "WEIGHTS")
    table = tmp_path / "devices.toml"
    table.write_text(f'[toy-board]\nsummary = "a board"\narch = "toy64"\nprecisions = ["{name}", "int8"]\n')
    devices = load_devices(table, toolchain="toy")
    mine = Precision(name)
    assert devices["toy-board"].precisions == (mine, Precision.INT8)
    plugin = toolchain("toy")
    own = replace(plugin.capabilities(), precisions=(mine, Precision.INT8), devices=devices)
    monkeypatch.setattr(type(plugin), "capabilities", lambda self: own)
    assert next(info for info in targets() if info.toolchain == "toy").precisions == (mine, Precision.INT8)
    resolved = resolve("toy-board")
    plugin.check_precision(mine, resolved.device)
    gates = _gates(mine, Goals(None, None, None), resolved, profile=False)
    assert gates.tolerance == Tolerance(14.0, 0.97, min_equal=0.9)
    assert gates.reaches_further is Precision.INT8 and gates.instead is None


def test_placement_is_judged_by_its_row(row, toy):
    mine = Precision(row("int5-weight-only", "WEIGHTS"))
    layers = (
        LayerAchieved("fc", "fc", "linear", "int5-weights", macs=60, weights=60),
        LayerAchieved("attention", "", "matmul", "float32", macs=900),
    )
    counted = Achieved.count(mine.value, layers, source="the file")
    assert counted.as_asked_fraction == 60 / 960 and counted.placed_fraction == 1.0
    assert not Gates(mine).misses(counted, toy.make_parity(), None)
    wide = Achieved.count(mine.value, [LayerAchieved("fc", "fc", "linear", "int8-weights", 60, 60)], source="the file")
    (miss,) = Gates(mine).misses(wide, toy.make_parity(), None)
    error = miss.error(None)
    assert isinstance(error, PlacementError) and "nothing runs in int5-weight-only" in error.message


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("NOTHING", "precision 'int5' of a-stranger .* is not a deploykit Format"),
        ("ABSENT", "precision 'int5' of a-stranger .* cannot be loaded: AttributeError"),
    ],
)
def test_a_broken_row_is_reported_with_its_owner(row, which, said):
    row("int5", which)
    with pytest.raises(DeploykitError, match=said) as caught:
        Precision("int5")
    assert caught.value.hint == "update or uninstall that distribution"


def test_a_manifest_of_a_broken_row_names_its_owner(row, toy):
    row("int5", "ABSENT")
    with pytest.raises(ArtifactError, match=r"precision 'int5' of a-stranger .* cannot be loaded") as caught:
        Manifest.from_json(manifest_of(toy, "int5"))
    assert caught.value.hint == "update or uninstall that distribution"


def test_a_manifest_has_it(row, toy):
    found = Manifest.from_json(manifest_of(toy, row("int5", "BOTH")))
    assert found.precision is Precision("int5")
    assert json.loads(found.to_json())["precision"] == "int5"


def test_two_owners_of_one_name_are_refused(row):
    row("int5", "BOTH")
    row("int5", "WEIGHTS", "another")
    with pytest.raises(DeploykitError, match=r"precision 'int5' is registered twice: by .*a-stranger") as caught:
        Precision("int5")
    assert caught.value.hint == "uninstall one of them"


def test_a_name_of_the_core_cannot_be_taken(row):
    row("int8", "BOTH")
    assert Precision("int8").row is Precision.INT8.row and registered() == ()
