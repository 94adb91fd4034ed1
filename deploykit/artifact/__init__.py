"""Artifacts on disk: manifest, files, hashes, golden data; written atomically, read without trust."""
