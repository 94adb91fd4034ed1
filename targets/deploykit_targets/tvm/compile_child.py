"""TVM's compiler as a process of its own: `python -m deploykit_targets.tvm.compile_child <folder>`.

LLVM prints at C level, and a function that it cannot select instructions for ends the whole process. Here it can do
both: the parent reads results from a folder, and keeps what was printed as a log.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

MODULE, TARGET, OBJECT, ASSEMBLY, ERROR = "module{}.json", "target{}.json", "kernels{}.o", "kernels{}.s", "error"


def main(folder: Path) -> int:
    """Compile what is put into `folder`; 0 on success, else 1 with the reason written beside it.

    The slow import comes first; then each line on standard input is the number of a module that is complete.
    """
    # TVM imports PyTorch where it finds it, and takes most of its time for that
    sys.modules["torch"] = None  # type: ignore[assignment]
    import tvm  # noqa: F401 -- compiles

    try:
        for line in sys.stdin:
            _compile(folder, line.strip())
    except Exception as error:  # whatever it is, the parent turns it into words
        (folder / ERROR).write_text(str(error), encoding="utf-8")
        traceback.print_exc()
        return 1
    return 0


def _compile(folder: Path, number: str) -> None:
    import tvm

    module = tvm.ir.load_json((folder / MODULE.format(number)).read_text(encoding="utf-8"))
    target = json.loads((folder / TARGET.format(number)).read_text(encoding="utf-8"))
    compiled = tvm.compile(module, target=tvm.target.Target(target, host=target)).mod
    compiled.write_to_file(str(folder / OBJECT.format(number)), "o")
    (folder / ASSEMBLY.format(number)).write_text(compiled.inspect_source("asm"), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
