"""What a toolchain plugin implements, and the registry that finds it."""
