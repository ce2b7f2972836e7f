"""The application: predictions, classes, health, figures and a page."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, UploadFile
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from ostinato.errors import DataError, InputError
from ostinato.learner import Prediction
from ostinato.serve.batching import Answer, Batcher, BusyError, Given
from ostinato.serve.limits import Limited
from ostinato.serve.metrics import Metrics
from ostinato.serve.served import Served
from ostinato.streams.decode import MAX_PIXELS, problem

_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob:; connect-src 'self'"
)
"""Sources of the page: itself, and the pictures dropped on it."""


@dataclass(frozen=True)
class Limits:
    """Bounds on requests.

    Attributes:
        megabytes: of a request.
        images: of a request.
        pixels: of an image.
        batch: images that the model computes at once.
        waiting: megabytes of images that may wait for the model.
    """

    megabytes: float = 32.0
    images: int = 32
    pixels: int = 50_000_000
    batch: int = 64
    waiting: float = 512.0

    def __post_init__(self) -> None:
        """Check that they are positive, and that a request fits into a batch and the queue."""
        for option, value in (("max-mb", self.megabytes), ("max-images", self.images), ("max-pixels", self.pixels)):
            if not value > 0:
                raise InputError(f"--{option} must be positive, got {value}.")
        if self.pixels > MAX_PIXELS:
            raise InputError(f"--max-pixels must be at most {MAX_PIXELS:,}, got {self.pixels:,}.")
        if self.batch < self.images:
            raise InputError(f"--batch must be at least --max-images, {self.images}, got {self.batch}.")
        if self.waiting < self.megabytes:
            raise InputError(f"--max-mb must be at most {self.waiting:g}, the size of the queue, got {self.megabytes}.")


class Asked(BaseModel, extra="forbid"):
    """Options of a prediction, as parameters of its URL.

    Attributes:
        topk: classes per image.
        threshold: probability of the best class below which the answer is "unknown"; None for the server's.
        reject_rate: share of samples of the classes that may be called "unknown"; None for the server's.
    """

    topk: Annotated[int, Field(ge=1)] = 1
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    reject_rate: Annotated[float, Field(gt=0, lt=1)] | None = None


class State:
    """Parts of a running server.

    Args:
        served: the model.
        limits: on requests.
        token: that clients must give; None for none.
        default: threshold and rate of rejection of requests that give none.
    """

    def __init__(self, served: Served, limits: Limits, token: str | None, default: Asked) -> None:
        self.served, self.limits, self.token, self.default = served, limits, token, default
        self.batcher = Batcher(self._predict, most=limits.batch, waiting=round(limits.waiting * 1e6))
        self.metrics = Metrics(
            lambda: self.batcher.queued, lambda: len(served.current.class_names), lambda: served.loads
        )

    def _predict(self, images: Sequence[Given], topk: int, rate: float | None) -> Answer:
        self.metrics.batches.observe(len(images))
        return self.served.predict(images, topk, rate)

    def wanted(self, asked: Asked) -> Asked:
        """Options of a request, with those of the server where it gives none."""
        return asked.model_copy(
            update=self.default.model_dump(exclude_none=True, exclude={"topk"} | asked.model_fields_set)
        )

    async def watch(self, seconds: float) -> None:
        """Load a new model soon after it is on the disk."""
        while True:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.served.refresh)


def make_app(
    served: Served,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    default: Asked | None = None,
    every: float = 2.0,
) -> FastAPI:
    """The application of a model.

    Args:
        served: the model.
        limits: on requests; None for the defaults.
        token: that clients must give as ``Authorization: Bearer TOKEN``; None for none.
        default: threshold and rate of rejection of requests that give none.
        every: seconds between looks for a new model on the disk.
    """
    state = State(served, limits or Limits(), token, default or Asked())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(state.batcher.run()), asyncio.create_task(state.watch(every))]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # Its pages of documentation would load scripts from elsewhere.
    app = FastAPI(title="ostinato", version=version("ostinato"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = state
    app.add_middleware(Limited, most=round(state.limits.megabytes * 1e6), report=state.metrics.request)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.get("/", include_in_schema=False)(_page)
    app.get("/healthz")(_health)
    guarded = [Depends(_check_token)]
    app.post("/predict", dependencies=guarded)(_predict)
    app.get("/classes", dependencies=guarded)(_classes)
    app.get("/metrics", dependencies=guarded)(_metrics)
    return app


def _state(request: Request) -> State:
    return request.app.state.server


def _check_token(request: Request) -> None:
    wanted, given = _state(request).token, request.headers.get("authorization", "")
    if wanted is not None and not hmac.compare_digest(given.encode(), f"Bearer {wanted}".encode()):
        raise HTTPException(
            401, "Give the token of the server: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"}
        )


async def _predict(request: Request, images: list[UploadFile], asked: Annotated[Asked, Query()]) -> JSONResponse:
    """Predict images, sent as files of a form under the name ``images``."""
    state = _state(request)
    if len(images) > state.limits.images:
        raise HTTPException(413, f"A request must have at most {state.limits.images} images, got {len(images)}.")
    asked = state.wanted(asked)
    try:  # in a thread, since a rate may need another encoder
        await asyncio.to_thread(state.served.check, asked.topk, asked.threshold, asked.reject_rate)
    except InputError as error:
        raise HTTPException(422, str(error)) from None
    names = [image.filename or f"image {i}" for i, image in enumerate(images)]
    data = [await image.read() for image in images]
    given = await asyncio.to_thread(_checked, data, state.limits.pixels)
    try:
        answer = await state.batcher.ask(given, asked.topk, asked.reject_rate)
    except BusyError:
        raise HTTPException(503, "Too many images wait. Try again.", {"Retry-After": "1"}) from None
    except InputError as error:  # of a model that was loaded meanwhile
        raise HTTPException(422, str(error)) from None
    results = [_result(*each, asked) for each in zip(names, answer.predictions, strict=True)]
    good = sum("error" not in result for result in results)
    state.metrics.images.labels("predicted").inc(good)
    state.metrics.images.labels("refused").inc(len(results) - good)
    return JSONResponse({"model": answer.revision, "predictions": results}, 200 if good else 422)


def _checked(images: Sequence[bytes], pixels: int) -> list[Given]:
    """Images, and errors in place of those whose headers are damaged or tell of too many pixels."""
    reasons = [problem(image, full=False, pixels=pixels) for image in images]
    return [
        image if reason is None else DataError(f": {reason}.") for image, reason in zip(images, reasons, strict=True)
    ]


def _result(name: str, result: Prediction | DataError, asked: Asked) -> dict[str, Any]:
    """A result as JSON, under the name of its file; another request may have asked for its typicality."""
    if isinstance(result, DataError):  # its name is a position in a batch
        return {"source": name, "error": str(result).partition(": ")[2]}
    typicality = None if asked.reject_rate is None else result.typicality
    unsure = bool(asked.threshold and result.probabilities and result.probabilities[0] < asked.threshold)
    far = typicality is not None and asked.reject_rate is not None and typicality <= asked.reject_rate
    named = replace(result, source=name, typicality=typicality, unknown=unsure or far)
    return asdict(named) | {"answer": named.answer}


async def _classes(request: Request) -> dict[str, Any]:
    """Names of the classes of the current model."""
    current = _state(request).served.current
    return {"model": current.revision, "classes": current.class_names}


async def _health(request: Request) -> dict[str, Any]:
    """The current model, and why a newer one on the disk could not be loaded."""
    served = _state(request).served
    return {"status": "ok", "model": served.current.revision, "problem": served.problem}


async def _metrics(request: Request) -> Response:
    """Figures in the text format of Prometheus."""
    return Response(_state(request).metrics.text(), media_type="text/plain; version=0.0.4")


async def _page() -> HTMLResponse:
    """A page to drop pictures on."""
    text = files("ostinato.serve").joinpath("page.html").read_text(encoding="utf-8")
    return HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)  # noqa: S101 - FastAPI calls it for these alone
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """The first problem of a request, as a sentence."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - FastAPI calls it for these alone
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"error": f"{where}: {first['msg']}."}, 422)
