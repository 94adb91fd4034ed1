"""Where an artifact comes from and that nobody changed it: signatures, lineage, registries, bills of materials."""
