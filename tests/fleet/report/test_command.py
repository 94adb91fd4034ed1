"""`deploykit report` on the command line."""

from __future__ import annotations

import json

import pytest

from deploykit.cli import main

from .conftest import manifest, profile, runs


@pytest.fixture
def cli(capsys):
    """Exit code, standard output and standard error of one command."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_a_page_and_where_it_is(cli, artifact) -> None:
    folder = artifact("model", manifest(), profile(runs(1)))
    code, out, _ = cli("report", str(folder))
    assert code == 0 and out.startswith(f"{folder}-report.html: 1 passed")


def test_what_changed_is_a_table_and_a_document(cli, artifact, tmp_path) -> None:
    old = artifact("old", manifest(), profile(runs(1)))
    new = artifact("new", manifest(), profile([1.1 * each for each in runs(2)]))
    code, out, _ = cli("report", str(new), "--against", str(old), "-o", str(tmp_path / "page.html"))
    assert code == 0 and "1 worse since old" in out and "latency" in out and (tmp_path / "page.html").is_file()
    code, out, _ = cli("report", str(new), "--against", str(old), "--json")
    document = json.loads(out)
    (finding,) = document["findings"]
    assert code == 0 and finding["what"] == "latency" and 0 < finding["p_value"] < 0.01
    assert document["states"] == {"passed": 1, "failed": 0, "skipped": 0}
    code, out, _ = cli("report", str(old), "--against", str(old))
    assert code == 0 and "nothing worse since old" in out


@pytest.mark.parametrize("name", ["none", "."])
def test_nothing_to_report_ends_with_the_code_of_artifacts(cli, tmp_path, name) -> None:
    code, out, said = cli("report", str(tmp_path / name))
    assert code == 9 and not out and "cannot be reported" in said


def test_a_page_inside_of_an_artifact_is_a_mistake_of_usage(cli, artifact) -> None:
    folder = artifact("model")
    code, _, said = cli("report", str(folder), "-o", str(folder / "page.html"))
    assert code == 2 and "lies in an artifact" in said and not (folder / "page.html").exists()


def test_words_of_others_do_not_steer_the_terminal(cli, artifact) -> None:
    old = artifact("old", manifest(), profile(runs(1)))
    new = artifact("new", manifest(("stem", "\x1b[2Jx", "head"), left=("\x1b[2Jx",)), None)
    _, out, _ = cli("report", str(new), "--against", str(old))
    assert "\x1b" not in out
