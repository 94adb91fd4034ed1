"""The schema of `manifest.json`, from the type that it is read into."""

from __future__ import annotations

import json
from typing import Any

import msgspec

_INTRO = """# Manifest schema

`manifest.json` is checked against this when an artifact is loaded. A field of another type, a newer schema version,
a file that is not listed are refused. Made from the code ({version}).
"""


def pages() -> dict[str, str]:
    """Every object of the schema as a table, and the whole as JSON Schema."""
    from deploykit.artifact.manifest import SCHEMA_VERSION, Manifest

    (whole,), parts = msgspec.json.schema_components([Manifest], ref_template="#/$defs/{name}")
    del whole
    tables = [_table(name, part) for name, part in sorted(parts.items(), key=lambda pair: pair[0] != "Manifest")]
    schema = json.dumps(msgspec.json.schema(Manifest), indent=2)
    text = _INTRO.format(version=f"schema version {SCHEMA_VERSION}")
    return {"reference/manifest.md": "\n".join([text, *tables, "## JSON Schema\n", f"```json\n{schema}\n```\n"])}


def _table(name: str, part: dict[str, Any]) -> str:
    told = _attributes(part.get("description", ""))
    rows = ["| field | type | required | what it is |", "|---|---|---|---|"]
    for field, kind in part.get("properties", {}).items():
        needed = "yes" if field in part.get("required", ()) else "-"
        rows.append(f"| `{field}` | {_kind(kind)} | {needed} | {told.get(field, '')} |")
    return f"## {name}\n\n" + ("\n".join(rows) if len(rows) > 2 else f"{_kind(part)}") + "\n"


def _kind(part: dict[str, Any]) -> str:
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in part:
        return " or ".join(map(_kind, part["anyOf"]))
    if part.get("type") == "array":
        return f"list of {_kind(part['items'])}" if isinstance(part.get("items"), dict) else "list"
    if part.get("type") == "object" and isinstance(part.get("additionalProperties"), dict):
        return f"object of {_kind(part['additionalProperties'])}"
    if "enum" in part:
        return ", ".join(f"`{one}`" for one in part["enum"] if one is not None) or "null"
    return str(part.get("type", "any"))


def _attributes(description: str) -> dict[str, str]:
    """The `Attributes:` of a Google docstring, by name."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in description.partition("Attributes:")[2].splitlines():
        word, colon, text = line.strip().partition(": ")
        if colon and line.startswith("    ") and not line.startswith("        ") and " " not in word.replace(", ", ""):
            names = word.split(", ")
            found |= dict.fromkeys(names, text.replace("|", "\\|"))
        elif line.strip() and names:
            found |= {name: f"{found[name]} {line.strip()}".replace("|", "\\|") for name in names}
    return found
