"""Builds one-op MIL programs in memory, evaluates them, and checks shapes and dtypes against the op set's inference."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploykit_targets.coreml.mil_evaluator import Program, from_mil, load
from deploykit_targets.coreml.mil_evaluator.milproto import import_coremltools, quiet


class Mil:
    """The MIL builder and what the tests do with it."""

    def __init__(self) -> None:
        pytest.importorskip("coremltools", reason="the ML Program evaluator reads packages with coremltools")
        self.ct = import_coremltools()
        with quiet():
            from coremltools.converters.mil import Builder
            from coremltools.converters.mil.mil import get_new_symbol, types

        self.mb, self.types, self.symbol = Builder, types, get_new_symbol

    def dtype(self, array: np.ndarray) -> Any:
        return self.types.numpy_type_to_builtin_type(array.dtype.type)

    def build(self, function: Callable, inputs: Sequence[np.ndarray], *, opset: str = "iOS17", dynamic=False) -> Any:
        """A MIL program of `function` over placeholders like `inputs`; `dynamic` makes every size unknown."""
        specs = [
            self.mb.TensorSpec([self.symbol() for _ in a.shape] if dynamic else a.shape, dtype=self.dtype(a))
            for a in inputs
        ]
        with quiet():
            return self.mb.program(input_specs=specs, opset_version=self.ct.target[opset])(function)

    def evaluate(
        self, op: str, function: Callable, *inputs: np.ndarray, opset: str = "iOS17", dynamic=False, **options: Any
    ) -> Any:
        """Outputs of the program (one array, or a list), which must hold `op`."""
        run = options.pop("run", {})
        program = from_mil(self.build(function, inputs, opset=opset, dynamic=dynamic), **options)
        assert op in program.ops(), f"{op} did not survive: {program.ops()}"
        feeds = {spec.name: value for spec, value in zip(program.inputs, inputs, strict=True)}
        outputs = program.run(feeds, **run)
        self.check_types(program, outputs)
        values = list(outputs.values())
        return values[0] if len(values) == 1 else values

    @staticmethod
    def check_types(program: Program, outputs: dict[str, np.ndarray]) -> None:
        for spec in program.outputs:
            got = outputs[spec.name]
            sizes = [w for w in spec.shape if w is not None]
            known = [g for g, w in zip(got.shape, spec.shape, strict=True) if w is not None]
            assert known == sizes, f"{spec} came out as {got.shape}"
            if spec.dtype not in ("str", "int64"):
                expected = {"fp16": "float16", "fp32": "float32"}.get(spec.dtype, spec.dtype)
                assert got.dtype == np.dtype(expected), f"{spec} came out as {got.dtype}"

    def infer(self, function: Callable, *inputs: np.ndarray, opset: str = "iOS17") -> Any:
        """What coremltools itself computes when the inputs are constants."""
        found = []

        def main() -> Any:
            result = function(*(self.mb.const(val=value) for value in inputs))
            found.append(result)
            return result

        with quiet():
            self.mb.program(input_specs=[], opset_version=self.ct.target[opset])(main)
        result = found[0]
        return [r.val for r in result] if isinstance(result, list | tuple) else result.val

    def save(self, program: Any, path: Path, *, target: str = "iOS17", fp16: bool = False, **options: Any) -> Path:
        """Convert (a MIL program or what `ct.convert` takes) and write an .mlpackage."""
        precision = self.ct.precision.FLOAT16 if fp16 else self.ct.precision.FLOAT32
        with quiet():
            model = self.ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=self.ct.target[target],
                compute_precision=precision,
                skip_model_load=True,
                **options,
            )
        return self.write(model, path)

    @staticmethod
    def write(model: Any, path: Path) -> Path:
        with quiet():
            model.save(str(path))
        return path

    def round_trip(self, program: Any, path: Path, feeds: dict[str, np.ndarray], **options: Any) -> list[np.ndarray]:
        """Outputs of a program that went through a file."""
        loaded = load(self.save(program, path, **options))
        outputs = loaded.run(feeds)
        self.check_types(loaded, outputs)
        return list(outputs.values())


@pytest.fixture(scope="session")
def mil() -> Mil:
    return Mil()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny tensors gain nothing from threads, and a busy machine loses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
