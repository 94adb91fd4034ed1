"""Generators of TVM kernels: each takes sizes and an instruction set, and returns a TIR function.

A kernel works on flat, dense NHWC buffers. Sizes, padding, strides and constants are fixed when it is generated;
weights are packed beforehand (`packing`). Refused here: dynamic sizes, and any choice of scales or placement, which is
the calibration's. Import the submodules by name; nothing is imported here, as TVM takes seconds to load.
"""
