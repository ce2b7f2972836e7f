"""Runs: a configuration learned as a stream of tasks in a directory, stopped, resumed and continued."""
