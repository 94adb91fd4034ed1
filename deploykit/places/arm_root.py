"""A folder with an arm64 Python and packages, to run a runtime's own Arm wheels under emulation.

Made from the Debian packages and wheels that this machine's own `apt` and `pip` are configured for, without root
rights: `apt` works in a private folder for the architecture arm64, `dpkg` only unpacks. Kept in the user's cache.

    root = arm_root(("numpy", "ai-edge-litert==2.1.0"))      # minutes of download the first time
    done = root.run_python("cortex-a76", "script.py", "argument")
    assert done.returncode == 0, done.stderr

In tests, `DeviceError` and `MissingDependencyError` say why there is no root: `pytest.skip(error.message)`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from deploykit.artifact.storage import cache_folder
from deploykit.contract.errors import DeviceError
from deploykit.contract.optional import SystemTool
from deploykit.places.qemu import DEFAULT_TIMEOUT_S, Emulator

APT = SystemTool("apt-get", "apt", "fetch packages of an emulated arm64 board")
DPKG = SystemTool("dpkg-deb", "dpkg", "unpack packages of an emulated arm64 board")

_LIBRARIES = ("libstdc++6", "libgomp1", "libgcc-s1", "zlib1g")  # what wheels expect of the system
_PLATFORMS = ("2_36", "2_35", "2_34", "2_31", "2_28", "2_27", "2_24", "2_17")  # glibc of the wheels that are accepted
_LAYOUT = 1  # of the folder; another number makes a new one
_FETCH_TIMEOUT_S = 900.0
# What programs that read /proc/cpuinfo find: the part number of the CPU and its features, as Linux writes them.
_BASE = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
_V82 = f"{_BASE} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
_CPUINFO = {
    "cortex-a72": ("0xd08", f"{_BASE} cpuid"),
    "cortex-a76": ("0xd0b", _V82),
    "neoverse-n1": ("0xd0c", _V82),
}


@dataclass(frozen=True)
class ArmRoot:
    """An arm64 Python with packages.

    Attributes:
        path: the folder; its files are not to be changed.
        python: version, such as `3.11`.
        environment: environment variables of the emulated programs.
    """

    path: Path
    python: str
    environment: dict[str, str] = field(default_factory=dict)

    def emulator(self, cpu: str) -> Emulator:
        """An emulator whose programs find this root's libraries, and the description of the right CPU in /proc."""
        own = {
            "PYTHONPATH": str(self.path / "site"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "OMP_NUM_THREADS": "1",
        }
        return Emulator(cpu, self._view(cpu), {**own, **self.environment})

    @property
    def program(self) -> Path:
        """Its Python."""
        return self.path / "debian/usr/bin" / f"python{self.python}"

    def with_environment(self, **variables: str) -> ArmRoot:
        """The same root with more environment variables for its programs."""
        return replace(self, environment={**self.environment, **variables})

    def run_python(
        self, cpu: str, *arguments: str | Path, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run its Python to the end on an emulated CPU.

        Returns:
            Output and exit code, which may be other than 0.
        Raises:
            MissingDependencyError: QEMU is not installed.
            DeviceError: Python crashed, or did not end in time.
        """
        return self.emulator(cpu).run(self.program, *arguments, timeout_s=timeout_s)

    def _view(self, cpu: str) -> Path:
        """The root as `cpu` sees it: the same files, and a /proc/cpuinfo of its own; made when first asked for."""
        if cpu not in _CPUINFO:
            return self.path / "debian"
        view = self.path / "views" / cpu
        if not view.is_dir():
            with _published(view) as folder:
                for entry in (self.path / "debian").iterdir():
                    (folder / entry.name).symlink_to(entry)
                _describe_cpu(folder, *_CPUINFO[cpu])
        return view


def arm_root(wheels: Sequence[str] = (), *, cache: Path | None = None) -> ArmRoot:
    """Find or make a root with these wheels and what they depend on.

    Args:
        wheels: requirements as pip takes them; pin what results depend on.
        cache: folder for roots; None for the user's (`cache_folder`).
    Raises:
        MissingDependencyError: no apt or dpkg here: not a Debian or Ubuntu.
        DeviceError: packages or wheels cannot be had; the message says which and why.
    """
    key = hashlib.sha256(repr((_LAYOUT, sorted(wheels))).encode()).hexdigest()[:16]
    path = (cache or cache_folder()) / f"arm64-{key}"
    if not path.is_dir():
        with _published(path) as folder:
            version = _unpack_debian(folder / "debian")
            (folder / "python").write_text(version, encoding="ascii")
            _unpack_wheels(wheels, version, folder / "site")
            (folder / "views").mkdir()
    return ArmRoot(path, (path / "python").read_text(encoding="ascii"))


@contextmanager
def _published(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` in one step; whoever comes second uses the first one's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        folder = Path(scratch) / "made"
        folder.mkdir()
        yield folder
        try:
            folder.rename(path)
        except OSError:
            if not path.is_dir():
                raise


# -- Debian packages ----------------------------------------------------------------------------------------


def _unpack_debian(folder: Path) -> str:
    """Fetch Python and libraries for arm64 and unpack them; returns Python's version."""
    apt, dpkg = APT.find(), DPKG.find()
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        options = _private_apt(Path(scratch))
        _run([apt, *options, "update"], "the lists of arm64 packages cannot be fetched")
        version = _python_version(apt, options)
        packages = (f"python{version}-minimal", f"libpython{version}-stdlib", *_LIBRARIES)
        install = ["install", "--yes", "--download-only", "--no-install-recommends", *packages]
        _run([apt, *options, *install], "arm64 packages cannot be fetched")
        for archive in sorted(Path(scratch).glob("cache/archives/*.deb")):
            _run([dpkg, "--extract", str(archive), str(folder)], f"{archive.name} cannot be unpacked")
    _make_links_relative(folder)
    return version


def _private_apt(scratch: Path) -> list[str]:
    """Options that let apt work on another architecture in a folder of ours, with the system's sources and keys."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State": scratch / "state",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "Dir::Log": scratch,
        "Debug::NoLocking": "true",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
    }
    return ["-q", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]


def _python_version(apt: str, options: list[str]) -> str:
    """The version of Python that the distribution has for arm64, such as `3.11`."""
    cache = str(Path(apt).with_name("apt-cache"))
    said = _run([cache, *options[1:], "show", "--no-all-versions", "python3-minimal"], "apt knows no Python for arm64")
    found = re.search(r"^Version: (\d+\.\d+)", said, re.MULTILINE)
    if found is None:
        raise DeviceError("an emulated arm64 board cannot be made: apt knows no Python for arm64", hint=_NO_PACKAGES)
    return found.group(1)


def _make_links_relative(folder: Path) -> None:
    """Absolute links (of /etc/alternatives, say) would leave the root."""
    for path in folder.rglob("*"):
        if path.is_symlink() and (target := os.readlink(path)).startswith("/"):
            path.unlink()
            path.symlink_to(os.path.relpath(folder / target.lstrip("/"), path.parent))


# -- wheels -------------------------------------------------------------------------------------------------


def _unpack_wheels(wheels: Sequence[str], version: str, folder: Path) -> None:
    folder.mkdir()
    if not wheels:
        return
    platforms = [word for glibc in _PLATFORMS for word in ("--platform", f"manylinux_{glibc}_aarch64")]
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--dest", scratch, *options, "--platform", "manylinux2014_aarch64", *platforms]
        _run([*pip, *wheels], f"wheels of {', '.join(wheels)} for arm64 cannot be fetched")
        for archive in sorted(Path(scratch).glob("*.whl")):
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(folder)


# -- the rest -----------------------------------------------------------------------------------------------

_NO_PACKAGES = "it needs Debian's or Ubuntu's packages for arm64, and wheels; see what apt and pip are configured for"


def _describe_cpu(folder: Path, part: str, features: str) -> None:
    """/proc/cpuinfo and the CPU lists of /sys; programs that detect the CPU there would find this machine's."""
    (folder / "proc").mkdir()
    described = f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
    described += f"CPU part\t: {part}\nCPU revision\t: 0\n"
    (folder / "proc/cpuinfo").write_text(f"processor\t: 0\n{described}\n", encoding="ascii")
    cpus = folder / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0\n", encoding="ascii")


def _run(command: list[str], failed: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False, env=environment
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"an emulated arm64 board cannot be made: {failed}: {error}", hint=_NO_PACKAGES) from error
    if done.returncode:
        said = done.stderr.strip()[-800:]
        raise DeviceError(f"an emulated arm64 board cannot be made: {failed}: {said}", hint=_NO_PACKAGES)
    return done.stdout


def remove(root: ArmRoot) -> None:
    """Delete a root; it is made again when it is next asked for."""
    shutil.rmtree(root.path)
