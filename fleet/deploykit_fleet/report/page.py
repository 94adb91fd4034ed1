"""The page: one HTML file without a request, under a policy that allows nothing but its own style and script.

It is read without the script, which only sorts tables and saves a picture's JSON. The policy names both by their hash,
so that nothing that somebody smuggled into a name could run even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from deploykit._version import __version__
from deploykit_fleet.report.entries import Book
from deploykit_fleet.report.fronts import fronts_of
from deploykit_fleet.report.markup import Html, el, short
from deploykit_fleet.report.sections.changed import changed
from deploykit_fleet.report.sections.entry import entry_section
from deploykit_fleet.report.sections.fronts import fronts_section
from deploykit_fleet.report.sections.overview import head, matrix
from deploykit_fleet.report.verdicts import Comparison


def page(book: Book, comparison: Comparison | None) -> str:
    """The whole file.

    Args:
        comparison: with an older release; None for none.
    """
    style, script = (_own(f"page.{kind}") for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}';"
        " base-uri 'none'; form-action 'none'"
    )
    header = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", f"{short(book.title, 60)} - deploykit report"),
        el("style", style),
    )
    footer = el("footer", f"Made by deploykit {__version__}. This page asks for nothing from the network.")
    body = el(
        "body",
        _skip(),
        head(book, comparison),
        el("main", *_sections(book, comparison), id="main"),
        footer,
        el("script", script),
    )
    return f"<!doctype html>\n{el('html', header, body, lang='en')}\n"


def _skip() -> Html:
    return el("a", "Skip to the report", href="#main", class_="skip")


def _sections(book: Book, comparison: Comparison | None) -> list[Html]:
    found = [changed(comparison)] if comparison is not None else []
    if book.is_artifact:
        return [*found, entry_section(book.entries[0], alone=True)]
    found.append(matrix(book))
    fronts = fronts_section(fronts_of(book.entries))
    if fronts is not None:
        found.append(fronts)
    entries = [entry_section(entry, alone=False) for entry in book.entries]
    return [*found, el("section", el("h2", "Builds"), *entries, id="builds")]


def _own(name: str) -> Html:
    return Html(files("deploykit_fleet.report").joinpath(name).read_text(encoding="utf-8"))


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
