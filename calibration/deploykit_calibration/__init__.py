"""Calibration: statistics of a captured model's tensors, quantization schemes, and the placement of q/dq nodes.

Importing this package imports NumPy and nothing heavier; `observe` and `placement` import torch when they are used.
"""
