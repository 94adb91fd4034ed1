"""A deploykit target in a distribution of its own: linear networks that run in plain NumPy."""

from deploykit_numpy.target import NumpyTarget

__all__ = ["NumpyTarget"]
