"""Sizes as people write them: `512M` is 512 x 2^20 bytes."""

from __future__ import annotations

import re

from deploykit.contract.errors import UsageError

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(option: str, text: str) -> int:
    """Bytes of `65536`, `512M`, `1.5G`, `512MiB`; K, M, G and T are powers of 1024.

    Raises:
        UsageError: it is none; the message names `option`.
    """
    found = _SIZE.fullmatch(text.strip())
    value = 0 if found is None else int(float(found[1]) * (1 << _UNITS[found[2].lower()]))
    if value < 1 or value > 1 << 50:
        raise UsageError(f"{option} {text!r} is no size", hint=f"{option} 512M")
    return value
