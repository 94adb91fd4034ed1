"""Normalisation is gated by parity: the normalised graph must give the model's own outputs, or no graph is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deploykit.capture.editor import Editor
from deploykit.capture.normalise import Pass
from deploykit.contract.errors import CaptureError

MIN_SQNR_DB = 100.0
"""Folding and reordering float32 arithmetic costs rounding only: 110 to 150 dB is usual."""
MAX_RELATIVE = 1e-5
"""Largest absolute error that passes anyway, relative to the largest output (outputs near zero have no SQNR)."""


def difference(reference: Sequence[Tensor], results: Sequence[Tensor]) -> str | None:
    """Say how two lists of outputs differ by more than rounding; None when they agree."""
    for index, (want, have) in enumerate(zip(reference, results, strict=True)):
        problem = _differs(want, have)
        if problem:
            return f"output {index} {problem}"
    return None


def require_parity(
    reference: Sequence[Tensor],
    results: Sequence[Tensor],
    fresh: Callable[[], Editor],
    passes: Sequence[Pass],
    inputs: Sequence[Tensor],
) -> None:
    """Raise when normalised outputs are not the model's, and find the pass to blame.

    Args:
        reference, results: outputs of the model and of the normalised graph on `inputs`.
        fresh: builds the graph before any pass again.

    Raises:
        CaptureError: names the first pass after which the outputs differ.
    """
    problem = difference(reference, results)
    if problem is None:
        return
    editor = fresh()
    _require(reference, editor, inputs, "torch.export", _NOT_A_FUNCTION)
    for step in passes:
        step(editor)
        _require(reference, editor, inputs, step.__name__, _DEFECT)
    raise CaptureError(f"the captured graph differs from the model: {problem}", hint=_NOT_A_FUNCTION)


def _require(reference: Sequence[Tensor], editor: Editor, inputs: Sequence[Tensor], name: str, hint: str) -> None:
    module: Callable[..., tuple[Tensor, ...]] = editor.module()
    try:
        with torch.no_grad():
            results = module(*inputs)
    except (
        RuntimeError
    ):  # between two passes that belong together, a graph need not run (a view of what is no copy now)
        return
    problem = difference(reference, results)
    if problem is not None:
        raise CaptureError(f"the captured graph differs from the model after {name!r}: {problem}", hint=hint)


_NOT_A_FUNCTION = (
    "the model may be random in eval mode, keep state between calls, or branch on the values of its inputs"
)
_DEFECT = "this is a defect of deploykit's normalisation; please report it with the model"


def _differs(want: Tensor, have: Tensor) -> str | None:
    if want.shape != have.shape or want.dtype != have.dtype:
        return f"is {have.dtype}{list(have.shape)}, not {want.dtype}{list(want.shape)}"
    if not want.is_floating_point():
        return None if torch.equal(want, have) else "differs (integers must be equal)"
    finite = torch.isfinite(want)
    if not torch.equal(finite, torch.isfinite(have)):
        return "is not finite in other places"
    want, have = want[finite].double(), have[finite].double()
    noise, signal = float((want - have).square().sum()), float(want.square().sum())
    if noise == 0 or float((want - have).abs().max()) <= MAX_RELATIVE * max(float(want.abs().max()), 1e-6):
        return None
    sqnr_db = 10 * math.log10(signal / noise) if signal else -math.inf
    return None if sqnr_db >= MIN_SQNR_DB else f"has SQNR {sqnr_db:.1f} dB; {MIN_SQNR_DB:.0f} dB are expected"
