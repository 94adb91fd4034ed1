"""Runs pages' programs, each in a fork of one process that has imported PyTorch already: importing it takes seconds.

One line in, JSON with folder and program; one line out, JSON with the exit code and what was printed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback


def main() -> None:
    own = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:  # the prelude writes its data where it is imported
        os.chdir(folder)
        import tests.docs.prelude  # noqa: F401 - what every page imports

        os.chdir(own)
    for line in sys.stdin:
        asked = json.loads(line)
        path = os.path.join(asked["folder"], "printed.txt")
        child = os.fork()
        if child == 0:
            run(asked["folder"], asked["program"], path)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with open(path, encoding="utf-8", errors="replace") as file:
            print(json.dumps({"code": code, "printed": file.read()}), flush=True)


def run(folder: str, program: str, path: str) -> None:
    """Never returns: the fork ends with the program."""
    code = 1
    try:
        os.chdir(folder)
        printed = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.path.insert(0, folder)
        del sys.modules["tests.docs.prelude"]  # made anew: its model and data are the page's own
        exec(compile(program, "page", "exec"), {"__name__": "__page__"})
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
