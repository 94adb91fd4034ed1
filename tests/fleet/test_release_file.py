"""A release file says its mistakes by their lines, and what was probably meant."""

from __future__ import annotations

import pytest

from deploykit.contract.errors import UsageError
from deploykit_fleet.release_file import read
from deploykit_fleet.toml_lines import line_of

GOOD = """\
[release]
store = "out/store"

[model.resnet]
factory = "pkg.models:resnet"
evaluate = "pkg.eval:top1"

# every target from one capture
[[cell]]
models = ["resnet"]
targets = [
  "x86-cpu",
  "android",
]
precisions = ["fp32", "int8"]
gates = { max_drop = 0.01, min_placement = 0.9 }
device = "lab"
"""


def test_a_file_is_its_cells_in_order(tmp_path):
    path = tmp_path / "edge.toml"
    path.write_text(GOOD)
    found = read(path)
    assert [cell.name for cell in found.cells] == [
        "resnet/x86-cpu/fp32",
        "resnet/x86-cpu/int8",
        "resnet/android/fp32",
        "resnet/android/int8",
    ]
    assert found.store == tmp_path / "out" / "store" and found.name == "edge"
    assert found.cells[0].block.gates.max_drop == 0.01 and found.cells[0].block.device == "lab"


@pytest.mark.parametrize(
    ("old", "new", "line", "says", "hint"),
    [
        ("store =", "stroe =", 2, "unknown key 'stroe'", "did you mean 'store'?"),
        ("factory =", "factroy =", 5, "unknown key 'factroy'", "did you mean 'factory'?"),
        ('"pkg.models:resnet"', '"pkg.models"', 5, "not of the form", "package.module:function"),
        ('"pkg.models:resnet"', "3", 5, "Expected `str`", "README"),
        ("[release]", "[releese]", 1, "unknown key 'releese'", "did you mean 'release'?"),
        ("max_drop =", "max_dorp =", 16, "unknown key 'max_dorp'", "did you mean 'max_drop'?"),
        ("min_placement = 0.9", "min_placement = 90", 16, "min_placement is 90", "from 0 to 1"),
        ("max_drop = 0.01", "max_drop = nan", 16, "max_drop is nan", "finite"),
        ("max_drop = 0.01", 'max_drop = "a"', 16, "Expected `float", "README"),
        ('models = ["resnet"]', 'models = ["resnte"]', 10, "unknown model 'resnte'", "did you mean 'resnet'?"),
        ('models = ["resnet"]', 'models = "resnet"', 10, "Expected `array`", "README"),
        ('models = ["resnet"]', "models = []", 10, "models is empty", "at least one"),
        ('  "android",', '  "android",\n  "android",', 11, "'android' stands twice in targets", "once"),
        ("precisions =", "precision =", 15, "unknown key 'precision'", "did you mean 'precisions'?"),
        ('evaluate = "pkg.eval:top1"', "", 16, "max_drop needs a metric", "evaluate ="),
        ("[release]", "[release]\nengine = 'rya'", 2, "unknown engine 'rya'", "did you mean 'ray'?"),
        ("[release]", "[release]\nthreads = 0", 2, "threads is 0", "at most"),
        ("[release]", "[release]\nretries = -1", 2, "retries is -1", "at most"),
        ('device = "lab"', 'device = "lab"\nallow_skip = ["all"]', 18, "Invalid enum value 'all'", "README"),
        ("[model.resnet]", '[model."a/../b"]', 4, "is no name", "letters"),
    ],
)
def test_a_mistake_is_named_by_its_line(tmp_path, old, new, line, says, hint):
    path = tmp_path / "release.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        read(path)
    assert f"release.toml, line {line}: " in caught.value.message, caught.value.message
    assert says in caught.value.message and hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[release", "is not TOML"),
        ("", "names no model"),
        ('[model.a]\nfactory = "m:f"\n', "has no [[cell]]"),
        ("model = 3\n", "where a table was expected"),
        ('[model.a]\n[[cell]]\nmodels=["a"]\ntargets=["t"]\nprecisions=["p"]\n', "missing required field `factory`"),
        ('[model.a]\nfactory = "m:f"\n[[cell]]\nmodels=["a"]\nprecisions=["p"]\n', "missing required field `targets`"),
    ],
)
def test_what_is_missing_is_said(tmp_path, text, says):
    path = tmp_path / "release.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read(path)
    assert says in caught.value.message and caught.value.hint


def test_a_cell_that_stands_in_two_blocks_is_refused_with_both_lines(tmp_path):
    path = tmp_path / "release.toml"
    path.write_text(GOOD + '[[cell]]\nmodels = ["resnet"]\ntargets = ["android"]\nprecisions = ["int8"]\n')
    with pytest.raises(UsageError, match=r"line 18: resnet/android/int8 stands in the \[\[cell\]\] of line 9, too"):
        read(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        read(tmp_path / "absent.toml")
    with pytest.raises(UsageError):
        read(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"[release]\n\xff\n")
    with pytest.raises(UsageError, match="line 2: not UTF-8"):
        read(tmp_path / "bytes.toml")


def test_lines_are_found_in_every_form_of_toml():
    text = 'a.b = 1\n"c d" = 2\n[e]\n# f = 0\n\nf = """\n x\n"""\n[[g]]\nh = 1\n[[g]]\n\n[g.i]\nj = [\n  1,\n]\n'
    cases = {("a", "b"): 1, ("c d",): 2, ("e", "f"): 6, ("g", 0): 9, ("g", 1): 11, ("g", 1, "i", "j"): 14, ("z",): 1}
    assert {steps: line_of(text, steps) for steps in cases} == cases
