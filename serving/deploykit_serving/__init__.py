"""Artifacts as a service: batching, bounded queues, metrics, settings measured under a memory limit."""

# Where to look:
#   app.py, endpoint.py   the HTTP application (Open Inference Protocol v2) and what becomes of one inference request
#   protocol.py           JSON and binary tensors in, JSON and binary tensors out; datatypes.py: their names
#   batcher.py            rows of several requests in one run, in a queue with a bound
#   models.py             artifacts by name and version: verified, opened, replaced while they serve
#   server.py             sockets, time limits of connections, signals, the end of a server
#   metrics.py, logs.py   Prometheus figures; one JSON object a line
#   drift.py              a share of the requests run again on a float baseline
#   tuning.py             instances x threads x batch under a memory limit; load.py: what puts them under load
#   monitor/              CPU, memory, GPU, power and temperature, each with where it came from
#   triton/               the same artifacts for NVIDIA's Triton server
#   replicas.py           the same batcher behind Ray Serve
