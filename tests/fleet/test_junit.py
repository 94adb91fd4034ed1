"""JUnit XML as its readers take it."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from deploykit_fleet.junit import text
from deploykit_fleet.outcome import Cell, DeviceRun, Failure, Gate, Layer, Release


def _cell(target, status, **changes):
    return Cell(**{"model": "net", "target": target, "precision": "int8", "key": "k", "status": status, **changes})


def document(*cells):
    made = Release(deploykit="1", name="edge", started="2026-01-02T03:04:05Z", host="h", cpu="c", cells=cells)
    return Xml.fromstring(text(made))


def test_gates_errors_and_skips_are_told_apart():
    gate = Gate(name="max_drop", asked=0.01, value=0.25, passed=False)
    missed = Failure(kind="ParityError", message="fell", hint="exclude", layers=(Layer(name="body.0", sqnr_db=3.0),))
    board = DeviceRun(device="lab", failure=Failure(kind="DeviceError", message="no route"))
    root = document(
        _cell("a", "passed", seconds=2.5, artifact="objects/1"),
        _cell("b", "failed", failure=missed, gates=(gate,), artifact="objects/2"),
        _cell("c", "failed", failure=Failure(kind="Crashed", message="killed")),
        _cell("d", "skipped", reason="no fp8"),
        _cell("e", "failed", device=board, artifact="objects/3"),
        _cell("f", "passed", cached=True, seconds=9.0),
    )
    suite = root.find("testsuite")
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped", "time", "timestamp")}
    assert counts == {
        "tests": "6",
        "failures": "2",
        "errors": "1",
        "skipped": "1",
        "time": "2.500",
        "timestamp": "2026-01-02T03:04:05",
    }
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert cases["a/int8"].get("classname") == "edge.net" and cases["a/int8"].get("time") == "2.500"
    failure = cases["b/int8"].find("failure")
    assert failure.get("type") == "ParityError" and failure.get("message") == "fell"
    for words in ("next: exclude", "missed max_drop: asked 0.01, reached 0.25", "layer body.0: 3.0 dB"):
        assert words in failure.text
    assert cases["c/int8"].find("error").get("type") == "Crashed"
    assert cases["d/int8"].find("skipped").get("message") == "no fp8"
    assert cases["e/int8"].find("failure").get("message") == "no route"
    assert cases["f/int8"].get("time") == "0.000"


def test_what_xml_cannot_say_is_shown_and_not_written():
    failure = Failure(kind="UsageError", message="\x1b[31m<&>\x00\ud800", hint="é €")
    root = document(_cell("a", "failed", failure=failure))
    found = root.find(".//error")
    assert found.get("message") == "\\x1b[31m<&>\\x00\\ud800" and "é €" in found.text


def test_nothing_that_a_cell_holds_makes_the_document_unreadable():
    odd = "\x00\x1b\x85\u202e\ud800\ufffe]]><!--&\"'"
    cell = Cell(
        model=odd,
        target=odd,
        precision=odd,
        key=odd,
        status="failed",
        artifact=odd,
        fingerprint=odd,
        failure=Failure(kind=odd, message=odd, hint=odd, layers=(Layer(name=odd),)),
        gates=(Gate(name=odd, asked=1e308, value=float("nan"), passed=False),),
        device=DeviceRun(device=odd),
    )
    made = Release(deploykit=odd, name=odd, started=odd, host=odd, cpu=odd, cells=(cell, cell))
    assert len(list(Xml.fromstring(text(made)).iter("testcase"))) == 2
