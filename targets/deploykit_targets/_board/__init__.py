"""Boards: programs for another architecture, run under emulation of the exact CPU or over SSH.

`emulator.py` runs one program; `root.py` makes a folder with a whole arm64 Python for programs that need one.
Nothing is imported here.
"""
