"""Pages of the site that are made of something else: rooms' own pages, the code, the command line, a notebook.

mkdocs calls these when it builds. Generated pages are added to those of `pages/`; nothing is written to the checkout.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from site_pages import command_line, manifest, notebook, python_reference, rooms, target_pages  # noqa: E402


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages; one that also lies in `pages/` (for links of the checkout) is replaced."""
    from mkdocs.structure.files import File

    made: dict[str, str] = {}
    for source in (rooms, target_pages, python_reference, command_line, manifest, notebook):
        made |= source.pages()
    for uri, text in made.items():
        old = files.get_file_from_path(uri)
        if old is not None:
            files.remove(old)
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links into the checkout lead to their page of the site; those without one become plain text."""
    return rooms.on_the_site(markdown, rooms.source_of(page.file.src_uri), page.file.src_uri)
