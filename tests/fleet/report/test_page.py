"""The page: what it holds, what it must not hold, and what it does with hostile words."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import deploykit
from deploykit.contract.errors import ArtifactError, UsageError
from deploykit.contract.precision import Evidence
from deploykit.contract.recipe import ModelIdentity, Recipe, TriedStep
from deploykit.contract.session import OpTime
from deploykit.judge.conditions import Conditions, Reading
from deploykit.judge.profiling import Percentiles, Sustained
from deploykit_fleet import outcome
from deploykit_fleet import report as report_room
from deploykit_fleet.report.page import page

from .conftest import manifest, parity, profile, runs, write

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "\u202egnp.exe\u2066",
    "a" * 10_000,
    "&lt;b&gt;",
    "\x1b[2J\r\n",
    "]]>--><!--",
)
OURS = frozenset(
    "html head meta title style body a header p h1 h2 main section footer script span b small br code dl div dt dd"
    " ul li i table caption thead tbody tr th td details summary figure figcaption pre"
    " svg path rect circle text tspan".split()
)
LAYERS = ("stem", "body.0", "head")


class Elements(HTMLParser):
    """Every element that the page has, with its attributes, and the words between."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content)

    def handle_starttag(self, tag, attributes) -> None:
        self.found.append((tag, dict(attributes)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def pictures(content: str) -> dict[str, object]:
    """The JSON of every picture by its name."""
    element = r"<(?:script type=\"application/json\"|pre class=data) id=(\S+)-data[^>]*>(.*?)</(?:script|pre)>"
    blocks = re.findall(element, content, re.DOTALL)
    return {name: json.loads(data) for name, data in blocks}


@pytest.fixture
def release(tmp_path):
    """Two models on two targets: three cells that passed, one that failed a gate, one skipped, one that crashed."""
    cells = []
    for model, target, precision in (
        ("net", "x86-cpu", "fp32"),
        ("net", "x86-cpu", "int8"),
        ("net", "android", "int8"),
        ("other", "x86-cpu", "int8"),
    ):
        ops = tuple(OpTime(name, "conv", name, 100.0 + i) for i, name in enumerate(LAYERS))
        report = parity(LAYERS, 60.0 if precision == "fp32" else 40.0)
        of = manifest(
            LAYERS, target=target, precision=precision, size=80_000 if precision == "fp32" else 20_000, report=report
        )
        evidence = Evidence.DEVICE if target == "x86-cpu" else Evidence.ESTIMATE
        measured = profile(runs(1, 3.0 if precision == "fp32" else 1.0), evidence=evidence, op_times=ops)
        name = f"objects/{model}-{target}-{precision}"
        write(tmp_path / name, of, measured)
        fingerprint = hashlib.sha256((tmp_path / name / "manifest.json").read_bytes()).hexdigest()
        cells.append(_cell(model, target, precision, "passed", artifact=name, fingerprint=fingerprint))
    failure = outcome.Failure(
        kind="ParityError", message="SQNR 3 dB is below 20 dB", hint="deploykit tune", exit_code=6
    )
    gate = outcome.Gate(name="min_sqnr_db", asked=20.0, value=3.0, passed=False)
    cells[3] = replace_cell(cells[3], status="failed", failure=failure, gates=(gate,))
    cells.append(_cell("other", "android", "int8", "skipped", reason="android has no such precision"))
    crashed = outcome.Failure(kind="Crashed", message="the converter died of signal 11")
    cells.append(_cell("other", "x86-cpu", "fp32", "failed", failure=crashed))
    made = outcome.Release(
        deploykit="0.1.0", name="edge", started="2026-11-29T00:00:00Z", host="builder", cpu="a CPU", cells=tuple(cells)
    )
    outcome.write(made, tmp_path)
    return tmp_path


def _cell(model, target, precision, status, **further) -> outcome.Cell:
    return outcome.Cell(model=model, target=target, precision=precision, key="0" * 64, status=status, **further)


def replace_cell(cell: outcome.Cell, **changes) -> outcome.Cell:
    return outcome.msgspec.structs.replace(cell, **changes)


def test_one_file_under_a_policy_that_allows_nothing_else(release) -> None:
    content = deploykit.report(release).path.read_text()
    elements = Elements(content)
    policy = next(each["content"] for each in elements.all("meta") if each.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    for tag, attributes in elements.found:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "image", "use")
        assert not any(name.startswith("on") or name in ("style", "src") for name in attributes), tag
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in content and "@import" not in content


def test_three_states_in_the_matrix(release) -> None:
    content = deploykit.report(release).path.read_text()
    assert "4 passed" not in content and "3 passed" in content and "2 failed" in content and "1 skipped" in content
    assert "SQNR 3 dB is below 20 dB" in content and "deploykit tune" in content and "signal 11" in content
    assert pictures(content)["matrix"]["state"] == ["passed"] * 3 + ["failed", "skipped", "failed"]
    assert content.count("class=why") + content.count('class="why') == 3


def test_every_picture_has_its_json_and_a_name_for_those_who_cannot_see_it(release) -> None:
    content = deploykit.report(release).path.read_text()
    elements, data = Elements(content), pictures(content)
    named = {figure["id"] for figure in elements.all("figure")}
    assert named == set(data) - {"matrix"} and len(elements.all("svg")) == len(named)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in elements.all("svg"))
    layers = next(value for name, value in data.items() if name.endswith("-layers"))
    assert [row[0] for row in layers["rows"]] == list(LAYERS) and layers["columns"][3] == "SQNR"


def test_ids_are_unique_and_links_lead_somewhere(release) -> None:
    found = Elements(deploykit.report(release).path.read_text()).found
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for _, attributes in found if "href" in attributes} <= set(ids)


def test_figures_of_other_evidence_never_share_a_front(release) -> None:
    data = pictures(deploykit.report(release).path.read_text())
    fronts = [value for name, value in data.items() if name.startswith("front-")]
    (front,) = fronts  # the estimate is alone, and so is the other model
    assert front["latency_evidence"] == "device"
    assert {point["label"]: point["best"] for point in front["points"]} == {"int8": True, "fp32": True}


def test_a_report_of_one_artifact_lies_beside_it(artifact) -> None:
    folder = artifact("model", manifest(), profile(runs(1)))
    made = deploykit.report(folder)
    assert made.path == folder.parent / "model-report.html" and not list(folder.glob("*.html"))
    assert "<details id" not in made.path.read_text()
    with pytest.raises(UsageError, match="lies in an artifact"):
        deploykit.report(folder, output=folder / "report.html")


def test_a_ladder_is_drawn(artifact) -> None:
    steps = (TriedStep("ptq", "kept", sqnr_db=18.0, metric=0.8), TriedStep("mixed: 2 layers", "failed", "it crashed"))
    recipe = Recipe("x86-cpu", "int8", "s8", ModelIdentity("Net", "0", "0"), ladder=steps)
    content = deploykit.report(artifact("model", replace(manifest(), recipe=recipe))).path.read_text()
    (ladder,) = [value for name, value in pictures(content).items() if name.endswith("-ladder")]
    assert [step["outcome"] for step in ladder] == ["kept", "failed"] and "✗ mixed: 2 layers" in content


@pytest.mark.parametrize("words", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_words_are_shown_and_not_done(artifact, words) -> None:
    report = replace(parity((words, "head")), failures=(words,), notes=(words,), data=words, passed=False)
    of = replace(manifest((words, "head"), report=report, status="failed", left=(words,), reason=words), target=words)
    ops = (OpTime(words, words, words, 5.0), OpTime("head", "conv", "head", 1.0))
    measured = replace(profile(runs(1), op_times=ops), baseline=words, notes=(words,))
    old, new = artifact("old/a", of, measured), artifact("new/a", of, measured)
    single = deploykit.report(new, against=old).path.read_text()
    several = deploykit.report(new.parent, against=old.parent).path.read_text()
    for content in (single, several):
        assert {tag for tag, _ in Elements(content).found} <= OURS
        assert not any(name.startswith("on") for _, found in Elements(content).found for name in found)
        assert not set("\u202e\u2066\x1b\r") & set(content)
        assert len(content) < 80_000
        assert pictures(content)
        assert content.count("<script>") == content.count("<style>") == 1


def test_a_name_of_no_text_is_no_crash(tmp_path) -> None:
    folder = tmp_path / "\udcff"
    write(folder / "a", manifest())
    assert "\\udcff" in page(deploykit.report(folder, output=tmp_path / "r.html").book, None)


def test_what_is_damaged_is_an_entry_and_not_the_end(artifact, tmp_path) -> None:
    artifact("all/good", manifest(), profile(runs(1)))
    (artifact("all/bad") / "manifest.json").write_text("{")
    (artifact("all/half", manifest(), profile(runs(1))) / "profile.json").write_text("[]")
    made = deploykit.report(tmp_path / "all")
    assert [entry.state for entry in made.book.entries] == ["failed", "passed", "passed"]
    assert "profile.json is damaged" in made.path.read_text()


def test_an_artifact_that_was_replaced_since_is_said_to_be(release) -> None:
    write(release / "objects" / "net-x86-cpu-int8", manifest(LAYERS, size=1))
    assert "another one than the release judged" in deploykit.report(release).path.read_text()


def test_a_board_measures_in_place_of_this_machine(release) -> None:
    made = outcome.read(release)
    board = json.loads(outcome.msgspec.json.encode(profile(runs(1, 7.0))))
    ran = outcome.DeviceRun(device="lab", verified=True, sqnr_db=51.0, profile=board)
    broken = outcome.DeviceRun(device="lab", verified=True, profile={"latency_ms": 1})
    cells = (replace_cell(made.cells[0], device=ran), replace_cell(made.cells[1], device=broken))
    outcome.write(replace_cell(made, cells=cells), release)
    made = deploykit.report(release)
    assert "on lab" in made.path.read_text() and "51.0 dB against its golden outputs" in made.path.read_text()
    first, second = made.book.entries
    assert first.profile.latency_ms.p50 > 7.0 and "profile of lab" in second.remarks[0]


def test_heat_and_a_long_run_are_shown(artifact) -> None:
    first, last = Percentiles.of([1.0, 1.1]), Percentiles.of([1.5, 1.6])
    conditions = Conditions(temperature_c=(Reading("cpu", 40.0, 81.0, 40.0, 82.0),), absent=("clock",), samples=9)
    measured = replace(profile(runs(1)), sustained=Sustained(600.0, 60.0, 9000, first, last), conditions=conditions)
    content = deploykit.report(artifact("hot", manifest(), measured)).path.read_text()
    assert "its last window" in content and "40 to 81 C" in content


def test_words_stand_out_from_what_is_behind_them() -> None:
    """Contrast after WCAG 2: at least 4.5 for words, in light and in dark."""
    style = (Path(report_room.__file__).parent / "page.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", part)) for part in style.split("@media", 2)[:2])
    for colours in (light, dark):
        for ink in ("ink", "dim", "link"):
            assert min(contrast(colours[ink], colours[behind]) for behind in ("bg", "card")) >= 4.5, ink
        for state in ("pass", "fail", "skip"):
            assert contrast(colours[state], colours[f"{state}-bg"]) >= 4.5, state
        for bar in ("p4", "p8", "p16i", "pf8", "pf16", "pf32", "px", "time"):
            assert contrast(colours[bar], colours["card"]) >= 3.0, bar  # what is no text


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
        shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_nothing_to_report_is_refused(tmp_path, artifact) -> None:
    for folder, words in ((tmp_path / "none", "no such folder"), (tmp_path, "holds no artifact")):
        with pytest.raises(ArtifactError, match=words):
            deploykit.report(folder)
    (artifact("bad") / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError):
        deploykit.report(tmp_path / "bad")


def test_a_page_that_cannot_be_written_is_refused(artifact, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        deploykit.report(artifact("model"), output=tmp_path / "file" / "report.html")


def test_the_same_folder_gives_the_same_bytes(release) -> None:
    first = deploykit.report(release).path.read_bytes()
    assert deploykit.report(release).path.read_bytes() == first


def test_forty_artifacts_of_sixty_layers(tmp_path) -> None:
    for name, seed in (("old", 0), ("new", 500)):
        for i in range(40):
            layers = [f"features.{k // 4}.conv.{k % 4}.{i}" for k in range(60)]  # none is like that of another
            ops = tuple(OpTime(each, "QLinearConv", each, 5.0 + k % 13) for k, each in enumerate(layers))
            times = runs(seed + i)
            of = manifest(layers, precision=("int8", "fp32", "fp16", "int8-weight-only")[i // 10], model=f"net{i % 10}")
            write(
                tmp_path / name / f"net{i % 10}" / of.precision,
                of,
                profile(times, [3.0 * x for x in times], op_times=ops),
            )
    made = deploykit.report(tmp_path / "new", against=tmp_path / "old")
    assert made.path.stat().st_size <= 400_000
    assert len(made.book.entries) == 40 and not made.findings
