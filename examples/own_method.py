"""Teach digits to a method of your own, which is a class in this folder.

Run: python examples/own_method.py
"""

from __future__ import annotations

import ostinato
from my_method import OnePrefix


def main() -> None:
    """Print the accuracies after each of two tasks, and the options that the learner was made with."""
    stream = ostinato.stream("digits", step=5, limit_per_class=5, test_limit_per_class=5)
    learner = ostinato.Learner(OnePrefix, length=3, train={"epochs": 1})
    for task in stream:
        learner.learn(task)
        print(learner.evaluate(stream).table())
    print(learner.method.name, learner.options)


if __name__ == "__main__":
    main()
