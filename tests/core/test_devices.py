"""Device tables: data in, frozen values out, defects of a plugin named by file."""

import dataclasses

import pytest

from deploykit.contract.devices import load_devices
from deploykit.contract.errors import DeploykitError
from deploykit.contract.precision import Precision

TABLE = """
[pi]
summary = "a small board"
arch = "aarch64"
precisions = ["int8", "fp32"]
default = true
features = ["asimddp"]
peak_tops = { int8 = 0.2, fp32 = 0.05 }
memory_gb_per_s = 17.1
source = "measured"
cpu = "cortex-a76"

[generic]
summary = "any"
arch = "aarch64"
precisions = []
generic = true
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "devices.toml").write_text(TABLE)
    return tmp_path / "devices.toml"


def test_reads_every_field_and_keeps_the_rest(path):
    pi = load_devices(path, toolchain="toy")["pi"]
    assert (pi.name, pi.toolchain, pi.arch, pi.summary) == ("pi", "toy", "aarch64", "a small board")
    assert pi.precisions == (Precision.INT8, Precision.FP32)
    assert pi.default and not pi.generic
    assert pi.features == ("asimddp",)
    assert pi.peak_tops == {"int8": 0.2, "fp32": 0.05} and pi.memory_gb_per_s == 17.1
    assert pi.extra == {"cpu": "cortex-a76"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        pi.name = "other"


def test_fields_have_defaults(path):
    generic = load_devices(path, toolchain="toy")["generic"]
    assert generic.generic and not generic.default
    assert (generic.precisions, generic.features, generic.memory_gb_per_s, generic.extra) == ((), (), None, {})


@pytest.mark.parametrize(
    "text",
    [
        "not toml [",
        "[pi]\nsummary = 'x'\narch = 'y'\n",
        "[pi]\nsummary = 'x'\nprecisions = ['int8']\n",
        "[pi]\nsummary = 'x'\narch = 'y'\nprecisions = ['int7']\n",
        "pi = 3\n",
    ],
)
def test_a_malformed_table_names_file_and_toolchain(path, text):
    path.write_text(text)
    with pytest.raises(DeploykitError, match=r"devices\.toml of toolchain 'toy'") as caught:
        load_devices(path, toolchain="toy")
    assert type(caught.value) is DeploykitError, "a plugin's defect, not the user's"


def test_a_missing_table(tmp_path):
    with pytest.raises(DeploykitError, match=r"none\.toml"):
        load_devices(tmp_path / "none.toml", toolchain="toy")
