"""JUnit XML of a release: a test case a cell, a missed gate a failure with the layers to blame.

As Jenkins, GitLab and GitHub's reporters read it: `failure` where an artifact was made and missed a gate, `error` where
none could be made, `skipped` where the release file allows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as Xml

from deploykit.artifact.storage import write_file
from deploykit_fleet.outcome import FAILED, JUNIT_NAME, SKIPPED, Cell, Failure, Gate, Release

# What XML 1.0 has no way to say, and what steers a terminal.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(release: Release, folder: Path) -> Path:
    """Write `folder/junit.xml`, whole or not at all.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    path = folder / JUNIT_NAME
    write_file(path, text(release))
    return path


def text(release: Release) -> bytes:
    """The document, UTF-8."""
    cells = release.cells
    counts = {
        "tests": len(cells),
        "failures": sum(_is_gate(cell) for cell in cells),
        "errors": sum(cell.status == FAILED and not _is_gate(cell) for cell in cells),
        "skipped": sum(cell.status == SKIPPED for cell in cells),
    }
    seconds = f"{sum(cell.seconds for cell in cells if not cell.cached):.3f}"
    told = {name: str(count) for name, count in counts.items()} | {"name": release.name, "time": seconds}
    root = Xml.Element("testsuites", told)
    stamp = {"timestamp": release.started.removesuffix("Z"), "hostname": release.host}
    suite = Xml.SubElement(root, "testsuite", {**told, **stamp})
    for cell in cells:
        _case(suite, cell, release.name)
    _clean(root)
    Xml.indent(root)
    document: bytes = Xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _case(suite: Xml.Element, cell: Cell, release: str) -> None:
    seconds = "0.000" if cell.cached else f"{cell.seconds:.3f}"
    classname = f"{release}.{cell.model}"
    case = Xml.SubElement(suite, "testcase", classname=classname, name=f"{cell.target}/{cell.precision}", time=seconds)
    _properties(case, cell)
    if cell.status == SKIPPED:
        Xml.SubElement(case, "skipped", message=cell.reason)
    elif cell.status == FAILED:
        failure = cell.failure or (cell.device.failure if cell.device else None) or Failure(kind="Failed", message="")
        found = Xml.SubElement(case, "failure" if _is_gate(cell) else "error", type=failure.kind)
        found.set("message", failure.message)
        found.text = "\n".join(_lines(cell, failure))
    out = Xml.SubElement(case, "system-out")
    out.text = "\n".join([*map(_gate, cell.gates), *([f"artifact: {cell.artifact}"] if cell.artifact else [])])


def _properties(case: Xml.Element, cell: Cell) -> None:
    told = {"key": cell.key, "fingerprint": cell.fingerprint, "cached": str(cell.cached).lower()}
    if cell.metric is not None and cell.metric.value is not None:
        told["metric"] = f"{cell.metric.value:.6g}"
    if cell.device is not None:
        told["device"] = cell.device.device
    properties = Xml.SubElement(case, "properties")
    for name, value in told.items():
        if value:
            Xml.SubElement(properties, "property", name=name, value=value)


def _is_gate(cell: Cell) -> bool:
    """Whether a cell failed with an artifact in hand."""
    return cell.status == FAILED and cell.artifact is not None


def _lines(cell: Cell, failure: Failure) -> Iterator[str]:
    yield failure.message
    if failure.hint:
        yield f"next: {failure.hint}"
    yield from (f"missed {_gate(gate)}" for gate in cell.gates if not gate.passed)
    for layer in failure.layers:
        yield f"layer {layer.name}" + (f": {layer.sqnr_db:.1f} dB" if layer.sqnr_db is not None else "")


def _gate(gate: Gate) -> str:
    value = "not measured" if gate.value is None else f"{gate.value:.6g}"
    return f"{gate.name}: asked {gate.asked:.6g}, reached {value}"


def _clean(root: Xml.Element) -> None:
    """What no reader takes is shown by its code, wherever it stands."""
    for element in root.iter():
        element.text = _shown(element.text or "")
        for name, value in element.items():
            element.set(name, _shown(value))


def _shown(words: str) -> str:
    return _FORBIDDEN.sub(lambda found: found.group().encode("unicode_escape").decode(), words)
