"""Core ML ML Programs evaluated in PyTorch, on any machine.

    program = load("model.mlpackage")
    outputs = program.run({"image": array})

It proves that a package's graph, weights, compression and quantisation mean what they should. It is not the Neural
Engine: evidence of level `reference`. See the README beside this file.
"""

from deploykit_targets.coreml.mil_evaluator.errors import EvaluationError, UnsupportedOpError
from deploykit_targets.coreml.mil_evaluator.program import Program, State, from_mil, load, run_package
from deploykit_targets.coreml.mil_evaluator.specs import ImageSpec, ValueSpec

__all__ = [
    "EvaluationError",
    "ImageSpec",
    "Program",
    "State",
    "UnsupportedOpError",
    "ValueSpec",
    "from_mil",
    "load",
    "run_package",
]
