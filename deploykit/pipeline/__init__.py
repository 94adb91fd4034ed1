"""From a model to a published artifact, step by step."""
