"""Training for a target: its own scheme while training, pruning, distillation, and the callbacks of trainers."""
