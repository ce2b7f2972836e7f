"""Speed of the package, beside a plain implementation and the limit of the machine."""
