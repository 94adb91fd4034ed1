"""Releases over a fleet: a matrix of models, targets and precisions, boards that confirm it, one report."""
