"""Artifacts as a service: batching, bounded queues, metrics, settings measured under a memory limit."""
