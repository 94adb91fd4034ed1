"""Pages of the checkout as pages of the site, and links between them."""

from __future__ import annotations

import os.path
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = "docs/pages/"

SHARED = {
    "calibration/README.md": "rooms/calibration.md",
    "tuning/README.md": "rooms/tuning.md",
    "training/README.md": "rooms/training.md",
    "deploykit/places/README.md": "rooms/places.md",
    "fleet/README.md": "rooms/fleet.md",
    "serving/README.md": "rooms/serving.md",
    "trust/README.md": "rooms/trust.md",
    "trust/THREATS.md": "threats.md",
    "targets/README.md": "targets/index.md",
    "targets/deploykit_targets/_onnx/README.md": "targets/onnx.md",
    "targets/deploykit_targets/coreml/mil_evaluator/README.md": "targets/mil-evaluator.md",
    "targets/deploykit_targets/tvm/kernels/README.md": "targets/tvm-kernels.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
}
"""Page of the checkout -> page of the site; `target_pages` adds one a toolchain."""
TARGETS = "targets/deploykit_targets/"
_CHAPTERS = {"Add a target": "target", "Add a precision": "precision", "Add an algorithm": "algorithm"}
_LINK = re.compile(r"(?<!\!)\[([^\]]+)\]\(((?!https?:|mailto:|#)[^)#\s]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, str]:
    """Rooms' pages as they are, and CONTRIBUTING's chapters as pages of their own."""
    made = {uri: (ROOT / path).read_text(encoding="utf-8") for path, uri in SHARED.items() if uri != "index.md"}
    chapters = re.split(r"^## ", made["contributing.md"], flags=re.MULTILINE)[1:]
    for chapter in chapters:
        title, _, text = chapter.partition("\n")
        if title in _CHAPTERS:
            made[f"extend/{_CHAPTERS[title]}.md"] = f"# {title}\n{text}"
    return made


def source_of(uri: str) -> str:
    """The page of the checkout that a page of the site is."""
    by_uri = {site: path for path, site in SHARED.items() if site != "index.md"}
    if uri in by_uri:
        return by_uri[uri]
    if uri.startswith("extend/"):
        return "CONTRIBUTING.md"
    if uri.startswith("targets/"):
        return f"{TARGETS}{Path(uri).stem.replace('-', '_')}/README.md"
    return PAGES + uri


def on_the_site(markdown: str, source: str, uri: str) -> str:
    """The links of a page, as they lead between pages of the site."""

    def led(found: re.Match[str]) -> str:
        words, path, anchor = found[1], found[2], found[3] or ""
        target = _site_of(os.path.normpath(os.path.join(os.path.dirname(source), path)))
        if target is None:
            return words if words.startswith("`") else f"{words} (`{os.path.normpath(path).replace('../', '')}`)"
        return f"[{words}]({os.path.relpath(target, os.path.dirname(uri) or '.')}{anchor})"

    parts, at = [], 0
    for code in _CODE.finditer(markdown):
        parts += [_LINK.sub(led, markdown[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*parts, _LINK.sub(led, markdown[at:])])


def _site_of(path: str) -> str | None:
    if path.startswith(PAGES):
        return path.removeprefix(PAGES)
    if path in SHARED:
        return SHARED[path]
    if path.startswith(TARGETS) and path.endswith("/README.md") and path.count("/") == 3:
        return f"targets/{path.split('/')[2].replace('_', '-')}.md"
    return None
