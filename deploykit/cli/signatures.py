"""What a checked signature says of an artifact, for pages and documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.plugin.artifact import Artifact
    from deploykit_trust.lineage import Lineage


def lineage_of(artifact: Artifact, key: str) -> Lineage | None:
    """The lineage in an artifact whose signature was checked; None where another tool signed it."""
    from deploykit_trust.keys import read_public_key
    from deploykit_trust.lineage import read_lineage

    return read_lineage(artifact, read_public_key(key))


def signature_rows(artifact: Artifact, key: str) -> list[tuple[str, str]]:
    """Rows of a table about a signature that holds."""
    found = lineage_of(artifact, key)
    rows = [("signature", f"every file is signed by {key}")]
    if found is None:
        return [*rows, ("lineage", "none: another tool signed it")]
    dirty = ", with changes that are not committed" if found.dirty else ""
    told = {
        "source": f"{found.commit}{dirty}" + (f" of {found.url}" if found.url else "") if found.commit else "",
        "model": found.model,
        "recipe": found.recipe,
        "calibration": found.calibration,
        "parent": found.parent,
        "tools": ", ".join(f"{name} {version}" for name, version in sorted(found.tools.items())),
    }
    return [*rows, *((name, text) for name, text in told.items() if text)]
