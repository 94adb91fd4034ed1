"""What a toolchain offers: precisions, devices, packages and options, and the refusal of what it has not.

Everything here is asked by listings, for every device, and so is cheap: no vendor package is imported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import msgspec

from deploykit.contract.devices import Device
from deploykit.contract.errors import MissingDependencyError, UnsupportedPrecisionError, UsageError
from deploykit.contract.optional import Requirement, SystemTool
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.request import NoOptions


@dataclass(frozen=True)
class Capabilities:
    """What a toolchain can do.

    Attributes:
        summary: one line for listings.
        precisions: all it can produce, best known first.
        devices: the devices, by name.
        export_extra, runtime_extra: names of the extras that install what exporting and running need.
        export_requires, runtime_requires: the packages behind those extras.
        evidence: the best evidence level that running here gives.
        dynamic_batch: whether a dynamic batch axis survives conversion.
        distribution: the distribution that has the extras.
        opens: suffixes of model files, made by others too, that `open_file` runs.
        compile_extra, compile_requires: the extra, and its packages, with which the vendor's compiler reads every
            export on any machine (evidence `compiled`); empty where there is no such compiler.
        system_tools: programs that pip does not install (a cross compiler, an emulator); `doctor` checks them.
    """

    summary: str
    precisions: tuple[Precision, ...]
    devices: Mapping[str, Device]
    export_extra: str
    runtime_extra: str
    export_requires: tuple[Requirement, ...]
    runtime_requires: tuple[Requirement, ...]
    evidence: Evidence = Evidence.DEVICE
    dynamic_batch: bool = True
    distribution: str = "deploykit"
    opens: tuple[str, ...] = ()
    system_tools: tuple[SystemTool, ...] = ()
    compile_extra: str = ""
    compile_requires: tuple[Requirement, ...] = ()


class Offers(ABC):
    """The part of a `Target` that says what can be asked of it."""

    name: ClassVar[str]
    options_type: ClassVar[type[Any]] = NoOptions

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Say what this toolchain supports. Cheap: no vendor package is imported."""

    def check_precision(self, precision: Precision, device: Device) -> None:
        """Refuse a precision that the toolchain or the device's silicon lacks.

        Raises:
            UnsupportedPrecisionError: names those that both have.
        """
        both = [p for p in self.capabilities().precisions if p in device.precisions]
        if precision not in both:
            raise UnsupportedPrecisionError(
                f"{self.name} on {device.name} has no {precision}; it has {', '.join(map(str, both))}",
                hint=f'precision="{both[0]}"' if both else None,
            )

    def unavailable_here(self, device: Device) -> str:
        """Why nothing can be exported to `device` on this machine although every package is here; "" where it can.

        Cheap, as `capabilities`: listings ask it for every device. Override where exporting needs more than packages.
        """
        del device
        return ""

    def precisions_here(self, device: Device) -> tuple[Precision, ...]:
        """What an export to `device` can be on this machine: what listings offer, and cheap as `capabilities`.

        Others that both have may be asked for, too; their export says why it is none of its precision. Override where a
        runtime takes files of a precision and computes them in another.
        """
        return tuple(p for p in self.capabilities().precisions if p in device.precisions)

    def check_installed(self, *, export: bool) -> None:
        """Refuse early where a package for exporting (or for running) is missing.

        Raises:
            MissingDependencyError: with the pip command.
        """
        own = self.capabilities()
        requires, extra = (
            (own.export_requires, own.export_extra) if export else (own.runtime_requires, own.runtime_extra)
        )
        for requirement in requires:
            if not requirement.installed:
                purpose = f"{'export to' if export else 'run artifacts of'} {self.name}"
                raise MissingDependencyError(
                    requirement.project,
                    extra=extra,
                    purpose=purpose,
                    distribution=own.distribution,
                    command=requirement.how or None,
                )

    def parse_options(self, options: object | Mapping[str, Any] | None) -> Any:
        """Turn a mapping (of the command line, say) into the toolchain's options dataclass.

        Raises:
            UsageError: an unknown name or a value of the wrong type; the message lists the options there are.
        """
        if options is None:
            return self.options_type()
        if isinstance(options, self.options_type):
            return options
        known = {f: str(t) for f, t in self.options_type.__annotations__.items()}
        listed = f"options of {self.name}: {known or 'none'}"
        if not isinstance(options, Mapping):
            raise UsageError(f"options must be a mapping or {self.options_type.__name__}, not {type(options).__name__}")
        unknown = sorted(options.keys() - known.keys())
        if unknown:
            raise UsageError(f"unknown option {', '.join(unknown)}", hint=listed)
        try:
            found: Any = msgspec.convert(dict(options), self.options_type, strict=False)
            return replace(found)  # with attributes for its defaults, which a manifest would lack otherwise
        except msgspec.ValidationError as error:
            raise UsageError(f"bad option value: {error}", hint=listed) from error

    def check_options(self, options: Any, device: Device) -> None:
        """Refuse values that the device cannot take; override where the type of an option does not say it all.

        Args:
            options: the toolchain's options dataclass.
        Raises:
            UsageError: names the option, the device and what is allowed.
        """
        del options, device  # any value of the right type will do
