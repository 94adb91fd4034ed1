"""The words that every room shares: errors, precisions, tensors, devices, sessions. Nothing here knows a target."""
