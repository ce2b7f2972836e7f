"""Warnings about the data of a run, before it starts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ostinato.backbones import TextBackbone
from ostinato.defaults import DEFAULT_BACKBONE, PHOTO_BACKBONES
from ostinato.evaluation.evaluator import SHOWN
from ostinato.learner import check_refines
from ostinato.runs.build import Work
from ostinato.streams import LabeledDataset
from ostinato.streams.source import plain_name


def notices(work: Work) -> Iterator[str]:
    """Warn about skipped samples, cut texts, similar class names and repeated samples."""
    source = work.stream.source
    yield from source.notes
    yield from (f"skipped {line}" for line in source.skipped)
    if source.augment == "photo" and work.before is None and work.learner.spec.name == DEFAULT_BACKBONE:
        yield (
            f"{DEFAULT_BACKBONE} was pre-trained on rendered characters and knows little of photos; add "
            f"backbone={PHOTO_BACKBONES[0]}"
        )
    yield from _cut_texts(work)
    yield from _similar_names(work)
    yield from _known_classes(work)
    if work.learner.settings.processes.is_main:  # it reads all data
        yield from _repeated_samples(work)


def _cut_texts(work: Work) -> Iterator[str]:
    """Warn about training texts that are longer than the backbone reads."""
    backbone, source = work.learner.method.backbone, work.stream.source
    if not isinstance(backbone, TextBackbone) or source.modality != "text":
        return
    most = backbone.tokenization.length
    counts = [backbone.tokenization.count(source.train.load(i)) for i in range(len(source.train))]
    if over := sum(n > most for n in counts):
        yield (
            f"{over} of {len(counts)} training texts have more than {most} tokens (at most {max(counts)}) and are "
            "cut; backbone.length sets how many are read."
        )


def _similar_names(work: Work) -> Iterator[str]:
    """Warn about classes whose names differ only in case or spaces."""
    known = {plain_name(name): name for name in (work.before.class_names if work.before else [])}
    for name in work.stream.class_names:
        similar = known.setdefault(plain_name(name), name)
        if similar != name:
            yield f"class {name!r} is learned as another class than {similar!r}"


def _known_classes(work: Work) -> Iterator[str]:
    """Tell which part of the method more samples of known classes refine, and how many samples are none."""
    stream, names = work.stream, work.stream.known_names
    if stream.repeated:
        yield f"{stream.repeated} training samples of known classes were learned before and are left out"
    if names:
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        yield f"more samples of {shown} refine {check_refines(work.learner.method, names)}"


def _repeated_samples(work: Work) -> Iterator[str]:
    """Warn about test samples among the training samples, and training samples that were learned before."""
    tasks = [work.stream.task(i) for i in range(len(work.stream))]
    known = [tasks[0].known] if tasks[0].known is not None else []
    train = LabeledDataset.concat([*known, *(task.train for task in tasks)]).fingerprints()
    tests = np.concatenate([test.fingerprints() for test in (*work.known, *work.tests)])
    if n := int(np.isin(tests, train).sum()):
        yield (
            f"{n} of the {len(tests)} test samples have the same content as a training sample: the data have duplicates"
        )
    if n := int(np.isin(train, work.learner.used).sum()):
        yield f"{n} of the {len(train)} training samples were learned before"
