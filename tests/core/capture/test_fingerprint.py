"""The fingerprint is equal in every process and changes with weights, structure and shapes; capture is quiet."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

from deploykit.capture import capture
from deploykit.testing.models import residual_cnn


def test_another_process_gives_the_same_and_hears_nothing(zoo: Any) -> None:
    """One process for both, because importing torch is slow: stdout is the fingerprint, stderr stays empty."""
    script = (
        "import logging, sys\n"
        "from deploykit.capture import capture\n"
        "from deploykit.testing.models import lstm_classifier\n"
        "module, example = lstm_classifier()\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "print('MARK', file=sys.stderr, flush=True)\n"
        "print(capture(module, example_inputs=example).fingerprint)\n"
        "assert logging.root.manager.disable == logging.NOTSET\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == zoo("lstm_classifier")[2].fingerprint
    assert done.stderr.partition("MARK")[2].strip() == ""


def test_changes_with_what_matters(zoo: Any) -> None:
    module, (x,) = residual_cnn()
    same = zoo("residual_cnn")[2].fingerprint
    other_values = capture(module, example_inputs=(x + 1,)).fingerprint
    other_shape = capture(module, example_inputs=(torch.cat([x, x]),)).fingerprint
    with torch.no_grad():
        module.fc.bias[0] += 1e-6
    other_weights = capture(module, example_inputs=(x,)).fingerprint
    assert other_values == same
    assert len({same, other_shape, other_weights, zoo("residual_cnn", True)[2].fingerprint}) == 4
