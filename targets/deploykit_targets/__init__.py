"""The toolchain plugins that ship with deploykit: one folder each, the same file names in each.

Folders that begin with an underscore are shared mechanisms, not targets. Nothing is imported here.
"""
