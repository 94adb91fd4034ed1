"""TVM's compiler as a process of its own: `python -m deploykit_targets.tvm.compile_child <folder>`.

LLVM prints at C level, and a function that it cannot select instructions for ends the whole process. Here it can do
both: the parent reads results from a folder, and keeps what was printed as a log.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

MODULE, TARGET, OBJECT, ASSEMBLY, ERROR = "module.json", "target.json", "kernels.o", "kernels.s", "error"


def main(folder: Path) -> int:
    """Compile what lies in `folder`; 0 on success, else 1 with the reason written beside it.

    The slow import comes first; then a line on standard input says that the module is complete.
    """
    import tvm

    if not sys.stdin.readline():
        return 0  # the parent gave up
    try:
        module = tvm.ir.load_json((folder / MODULE).read_text(encoding="utf-8"))
        target = json.loads((folder / TARGET).read_text(encoding="utf-8"))
        compiled = tvm.compile(module, target=tvm.target.Target(target, host=target)).mod
        compiled.write_to_file(str(folder / OBJECT), "o")
        (folder / ASSEMBLY).write_text(compiled.inspect_source("asm"), encoding="utf-8")
    except Exception as error:  # whatever it is, the parent turns it into words
        (folder / ERROR).write_text(str(error), encoding="utf-8")
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
