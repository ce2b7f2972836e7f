"""Runs of a configuration in a directory: start, stop, resume, continue."""
