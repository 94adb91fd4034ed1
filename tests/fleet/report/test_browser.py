"""The page in a real browser: nothing is asked for, nothing is refused, nothing is cut off, and tables sort.

The browser is Debian's `chromium`, driven by its command line; where it is not installed the tests skip.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import shutil
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import deploykit
from deploykit.contract.session import OpTime

from .conftest import manifest, parity, profile, runs, write

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-extensions --hide-scrollbars --enable-logging=stderr"
).split()
HOSTILE = "<script>document.title='owned'</script><img src=http://127.0.0.1:9/x>\u202e" + "long" * 200
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed")


def browse(url: str, tmp_path: Path, *arguments: str) -> tuple[str, str]:
    """Standard output and standard error of a browser that opens one page."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'browser'}", *arguments, url]
    done = subprocess.run(command, capture_output=True, timeout=100, check=True)
    return done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report of two builds, one with hostile names, against an older one."""
    root = tmp_path_factory.mktemp("report")
    layers = (HOSTILE, "body.0", "body.1", "head")
    for release, slower in (("old", 1.0), ("new", 1.1)):
        for precision, milliseconds in (("fp32", 3.0), ("int8", 1.0)):
            ops = tuple(OpTime(name, "conv", name, 10.0 * (i + 1)) for i, name in enumerate(layers))
            times = [slower * each for each in runs(int(milliseconds), milliseconds)]
            of = manifest(layers, precision=precision, report=parity(layers, 90.0 if precision == "fp32" else 40.0))
            write(root / release / precision, of, profile(times, op_times=ops))
    return deploykit.report(root / "new", against=root / "old").path


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A folder over HTTP on loopback, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, form: str, *values: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def test_it_asks_for_nothing_and_nothing_is_refused(report, tmp_path) -> None:
    with served(report.parent) as (address, asked):
        page, said = browse(f"{address}/report.html", tmp_path, "--dump-dom")
    assert asked == ["/report.html"]
    assert not re.search("Content Security Policy|Refused|Uncaught|SyntaxError", said), said
    assert "<title>new - deploykit report</title>" in page and "<img" not in page
    assert page.count("<button") > 10 and "hidden" in page  # the script ran: heads sort, rows became tables


PROBE = """<script>
const first = () => document.querySelector("pre.data + .scroll tbody tr").cells[1 - 1].textContent;
const out = {width: document.documentElement.scrollWidth, window: innerWidth, before: first()};
const head = document.querySelector("pre.data + .scroll th:nth-child(5)");
head.querySelector("button").click(); head.querySelector("button").click();
out.after = first(); out.sorted = head.getAttribute("aria-sort");
head.querySelector("button").click(); out.again = first();
document.querySelector("details.entry").open = true;
out.opened = document.documentElement.scrollWidth;
document.title = JSON.stringify(out);
</script>"""


def test_on_a_phone_nothing_is_cut_off_and_tables_sort(report, tmp_path) -> None:
    """What a script of ours measures: in a copy without the policy, which would refuse it."""
    content = re.sub("<meta http-equiv[^>]*>", "", report.read_text())
    (tmp_path / "probed.html").write_text(content.replace("</body>", f"{PROBE}</body>"))
    page, _ = browse((tmp_path / "probed.html").as_uri(), tmp_path, "--dump-dom", "--window-size=390,800")
    title = re.search("<title>(.*?)</title>", page)[1]
    found = dict(re.findall(r'"(\w+)":("[^"]*"|\d+)', title))
    assert int(found["width"]) <= int(found["window"]) and int(found["opened"]) <= int(found["window"])
    assert found["after"] == '"head"' and found["sorted"] == '"descending"'
    assert found["again"] == found["before"] != found["after"]


@pytest.mark.parametrize("size", ["390,900", "1280,900"], ids=["phone", "desk"])
def test_screenshots_in_light_and_dark(report, tmp_path, size) -> None:
    """Both are drawn, in the width that was asked for, and dark is dark."""
    shades = []
    for theme in ("1", "0"):
        picture = tmp_path / f"{theme}.png"
        scheme = f"--blink-settings=preferredColorScheme={theme}"
        browse(report.as_uri(), tmp_path, f"--window-size={size}", f"--screenshot={picture}", scheme)
        width, shade = _look(picture.read_bytes())
        assert width == int(size.partition(",")[0]) and picture.stat().st_size > 10_000
        shades.append(shade)
    assert shades[0] > 200 and shades[1] < 50


def _look(png: bytes) -> tuple[int, int]:
    """Width of a PNG, and the red of its first pixel: the background of the page."""
    width, data = struct.unpack(">I", png[16:20])[0], b""
    at = 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return width, zlib.decompressobj().decompress(data, 16)[1]  # the first byte says how the row is filtered
