"""Parts of methods that need a backbone or a task's data: prompts, edits per task, texts, alignment."""
