"""Captured model, scheme and statistics -> `Prepared`: the step before every lowering, the same for all precisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit_calibration.algorithms import apply
from deploykit_calibration.prepared import Prepared
from deploykit_calibration.recipes import check_recipe, checked_methods, kept_layers

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit.contract.scheme import Scheme
    from deploykit_calibration.table import CalibrationTable

BEST = "best"


def prepare(
    request: Request,
    captured: CapturedModel,
    scheme: Scheme,
    *,
    table: CalibrationTable | None = None,
    samples: Sequence[Mapping[str, Tensor]] = (),
    reference: CapturedModel | None = None,
    is_baseline: bool = False,
) -> Prepared:
    """Prepare a model as a request asks, and run the algorithms that scheme, method and request name.

    Args:
        scheme: what `Target.scheme` gives for the request.
        table: activation statistics; for schemes that quantise activations.
        samples: a few of the calibration data, feeds by input name.
        reference: the model as it was captured; `captured` itself where nothing is given.
        is_baseline: it is made to be compared with, and not kept.

    Raises:
        UsageError: an algorithm or a pattern does not exist, or the recipe is not of this graph.
        CalibrationError: scheme or algorithm need statistics, and there are none.
    """
    method = "default" if request.method == BEST else request.method
    prepared = Prepared(
        request, captured, scheme, reference or captured, table, samples, method, is_baseline=is_baseline
    )
    if request.recipe is not None:
        check_recipe(request.recipe, captured)
        kept, wider = kept_layers(request, captured, scheme, table)
        methods, in_float32 = checked_methods(request.recipe, table), request.recipe.in_float32
        prepared = replace(prepared, kept=kept, wider=wider, methods=methods, in_float32=in_float32)
    if scheme.is_static:
        _ = prepared.statistics  # refused here, before an algorithm asks for them
    if request.recipe is not None:
        steps = request.recipe.algorithms
        return apply(prepared, [step.name for step in steps], [step.decided for step in steps])
    return apply(prepared, _asked(request, scheme))


def _asked(request: Request, scheme: Scheme) -> Iterator[str]:
    if scheme.quantizes and scheme.bias_correction:
        yield "bias-correction"
    if scheme.quantizes and request.method == BEST:
        yield BEST
    yield from request.algorithms
