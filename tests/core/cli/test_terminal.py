"""Words of an artifact never steer the terminal, and `--json` stays JSON."""

import json
from dataclasses import replace

import pytest

from deploykit.contract.printable import layer_labels, printable
from deploykit.contract.recipe import LayerChoice

ESCAPES = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\u202egnp.exe\x9b31m\r"


def test_what_steers_is_shown_and_words_are_not_changed():
    assert printable("a\tb\nnaïve 模型 ✓") == "a\tb\nnaïve 模型 ✓"
    assert printable("\x1b[2J\u202e\r") == "\\x1b[2J\\u202e\\r"


def test_layers_of_one_module_are_told_apart():
    told = [("conv2d", "stem"), ("matmul", "attention"), ("matmul_1", "attention"), ("add", "")]
    layers = [LayerChoice(name, path, "conv", "int8") for name, path in told]
    assert layer_labels(layers) == ["stem", "attention (matmul)", "attention (matmul_1)", "add"]


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_pages_and_errors_hold_no_escapes(cli, toy, tmp_path, command):
    parity = toy.make_parity(notes=(ESCAPES,), data=ESCAPES)
    manifest = toy.make_manifest()
    achieved = replace(manifest.achieved, source=ESCAPES, notes=(ESCAPES,))
    changes = {"tool_versions": {ESCAPES: ESCAPES}, "options": {ESCAPES: ESCAPES}, "metadata": {ESCAPES: [ESCAPES]}}
    toy.write_artifact(tmp_path / "a", parity=parity, achieved=achieved, **changes)
    for arguments in ((command, str(tmp_path / "a")), (command, str(tmp_path / "a" / ESCAPES[:9]))):
        result = cli(*arguments)
        assert not set(result.out + result.err) & {"\x1b", "\x07", "\x9b", "\u202e", "\r"}
    assert json.loads(cli(command, str(tmp_path / "a"), "--json").out)
