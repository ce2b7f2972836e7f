"""Accuracy on mixed, shuffled test data; the only package that reads test labels and task ids."""
