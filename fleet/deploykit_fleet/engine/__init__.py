"""How cells are computed: one process a model, which captures once; side by side, on this machine or on a cluster.

Whatever starts it, the work is the same program (`deploykit_fleet.engine.worker`) in the same environment, and its only
result is what it publishes in the store. So the fingerprints do not depend on the engine, and a process may be killed
at any moment.
"""
