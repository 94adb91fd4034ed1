"""Write the last results into benchmarks/README.md, one table per `results/<name>.json`.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import RESULTS

from deploykit.contract.host import Host

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: written by tables.py -->", "<!-- end of results -->"


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as Markdown tables, one for all that have the same columns."""
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row) if "part" in row else tuple(rows[0]), []).append(row)
    return "\n\n".join(map(table, found.values()))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(_cell(row.get(head)) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _where(host: Host) -> str:
    """The kind of CPU first: figures of two kinds are not compared."""
    return f"{host.cores} cores, **{host.kind}** ({', '.join(host.isa)}); "


def section(record: Mapping[str, Any]) -> str:
    """One benchmark: machine, versions, table, notes."""
    machine = record.get("machine")  # a program in an environment of its own may describe it in its notes
    where = _where(Host(**{**machine, "isa": tuple(machine["isa"])})) if machine else ""
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    notes = "\n".join(f"- {note}" for note in record.get("notes", []) if note)
    return f"### {record['benchmark']}\n\n{where}{versions}\n\n{tables(record['rows'])}\n\n{notes}\n"


def main() -> None:
    """Replace what stands between the markers."""
    paths = sorted(RESULTS.glob("*.json"))
    records = [{"benchmark": path.stem, **json.loads(path.read_text(encoding="utf-8"))} for path in paths]
    body = "\n".join(section(record) for record in records)
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
