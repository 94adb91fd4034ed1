"""Record which names TensorRT's Python bindings have, into `api_surface/<version>.json`.

    python tests/targets/_tensorrt/record_api_surface.py 8.6.1 10.3.0 10.16.1.11 11.4.0.106
    python tests/targets/_tensorrt/record_api_surface.py rtx     TensorRT for RTX as it is installed here

The bindings are a wheel of their own (`tensorrt-cu12-bindings`); TensorRT's libraries are not needed to read their
names. The nine C functions that the bindings link to are given as empty stubs, so nothing here can be run, only
looked at. Needs pip, a C compiler, Linux on x86-64 and the Python version running this. Names and argument names are
recorded, no documentation text. Not a test: the recordings are committed, and `test_api_surface.py` reads them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PROJECTS = {"8": "tensorrt-bindings"}  # by major version; later ones name their CUDA
PROJECT = "tensorrt-cu12-bindings"
FOLDER = Path(__file__).parent / "api_surface"
# Library -> the functions of it that the bindings link to; the same nine in all versions since 10.0, fewer in 8.
STUBS = {
    "libnvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "libnvonnxparser": (
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getNvOnnxParserVersion",
    ),
    "libnvinfer_plugin": ("initLibNvInferPlugins",),
}
# What 8 had besides, under its C++ names.
PARSERS = {
    "libnvparsers": (
        "_ZN11nvuffparser15createUffParserEv",
        "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
        "_ZN14nvcaffeparser117createCaffeParserEv",
        "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
    )
}


def project_of(version: str) -> str:
    """Name of the bindings on the package index."""
    return PROJECTS.get(version.split(".", maxsplit=1)[0], PROJECT)


def download(version: str, folder: Path) -> Path:
    """Fetch and unpack one bindings wheel; returns the folder to import from."""
    wanted = f"{project_of(version)}=={version}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), wanted]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    unpacked = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


def compile_stubs(major: str, folder: Path) -> Path:
    """Compile the stub libraries of one major version; returns their folder."""
    stubs = folder / "stubs"
    stubs.mkdir()
    for library, functions in {**STUBS, **(PARSERS if major == "8" else {})}.items():
        source = stubs / f"{library}.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
        made = stubs / f"{library}.so.{major}"
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{made.name}", "-o", made, source], check=True)
    return stubs


def record(version: str) -> None:
    """Write the recording of one version."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        site = download(version, folder)
        stubs = compile_stubs(version.split(".", maxsplit=1)[0], folder)
        environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(site)}
        command = [sys.executable, __file__, "--child"]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    source = f"{project_of(version)}=={version}, imported over stub libraries"
    write(version, source, json.loads(done.stdout.splitlines()[-1]))


def record_rtx() -> None:
    """Write the recording of TensorRT for RTX, whose libraries are real wheels and need no driver."""
    import tensorrt_rtx_bindings as trt

    version = f"rtx-{trt.__version__}"
    write(version, f"tensorrt_rtx_cu13_bindings=={trt.__version__}, imported over its libraries", names_of(trt))


def write(version: str, source: str, surface: dict[str, object]) -> None:
    """Write `{name: ...}` of a version, one name a line."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in surface.items())
    head = f'"source": "{source}", "version": "{version}"'
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{version}.json").write_text(f'{{{head}, "names": {{\n{lines}\n}}}}\n')
    print(f"{version}: {len(surface)} names")


def child() -> None:
    """In the child: print `{name: argument names | null | {member: argument names | null}}` of everything public."""
    import tensorrt_bindings as trt  # type: ignore[import-not-found,unused-ignore]

    print(json.dumps(names_of(trt)))


def names_of(trt: object) -> dict[str, object]:
    """Everything public of the bindings."""
    names: dict[str, object] = {}
    for name, value in sorted(vars(trt).items()):
        if name.startswith("_") or type(value).__name__ == "module" or _is_layer(name):
            continue
        names[name] = _members(value) if isinstance(value, type) else _arguments(value)
    return names


def _is_layer(name: str) -> bool:
    """Whether this is one of some 50 layer classes, which a program that parses ONNX never names."""
    return bool(re.fullmatch(r"I\w+Layer", name)) and name != "ILayer"


def _members(kind: type) -> dict[str, list[str] | None]:
    public = [member for member in sorted(dir(kind)) if not member.startswith("_") or member == "__init__"]
    return {member: _arguments(getattr(kind, member, None)) for member in public}


def _arguments(value: object) -> list[str] | None:
    """Argument names of all overloads, read from the signature that pybind11 puts at the head of a docstring."""
    text = getattr(value, "__doc__", None) or ""
    if not callable(value) or isinstance(value, type):
        return None
    found = re.findall(r"^(?:\d+\. )?\w+\((.*)\)(?: -> .*)?$", text, flags=re.MULTILINE)
    return sorted({name for signature in found for name in re.findall(r"(?:^|, )(\w+):", signature)})


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        child()
    else:
        for wanted in sys.argv[1:]:
            record_rtx() if wanted == "rtx" else record(wanted)
