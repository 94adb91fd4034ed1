"""Model repositories: what is written is what Triton's protobuf and its rules take, and what they do not is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import deploykit
from deploykit.cli import main
from deploykit.contract.errors import ArtifactError, UsageError
from deploykit_serving.triton import ModelConfig, Wanted, problems, write_repository
from deploykit_serving.triton.config import (
    DynamicBatching,
    InstanceGroup,
    Kind,
    Tensor,
    Warmup,
    WarmupInput,
)

GOOD = ModelConfig(
    name="net",
    backend="onnxruntime",
    platform="onnxruntime_onnx",
    max_batch_size=8,
    inputs=(Tensor("x", "TYPE_FP32", (3, -1)),),
    outputs=(Tensor("y", "TYPE_INT64", (1,), reshape=()),),
    instance_groups=(InstanceGroup(2, Kind.CPU),),
    default_model_filename="model.onnx",
    dynamic_batching=DynamicBatching((4, 8), 500, 64, 10_000),
    parameters={"intra_op_thread_count": "2"},
    warmups=(Warmup("w", {"x": WarmupInput("TYPE_FP32", (3, 7), "w-x")}),),
)


def parsed(text: str) -> Any:
    """The text as Triton's own protobuf; unknown fields and types are errors."""
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed",
                                       exc_type=ImportError)  # fmt: skip
    text_format = pytest.importorskip("google.protobuf.text_format")
    return text_format.Parse(text, model_config.ModelConfig())


def test_a_note_stays_a_comment() -> None:
    """Notes hold words of the manifest, which anybody may have written."""
    text = replace(GOOD, notes=('x86-cpu\n backend: "python"\r\x85\u2028name: "other"',)).to_text()
    assert text.split("\n", 1)[1] == GOOD.to_text() and text.startswith("# x86-cpu")


def test_every_field_is_one_of_tritons() -> None:
    found = parsed(GOOD.to_text())
    assert (found.name, found.backend, found.platform, found.max_batch_size) == (
        "net",
        "onnxruntime",
        "onnxruntime_onnx",
        8,
    )
    assert list(found.input[0].dims) == [3, -1] and list(found.output[0].reshape.shape) == []
    assert found.output[0].HasField("reshape")
    assert found.instance_group[0].count == 2
    policy = found.dynamic_batching.default_queue_policy
    assert list(found.dynamic_batching.preferred_batch_size) == [4, 8] and policy.max_queue_size == 64
    assert found.parameters["intra_op_thread_count"].string_value == "2"
    assert found.model_warmup[0].inputs["x"].input_data_file == "w-x"
    assert found.version_policy.latest.num_versions == 1


@given(st.text(min_size=1, max_size=20))
def test_any_name_survives_the_text_format(name: str) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    from google.protobuf import wrappers_pb2

    if any(0xD800 <= ord(char) <= 0xDFFF for char in name):
        return
    config = replace(GOOD, name=name).to_text()
    line = next(line for line in config.split("\n") if line.startswith("name: "))
    assert text_format.Parse(line.replace("name", "value", 1), wrappers_pb2.StringValue()).value == name


def test_what_is_right_has_no_problems() -> None:
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_batch_size": 0}, "dynamic_batching with max_batch_size 0"),
        ({"max_batch_size": 4}, "preferred_batch_size 8 is above max_batch_size 4"),
        ({"max_batch_size": -1, "dynamic_batching": None}, "negative"),
        ({"dynamic_batching": DynamicBatching((0,))}, "below 1"),
        ({"dynamic_batching": DynamicBatching((), 500, 0, 400)}, "would time out"),
        ({"dynamic_batching": DynamicBatching((), -1)}, "negative"),
        ({"backend": "pytorch"}, "backend 'pytorch' is unknown"),
        ({"platform": "tensorrt_plan"}, "does not go with"),
        ({"backend": "tensorrt", "platform": "tensorrt_plan"}, "no instances of KIND_CPU"),
        ({"backend": "openvino", "platform": ""}, ""),
        ({"instance_groups": ()}, "no instance_group"),
        ({"instance_groups": (InstanceGroup(0, Kind.CPU),)}, "count 0"),
        ({"instance_groups": (InstanceGroup(1, Kind.CPU, (0,)),)}, "KIND_CPU names GPUs"),
        ({"instance_groups": (InstanceGroup(1, Kind.GPU, (0, 0)),)}, "distinct"),
        ({"inputs": ()}, "there is no input"),
        ({"inputs": (Tensor("x", "TYPE_FP32", ()),), "warmups": ()}, "dims are empty"),
        ({"inputs": (Tensor("x", "TYPE_FP32", (0,)),), "warmups": ()}, "from 1"),
        ({"inputs": (Tensor("x", "TYPE_FLOAT", (1,)),), "warmups": ()}, "data_type TYPE_FLOAT"),
        ({"inputs": (Tensor("x", "TYPE_FP32", (4, -1), reshape=(2, 3, -1)),), "warmups": ()}, "does not hold"),
        ({"outputs": (Tensor("y", "TYPE_FP32", (1,)),) * 2}, "stands twice"),
        ({"warmups": (Warmup("w", {}),)}, "its inputs are []"),
        ({"warmups": (Warmup("w", {"x": WarmupInput("TYPE_FP16", (3, 7), "f")}),)}, "TYPE_FP16"),
        ({"warmups": (Warmup("w", {"x": WarmupInput("TYPE_FP32", (4, 7), "f")}),)}, "dims [4, 7]"),
        ({"warmups": (Warmup("w", {"x": WarmupInput("TYPE_FP32", (3, 7), "../f")}),)}, "no file"),
        ({"warmups": (replace(GOOD.warmups[0], batch_size=9),)}, "not from 1 to 8"),
        ({"name": "a/b"}, "no folder"),
    ],
)
def test_what_triton_would_not_serve_is_told(change: dict[str, Any], words: str) -> None:
    found = problems(replace(GOOD, **change))
    assert (not found) if not words else any(words in problem for problem in found), found


def test_a_repository_of_an_onnx_artifact(artifacts, tmp_path) -> None:
    folder, config = write_repository(deploykit.load(artifacts.images), tmp_path / "repo", Wanted(threads=2))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "1/model.onnx", "warmup/golden-0-input-0", "warmup/golden-1-input-0"}
    assert (folder / "1/model.onnx").read_bytes() == (artifacts.images / "model.onnx").read_bytes()
    warm = np.fromfile(folder / "warmup/golden-0-input-0", "<f4").reshape(3, 8, 8)
    assert np.array_equal(warm, deploykit.load(artifacts.images).golden().inputs[0]["input"][0])
    assert config.max_batch_size == 8 and config.inputs[0].dims == (3, 8, 8)
    assert any("VNNI" in note for note in config.notes)
    found = parsed((folder / "config.pbtxt").read_text())
    assert found.parameters["intra_op_thread_count"].string_value == "2"


def test_a_fixed_batch_is_no_batch(artifacts, tmp_path) -> None:
    folder, config = write_repository(deploykit.load(artifacts.fixed), tmp_path)
    assert config.max_batch_size == 0 and config.dynamic_batching is None and config.inputs[0].dims == (1, 3, 8, 8)
    assert "dynamic_batching" not in (folder / "config.pbtxt").read_text()
    with pytest.raises(UsageError, match="fixed batch axis"):
        write_repository(deploykit.load(artifacts.fixed), tmp_path / "other", Wanted(max_batch=4))


def test_openvino_files_keep_their_names(tmp_path) -> None:
    from deploykit.plugin.registry import resolve
    from deploykit.testing import models

    try:
        resolve("x86-cpu:openvino").target.check_installed(export=True)
    except deploykit.MissingDependencyError as error:
        pytest.skip(error.message)
    model, example = models.mlp()
    artifact = deploykit.export(model, "x86-cpu:openvino", "fp32", example_inputs=example, dynamic_batch=True,
                                output=tmp_path / "ov", profile=False, progress=False)  # fmt: skip
    folder, config = write_repository(artifact, tmp_path / "repo")
    assert {path.name for path in (folder / "1").iterdir()} == {"model.xml", "model.bin"}
    assert config.parameters["ENABLE_BATCH_PADDING"] == "YES" and not problems(config)


def as_tensorrt(source: Path, target: Path, *, built: bool) -> Path:
    """The ONNX artifact as one of TensorRT's, with an engine or without: no engine can be built here."""
    import hashlib

    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest.update(toolchain="tensorrt", target="jetson-orin", device="jetson-orin")
    if built:
        (target / "model.engine").write_bytes(b"an engine")
        digest = hashlib.sha256(b"an engine").hexdigest()
        manifest["files"].append({"path": "model.engine", "size": 9, "sha256": digest})
        manifest["entry"] = "model.engine"
    else:
        manifest["build"] = {"command": "deploykit build .", "reason": "an engine is built on its GPU"}
        manifest["status"] = "needs device build"
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def test_an_engine_is_a_plan_and_one_to_be_built_is_refused(artifacts, tmp_path, capfd) -> None:
    built = as_tensorrt(artifacts.images, tmp_path / "built", built=True)
    folder, config = write_repository(deploykit.load(built), tmp_path / "repo", Wanted(gpus=(1,)))
    assert [path.name for path in (folder / "1").iterdir()] == ["model.plan"]
    assert config.instance_groups == (InstanceGroup(1, Kind.GPU, (1,)),) and not problems(config)
    later = as_tensorrt(artifacts.images, tmp_path / "later", built=False)
    assert main(["triton", str(later), "-o", str(tmp_path / "repo")]) == 10
    assert "deploykit build" in capfd.readouterr().err


def test_what_is_not_ours_is_left_alone_and_what_is_ours_is_replaced(artifacts, tmp_path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("mine")
    artifact = deploykit.load(artifacts.images)
    with pytest.raises(ArtifactError, match="left alone"):
        write_repository(artifact, tmp_path)
    (tmp_path / "images" / "notes.txt").unlink()
    write_repository(artifact, tmp_path)
    folder, _ = write_repository(artifact, tmp_path, Wanted(max_batch=2))
    assert "max_batch_size: 2" in (folder / "config.pbtxt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["images"], "nothing half-written is left"


def test_the_command_tells_what_it_wrote(artifacts, tmp_path, capfd) -> None:
    code = main(["triton", str(artifacts.words), "-o", str(tmp_path), "--name", "n", "--version", "3", "--json"])
    document = json.loads(capfd.readouterr().out)
    assert code == 0 and document["name"] == "n" and (tmp_path / "n" / "3" / "model.onnx").is_file()
    assert main(["triton", str(artifacts.words), "-o", str(tmp_path), "--name", "a/b"]) == 2
