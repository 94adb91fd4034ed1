"""Compile many ONNX files in one process: prints one JSON line for each, before the next could end the process.

python compile_many.py ARCH FILE...
"""

import json
import sys
from pathlib import Path

from deploykit_targets._tensorrt import build_engine


def main() -> None:
    arch, *files = sys.argv[1:]
    library = build_engine.import_rtx()
    options = build_engine.parse(["--compile-for", arch], {})
    for file in map(Path, files):
        options.artifact, listings = file.parent, []
        try:
            build_engine.build(library, {"model": file.name, "inputs": [], "precision": ""}, options, listings)
            found = {"file": file.name, "listing": listings[-1]}
        except build_engine.BuildError as error:
            found = {"file": file.name, "error": str(error)}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
