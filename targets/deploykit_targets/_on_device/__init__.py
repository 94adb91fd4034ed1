"""Build programs: programs that an artifact carries to its device, and how deploykit runs them there.

`board.py` is copied into artifacts beside a toolchain's own program and runs on the device with NumPy alone;
`host.py` runs such a program in a child process, and `session.py` talks to one that keeps an engine open.
Nothing is imported here.
"""
