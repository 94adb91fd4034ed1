"""`deploykit lint`: whose rules, which file, and the exit code; the rules are tested in tests/targets/_onnx."""

from pathlib import Path

import pytest

from deploykit.contract.errors import UsageError
from deploykit.contract.findings import Finding
from deploykit.plugin.registry import toolchain, toolchains

WARNING = Finding("surplus-pair", "q", "QuantizeLinear", "quantizes twice", "warning")
ERROR = Finding("scale", "dq", "DequantizeLinear", "has an empty scale", "error")


@pytest.fixture
def findings(toy, monkeypatch):
    """What the toy toolchain finds in any file; the tests fill it."""
    found = []
    monkeypatch.setattr(toy.ToyTarget, "_lint", lambda self, path: tuple(found))
    return found


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"read by the toolchain alone")
    return path


def test_a_clean_file(cli, findings, model):
    result = cli("lint", model, "--for", "toy")
    assert (result.code, result.err) == (0, "")
    assert result.out.strip() == f"toy: {model}: no findings"


def test_warnings_alone_are_no_failure(cli, findings, model):
    findings.append(WARNING)
    result = cli("lint", model, "--for", "toy")
    assert result.code == 0
    assert "0 error(s), 1 warning(s)" in result.out
    assert "warning [surplus-pair] QuantizeLinear q: quantizes twice" in result.out


def test_an_error_exits_as_an_export_of_that_model_would(cli, findings, model):
    findings += [ERROR, WARNING]
    result = cli("lint", model, "--for", "toy", "--for", "toy", "--json")
    assert result.code == 4
    (report,) = result.document["toolchains"]
    assert (report["toolchain"], report["errors"], report["warnings"]) == ("toy", 1, 1)
    assert report["findings"][0] == {
        "rule": "scale",
        "node": "dq",
        "op_type": "DequantizeLinear",
        "message": "has an empty scale",
        "severity": "error",
    }
    assert result.document["passed"] is False
    assert result.document["path"] == result.document["file"] == str(model)


def test_by_default_all_that_have_rules(cli, findings, model, monkeypatch):
    for plugin in toolchains().values():
        if plugin.has_lint and plugin.name != "toy":
            monkeypatch.setattr(type(plugin), "_lint", lambda self, path: ())
    names = [report["toolchain"] for report in cli("lint", model, "--json").document["toolchains"]]
    assert {"migraphx", "tensorrt", "toy"} <= set(names)
    assert "onnxruntime" not in names


def test_an_artifact_is_checked_against_its_own_toolchain(cli, findings, toy, tmp_path, monkeypatch):
    made = toy.write_artifact(tmp_path / "art")
    result = cli("lint", made.path)
    assert result.code == 2
    assert "holds no .onnx file to check" in result.err
    monkeypatch.setattr("deploykit.cli.commands.lint._MODEL", Path(made.manifest.entry).suffix)
    document = cli("lint", made.path, "--json").document
    assert [report["toolchain"] for report in document["toolchains"]] == ["toy"] and document["made_for"] == "toy"


def test_an_artifact_under_another_toolchains_rules_is_told(cli, findings, toy, tmp_path, monkeypatch):
    made = toy.write_artifact(tmp_path / "other", toolchain="absent", target="absent-board", device="absent-board")
    monkeypatch.setattr("deploykit.cli.commands.lint._MODEL", Path(made.manifest.entry).suffix)
    result = cli("lint", made.path, "--for", "toy")
    assert result.code == 0 and "is for absent, and is judged by the rules of toy" in result.err
    assert "--target toy" in result.err


def test_a_toolchain_without_rules_and_an_unknown_one_are_usage_errors(cli, toy, model):
    assert not toolchain("toy").has_lint
    with pytest.raises(UsageError, match="toy has no lint"):
        toolchain("toy").lint(model)
    for name in ("toy", "tensorflow"):
        result = cli("lint", model, "--for", name, "--json")
        assert result.code == 2
        assert name in result.document["error"]["message"]


def test_no_such_file(cli, toy, tmp_path):
    result = cli("lint", tmp_path / "none.onnx")
    assert result.code == 2
    assert "there is no" in result.err


@pytest.mark.parametrize("name", ["tensorrt", "migraphx"])
def test_a_real_file_that_is_none_is_a_usage_error(cli, toy, model, name):
    pytest.importorskip("onnx", reason="reading an ONNX file needs onnx")
    result = cli("lint", model, "--for", name)
    assert result.code == 2
    assert "cannot be read as an ONNX model" in result.err
