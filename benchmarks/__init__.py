"""How fast the package is, beside a straightforward implementation and beside what the machine can do."""
