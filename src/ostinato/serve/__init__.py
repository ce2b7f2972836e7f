"""A learned model behind HTTP; needs the extra ``serve``."""
