"""What a machine tells of itself while it computes, each figure with its source; what is absent is named."""

from deploykit_serving.monitor.monitor import Monitor
from deploykit_serving.monitor.reading import Absent, Reading, Snapshot

__all__ = ["Absent", "Monitor", "Reading", "Snapshot"]
