"""Which array of a file is which input: one rule for calibration data, `deploykit run` and `deploykit verify`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from deploykit.contract.errors import DeploykitError

UNNAMED = "arr_0"
"""What numpy.savez calls an array that was given no name, and what the array of a .npy file is called here."""


def matched(what: str, have: Collection[str], names: Sequence[str], *, error: type[DeploykitError]) -> dict[str, str]:
    """Input name -> name in the file. The only array serves the only input, whatever it is called.

    Args:
        what: the file, for the message.
        have: the arrays that it has; further ones are left alone.
        names: the inputs.
        error: class of the refusal.
    Raises:
        DeploykitError: of the class `error`: an input has no array; the hint says how to write the file.
    """
    if all(name in have for name in names):
        return {name: name for name in names}
    if len(names) == 1 and len(have) == 1:
        return {names[0]: next(iter(have))}
    arrays = ", ".join(f"{name}=..." for name in names)
    raise error(
        f"{what}: has the arrays {', '.join(sorted(have)) or '(none)'}; the model's inputs are {', '.join(names)}",
        hint=f"name the arrays like the inputs: numpy.savez(path, {arrays})",
    )
