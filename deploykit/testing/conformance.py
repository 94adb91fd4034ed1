"""`TargetConformance`: the contract of a target as tests; subclass it, name the target, and pytest runs them.

Every test exports a tiny seeded model for real: nothing is mocked, no time is asserted.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import deploykit
from deploykit.artifact.manifest import LOG_NAME, MANIFEST_NAME, NEEDS_DEVICE_BUILD, PROFILE_NAME, VERIFIED
from deploykit.contract.precision import Evidence, Precision
from deploykit.judge.parity import ParityReport
from deploykit.judge.profiling import Effort
from deploykit.pipeline.unused import OPTIONS, used_of_each
from deploykit.plugin.artifact import Artifact
from deploykit.plugin.registry import Resolved, resolve
from deploykit.testing import hammer, models

Example = tuple[Any, Any]
_THREADS = 8
_EXACT_DB = 60.0


def far_from_simulation(parity: ParityReport) -> float:
    """By how many dB the artifact's SQNR differs from that of its simulation; 0 where it has none, or both are high."""
    simulated = parity.quantization.worst.sqnr_db if parity.quantization else None
    whole = parity.sqnr_db
    return 0.0 if simulated is None or whole is None or min(simulated, whole) > _EXACT_DB else abs(whole - simulated)


class TargetConformance:
    """The contract of a target.

    Attributes:
        target: what a user types; subclasses must set it.
        model: factory of the model for most tests, returning `(module, example_inputs)`.
        two_inputs: factory of a model with two inputs by name and a dict of two outputs.
        model_of: another factory for some precisions, by name (an int4 weight-only kernel may need a `Linear`, say).
        options: passed to every export whose precision has a use for them.
        thread_runs: how often each of eight threads runs on one session.
        stored_only: precisions, by name, that the runtime, or the vendor's compiler of so small a model, may compute in
            float32 on some machines; the placement gate refuses them there by default, and they are exported with
            `min_placement=0`.
    """

    target: ClassVar[str]
    model: ClassVar[Callable[[], Example]] = staticmethod(models.residual_cnn)
    two_inputs: ClassVar[Callable[[], Example]] = staticmethod(models.two_inputs_dict_output)
    model_of: ClassVar[dict[str, Callable[[], Example]]] = {}
    options: ClassVar[dict[str, Any] | None] = None
    thread_runs: ClassVar[int] = 12
    stored_only: ClassVar[frozenset[str]] = frozenset()

    # -- fixtures and helpers -------------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def resolved(cls) -> Resolved:
        """The target as the registry finds it; skips where its packages are missing, and says which."""
        found = resolve(cls.target)
        for requirement in found.target.capabilities().export_requires:
            if not requirement.installed:
                pytest.skip(f"{requirement.project} is not installed")
        return found

    @pytest.fixture(scope="class")
    @classmethod
    def precisions(cls, resolved: Resolved) -> list[Precision]:
        """All precisions that target and silicon share."""
        own = resolved.target.capabilities().precisions
        return [precision for precision in own if precision in resolved.device.precisions]

    @pytest.fixture(scope="class")
    @classmethod
    def artifact(cls, resolved: Resolved, precisions: list[Precision], tmp_path_factory: Any) -> Artifact:
        """One artifact, of a static precision where there is one, shared by the tests that only read."""
        precision = next((precision for precision in precisions if precision.is_static), precisions[0])
        return cls.export(tmp_path_factory.mktemp("shared") / "artifact", precision)

    @classmethod
    def export(cls, output: Path, precision: Precision, **changes: Any) -> Artifact:
        """Export the class's model; random calibration batches where the precision is static."""
        model, example_inputs = cls.model_of.get(precision.value, cls.model)()
        arguments = {
            "example_inputs": example_inputs,
            "options": cls.options_of(precision),
            "output": output,
            "profile": False,
            "progress": False,
            **({"calibration": batches(example_inputs)} if precision.is_static else {}),
            **changes,
        }
        return deploykit.export(model, target=cls.target, precision=precision.value, **arguments)

    @classmethod
    def options_of(cls, precision: Precision) -> dict[str, Any] | None:
        """Those of `options` that a precision uses: others are refused as being without effect."""
        if cls.options is None:
            return None
        target = resolve(cls.target).target
        wanted = [(target, each) for each in (precision, *target.capabilities().precisions)]
        used: dict[str, Any] = used_of_each(wanted, {OPTIONS: cls.options})[0][OPTIONS]
        return used

    # -- registry -------------------------------------------------------------------------------------------

    def test_is_listed_with_install_commands(self, resolved: Resolved) -> None:
        listed = [info for info in deploykit.targets() if info.toolchain == resolved.target.name]
        assert any(info.device == resolved.device.name for info in listed)
        assert all(info.export_command.startswith("pip install") for info in listed)
        assert all(info.precisions for info in listed), "a device that supports no precision cannot be used"

    def test_every_device_has_a_source_for_its_figures(self, resolved: Resolved) -> None:
        for device in resolved.target.capabilities().devices.values():
            assert device.summary
            assert device.source or not (device.peak_tops or device.memory_gb_per_s), device.name

    # -- export ---------------------------------------------------------------------------------------------

    def test_every_precision_exports_and_passes_its_gate(
        self, precisions: list[Precision], resolved: Resolved, tmp_path: Path
    ) -> None:
        for precision in precisions:
            changes = {"min_placement": 0.0} if precision.value in self.stored_only else {}
            artifact = self.export(tmp_path / precision.value, precision, **changes)
            assert artifact.status in (VERIFIED, NEEDS_DEVICE_BUILD), precision
            assert artifact.parity is not None and artifact.parity.passed, precision
            assert artifact.parity.evidence in Evidence
            assert artifact.parity.chain[-1].reference == "float PyTorch"
            assert artifact.achieved.requested == precision.value
            achieved = artifact.achieved
            assert sum(achieved.macs.values()) > 0, f"{precision}: no multiply-accumulates were counted"
            left = [layer for layer in achieved.layers if not achieved.is_as_asked(layer.precision)]
            assert all(layer.reason for layer in left), f"{precision}: a layer is left out without a reason"
            assert far_from_simulation(artifact.parity) <= 1.0, f"{precision}: the artifact is not what is simulated"

    def test_what_is_only_stored_in_a_precision_is_refused_by_default(
        self, precisions: list[Precision], tmp_path: Path
    ) -> None:
        for precision in precisions:
            if precision.value in self.stored_only:
                stored = self.export(tmp_path / precision.value, precision, min_placement=0.0)
                if stored.achieved.as_asked_fraction < 0.5:
                    with pytest.raises(deploykit.PlacementError, match=precision.value):
                        self.export(tmp_path / "never", precision)

    def test_int8_really_is_int8(self, artifact: Artifact) -> None:
        if artifact.precision != "int8":
            pytest.skip("the target has no static int8")
        assert artifact.achieved.macs_fraction("int8") > 0.5
        assert all(layer.reason for layer in artifact.achieved.layers if layer.precision != "int8" and layer.macs)
        assert artifact.parity is not None and artifact.parity.layers, "no per-layer figures"

    def test_static_precision_without_data_is_refused(self, precisions: list[Precision], tmp_path: Path) -> None:
        for precision in filter(lambda p: p.is_static, precisions):
            with pytest.raises(deploykit.CalibrationError, match="calibration="):
                self.export(tmp_path / "never", precision, calibration=None)
        assert not any(tmp_path.iterdir())

    def test_unsupported_precision_names_those_there_are(self, precisions: list[Precision], tmp_path: Path) -> None:
        missing = next((precision for precision in Precision if precision not in precisions), None)
        if missing is None:
            pytest.skip("the target has every precision")
        with pytest.raises(deploykit.UnsupportedPrecisionError, match=precisions[0].value):
            self.export(tmp_path / "never", missing)

    def test_unknown_option_is_refused(self, precisions: list[Precision], tmp_path: Path) -> None:
        with pytest.raises(deploykit.UsageError, match="no_such_option"):
            self.export(tmp_path / "never", precisions[0], options={"no_such_option": 1})

    def test_same_inputs_give_the_same_bytes(
        self, artifact: Artifact, precisions: list[Precision], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From another temporary folder too, which nothing in the artifact names."""
        scratch = tmp_path / "temporary files of another machine"
        scratch.mkdir()
        monkeypatch.setenv("TMPDIR", str(scratch))
        monkeypatch.setattr(tempfile, "tempdir", None)
        again = self.export(tmp_path / "again", Precision(artifact.precision))
        assert contents(again.path) == contents(artifact.path)
        assert not [name for name, data in contents(again.path).items() if str(scratch).encode() in data]

    def test_caller_model_is_left_alone(self, precisions: list[Precision], tmp_path: Path) -> None:
        import torch

        model, example_inputs = type(self).model()
        model.train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        deploykit.export(
            model,
            target=self.target,
            precision=precisions[0].value,
            example_inputs=example_inputs,
            calibration=batches(example_inputs) if precisions[0].is_static else None,
            options=self.options_of(precisions[0]),
            output=tmp_path / "out",
            profile=False,
            progress=False,
        )
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_several_inputs_and_named_outputs(self, precisions: list[Precision], tmp_path: Path) -> None:
        model, example_inputs = type(self).two_inputs()
        expected = model(**example_inputs)
        artifact = deploykit.export(
            model,
            target=self.target,
            precision=_float_precision(precisions).value,
            example_inputs=example_inputs,
            output=tmp_path / "out",
            profile=False,
            progress=False,
        )
        assert {spec.name for spec in artifact.outputs} == set(expected)
        assert {spec.name for spec in artifact.inputs} == set(example_inputs)

    # -- artifact and session -------------------------------------------------------------------------------

    def test_load_gives_back_what_was_exported(self, artifact: Artifact) -> None:
        loaded = deploykit.load(artifact.path)
        assert loaded.manifest == artifact.manifest
        assert loaded.parity == artifact.parity

    def test_says_what_it_needs(self, artifact: Artifact, resolved: Resolved) -> None:
        needs = artifact.manifest.requirements
        assert needs is not None and needs.memory_bytes > 0
        assert needs.packages.keys() <= {one.project for one in resolved.target.capabilities().runtime_requires}
        found = artifact.preflight()
        assert found.ok == (artifact.status != NEEDS_DEVICE_BUILD), found.verdict
        assert all(one.what and one.next for one in found.missing)
        assert artifact.parity is not None
        if artifact.parity.evidence is not Evidence.DEVICE:
            assert artifact.parity.notes, "evidence below `device` has a reason"
        assert len(set(artifact.parity.notes)) == len(artifact.parity.notes), "a note is said twice"

    def test_altered_payload_is_refused(self, artifact: Artifact, tmp_path: Path) -> None:
        copy = shutil.copytree(artifact.path, tmp_path / "copy")
        entry = copy / artifact.manifest.entry
        data = bytearray(entry.read_bytes())
        data[len(data) // 2] ^= 0xFF
        entry.write_bytes(data)
        with pytest.raises(deploykit.ArtifactError, match="sha256"):
            deploykit.load(copy)

    def test_golden_outputs_are_reproduced(self, artifact: Artifact, resolved: Resolved) -> None:
        if artifact.status == NEEDS_DEVICE_BUILD:
            with pytest.raises(deploykit.DeviceError):
                artifact.open()
        else:
            found = artifact.verify().sqnr_db
            assert found is None or found > 30.0

    def test_session_checks_and_owns(self, artifact: Artifact, resolved: Resolved) -> None:
        golden = artifact.golden()
        feeds = golden.inputs[0]
        name = next(iter(feeds))
        with resolved.target.open_for_parity(artifact) as session:
            assert tuple(spec.name for spec in session.outputs) == tuple(spec.name for spec in artifact.outputs)
            with pytest.raises(deploykit.UsageError, match="missing"):
                session.run({})
            with pytest.raises(deploykit.UsageError, match="unknown"):
                session.run({**feeds, "no_such_input": feeds[name]})
            with pytest.raises(deploykit.UsageError, match="shape"):
                session.run({**feeds, name: feeds[name][..., :-1]})
            with pytest.raises(deploykit.UsageError, match="dtype"):
                session.run({**feeds, name: feeds[name].astype(np.complex64)})
            first = session.run(feeds)
            kept = {key: value.copy() for key, value in first.items()}
            session.run({key: np.zeros_like(value) for key, value in feeds.items()})
            for key, value in kept.items():
                np.testing.assert_array_equal(first[key], value, err_msg="outputs are overwritten by the next run")
        with pytest.raises(deploykit.UsageError, match="closed"):
            session.run(feeds)

    def test_threads_share_a_session(self, artifact: Artifact, resolved: Resolved) -> None:
        feeds = hammer.variants(artifact.golden().inputs[0], _THREADS)
        with resolved.target.open_for_parity(artifact) as session:
            found = hammer.hammer(session, feeds, runs=self.thread_runs)
        assert (found.wrong, found.refused, found.raised) == (0, 0, [])
        assert found.right == _THREADS * self.thread_runs

    def test_close_beside_runs_waits_and_then_refuses(self, artifact: Artifact, resolved: Resolved) -> None:
        feeds = hammer.variants(artifact.golden().inputs[0], _THREADS)
        for seed in range(3):
            session = resolved.target.open_for_parity(artifact)
            moment = hammer.random_moment(session, feeds, runs=self.thread_runs, seed=seed)
            found = hammer.hammer(session, feeds, runs=self.thread_runs, close_after=moment)
            assert (found.wrong, found.raised) == (0, [])
            assert found.right + found.refused == _THREADS * self.thread_runs
            with pytest.raises(deploykit.UsageError, match="closed"):
                session.run(feeds[0])
            with pytest.raises(deploykit.UsageError, match="closed"):
                session.op_times(feeds[0], runs=1)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_a_forked_process_opens_its_own(self, artifact: Artifact, resolved: Resolved) -> None:
        feeds = artifact.golden().inputs[0]
        with resolved.target.open_for_parity(artifact) as session:
            expected = session.run(feeds)

            def forked() -> bool:
                with pytest.raises(deploykit.UsageError, match="forked"):
                    session.run(feeds)
                with resolved.target.open_for_parity(artifact) as own:
                    found = own.run(feeds)
                return all(np.array_equal(found[name], array) for name, array in expected.items())

            assert hammer.in_a_fork(forked, seconds=60) == 0
            session.run(feeds)

    def test_any_mapping_of_arrays_is_a_feed(self, artifact: Artifact, resolved: Resolved) -> None:
        feeds = artifact.golden().inputs[0]
        with resolved.target.open_for_parity(artifact) as session:
            expected = session.run(feeds)
            for change in (_strided, _read_only, _subclassed):
                got = session.run(types.MappingProxyType({name: change(array) for name, array in feeds.items()}))
                for name, array in expected.items():
                    np.testing.assert_array_equal(got[name], array, err_msg=change.__name__)
            for odd in (
                _Broken(feeds),
                {name: array.astype(array.dtype.newbyteorder()) for name, array in feeds.items()},
            ):
                with pytest.raises(deploykit.UsageError):
                    session.run(odd)

    def test_nothing_that_lies_about_is_run(
        self, artifact: Artifact, resolved: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Modules that are called like the standard library's, in the working directory and in the artifact."""
        told, hostile = tmp_path / "told", tmp_path / "hostile"
        copy = Path(shutil.copytree(artifact.path, tmp_path / "copy"))
        hostile.mkdir()
        _lay_canaries(hostile, told)
        monkeypatch.chdir(hostile)
        loaded = deploykit.load(copy)
        loaded.summary()
        if loaded.status != NEEDS_DEVICE_BUILD:
            loaded.verify()
        resolved.target.profile(loaded, effort=Effort(seconds=0.01, max_runs=1))
        _lay_canaries(copy, told)
        with pytest.raises(deploykit.ArtifactError, match="does not list"):
            deploykit.load(copy)
        with pytest.raises(deploykit.ArtifactError, match="does not list"):
            deploykit.build(copy)
        assert not told.exists(), told.read_text()

    def test_native_code_from_elsewhere_waits_for_a_word(
        self, artifact: Artifact, resolved: Resolved, tmp_path: Path
    ) -> None:
        """The same files under a manifest that no export here wrote."""
        copy = Path(shutil.copytree(artifact.path, tmp_path / "copy"))
        changed = replace(artifact.manifest, deploykit_version=f"{artifact.manifest.deploykit_version}+elsewhere")
        (copy / MANIFEST_NAME).write_bytes(changed.to_json())
        loaded = deploykit.load(copy)
        if loaded.status == NEEDS_DEVICE_BUILD:
            return
        if resolved.target.native_code(loaded):
            for act in (loaded.open, loaded.verify):
                with pytest.raises(deploykit.ArtifactError, match="allow_native"):
                    act()
        deploykit.load(copy, allow_native=True).open().close()

    def test_altered_since_it_was_loaded_is_refused(
        self, artifact: Artifact, resolved: Resolved, tmp_path: Path
    ) -> None:
        loaded = deploykit.load(shutil.copytree(artifact.path, tmp_path / "copy"))
        for change in (_bit_flipped, _cut, _emptied):
            data = loaded.entry.read_bytes()
            loaded.entry.write_bytes(change(data))
            with pytest.raises(deploykit.DeploykitError):
                loaded.open()
            loaded.entry.write_bytes(data)
        if loaded.status != NEEDS_DEVICE_BUILD:
            loaded.open().close()

    def test_another_toolchain_in_the_manifest_is_refused(self, artifact: Artifact, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(artifact.path, tmp_path / "copy"))
        others = [info for info in deploykit.targets() if info.toolchain != artifact.manifest.toolchain]
        for other in others[:3]:
            changed = replace(artifact.manifest, toolchain=other.toolchain)
            (copy / MANIFEST_NAME).write_bytes(changed.to_json())
            with pytest.raises(deploykit.ArtifactError, match="the manifest is for target"):
                deploykit.load(copy)

    def test_profile_says_how_it_was_obtained(self, artifact: Artifact, resolved: Resolved) -> None:
        profile = resolved.target.profile(artifact)
        assert profile.evidence in (Evidence.DEVICE, Evidence.ESTIMATE, Evidence.REFERENCE)
        assert profile.evidence is not Evidence.DEVICE or artifact.status != NEEDS_DEVICE_BUILD
        assert profile.latency_ms.p50 > 0.0
        assert profile.latency_ms.p50 <= profile.latency_ms.p99
        assert profile.size_bytes == artifact.size_bytes > 0

    def test_dynamic_batch_runs_other_sizes(
        self, resolved: Resolved, precisions: list[Precision], tmp_path: Path
    ) -> None:
        if not resolved.target.capabilities().dynamic_batch:
            pytest.skip("the target has no dynamic batch")
        artifact = self.export(tmp_path / "dynamic", _float_precision(precisions), dynamic_batch=True)
        feeds = artifact.golden().inputs[0]
        wider = {name: np.concatenate([array, array, array]) for name, array in feeds.items()}
        with resolved.target.open_for_parity(artifact) as session:
            single, triple = session.run(feeds), session.run(wider)
        for name, array in single.items():
            np.testing.assert_allclose(triple[name][: len(array)], array, rtol=1e-3, atol=1e-3)


def batches(example_inputs: Any, count: int = 4) -> list[Any]:
    """Seeded calibration batches like `example_inputs`; integers and booleans are repeated as they are."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def noise(tensor: Any) -> Any:
        return torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor

    if isinstance(example_inputs, dict):
        return [{name: noise(tensor) for name, tensor in example_inputs.items()} for _ in range(count)]
    return [tuple(noise(tensor) for tensor in example_inputs) for _ in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file of an artifact by relative path, without the records that differ from run to run."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (PROFILE_NAME, LOG_NAME))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _lay_canaries(folder: Path, told: Path) -> None:
    for name in ("json", "resource", "numpy", "psutil", "board", "argparse", "tensorrt", "migraphx", "onnxruntime"):
        if (folder / f"{name}.py").exists():  # a recipe's own
            continue
        code = f"with open({str(told)!r}, 'a') as file:\n    file.write(__file__)\n"
        (folder / f"{name}.py").write_text(code, encoding="utf-8")


def _bit_flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _emptied(data: bytes) -> bytes:
    return b""


class _Broken(Mapping[str, np.ndarray]):
    """Has the right names, and no values."""

    def __init__(self, feeds: Mapping[str, np.ndarray]) -> None:
        self._names = tuple(feeds)

    def __getitem__(self, name: str) -> np.ndarray:
        raise OSError(f"the value of {name} is gone")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _strided(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 2, axis=-1)[..., 0]


def _read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


class _Own(np.ndarray):
    """A subclass, as memory maps are."""


def _subclassed(array: np.ndarray) -> np.ndarray:
    return array.view(_Own)


def _float_precision(precisions: list[Precision]) -> Precision:
    widest = sorted(precisions, key=lambda precision: -precision.row.min_sqnr_db)
    return next((precision for precision in widest if precision.row.is_whole), precisions[0])
