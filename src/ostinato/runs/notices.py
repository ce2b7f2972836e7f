"""Remarks about the data of a run, before it starts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ostinato.backbones import TextBackbone
from ostinato.defaults import DEFAULT_BACKBONE
from ostinato.runs.build import Work
from ostinato.streams import LabeledDataset
from ostinato.streams.source import plain_name


def notices(work: Work) -> Iterator[str]:
    """Sentences about the data of a run: skipped samples, cut texts, similar names of classes, repeated samples.

    Args:
        work: of the run.
    """
    source = work.stream.source
    yield from source.notes
    yield from (f"skipped {line}" for line in source.skipped)
    if source.augment == "photo" and work.before is None and work.learner.spec.name == DEFAULT_BACKBONE:
        yield (
            f"{DEFAULT_BACKBONE} was pre-trained on rendered characters; for photos take one that was trained on "
            "photos, such as backbone=vit_base_patch16_224.augreg_in21k"
        )
    yield from _cut_texts(work)
    yield from _similar_names(work)
    if work.learner.settings.processes.is_main:  # it reads all data
        yield from _repeated_samples(work)


def _cut_texts(work: Work) -> Iterator[str]:
    """How many training texts lose their end."""
    backbone, source = work.learner.method.backbone, work.stream.source
    if not isinstance(backbone, TextBackbone) or source.modality != "text":
        return
    most = backbone.tokenization.length
    counts = [backbone.tokenization.count(source.train.load(i)) for i in range(len(source.train))]
    if over := sum(n > most for n in counts):
        yield (
            f"{over} of {len(counts)} training texts have more than {most} tokens (at most {max(counts)}) and lose "
            "their end; backbone.length says how many are read."
        )


def _similar_names(work: Work) -> Iterator[str]:
    """Classes whose name is nearly that of another: perhaps they are the same."""
    known = {plain_name(name): name for name in (work.before.class_names if work.before else [])}
    for name in work.stream.class_names:
        twin = known.setdefault(plain_name(name), name)
        if twin != name:
            yield f"class {name!r} is learned as another one than {twin!r}"


def _repeated_samples(work: Work) -> Iterator[str]:
    """How many samples are on two sides: duplicates within the data, or learned before under whatever name."""
    train = LabeledDataset.concat([work.stream.task(i).train for i in range(len(work.stream))]).fingerprints()
    tests = np.concatenate([test.fingerprints() for test in work.tests])
    if n := int(np.isin(tests, train).sum()):
        yield (
            f"{n} of the {len(tests)} samples that are scored have the very content of one that is trained on: "
            "there are duplicates in the data"
        )
    if n := int(np.isin(train, work.learner.used).sum()):
        yield f"{n} of the {len(train)} training samples were learned from before"
