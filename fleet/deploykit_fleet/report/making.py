"""`deploykit.report`: a folder as one page, and what changed since another folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploykit.artifact import manifest as layout
from deploykit.artifact.storage import write_file
from deploykit.contract.errors import UsageError
from deploykit_fleet.report.changes import compare
from deploykit_fleet.report.entries import Book, read_book
from deploykit_fleet.report.page import page
from deploykit_fleet.report.verdicts import Change, Comparison

NAME = "report.html"


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: the page.
        book: what it is of.
        comparison: with the older folder; None where none was named.
    """

    path: Path
    book: Book
    comparison: Comparison | None = None

    @property
    def findings(self) -> tuple[Change, ...]:
        """What got worse since the older folder; empty where none was named."""
        return self.comparison.findings if self.comparison else ()

    def document(self) -> dict[str, Any]:
        """Plain data for `--json`: states, and everything that was compared."""
        states = Counter(entry.state for entry in self.book.entries)
        return {
            "report": str(self.path),
            "title": self.book.title,
            "states": {state: states[state] for state in ("passed", "failed", "skipped")},
            "entries": [
                {"name": entry.name, "state": entry.state, "reason": entry.reason, "fingerprint": entry.fingerprint}
                for entry in self.book.entries
            ],
            "findings": [asdict(change) for change in self.findings],
            "against": asdict(self.comparison) if self.comparison else None,
        }


def report(where: str | Path, *, against: str | Path | None = None, output: str | Path | None = None) -> Report:
    """Write one offline HTML page of an artifact, a folder of artifacts, or a release.

    Nothing is run and no runtime is needed; payloads are not opened.

    Args:
        where: the folder.
        against: an older one of the same kind, for what changed since, with its significance.
        output: the file; by default `report.html` in the folder, and beside it where the folder is one artifact,
            whose files are listed in its manifest.
    Raises:
        ArtifactError: a folder holds nothing to report, or what it holds is damaged.
        UsageError: the page cannot be written there.
    """
    book = read_book(where)
    comparison = compare(read_book(against), book) if against is not None else None
    path = Path(output) if output is not None else _place(book)
    if (path.resolve().parent / layout.MANIFEST_NAME).is_file():
        message = f"{path} lies in an artifact, which holds nothing but what its manifest lists"
        raise UsageError(message, hint=f"-o {path.resolve().parent.parent / NAME}")
    content = page(book, comparison)
    write_file(path, content.encode(), error=UsageError)
    return Report(path, book, comparison)


def _place(book: Book) -> Path:
    folder = book.path
    if not book.is_artifact:
        return folder / NAME
    whole = folder.resolve()
    beside = folder.parent if folder.name not in ("", ".", "..") else whole.parent
    return beside / f"{whole.name}-{NAME}"
