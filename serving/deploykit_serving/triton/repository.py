"""A Triton model repository from an artifact: the payload, `config.pbtxt`, and golden inputs to warm up with.

    REPO/NAME/config.pbtxt
    REPO/NAME/1/model.onnx | model.xml, model.bin | model.plan
    REPO/NAME/warmup/golden-0-x

What Triton's back ends cannot be told (an exact mode, a precision) is said as a comment on top of the configuration and
by the command. The golden outputs do not travel: Triton does not compare.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploykit.artifact import manifest as layout
from deploykit.artifact.manifest import FAILED
from deploykit.artifact.storage import publish_folder, staging_folder
from deploykit.artifact.store import check_files
from deploykit.contract.errors import ArtifactError, DeviceError, UsageError
from deploykit.contract.precision import Precision
from deploykit.contract.tensors import Feeds, TensorSpec
from deploykit.plugin.artifact import Artifact
from deploykit_serving.batcher import is_batched
from deploykit_serving.datatypes import datatype_of
from deploykit_serving.models import Served
from deploykit_serving.triton.config import (
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    Tensor,
    Warmup,
    WarmupInput,
)
from deploykit_serving.triton.rules import BACKENDS, problems

CONFIG_NAME = "config.pbtxt"
_MARK = "# written by deploykit triton"
_WARMUPS = 2
_ENGINES = (".engine", ".plan")


@dataclass(frozen=True)
class Wanted:
    """How the model is to be served.

    Attributes:
        name: of the model; None for the artifact's folder.
        version: its folder, a number from 1.
        max_batch: rows in a run; None for 8 where the batch axis is dynamic, else 0 (no batches).
        max_wait_ms: how long a row waits for others.
        max_queue: requests that may wait; 0 for any number.
        instances: on the CPU, or on each GPU.
        threads: of the runtime in each instance on the CPU; 0 leaves it to the back end.
        gpus: numbers of the GPUs; empty leaves them to Triton.
    """

    name: str | None = None
    version: int = 1
    max_batch: int | None = None
    max_wait_ms: float = 2.0
    max_queue: int = 64
    instances: int = 1
    threads: int = 0
    gpus: tuple[int, ...] = ()


def write_repository(artifact: Artifact, output: Path, wanted: Wanted | None = None) -> tuple[Path, ModelConfig]:
    """Write the model into the repository `output`, whole or not at all; one that we wrote before is replaced.

    Returns:
        The model's folder, and its configuration.
    Raises:
        UsageError: no back end of Triton's runs artifacts of that toolchain; or what is wanted breaks a rule.
        DeviceError: the engine must be built first.
        ArtifactError: it missed a gate; or what lies at the model's place is not ours.
    """
    wanted = wanted or Wanted()
    if artifact.status == FAILED:
        raise ArtifactError(f"{artifact.path} missed a gate on export", hint="export it again; see deploykit inspect")
    check_files(artifact.path, artifact.manifest)
    config = configuration(artifact, wanted)
    broken = problems(config)
    if broken:
        raise UsageError(f"Triton would not serve that: {'; '.join(broken)}")
    folder = output.resolve() / config.name
    with staging_folder(folder, _check_ours) as staging:
        version = staging / str(wanted.version)
        version.mkdir()
        _copy_payload(artifact, version, config.default_model_filename)
        (staging / "warmup").mkdir()
        for index, feeds in enumerate(artifact.golden().inputs[: len(config.warmups)]):
            for spec in artifact.inputs:
                data = np.ascontiguousarray(feeds[spec.name], np.dtype(spec.dtype).newbyteorder("<")).tobytes()
                (staging / "warmup" / _data_name(index, artifact.inputs, spec)).write_bytes(data)
        (staging / CONFIG_NAME).write_text(f"{_MARK}\n{config.to_text()}", encoding="utf-8")
        publish_folder(staging, folder, _check_ours)
    return folder, config


def configuration(artifact: Artifact, wanted: Wanted) -> ModelConfig:
    """The configuration of an artifact; see `write_repository` for what is refused."""
    backend = _backend(artifact)
    if wanted.version < 1:
        raise UsageError(f"a version of Triton's is a number from 1, not {wanted.version}")
    batched = is_batched(artifact.inputs, artifact.outputs)
    most = (8 if batched else 0) if wanted.max_batch is None else wanted.max_batch
    if most > 0 and not batched:
        raise UsageError(
            f"{artifact.path} has a fixed batch axis: Triton cannot batch it",
            hint="leave --max-batch out, or export it with --dynamic-batch",
        )
    rules = BACKENDS[backend]
    kind = rules.kinds[0]
    return ModelConfig(
        name=wanted.name or Served.parse(str(artifact.path)).name,
        backend=backend,
        platform=rules.platform,
        max_batch_size=most,
        inputs=tuple(_tensor(spec, batched=most > 0) for spec in artifact.inputs),
        outputs=tuple(_tensor(spec, batched=most > 0) for spec in artifact.outputs),
        instance_groups=(InstanceGroup(wanted.instances, kind, wanted.gpus),),
        default_model_filename=rules.filename,
        dynamic_batching=_batching(most, wanted),
        parameters=_parameters(backend, artifact, wanted, batched=most > 1),
        warmups=_warmups(artifact, batched=most > 0),
        notes=_notes(backend, artifact),
    )


def _backend(artifact: Artifact) -> str:
    """Which of Triton's back ends runs an artifact.

    Raises:
        UsageError: none does.
        DeviceError: its engine is still to be built.
    """
    toolchain, build = artifact.manifest.toolchain, artifact.manifest.build
    if toolchain not in BACKENDS:
        raise UsageError(
            f"Triton has no back end for artifacts of {toolchain}",
            hint=f"export for one of {', '.join(BACKENDS)}, or use `deploykit serve`",
        )
    if build is not None:
        raise DeviceError(f"{artifact.path} holds no engine yet: {build.reason}", hint=build.command_for(artifact.path))
    return toolchain


def _tensor(spec: TensorSpec, *, batched: bool) -> Tensor:
    dims = tuple(-1 if isinstance(size, str) else size for size in spec.shape)[1 if batched else 0 :]
    data_type = f"TYPE_{datatype_of(spec)}"
    return Tensor(spec.name, data_type, dims) if dims else Tensor(spec.name, data_type, (1,), reshape=())


def _batching(most: int, wanted: Wanted) -> DynamicBatching | None:
    if most < 1:
        return None
    delay = round(wanted.max_wait_ms * 1e3) if most > 1 else 0
    return DynamicBatching((), delay, wanted.max_queue)


def _parameters(backend: str, artifact: Artifact, wanted: Wanted, *, batched: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    if backend == "onnxruntime" and wanted.threads:
        found["intra_op_thread_count"] = str(wanted.threads)
    if backend == "openvino":
        if wanted.threads:
            found["INFERENCE_NUM_THREADS"] = str(wanted.threads)
        found["NUM_STREAMS"] = "1"
        if batched:  # else the back end refuses batches that are not full
            found["ENABLE_BATCH_PADDING"] = "YES"
        if artifact.manifest.precision is Precision.BF16:
            found["HINT_BF16"] = "YES"
    return found


def _warmups(artifact: Artifact, *, batched: bool) -> tuple[Warmup, ...]:
    """Golden inputs, those of one row where the model is batched: Triton reads one row from each file then."""
    found = []
    for index, feeds in enumerate(artifact.golden().inputs[:_WARMUPS]):
        if batched and any(feeds[spec.name].shape[0] != 1 for spec in artifact.inputs):
            break
        found.append(Warmup(f"golden-{index}", _warmup_inputs(index, artifact.inputs, feeds, batched=batched)))
    return tuple(found)


def _warmup_inputs(index: int, specs: Sequence[TensorSpec], feeds: Feeds, *, batched: bool) -> dict[str, WarmupInput]:
    inputs = {}
    for spec in specs:
        dims = tuple(feeds[spec.name].shape)[1 if batched else 0 :] or (1,)
        inputs[spec.name] = WarmupInput(f"TYPE_{datatype_of(spec)}", dims, _data_name(index, specs, spec))
    return inputs


def _data_name(index: int, specs: Sequence[TensorSpec], spec: TensorSpec) -> str:
    """A file's name; inputs by number, because their names may hold anything."""
    return f"golden-{index}-input-{list(specs).index(spec)}"


def _notes(backend: str, artifact: Artifact) -> tuple[str, ...]:
    """What Triton computes otherwise than deploykit does, where it cannot be told."""
    notes = [f"{artifact.target}, {artifact.precision}, fingerprint {artifact.fingerprint}"]
    if backend == "onnxruntime" and artifact.manifest.precision is Precision.INT8:
        notes.append(
            "On a CPU without VNNI, 8-bit products may saturate: deploykit opens the file in an exact mode there,"
        )
        notes.append(
            "which this back end has no parameter for. Export for x86-cpu-avx2, or serve it on CPUs with VNNI."
        )
    if backend == "openvino" and artifact.manifest.precision not in (Precision.BF16, Precision.FP16):
        notes.append(
            "On a CPU with AMX, this back end computes float layers in bfloat16, and has no parameter against it."
        )
    if backend == "tensorrt":
        versions = [
            f"{name} {version}" for name, version in artifact.manifest.tool_versions.items() if "tensorrt" in name
        ]
        notes.append(f"The engine wants the TensorRT that it was built with ({', '.join(versions) or 'see manifest'}).")
    return tuple(notes)


def _copy_payload(artifact: Artifact, folder: Path, filename: str) -> None:
    """The payload's files; the entry under the name that the back end looks for.

    Raises:
        UsageError: a second file would lose the name by which the entry finds it.
    """
    files = [entry.path for entry in artifact.manifest.files if entry.path != layout.GOLDEN_NAME]
    entry = artifact.manifest.entry
    if entry.endswith(_ENGINES):
        files = [entry]  # what the engine was built from stays
    for name in files:
        target = folder / (filename if name == entry else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, target)
    artifact.check_unaltered()


def _check_ours(folder: Path) -> None:
    """Whether a model's folder was written here, and so may be replaced.

    Raises:
        ArtifactError: it is somebody's own.
    """
    if not folder.is_symlink() and folder.is_dir():
        try:
            with (folder / CONFIG_NAME).open(encoding="utf-8", errors="replace") as file:
                if file.readline().rstrip("\n") == _MARK:
                    return
        except OSError:
            pass
        if not any(folder.iterdir()):
            return
    raise ArtifactError(f"{folder} was not written by deploykit; it is left alone", hint="choose another -o or --name")
