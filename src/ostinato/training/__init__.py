"""Training of a method: loop, loader, optimiser, precision, seeds, divergence."""
