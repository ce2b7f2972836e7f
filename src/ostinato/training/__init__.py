"""Train a method on one task: loop, loader, optimiser, precision, seeds, divergence."""
