"""Batches of the images of concurrent requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from ostinato.errors import DataError
from ostinato.learner import Prediction


@dataclass(frozen=True)
class Answer:
    """Predictions of images, all by one model.

    Attributes:
        predictions: one per image, in order, or the error of an image that cannot be used.
        revision: name of the model, see :class:`ostinato.serve.served.Current`.
    """

    predictions: list[Prediction | DataError]
    revision: str


Given = bytes | DataError
"""An image file, or the reason why it is refused, which is passed on."""

Predict = Callable[[Sequence[Given], int, float | None], Answer]
"""Predictions of images with a number of classes each, and with typicalities if a rate of rejection is given; called in
one thread, never twice at a time."""


class BusyError(Exception):
    """Too many bytes of images wait."""


@dataclass
class _Job:
    images: Sequence[Given]
    topk: int
    rate: float | None
    bytes: int
    done: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Predicts images of concurrent requests together.

    A request that finds the model idle is computed at once. Those that arrive meanwhile gather, and the next batch
    holds as many of them as fit. No request waits for others to come. The images of a request stay together, so that
    one model answers all of them. No score depends on its batch.

    Args:
        predict: computes a batch.
        most: images per batch; a request may have as many.
        waiting: bytes of images that may wait.

    Attributes:
        queued: bytes of images that wait.
    """

    def __init__(self, predict: Predict, *, most: int, waiting: int) -> None:
        self.predict, self.most, self.waiting = predict, most, waiting
        self.queued = 0
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def ask(self, images: Sequence[Given], topk: int, rate: float | None = None) -> Answer:
        """Predictions of images, with ``topk`` classes each, and typicalities for a rate of rejection.

        Raises:
            BusyError: if too many bytes wait.
        """
        size = sum(len(image) for image in images if isinstance(image, bytes))
        if self.queued + size > self.waiting:
            raise BusyError
        job = _Job(images, topk, rate, size)
        self._jobs.append(job)
        self.queued += size
        self._arrived.set()
        return await job.done

    async def run(self) -> None:
        """Compute batches until cancelled."""
        while True:
            await self._arrived.wait()
            if batch := self._next():
                await self._compute(batch)
            else:
                self._arrived.clear()

    def _next(self) -> list[_Job]:
        """The oldest requests, as many as fit into a batch; without those whose client has gone."""
        batch: list[_Job] = []
        while self._jobs and sum(len(job.images) for job in batch) + len(self._jobs[0].images) <= self.most:
            job = self._jobs.popleft()
            self.queued -= job.bytes
            if not job.done.done():
                batch.append(job)
        return batch

    async def _compute(self, batch: Sequence[_Job]) -> None:
        images, topk = [image for job in batch for image in job.images], max(job.topk for job in batch)
        # A typicality does not depend on the rate; the smallest needs the most held-out samples.
        rate = min((job.rate for job in batch if job.rate is not None), default=None)
        try:
            answer = await self._in_thread(self.predict, images, topk, rate)
        except Exception as error:
            if len(batch) == 1:
                _give(batch[0], error)
            else:  # one request must not fail others
                for job in batch:
                    await self._compute([job])
            return
        rest = iter(answer.predictions)
        for job in batch:
            best = [_first(next(rest), job.topk) for _ in job.images]
            _give(job, Answer(best, answer.revision))

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


def _give(job: _Job, result: Answer | Exception) -> None:
    """Finish a request, unless its client has gone."""
    if job.done.done():
        return
    if isinstance(result, Exception):
        job.done.set_exception(result)
    else:
        job.done.set_result(result)


def _first(prediction: Prediction | DataError, n: int) -> Prediction | DataError:
    """The best ``n`` classes of a prediction."""
    if isinstance(prediction, DataError):
        return prediction
    lists = {name: value[:n] for name, value in vars(prediction).items() if isinstance(value, list)}
    return replace(prediction, **lists)
