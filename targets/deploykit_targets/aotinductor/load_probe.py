"""Child process of `session.py`: load a package's native code once; a loader that crashes takes nobody along."""

from __future__ import annotations

import sys


def main(path: str) -> None:
    """Load the package; the end of this process says how that went."""
    import torch
    from torch._inductor import aoti_load_package

    if torch.cuda.is_available():
        torch.cuda.init()
    aoti_load_package(path)


if __name__ == "__main__":
    main(sys.argv[1])
