"""Messages and hints of the API in the words of the command line: `--exclude a`, where a call has `exclude=["a"]`.

The errors are raised where the API and the command line meet the same code, so they name arguments. Only what is an
argument of a command is said otherwise; names of the user's own (modules, files) are not touched.
"""

from __future__ import annotations

import ast
import re
import shlex

_FLAGS = {
    ("strict", "False"): "--no-strict",
    ("strict", "True"): "no --no-strict",
    ("profile", "False"): "--no-profile",
    ("profile", "True"): "a profile",
    ("dynamic_batch", "True"): "--dynamic-batch",
    ("dynamic_batch", "False"): "no --dynamic-batch",
    ("progress", "False"): "--no-progress",
    ("progress", "True"): "--progress",
}
_OPTIONS = {
    "algorithms": "--algorithm",
    "allow": "--allow",
    "budget_s": "--budget-s",
    "cache_dir": "--cache-dir",
    "calibration": "--calibration",
    "calibration_method": "--method",
    "dynamic_batch": "--dynamic-batch",
    "dynamic_shapes": "--dynamic-shapes",
    "evaluate": "--evaluate",
    "exclude": "--exclude",
    "include": "--include",
    "max_drop": "--max-drop",
    "min_cosine": "--min-cosine",
    "min_placement": "--min-placement",
    "min_speedup": "--min-speedup",
    "min_sqnr_db": "--min-sqnr-db",
    "min_top1_agreement": "--min-top1-agreement",
    "options": "--option",
    "output": "--output",
    "place": "--board",
    "precision": "--precision",
    "recipe": "--recipe",
    "rest": "--rest",
    "target": "--target",
    "threads": "--threads",
    "tolerance": "--min-sqnr-db, --min-cosine or --min-top1-agreement",
    "train": "--train",
}
_PHRASES = (
    (
        re.compile(r"pass example_inputs=: a tuple of tensors for forward's arguments(.*?), or a dict by name;"),
        r"tensors for forward's arguments\1 are needed, or --calibration with arrays of these names;",
    ),
    (re.compile(r"pass example_inputs="), "let the factory return (model, example_inputs)"),
    (
        re.compile(r" \(a DataLoader, batches, an \.npz path(?: or a CalibrationTable)?\)"),
        " FILE (.npz, .safetensors or .npy)",
    ),
    (re.compile(r"tolerance=deploykit\.Tolerance\((\w+)=([\d.]+)\)"), r"\1=\2"),
    (re.compile(r"artifact\.achieved\.not_as_requested has every layer"), "deploykit inspect shows every layer"),
    (re.compile(r"see artifact\.parity for the outputs"), "deploykit inspect shows the outputs"),
    (re.compile(r"strict=False returns the candidate"), "--no-strict keeps the candidate"),
    (re.compile(r"deploykit\.(tune|export|sensitivity)\b"), r"deploykit \1"),
)
_CALL = re.compile(r"deploykit\.(tune|export|sensitivity)\(([^()]*)\)")
_VALUE = r"\"[^\"]*\"|'[^']*'|\[[^\]]*\]|\{[^}]*\}|[A-Za-z0-9_.+-]*[A-Za-z0-9_]|\.\.\."
_ARGUMENT = re.compile(rf"(?<![\w./:`'\"-])({'|'.join(_OPTIONS)}|strict|profile|progress)=({_VALUE})?")
_BARE = re.compile(rf"(?<![\w./:='\"-])({'|'.join(name for name in _OPTIONS if '_' in name)})(?![\w.=(/:-])")


def spoken(text: str) -> str:
    """A message or hint with the command line's own names for what it names by the API's."""
    text = _CALL.sub(lambda found: f"deploykit {found[1]} {found[2].replace(', ', ' ')}".rstrip(), text)
    for pattern, instead in _PHRASES:
        text = pattern.sub(instead, text)
    text = _ARGUMENT.sub(lambda found: _option(found[1], found[2]), text)
    return _BARE.sub(lambda found: _OPTIONS[found[1]], text)


def _option(name: str, value: str | None) -> str:
    flag = _FLAGS.get((name, value or ""))
    if flag is not None:
        return flag
    option = _OPTIONS.get(name, f"--{name}")
    if value in (None, "..."):
        return option
    return " ".join(f"{option} {word}" for word in _words(str(value))) or option


def _words(text: str) -> list[str]:
    """The values of a Python literal as they are typed in a shell."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [text]
    if isinstance(value, dict):
        return [shlex.quote(f"{key}={one}") for key, one in value.items()]
    return [shlex.quote(str(one)) for one in (value if isinstance(value, list | tuple) else [value])]
