"""The one file that touches coremltools, and its private `milproto` loader.

coremltools 9.0 is pinned: it turns the protobuf of an ML Program into its in-memory form (PyMIL) with a loader
that has no public name. Everything else in this package sees PyMIL objects only.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from deploykit.contract.errors import ArtifactError, ConversionError, MissingDependencyError
from deploykit.contract.optional import require
from deploykit_targets.coreml.mil_evaluator.errors import UnsupportedOpError

PINNED: Final = "9.0"
_PURPOSE: Final = "read ML Programs"
_LOADER: Final = "coremltools.converters.mil.frontend.milproto.load"
_STATE_WRITE: Final = "write_state"
"""Serialised form of `coreml_update_state`; the loader maps it back."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what coremltools and the packages that it imports log and warn about."""
    for name in ("coremltools", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_coremltools() -> ModuleType:
    """coremltools, without its noise.

    Raises:
        MissingDependencyError: it is not installed, or its version is not the pinned one.
    """
    with quiet():
        module = require("coremltools", extra="coreml", purpose=_PURPOSE)
    if module.__version__ != PINNED:
        raise MissingDependencyError(
            f"coremltools {PINNED} (found {module.__version__})", extra="coreml", purpose=_PURPOSE
        )
    return module


def parsed_model(path: Path) -> Any:
    """The protobuf `Model` in file `path`, of any kind.

    Raises:
        ArtifactError: it is not a Core ML specification.
    """
    model = import_coremltools().proto.Model_pb2.Model()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:
        raise ArtifactError(f"{path} is not a Core ML specification: {error}") from error
    return model


def read_specification(path: Path) -> Any:
    """The protobuf `Model` of the ML Program in file `path`.

    Raises:
        ArtifactError: it is not a Core ML specification, or not an ML Program.
    """
    model = parsed_model(path)
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise ArtifactError(
            f"{path} holds {f'a model of type {kind}' if kind else 'nothing'}; only ML Programs can be evaluated",
            hint='convert with convert_to="mlprogram"',
        )
    return model


def load_program(specification: Any, weights: Path) -> Any:
    """The PyMIL program of an ML Program.

    Args:
        specification: protobuf `Model`.
        weights: folder of the package's weight files.
    Raises:
        UnsupportedOpError: an op that is in no op set of coremltools 9.0.
        ArtifactError: a weight file is missing, or the loader refused the program.
    """
    _check_ops(specification)
    _check_weights(specification, weights)
    with quiet():
        loader = importlib.import_module(_LOADER)
        try:
            return loader.load(specification, specification.specificationVersion, str(weights))
        except Exception as error:
            raise ArtifactError(
                f"coremltools {PINNED} could not read the ML Program: {type(error).__name__}: {error}"
            ) from error


def program_of(candidate: Any) -> Any:
    """`candidate` if it is a PyMIL program.

    Raises:
        ConversionError: it is something else.
    """
    with quiet():
        import_coremltools()
        program = importlib.import_module("coremltools.converters.mil.mil").Program
    if not isinstance(candidate, program):
        raise ConversionError(f"expected a coremltools MIL program, got {type(candidate).__name__}")
    return candidate


def core_ops() -> Mapping[str, Any]:
    """All core ops that coremltools registers: name -> op set version -> class."""
    return _registry().core_ops  # type: ignore[no-any-return]


def dtype_name(builtin: Any) -> str:
    """MIL name of a PyMIL dtype class, `other` for what is no element type."""
    name = _types().builtin_to_string(builtin)
    return {"string": "str"}.get(name, name) if isinstance(name, str) else "other"


def type_of(variable: Any) -> tuple[str, tuple[int | None, ...] | None]:
    """(MIL dtype name, shape with None for unknown sizes) of a PyMIL variable; ("other", None) for lists."""
    types, kind = _types(), variable.sym_type
    if types.is_state(kind):
        kind = kind.wrapped_type()
    if types.is_tensor(kind):
        return dtype_name(kind.get_primitive()), tuple(_size(dim) for dim in kind.get_shape())
    if types.is_list(kind) or types.is_dict(kind):
        return "other", None
    return dtype_name(kind), ()


def list_items(value: Any) -> list[str | int] | None:
    """Strings or integers of a constant MIL list (coremltools' `mil_list`, or the plain list in it); else None."""
    items = getattr(value, "ls", value)
    if not isinstance(items, list):
        return None
    return [item if isinstance(item, str) else int(item) for item in items]


def is_state(variable: Any) -> bool:
    """Whether a PyMIL variable is a state."""
    return bool(_types().is_state(variable.sym_type))


def _size(dim: Any) -> int | None:
    try:
        return int(dim)
    except TypeError:  # a symbol
        return None


def _types() -> Any:
    return importlib.import_module("coremltools.converters.mil.mil.types")


def _registry() -> Any:
    with quiet():
        import_coremltools()
        return importlib.import_module("coremltools.converters.mil.mil.ops.registry").SSAOpRegistry


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _serialised_operations(specification: Any) -> Iterator[Any]:
    for function in specification.mlProgram.functions.values():
        for block in function.block_specializations.values():
            yield from _operations(block)


def _check_ops(specification: Any) -> None:
    known = {*_registry().core_ops, _STATE_WRITE}
    for operation in _serialised_operations(specification):
        if operation.type not in known:
            raise UnsupportedOpError(
                operation.type,
                output=operation.outputs[0].name if operation.outputs else "",
                specification_version=specification.specificationVersion,
                reason=f"coremltools {PINNED} has no such op",
            )


def _check_weights(specification: Any, weights: Path) -> None:
    for operation in _serialised_operations(specification):
        values = [*operation.attributes.values()]
        values += [bound.value for argument in operation.inputs.values() for bound in argument.arguments]
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                name = value.blobFileValue.fileName.split("/")[-1]
                if not (weights / name).is_file():
                    raise ArtifactError(f"the package has no weight file {name!r}, which the program refers to")
