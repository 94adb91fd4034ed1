"""What is not imported cannot be slow, nor be missing on a board: no framework comes with `import deploykit`."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = "torch onnx onnxruntime openvino numpy typer rich tensorrt coremltools tvm ai_edge_litert litert_torch"


def modules_after(code: str, *path: object) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_import_deploykit_imports_nothing_heavy():
    assert not modules_after("import deploykit, deploykit.contract.errors") & set(HEAVY.split())


@pytest.mark.parametrize("arguments", [["targets"], ["targets", "--json"], ["doctor", "--json"], ["--help"]])
def test_listing_targets_imports_no_framework(toy_path, arguments):
    loaded = modules_after(f"from deploykit.cli import main\nmain({arguments!r})", *toy_path)
    assert not loaded & set(HEAVY.split()) - {"numpy", "typer", "rich"}


def test_reading_an_artifact_imports_no_framework(toy, toy_path, tmp_path):
    toy.write_artifact(tmp_path / "a")
    loaded = modules_after(
        f"from deploykit.cli import main\nmain(['verify', {str(tmp_path / 'a')!r}, '--json'])", *toy_path
    )
    assert not loaded & set(HEAVY.split()) - {"numpy", "typer", "rich"}
