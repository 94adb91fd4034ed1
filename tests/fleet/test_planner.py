"""What a plan knows without PyTorch: keys that change with what decides an artifact, and with nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from deploykit.contract.errors import ArtifactError, UsageError
from deploykit.plugin.registry import resolve
from deploykit_fleet import keys as key_room
from deploykit_fleet.planner import plan
from deploykit_fleet.sources import closure

pytest.importorskip("onnxruntime", reason="the cells are of the target x86-cpu")


def keys(project) -> dict[str, str]:
    return {cell.spec.name: cell.key for cell in plan(project.file).cells}


def _edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


CHANGES = {
    "source of the factory": lambda p: _edit(p.folder / "nets.py", "manual_seed(seed)", "manual_seed(seed + 1)"),
    "a module that it imports": lambda p: (p.folder / "settings.py").write_text("WIDTH = 9\n"),
    "a weights file": lambda p: (p.folder / "w.bin").write_bytes(b"2"),
    "its version": lambda p: _edit(p.file, 'version = "1"', 'version = "2"'),
    "the calibration data": lambda p: np.savez(p.folder / "cal.npz", input=np.ones((12, 3, 8, 8), np.float32)),
    "a gate": lambda p: _edit(p.file, "max_drop = 0.5", "max_drop = 0.4"),
    "the metric": lambda p: _edit(p.folder / "metrics.py", "0.5", "0.4"),
    "the method": lambda p: _edit(p.file, 'calibration_method = "minmax"', 'calibration_method = "mse"'),
    "a pattern": lambda p: _edit(p.file, 'exclude = ["3"]', 'exclude = ["0"]'),
    "threads": lambda p: _edit(p.file, "threads = 1", "threads = 2"),
}
SAME = {
    "another file beside it": lambda p: (p.folder / "notes.py").write_text("x = 1\n"),
    "the store": lambda p: _edit(p.file, "[release]", '[release]\nstore = "elsewhere"'),
    "a device": lambda p: _edit(p.file, "[[cell]]", '[[cell]]\ndevice = "lab"'),
    "retries": lambda p: _edit(p.file, "[release]", "[release]\nretries = 7"),
    "order of keys": lambda p: _edit(p.file, 'version = "1"\nfiles = []', 'files = []\nversion = "1"'),
}


@pytest.fixture
def full(project):
    (project.folder / "w.bin").write_bytes(b"1")
    (project.folder / "metrics.py").write_text("def fn(session):\n    return 0.5\n")
    models = """
[model.one]
factory = "nets:one"
weights = "w.bin"
version = "1"
files = []
calibration = "cal.npz"
evaluate = "metrics:fn"
"""
    cells = """
[[cell]]
models = ["one"]
targets = ["x86-cpu"]
precisions = ["int8"]
calibration_method = "minmax"
exclude = ["3"]
gates = { max_drop = 0.5 }
"""
    project.write(cells, models, "threads = 1")
    return project


@pytest.mark.parametrize("change", [*CHANGES])
def test_a_key_changes_with_what_decides_the_artifact(full, change):
    before = keys(full)
    CHANGES[change](full)
    after = keys(full)
    assert before.keys() == after.keys() and not set(before.values()) & set(after.values())


@pytest.mark.parametrize("change", [*SAME])
def test_a_key_stays_with_what_decides_nothing(full, change):
    before = keys(full)
    SAME[change](full)
    assert keys(full) == before


def test_a_key_changes_with_a_plugin_of_somebody_else(full, monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_target.py").write_text("import their_helper\n")
    (folder / "their_helper.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(folder)
    plugin = resolve("x86-cpu").target
    before = keys(full)
    monkeypatch.setattr(type(plugin), "__module__", "their_target")
    first = keys(full)
    (folder / "their_helper.py").write_text("X = 2\n")
    key_room._plugin.cache_clear()
    assert len({*before.values(), *first.values(), *keys(full).values()}) == 3
    key_room._plugin.cache_clear()


def test_a_store_that_no_file_system_takes_is_refused_when_it_is_made(full):
    _edit(full.file, "[release]", f'[release]\nstore = "{"x" * 300}"')
    found = plan(full.file)
    assert [cell.state for cell in found.cells] == ["missing"]
    with pytest.raises(ArtifactError, match="File name too long"):
        found.store.prepare()


def test_a_key_does_not_depend_on_where_the_folder_lies(full, tmp_path_factory):
    import shutil

    other = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(full.folder, other)
    assert keys(full) == {cell.spec.name: cell.key for cell in plan(other / "release.toml").cells}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"x86-cpu"', '"x86-cqu"', "line 15: unknown target 'x86-cqu'"),
        ('"int8"', '"int9"', "line 16: unknown precision 'int9'"),
        ('"int8"', '"auto"', "line 16: precision 'auto' is found by measuring"),
        ('"x86-cpu"', '"x86-cpu:fastest"', "line 15: 'x86-cpu:fastest' is found by measuring"),
        ('"nets:one"', '"nest:one"', "line 5: module 'nest' is not found"),
        ('"cal.npz"', '"col.npz"', "line 9: there is no calibration file 'col.npz'"),
        ('"w.bin"', '"w*.pt"', r"line 6: weights: there is no file 'w\*.pt'"),
        ('"minmax"', '"maxmin"', "line 17: unknown calibration_method 'maxmin'"),
        ('"w.bin"', '"/proc/self/mem"', "line 6: /proc/self/mem cannot be read: Input/output error"),
        ('"cal.npz"', f'"{"x" * 300}"', "line 9: x+ cannot be read: File name too long"),
        ("[[cell]]", '[[cell]]\nrecipe = "r.toml"', "line 14: cannot read .*r.toml"),
        ("[[cell]]", '[[cell]]\nalgorithms = ["gptp"]', "line 14: .*gptp"),
        ("[[cell]]", "[[cell]]\noptions = { opsat = 3 }", "line 14: .*opsat"),
    ],
)
def test_what_means_nothing_is_refused_with_its_line(full, old, new, says):
    _edit(full.file, old, new)
    with pytest.raises(UsageError, match=says) as caught:
        plan(full.file)
    assert caught.value.hint


def test_a_precision_that_a_target_lacks_is_refused_or_skipped_as_the_file_says(project):
    cells = '[[cell]]\nmodels = ["one"]\ntargets = ["x86-cpu"]\nprecisions = ["fp8", "fp32"]\n'
    project.write(cells)
    refused, missing = plan(project.file).cells
    assert (refused.state, missing.state) == ("refused", "missing")
    assert refused.failure.exit_code == 3 and 'allow_skip = ["unsupported"]' in refused.failure.hint
    project.write(cells + 'allow_skip = ["unsupported"]\n')
    assert [cell.state for cell in plan(project.file).cells] == ["skipped", "missing"]


def test_a_cell_has_the_patterns_that_its_precision_uses(full):
    """One `[[cell]]` of several precisions: what is left out of int8 says nothing of the float build beside it."""
    _edit(full.file, 'precisions = ["int8"]', 'precisions = ["int8", "fp32", "int8-dynamic"]')
    _edit(full.file, 'exclude = ["3"]', 'exclude = ["3"]\noptions = { opset = 20 }')
    blocks = {cell.spec.precision: cell.spec.block for cell in plan(full.file).cells}
    assert {name: block.exclude for name, block in blocks.items()} == {
        "int8": ("3",),
        "fp32": (),
        "int8-dynamic": ("3",),
    }
    assert [block.calibration_method for block in blocks.values()] == ["minmax", "default", "default"]
    assert all(block.options == {"opset": 20} for block in blocks.values())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            [('"int8"', '"fp32", "fp16"'), ('calibration_method = "minmax"\n', "")],
            r"line 17: exclude=\['3'\] has no effect",
        ),
        ([('"int8"', '"int8-dynamic"')], "line 17: calibration_method='minmax' has no effect in int8-dynamic"),
        ([("[[cell]]", "[[cell]]\noptions = { block_size = 64 }")], r"line 14: options=\{'block_size': 64\} has no"),
    ],
)
def test_what_no_cell_uses_is_refused_with_its_line(full, changes, says):
    for old, new in changes:
        _edit(full.file, old, new)
    with pytest.raises(UsageError, match=says) as caught:
        plan(full.file)
    assert caught.value.hint


def test_planning_imports_neither_a_framework_nor_an_engine_and_writes_nothing(project):
    code = (
        "import sys, deploykit_fleet; from deploykit_fleet.planner import plan;"
        "assert len(plan(sys.argv[1]).cells) == 4;"
        "assert not {'torch', 'ray', 'onnx', 'onnxruntime'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(project.file)], check=True)
    assert not (project.folder / "out").exists() and not project.calls


def test_sources_are_followed_through_packages_and_relative_imports(tmp_path):
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("from .base import X\n")
    (package / "base.py").write_text("import json\nX = 1\n")
    (package / "net.py").write_text("def f():\n    from .. import nothing\n    import numpy\n    from . import late\n")
    (package / "late.py").write_text("from pkg.base import X\n")
    (package / "unused.py").write_text("\n")
    found = closure(["pkg.net:f"], [tmp_path])
    assert {"pkg", "pkg.base", "pkg.net", "pkg.late", "numpy"} == set(found)
    assert found["numpy"] == f"numpy=={np.__version__}"


def test_a_project_that_is_installed_to_be_edited_counts_by_its_sources(tmp_path, monkeypatch):
    theirs = tmp_path / "elsewhere" / "their_net"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").write_text("")
    (theirs / "deep.py").write_text("X = 1\n")
    (tmp_path / "mine.py").write_text("from their_net import deep\n")

    class Finder:
        """As setuptools writes it."""

        __module__ = "__editable___their_net_1_0_finder"

        @classmethod
        def find_spec(cls, name, path=None, target=None):
            init = theirs / "__init__.py"
            return importlib.util.spec_from_file_location(name, init) if name == "their_net" else None

    assert set(closure(["mine:f"], [tmp_path])) == {"mine"}
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    before = closure(["mine:f"], [tmp_path])
    assert set(before) == {"mine", "their_net", "their_net.deep"}
    (theirs / "deep.py").write_text("X = 2\n")
    assert closure(["mine:f"], [tmp_path]) != before
    assert "their_net.deep" in closure(["their_net.deep:f"], [tmp_path])


def test_source_that_is_nested_too_deep_is_refused(tmp_path):
    (tmp_path / "deep.py").write_text("x = " + "(" * 150 + "1" + ")" * 150 + "\n" + "y = " + "-" * 100_000 + "1\n")
    with pytest.raises(UsageError, match=r"deep\.py is not Python"):
        closure(["deep:f"], [tmp_path])


def test_modules_that_import_each_other_end(tmp_path):
    (tmp_path / "a.py").write_text("import b\n")
    (tmp_path / "b.py").write_text("import a\n")
    assert set(closure(["a"], [tmp_path])) == {"a", "b"}


def test_a_module_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "broken.py").write_text("def\n")
    with pytest.raises(UsageError, match=r"broken\.py is not Python"):
        closure(["broken:f"], [tmp_path])
