"""Compare two methods over two class orders.

Run: python examples/compare_methods.py
"""

from __future__ import annotations

from statistics import mean

import ostinato

METHODS = {"simplecil": {}, "dualprompt": {"train": {"epochs": 1}}}
"""Methods and their arguments."""


def last_accuracy(method: str, seed: int) -> float:
    """Teach a method all digits in two tasks, in a class order drawn from the seed.

    Returns:
        Accuracy on all classes after the last task.
    """
    stream = ostinato.stream(
        "digits", step=5, order="seeded", seed=seed, limit_per_class=5, test_limit_per_class=5
    )  # fmt: skip
    learner = ostinato.Learner(method, seed=seed, **METHODS[method])
    for task in stream:
        learner.learn(task)
    return learner.evaluate(stream).accuracy


def main() -> None:
    """Print a line per method."""
    for method in METHODS:
        accuracies = [last_accuracy(method, seed) for seed in (0, 1)]
        print(f"{method:12s} {mean(accuracies):6.1%}   orders: {', '.join(f'{one:.1%}' for one in accuracies)}")


if __name__ == "__main__":
    main()
