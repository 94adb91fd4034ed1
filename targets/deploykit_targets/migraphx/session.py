"""Where MIGraphX's bindings are on this machine; the session itself is the program's (`_on_device/session.py`)."""

from __future__ import annotations

from pathlib import Path

from deploykit_targets._on_device.host import interpreter_where, interpreter_with

PROGRAM = "build_model.py"
MIGRAPHX, ONNXRUNTIME = "migraphx", "onnxruntime"
_DRIVER = Path("/dev/kfd")
# A placeholder of ours must not hide the bindings of the system's Python.
_HAS_API = "import migraphx, numpy; sys.exit(not hasattr(migraphx, 'parse_onnx'))"
# Compiled in, which says that this is the right package; whether a session runs on it, only the session says.
_HAS_PROVIDER = (
    "import onnxruntime, numpy; sys.exit('MIGraphXExecutionProvider' not in onnxruntime.get_available_providers())"
)


def interpreter(runtime: str = MIGRAPHX) -> str | None:
    """A Python that has what a runtime needs; None where there is none, or no AMD driver.

    Without the driver's device node nothing can run, and a child process that imports the bindings may crash.

    Args:
        runtime: `migraphx` needs its own bindings, `onnxruntime` only ONNX Runtime; one with the provider is
            preferred, and where there is another one, the build program says so.
    """
    if not _DRIVER.exists():
        return None
    if runtime == ONNXRUNTIME:
        return interpreter_where(_HAS_PROVIDER) or interpreter_with("onnxruntime", "numpy")
    return interpreter_where(_HAS_API)
