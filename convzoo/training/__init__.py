"""A training run: the loop, its setup, its folder and its checkpoints."""
