"""What `deploykit.export` refuses before it looks at the model: none of it may need PyTorch."""

import sys

import pytest

import deploykit
from deploykit.artifact.replace import replaceable
from deploykit.contract.errors import (
    ArtifactError,
    MissingDependencyError,
    UnknownTargetError,
    UnsupportedPrecisionError,
    UsageError,
)
from deploykit.contract.precision import Precision
from deploykit.pipeline.plan import default_output
from deploykit_calibration.ranges import METHODS


@pytest.fixture
def refused(toy, tmp_path, monkeypatch):
    """Calls export with something wrong; capturing would be an ImportError."""
    monkeypatch.setitem(sys.modules, "deploykit.capture", None)
    monkeypatch.setitem(sys.modules, "torch", None)

    def call(expected, match, **arguments):
        with pytest.raises(expected, match=match) as caught:
            deploykit.export(object(), **{"target": "toy-board", "output": tmp_path / "out", **arguments})
        assert not (tmp_path / "out").exists()
        return caught.value

    return call


def test_the_fixture_would_notice_a_capture(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deploykit.capture", None)
    with pytest.raises(ImportError):
        deploykit.export(object(), "toy-board", "fp32", output=tmp_path / "out")


def test_unknown_target(refused):
    assert "toy-board" in refused(UnknownTargetError, "toy-bard", target="toy-bard").hint


def test_unknown_precision_lists_all(refused):
    error = refused(UsageError, "unknown precision 'int7'", precision="int7")
    assert all(precision.value in error.hint for precision in Precision)


def test_a_precision_that_the_toolchain_lacks(refused):
    error = refused(UnsupportedPrecisionError, "toy on toy-board has no bf16; it has int8, fp32", precision="bf16")
    assert error.hint == 'precision="int8"'


def test_a_precision_that_the_silicon_lacks(refused):
    refused(UnsupportedPrecisionError, "toy on toy-old has no int8; it has fp32", target="toy-old")


def test_packages_that_are_missing(refused):
    error = refused(MissingDependencyError, "no-such-module is needed to export to absent", target="absent-board")
    assert error.command == 'pip install "toy-plugin[absent]"'


def test_unknown_method_lists_all(refused):
    error = refused(UsageError, "calibration_method 'guess'", calibration_method="guess")
    assert all(method in error.hint for method in METHODS)


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_one_string_is_no_list_of_patterns(refused, name):
    assert refused(UsageError, f"{name} must be a list", **{name: "layer.*"}).hint == f"{name}=['layer.*']"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gian": 2}, "unknown option gian"),
        ({"gain": "much"}, "bad option value"),
        ({"labels": "one"}, "bad option value"),
        ([("gain", 2)], "options must be a mapping or ToyOptions"),
        ("gain=2", "options must be a mapping"),
    ],
)
def test_bad_options(refused, options, words):
    error = refused(UsageError, words, options=options)
    assert error.hint is None or "gain" in error.hint


def test_options_take_strings_and_their_own_dataclass(toy):
    target = toy.ToyTarget()
    assert target.parse_options({"gain": "2.5"}) == toy.ToyOptions(gain=2.5)
    assert target.parse_options(None) == toy.ToyOptions()
    assert target.parse_options(toy.ToyOptions(3.0)) == toy.ToyOptions(3.0)


def test_gates_that_contradict_or_make_no_sense(refused):
    refused(UsageError, "min_speedup needs profile=True", min_speedup=2.0, profile=False)
    for share in (-0.1, 1.1, 90, float("nan"), "0.5", True):
        refused(UsageError, "min_placement", min_placement=share)
    for factor in (0.0, -1.0, float("inf"), "2", True):
        refused(UsageError, "min_speedup", min_speedup=factor, profile=True)
    for drop in (float("nan"), "0.01", True, 10**400):
        refused(UsageError, "max_drop is ", max_drop=drop, evaluate=lambda session: 1.0)


@pytest.mark.parametrize(
    ("bound", "value"),
    [("min_sqnr_db", 1000), ("min_part_sqnr_db", 201), ("min_cosine", 99), ("min_top1_agreement", 95)],
)
def test_a_gate_that_nothing_can_pass_is_refused(bound, value):
    """No figure is beyond 200 dB, and shares are no percentages."""
    with pytest.raises(UsageError, match=f"{bound} is {value}") as caught:
        deploykit.Tolerance(**{bound: value})
    assert "up to 200" in caught.value.hint or "up to 1, such as" in caught.value.hint


@pytest.mark.parametrize("value", [None, 5, "a", [1], {"a": 1}])
@pytest.mark.parametrize("name", ["include", "exclude", "algorithms"])
def test_what_is_no_list_of_names_is_refused_by_name(refused, name, value):
    refused(UsageError, f"{name} ", **{name: value})


# -- where to -----------------------------------------------------------------------------------------------------


def test_what_is_no_artifact_is_left_alone(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deploykit.capture", None)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "notes")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("notes", "file", "link", "dangling"):
        with pytest.raises(ArtifactError, match="left alone") as caught:
            deploykit.export(object(), "toy-board", output=tmp_path / name)
        assert "output=" in caught.value.hint
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"


def test_artifacts_and_empty_folders_may_be_replaced(toy, tmp_path):
    (tmp_path / "empty").mkdir()
    old = toy.write_artifact(tmp_path / "old").path
    for path in (tmp_path / "empty", old, tmp_path / "new"):
        assert replaceable(path) == path


@pytest.mark.parametrize(
    ("model", "target", "expected"),
    [
        ("package.module:make_net", "raspberry-pi-5:tvm", "make_net-raspberry-pi-5-tvm-int8"),
        (object(), "x86-cpu", "object-x86-cpu-int8"),
        ("odd:../../na me", "t", "..-..-na-me-t-int8"),
    ],
)
def test_the_default_output_is_a_safe_name(tmp_path, monkeypatch, model, target, expected):
    monkeypatch.chdir(tmp_path)
    assert replaceable(default_output(model, target, Precision.INT8)) == tmp_path / "out" / expected


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"target": None}, "a target is a string"),
        ({"exclude": [3]}, "exclude holds something that is no pattern"),
        ({"tolerance": 20.0}, "tolerance is 20.0"),
        ({"tolerance": {"min_sqnr_db": 20.0}}, "tolerance is "),
        ({"min_speedup": float("nan")}, "min_speedup is nan"),
        ({"min_speedup": -1.0}, "min_speedup is -1.0"),
        ({"evaluate": 3}, "evaluate is 3"),
        ({"evaluate": len, "max_drop": float("nan")}, "max_drop is nan"),
        ({"evaluate": len, "max_drop": "1%"}, "max_drop is '1%'"),
    ],
)
def test_malformed_arguments_are_refused_before_the_work(refused, arguments, match):
    refused(UsageError, match, **arguments)


def test_a_folder_of_the_user_is_not_taken_for_a_failed_candidate(refused, tmp_path):
    (tmp_path / "out.failed").mkdir()
    (tmp_path / "out.failed" / "notes.txt").write_text("mine")
    refused(ArtifactError, "out.failed exists and is not an artifact; it is left alone")
    assert (tmp_path / "out.failed" / "notes.txt").read_text() == "mine"
