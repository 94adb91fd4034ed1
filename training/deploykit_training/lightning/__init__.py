"""Callbacks of Lightning 2: `deploykit.lightning` names them. Importing a module of this package imports Lightning."""
