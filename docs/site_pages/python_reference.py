"""The Python reference: every public name, by the docstring where it is defined."""

from __future__ import annotations

import deploykit

_ERRORS = "deploykit.contract.errors"
_MODULES = {
    "reference/formats.md": (
        "Formats, schemes and data",
        ["contract.formats", "contract.scheme", "contract.request", "contract.tensors", "contract.progress"],
    ),
    "reference/plugins.md": (
        "Writing plugins",
        ["plugin.target", "contract.session", "contract.devices", "contract.achieved", "testing.conformance"],
    ),
}


def pages() -> dict[str, str]:
    """Names of `deploykit`, its errors, and the modules that plugins are written against."""
    homes = {name: _home(name) for name in deploykit.__all__ if name in deploykit._HOME}
    names = [f"::: {home}.{name}\n" for name, home in homes.items() if home != _ERRORS]
    later = ("capture", "calibrate", "prepare", "lower", "judge")
    steps = [
        "::: deploykit.pipeline.plan.make_request\n",
        *(f"::: deploykit.pipeline.steps.{name}\n" for name in later),
    ]
    made = {
        "reference/python.md": "\n".join(["# Python\n", *names, "## Steps of an export\n", *steps]),
        "reference/errors.md": f"# Errors\n\n::: {_ERRORS}\n    options:\n      show_root_heading: false\n",
    }
    for uri, (title, modules) in _MODULES.items():
        made[uri] = "\n".join([f"# {title}\n", *(f"::: deploykit.{module}\n" for module in modules)])
    return made


def _home(name: str) -> str:
    module = deploykit._HOME[name]
    return module if module.startswith("deploykit_") else f"deploykit.{module}"
