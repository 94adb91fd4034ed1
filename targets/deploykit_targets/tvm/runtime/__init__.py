"""What runs a compiled model where TVM is not: a small executor in C, and how a program becomes a table for it.

| file | what it holds |
|---|---|
| `executor.c` | opens a model and calls its kernels one after another |
| `pool.c` | threads, and the kernels' temporary memory |
| `cpu.c` | which instruction sets this CPU has |
| `run.c` | the program for boards: the executor behind standard input and output |
| `table.py` | `Program` -> a table in C |
| `features.py` | which CPU features compiled code needs |

C11, libc and pthreads; no TVM, Python or compiler on the device.
"""
