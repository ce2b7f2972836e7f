"""One file per paper; every module here is found by the registry."""
