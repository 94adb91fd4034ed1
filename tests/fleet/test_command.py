"""`deploykit release` and `deploykit store gc` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="cells are exported")
pytest.importorskip("onnxruntime", reason="the cells are of the target x86-cpu")

WATCHED = """
import json, sys
from deploykit.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted({"torch", "ray", "onnx", "onnxruntime"} & set(sys.modules))]), file=sys.stderr)
"""


def command(project, *words):
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *words], capture_output=True, text=True, cwd=project.folder, check=True
    )
    code, imported = json.loads(done.stderr.splitlines()[-1])
    return code, imported, done.stdout, done.stderr


def test_a_release_from_the_command_line_and_a_run_with_nothing_to_do_imports_no_framework(project):
    project.write('[[cell]]\nmodels = ["one"]\ntargets = ["x86-cpu"]\nprecisions = ["fp32"]\n')
    code, imported, printed, _ = command(project, "release", "release.toml", "--dry-run")
    assert code == 0 and not imported and "1 missing; nothing was computed" in printed and not project.store.exists()
    code, _, printed, said = command(project, "release", "release.toml", "--json", "--jobs", "1", "--progress")
    assert "exporting cells" in said
    document = json.loads(printed)
    assert code == document["exit_code"] == 0 and document["engine"] == "sequential"
    assert document["cells"][0]["status"] == "passed" and document["store"] == str(project.store)
    code, imported, printed, said = command(project, "release", "release.toml", "--against", "out/store")
    assert (
        "exporting cells" not in said
        and code == 0
        and not imported
        and "cached" in printed
        and "nothing changed since out/store" in printed
    )
    code, imported, printed, _ = command(project, "release", "--dry-run", "--json")
    assert code == 0 and not imported and json.loads(printed)["counts"] == {"cached": 1}
    code, imported, printed, _ = command(project, "store", "gc", "--keep", "5", "--json")
    assert code == 0 and not imported and json.loads(printed)["kept"] == 1


def test_mistakes_have_their_exit_codes_and_no_traceback(project):
    project.file.write_text(project.file.read_text().replace("targets", "tragets"))
    code, imported, _, said = command(project, "release")
    assert code == 2 and not imported and "did you mean 'targets'?" in said and "Traceback" not in said
    assert command(project, "release", "absent.toml")[0] == 2
    assert command(project, "store", "gc", "nowhere", "--keep", "1")[0] == 9
    assert command(project, "store", "gc", "--keep", "0")[0] == 2


def test_the_exit_code_is_that_of_the_first_cell_that_failed(project):
    project.write('[[cell]]\nmodels = ["one"]\ntargets = ["x86-cpu"]\nprecisions = ["fp8"]\n')
    code, imported, printed, said = command(project, "release")
    assert code == 3 and not imported and "failed: one/x86-cpu/fp8: UnsupportedPrecisionError" in printed
    assert "allow_skip" in printed and "Traceback" not in said
