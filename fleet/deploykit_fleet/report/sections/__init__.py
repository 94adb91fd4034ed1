"""The parts of a page, top to bottom: overview, what changed, matrix, fronts, and a section for each entry."""
