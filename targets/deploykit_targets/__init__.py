"""The targets: one package per toolchain, each behind an entry point of the group `deploykit.targets`.

Nothing is imported here. Packages with an underscore are shared; the others do not know each other.
"""
