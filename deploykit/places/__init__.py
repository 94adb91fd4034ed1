"""Places: where a session runs. Here, in a child process, under emulation of another CPU, on a board over SSH.

Nothing is imported here.
"""
