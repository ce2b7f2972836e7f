"""Remarks on the samples of classes: few beside many, and none to test on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ostinato.evaluation.evaluator import SHOWN

UNEVEN = 3
"""Smallest ratio of training samples of two classes to remark."""


def remarks(trained: Mapping[str, int], tested: Mapping[str, int], modality: str) -> Iterator[str]:
    """Sentences on uneven classes, and on classes without test samples.

    Args:
        trained: training samples by class.
        tested: test samples by class, of the classes to score.
        modality: "image" or "text".
    """
    if trained:
        few, many = min(trained, key=lambda name: trained[name]), max(trained, key=lambda name: trained[name])
        if trained[many] >= UNEVEN * max(trained[few], 1):
            yield (
                f"Classes are uneven: from {trained[few]} training {modality}s ({few}) to {trained[many]} ({many}). "
                "Small classes are often answered by large ones; more samples of them help."
            )
    untested = [name for name, n in tested.items() if not n]
    if untested:
        more = f" and {len(untested) - SHOWN} more" if len(untested) > SHOWN else ""
        yield (
            f"No test {modality}s of {', '.join(untested[:SHOWN])}{more}: the accuracy says nothing about "
            f"{'this class' if len(untested) == 1 else 'these classes'}."
        )
