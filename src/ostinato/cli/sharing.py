"""Commands that exchange models with others: push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ostinato.cli.app import Options, RunPath, app, machine_of
from ostinato.errors import InputError
from ostinato.printing import say

Name = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Name of the model on the hub.")]


@app.command()
def push(
    run: RunPath,
    name: Name,
    options: Options = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="A folder in place of the Hugging Face hub.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody read a new repository.")] = False,
    hold: Annotated[
        bool, typer.Option("--bundle", help="Send the backbone's weights, too; those from a file are always sent.")
    ] = False,
) -> None:
    """Send a finished run's model, with a model card, to the Hugging Face hub or a folder.

    A repository is made if there is none, and only you may read it without --public.

    Example: ostinato push runs/photos anna/photos

    Example: ostinato push runs/photos anna/photos --to /mnt/models
    """
    from ostinato.config import parse_overrides
    from ostinato.sharing import FolderStore, HubStore
    from ostinato.sharing import push as send

    given = parse_overrides(options or [])
    where = machine_of(given)
    if given or set(where) - {"weights"}:
        raise InputError("push takes backbone.weights=FILE, if the weights moved. Its other options begin with --.")
    if to is not None and public:
        raise InputError("--public is for the hub; a folder has the rights of its files. Leave it out.")
    store = HubStore(public=public) if to is None else FolderStore(to)
    api = store.api if isinstance(store, HubStore) else None
    place = send(run, name, store, hold=hold, weights=where.get("weights"), api=api)
    say(f"Written to {place}")
    say(f"On another machine: ostinato pull {name}{'' if to is None else f' --from {to}'}")


@app.command()
def pull(
    name: Name,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Where to; by default NAME, in this folder.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="A folder that 'push --to' wrote into.")
    ] = None,
) -> None:
    """Fetch a model from the Hugging Face hub or a folder, every file checked against its hash.

    Example: ostinato pull anna/photos
    """
    from ostinato.sharing import FolderStore, HubStore
    from ostinato.sharing import pull as fetch

    target = Path(name.rpartition("/")[2]) if folder is None else folder
    about = fetch(name, target, HubStore() if source is None else FolderStore(source))
    say(f"{len(about.class_names)} classes, learned by {about.method}. Written to {target}")
    say(f"It predicts: ostinato predict {target} FILE")
