"""Artifacts in OCI registries, with every blob and manifest hashed here: no registry is believed."""
