"""Memory that is free between blocks that live goes back to the system."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
from deploykit_calibration.heap import trim

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

blocks = [np.ones(4 << 20, np.uint8) for _ in range(40)]
del blocks[::2]
before = resident()
trim()
print(before - resident())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
def test_pages_between_blocks_that_live_go_back() -> None:
    """Blocks of 4 MiB come from the heap in a process that freed larger ones; the setting stands for those."""
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=settings, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 60, "80 MiB were free"
