"""Reports: one offline page of an artifact, a folder of artifacts or a release, and what changed since another."""
