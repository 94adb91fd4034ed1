"""Quantization schemes that several toolchains derive theirs from."""
