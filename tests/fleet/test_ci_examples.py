"""The pipelines in `examples/ci` are what GitHub and GitLab accept, and call commands that there are."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "ci"
SCHEMAS = {"github-actions.yml": "vendor.github-workflows", "gitlab-ci.yml": "vendor.gitlab-ci"}


def test_every_pipeline_is_tested_here():
    assert {path.name for path in EXAMPLES.iterdir()} == set(SCHEMAS)


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="check-jsonschema, which has the schemas, is absent")
@pytest.mark.parametrize("name", [*SCHEMAS])
def test_the_schema_that_ships_with_the_checker_accepts_it_and_refuses_a_mistake(name, tmp_path):
    def check(path):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[name], str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = check(EXAMPLES / name)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / name
    broken.write_text((EXAMPLES / name).read_text().replace("timeout", "tiemout").replace("script:\n", "scirpt:\n"))
    assert check(broken).returncode != 0


@pytest.mark.parametrize("name", [*SCHEMAS])
def test_its_commands_parse(name):
    found = re.findall(r"(?:run:|-) (deploykit [^#\n]+)", (EXAMPLES / name).read_text())
    assert len(found) >= 3
    for line in found:
        *words, last = shlex.split(line)
        done = subprocess.run(
            [sys.executable, "-m", *words, last, "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
