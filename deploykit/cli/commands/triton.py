"""`deploykit triton`: a model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import ArtifactPath, Debug, Json


def triton(
    artifact: ArtifactPath,
    output: Annotated[str, typer.Option("--output", "-o", metavar="REPO", help="Folder of the model repository.")],
    name: Annotated[str | None, typer.Option(help="Name of the model.  [default: the artifact's folder]")] = None,
    version: Annotated[int, typer.Option(min=1, help="Number of the version.")] = 1,
    max_batch: Annotated[
        int | None, typer.Option(min=0, help="Rows in a run.  [default: 8 where the batch axis is dynamic]")
    ] = None,
    max_wait_ms: Annotated[float, typer.Option(min=0.0, help="How long a row waits for others.")] = 2.0,
    max_queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; 0 for any number.")] = 64,
    instances: Annotated[int, typer.Option(min=1, help="Instances on the CPU, or on each GPU.")] = 1,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of the runtime in each; 0 leaves it to the back end.")
    ] = 0,
    gpu: Annotated[list[int] | None, typer.Option(min=0, help="Number of a GPU; repeatable.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write an artifact into a model repository of NVIDIA's Triton Inference Server.

    For artifacts of onnxruntime, openvino and, once they are built, tensorrt. Golden inputs warm the model up.
    """
    from deploykit.plugin.artifact import load
    from deploykit_serving.triton import Wanted, write_repository

    wanted = Wanted(
        name=name,
        version=version,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_queue=max_queue,
        instances=instances,
        threads=threads,
        gpus=tuple(gpu or ()),
    )
    folder, config = write_repository(load(artifact), Path(output), wanted)
    document = {
        "path": str(folder),
        "name": config.name,
        "backend": config.backend,
        "max_batch_size": config.max_batch_size,
        "warmups": len(config.warmups),
        "notes": list(config.notes),
    }
    return Answer(document, [f"{folder}: {config.backend}, max_batch_size {config.max_batch_size}",
                             *(f"note: {note}" for note in config.notes),
                             f"tritonserver --model-repository={folder.parent}"])  # fmt: skip
