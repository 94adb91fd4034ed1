"""The process that has Ray in it: `python -m deploykit_fleet.engine.ray_host`, told by one line of JSON.

When its standard input ends, whoever asked for the work is gone: it ends everything with the mark of its release, Ray's
agents included, removes Ray's files, and dies.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
from typing import Any

import msgspec

from deploykit_fleet.engine.attend import attend
from deploykit_fleet.engine.child import MARK
from deploykit_fleet.engine.jobs import Job
from deploykit_fleet.engine.on_node import attempt
from deploykit_fleet.engine.on_ray import Hosting
from deploykit_fleet.engine.remains import end_marked

_STORE_BYTES = 80 << 20
"""Of Ray's object store: exit codes are all that goes through it."""
RAY_DIED = 70


def main() -> int:
    """Do all jobs; 0 where each has been attended to."""
    told = msgspec.json.decode(sys.stdin.buffer.readline(), type=Hosting)
    threading.Thread(target=_die_with_the_other_end, args=(told,), daemon=True, name="deploykit-parent").start()
    ray = _started(told)
    task = ray.remote(num_cpus=1, max_retries=0)(attempt)
    failed = threading.Event()
    waiting = [
        threading.Thread(target=_attend, args=(ray, task, job, told.retries, failed), daemon=True)
        for job in sorted(told.jobs, key=lambda each: -len(each.cells))
    ]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    if failed.is_set():
        os._exit(RAY_DIED)  # an orderly end would wait for what is dead
    ray.shutdown()
    return 0


def _started(told: Hosting) -> Any:
    import ray

    if told.cluster is not None:
        ray.init(address=told.cluster, logging_level=logging.ERROR, log_to_driver=False)
        return ray
    ray.init(
        num_cpus=told.at_once,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        _temp_dir=told.temporary,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    return ray


def _attend(ray: Any, task: Any, job: Job, retries: int, failed: threading.Event) -> None:
    """One job until each of its cells has a result; a node that dies counts as a death of the process on it."""

    def launch(job: Job) -> int:
        try:
            return int(ray.get(task.remote(msgspec.json.encode(job), os.environ[MARK])))
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError):
            return -signal.SIGKILL

    try:
        attend(job, launch, retries, failed.is_set)
    except BaseException:
        logging.exception("Ray failed")
        failed.set()


def _die_with_the_other_end(told: Hosting) -> None:
    descriptor = sys.stdin.fileno()
    while os.read(descriptor, 4096):
        pass
    end_marked(os.environ[MARK], told.temporary)
    shutil.rmtree(told.temporary, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
