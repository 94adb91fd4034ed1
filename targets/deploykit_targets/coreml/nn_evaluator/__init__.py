"""Core ML neural networks (`.mlmodel`, before ML Programs) evaluated in PyTorch, on any machine.

    network = load("model.mlmodel")
    outputs = network.run({"image": array})

It reads the layers of the file itself, so that what coremltools' translation to layers made of a model is checked too.
It refuses the shape rules of specification versions before 4 (iOS 13), which squeeze every tensor into five axes. Like
the evaluator of ML Programs beside it, whose rules it shares, it is no Neural Engine: evidence of level `reference`.
"""

from deploykit_targets.coreml.nn_evaluator.errors import UnsupportedLayerError
from deploykit_targets.coreml.nn_evaluator.network import Network, load

__all__ = ["Network", "UnsupportedLayerError", "load"]
