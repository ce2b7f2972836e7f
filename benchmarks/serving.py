"""Requests to the server beside prediction of single files: ``python -m benchmarks.serving``."""

from __future__ import annotations

import asyncio
import datetime
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import httpx2
import timm
import torch
import typer
from safetensors.torch import save_file

from benchmarks.machine import machine, markdown
from benchmarks.prediction import NAME, photos, taught
from ostinato.learner import Learner
from ostinato.report.tables import replace_between
from ostinato.serve.app import make_app
from ostinato.serve.served import Served

PAGE = Path(__file__).resolve().parents[1] / "docs" / "howto" / "serve.md"
HEAD = ("what asks", "images/s", "median, ms", "99 %, ms")


def row(what: str, seconds: list[float], total: float) -> tuple[str, ...]:
    """Row of the table: requests of one image each, and the time of all."""
    last = statistics.quantiles(seconds, n=100)[98]
    return what, f"{len(seconds) / total:.1f}", f"{1e3 * statistics.median(seconds):.0f}", f"{1e3 * last:.0f}"


def alone(learner: Learner, files: list[bytes]) -> tuple[str, ...]:
    """Predict one file after the other."""
    seconds, began = [], time.perf_counter()
    for data in files:
        start = time.perf_counter()
        learner.predict([data])
        seconds.append(time.perf_counter() - start)
    return row("`Learner.predict`, one by one", seconds, time.perf_counter() - began)


async def asked(app: Any, files: list[bytes], clients: int, name: str) -> tuple[str, ...]:
    """Ask for every file once, by a number of clients that each wait for their answer."""
    seconds: list[float] = []
    waiting = list(files)

    async def client(session: httpx2.AsyncClient) -> None:
        while waiting:
            data, start = waiting.pop(), time.perf_counter()
            answer = await session.post("/predict", files=[("images", ("photo.jpg", data, "image/jpeg"))])
            answer.raise_for_status()
            seconds.append(time.perf_counter() - start)

    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://model", timeout=600) as session:
            began = time.perf_counter()
            await asyncio.gather(*(client(session) for _ in range(clients)))
            total = time.perf_counter() - began
    return row(f"{name}, {clients} client{'s' if clients > 1 else ''}", seconds, total)


def main(
    images: Annotated[int, typer.Option(help="Files to ask for.")] = 200,
    model: Annotated[str, typer.Option(help="timm's name of the encoder; its weights are random.")] = NAME,
    write: Annotated[bool, typer.Option("--write", help="Put the table into docs/howto/serve.md.")] = False,
) -> None:
    """Measure in one process, without a network; every pass has its own files, so that no cache helps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / "vit.safetensors"
        save_file(timm.create_model(model, pretrained=False, num_classes=0).state_dict(), weights)
        taught("simplecil", weights, model, 64, "fp32").save(folder / "model")
        (folder / "photos").mkdir()
        every = [path.read_bytes() for path in photos(folder / "photos", 4 * images)]
        learner = Learner.load(folder / "model", device="cpu", precision="fp32")
        learner.predict(every[:1])
        rows = [alone(learner, every[:images])]
        served = Served(folder / "model", device="cpu", precision="fp32")
        for i, clients in enumerate((1, 8, 32), start=1):
            part = every[i * images : (i + 1) * images]
            rows.append(asyncio.run(asked(make_app(served), part, clients, "server")))
    text = (
        f"{machine(torch.device('cpu'))}; torch {torch.__version__}; {datetime.date.today()}. {model}, random weights, "
        f"fp32, {images} JPEGs of 500 x 375 per row, one per request, in one process without a network.\n\n"
        f"{markdown(HEAD, rows)}\n"
    )
    typer.echo(text)
    if write:
        replace_between(
            PAGE, "serving", f"{text}\n```sh\npython -m benchmarks.serving --images {images} --write\n```\n"
        )


if __name__ == "__main__":
    typer.run(main)
