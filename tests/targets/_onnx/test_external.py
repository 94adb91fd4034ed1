"""External data of ONNX files: found wherever a tensor can be, and refused where the manifest does not list it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploykit.contract.errors import ArtifactError
from deploykit_targets._onnx.external import check_external_data, external_files

onnx = pytest.importorskip("onnx")
helper = onnx.helper if onnx else None


def tensor(location: str | None, name: str = "w") -> Any:
    made = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[2])
    if location is None:
        made.raw_data = b"\0" * 8
    else:
        made.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "8")):
            made.external_data.add(key=key, value=value)
    return made


def graph(*initializers: Any, nodes: Any = ()) -> Any:
    return helper.make_graph(list(nodes), "g", [], [], initializer=list(initializers))


def written(tmp_path: Path, made: Any, functions: Any = ()) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(made, functions=list(functions)).SerializeToString())
    return path


def test_every_place_of_a_tensor_is_looked_at(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=tensor("attribute"))
    branch = helper.make_node("If", ["c"], ["y"], then_branch=graph(tensor("then")), else_branch=graph(tensor("else")))
    several = helper.make_node("Own", [], ["z"], domain="own", many=[tensor("first"), tensor("second")])
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"), dims=[2])
    whole = graph(tensor("initializer"), tensor(None, "inside"), nodes=[constant, branch, several])
    whole.sparse_initializer.append(sparse)
    inner = helper.make_node("Constant", [], ["q"], value=tensor("function"))
    own = helper.make_function("own", "F", [], ["q"], [inner], [helper.make_opsetid("", 18)])
    found = external_files(written(tmp_path, whole, [own]))
    wanted = {"attribute", "then", "else", "first", "second", "values", "indices", "initializer", "function"}
    assert set(found) == wanted


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "weights.bin", "sub/../weights.bin", ""])
def test_what_the_manifest_does_not_list_is_refused(tmp_path: Path, location: str) -> None:
    path = written(tmp_path, graph(tensor(location)))
    manifest = SimpleNamespace(entry="model.onnx", files=[SimpleNamespace(path="model.onnx")])
    with pytest.raises(ArtifactError, match="external data"):
        check_external_data(SimpleNamespace(manifest=manifest, entry=path))  # type: ignore[arg-type]


def test_what_the_manifest_lists_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, graph(tensor("weights.bin")))
    files = [SimpleNamespace(path=name) for name in ("sub/model.onnx", "sub/weights.bin")]
    manifest = SimpleNamespace(entry="sub/model.onnx", files=files)
    check_external_data(SimpleNamespace(manifest=manifest, entry=path))  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x3a\x7f", b"\x0b"])
def test_what_is_no_protobuf_is_an_artifact_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ArtifactError):
        external_files(path)
