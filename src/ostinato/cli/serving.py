"""Command that answers over HTTP: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ostinato.cli.app import app, machine_of
from ostinato.errors import InputError
from ostinato.printing import say


@app.command()
def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a file of 'ostinato export'.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="device=cpu, precision=fp32, backbone.weights=FILE and method=FILE."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="OSTINATO_TOKEN", help="Token that clients must give, better in OSTINATO_TOKEN."),
    ] = None,
    max_mb: Annotated[float, typer.Option(help="Megabytes of a request.")] = 32.0,
    max_images: Annotated[int, typer.Option(help="Images of a request.")] = 32,
    max_pixels: Annotated[int, typer.Option(help="Pixels of an image.")] = 50_000_000,
    batch: Annotated[int, typer.Option(help="Images that the model computes at once.")] = 64,
    threshold: Annotated[
        float | None,
        typer.Option(help="Answer 'unknown' if the best class is less probable, where a request gives no threshold."),
    ] = None,
    reject_rate: Annotated[
        float | None,
        typer.Option(
            help="Answer 'unknown' far from all classes learned, where a request gives no reject_rate; of samples of "
            "these, this share is rejected, such as 0.05."
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Read an exported .pt2 or .pt file, which can run code of its maker.")
    ] = False,
) -> None:
    """Answer predictions of images over HTTP, with a page to drop pictures on.

    A model that 'ostinato learn' puts in place is loaded without a stop.

    Example: ostinato serve runs/photos

    Example: ostinato serve runs/photos --reject-rate 0.05

    Example: curl -F images=@daisy.jpg '127.0.0.1:8000/predict?topk=3'
    """
    from ostinato.config import parse_overrides

    given = parse_overrides(options or [])
    where = machine_of(given)
    if given:
        raise InputError(
            "serve takes device=NAME, precision=fp32, backbone.weights=FILE and method=FILE, got: "
            f"{', '.join(given)}. Its other options begin with --."
        )
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise InputError("--token must be printable ASCII without spaces.")
    try:
        import uvicorn

        from ostinato.serve.app import Asked, Limits, make_app
    except ImportError as error:
        if error.name is not None and error.name.startswith("ostinato"):
            raise
        raise InputError(
            f"serve needs the package {error.name}, which is not installed: pip install 'ostinato[serve]'."
        ) from None
    from ostinato.serve.served import Served

    limits = Limits(max_mb, max_images, max_pixels, batch)
    served = Served(run, trust=trust, **where)
    served.check(1, threshold, reject_rate)
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        say(f"Everybody who reaches {host} can ask this model. Give --token to change that.", err=True)
    say(f"Serving {len(served.current.class_names)} classes of {run} on http://{host}:{port}")
    made = make_app(served, limits=limits, token=token, default=Asked(threshold=threshold, reject_rate=reject_rate))
    uvicorn.run(made, host=host, port=port, log_level="warning")
