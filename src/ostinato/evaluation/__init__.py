"""Accuracy on mixed, shuffled test data; the only place that sees test labels and task ids."""
