"""`python -m deploykit`: the command line without its entry point.

Python puts the working directory first here, which may be an artifact or worse: a `json.py` that lies in it is not
imported, as with the program `deploykit` itself. Commands that import a user's model look there when they do.
"""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    _first = os.path.abspath(sys.path[0])
    if _first == os.path.abspath(os.curdir) and _first != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
        del sys.path[0]

from deploykit.cli import main

sys.exit(main())
