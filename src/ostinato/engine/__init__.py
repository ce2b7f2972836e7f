"""Training: stages, optimisers, precision, seeds, checkpoints, run directories."""
