"""Shared parts of methods that need a backbone or task data: prompts, edits per task, class texts, alignment."""
