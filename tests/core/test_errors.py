"""The tree of errors: as drawn, with the exit codes of the command line, and exported."""

import importlib.util
import inspect
import re

import pytest

import deploykit
from deploykit.contract import errors
from deploykit.contract.errors import DeploykitError, MissingDependencyError, ParityError, UsageError, install_command
from deploykit.contract.installed import here_command

EXIT_CODES = {
    "DeploykitError": 1,
    "UsageError": 2,
    "UnknownTargetError": 2,
    "UnsupportedPrecisionError": 3,
    "MissingDependencyError": 3,
    "ConversionError": 4,
    "CaptureError": 4,
    "CalibrationError": 5,
    "ParityError": 6,
    "PerformanceError": 7,
    "PlacementError": 8,
    "ArtifactError": 9,
    "DeviceError": 10,
}


def all_errors() -> dict[str, type[DeploykitError]]:
    found = dict(inspect.getmembers(errors, inspect.isclass))
    return {name: cls for name, cls in found.items() if issubclass(cls, DeploykitError)}


def test_exit_codes_are_stable():
    assert {name: cls.exit_code for name, cls in all_errors().items() if name != "GateError"} == EXIT_CODES


def test_the_tree_in_the_docstring_is_the_tree():
    parents: list[tuple[int, str]] = []
    drawn = {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"([ │├└─]*)(\w+Error) +(?:exit code )?(\d+|-)", line)
        if match is None:
            continue
        depth, name, code = len(match[1]), match[2], match[3]
        parents = [pair for pair in parents if pair[0] < depth]
        drawn[name] = (parents[-1][1] if parents else "Exception", code)
        parents.append((depth, name))
    assert drawn.keys() == all_errors().keys()
    for name, (parent, code) in drawn.items():
        cls = all_errors()[name]
        assert cls.__base__.__name__ == parent, name
        assert code == "-" or cls.exit_code == int(code), name


def test_every_error_is_exported_from_the_package():
    assert all_errors().keys() <= set(deploykit.__all__)
    for name, cls in all_errors().items():
        assert getattr(deploykit, name) is cls


def test_every_exported_name_resolves_and_nothing_else_does():
    trained = {name for name, home in deploykit._HOME.items() if home.startswith("deploykit_training.")}
    absent = trained if importlib.util.find_spec("torch") is None else set()
    for name in set(deploykit.__all__) - absent:
        assert getattr(deploykit, name) is not None, name
    for name in absent:
        with pytest.raises(MissingDependencyError, match=r"(?s)torch.*train"):
            getattr(deploykit, name)
    assert set(deploykit._HOME) | {"__version__"} == set(deploykit.__all__)
    assert dir(deploykit) == sorted(deploykit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        deploykit.exprot  # noqa: B018


def test_message_and_hint_stand_on_lines_of_their_own():
    error = UsageError("what went wrong", hint="what to do")
    assert str(error) == "what went wrong\n  -> what to do"
    assert (error.message, error.hint) == ("what went wrong", "what to do")
    assert str(UsageError("alone")) == "alone"


def test_missing_dependency_carries_the_command():
    error = MissingDependencyError("onnx", extra="onnxruntime", purpose="export to x86-cpu")
    assert error.command == error.hint == here_command("onnxruntime")
    assert error.package == "onnx"
    other = MissingDependencyError("x", extra="y", purpose="z", distribution="third-party")
    assert other.command == 'pip install "third-party[y]"'


def test_install_command_without_an_extra():
    assert install_command("", "toy-plugin") == "pip install toy-plugin"


def test_gate_errors_carry_what_was_made():
    error = ParityError("too far", report="report", candidate="artifact", hint="do")
    assert (error.report, error.candidate, error.hint) == ("report", "artifact", "do")
    assert ParityError("never ran").candidate is None
