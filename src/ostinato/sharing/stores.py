"""Places that hold models by OWNER/NAME: the Hugging Face hub, or a folder of this machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ostinato import artifact
from ostinato.errors import DataError, InputError, OstinatoError
from ostinato.quoting import quoted

CARD = "README.md"
"""File of the model card."""

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_]|[.-](?![.-])){0,94}(?<![.-])"
_NAME = re.compile(rf"{_PART}/{_PART}")

_PARTS = ["learned-*.safetensors", "used-*.npy", "method-*.py", "backbone-*/*"]
"""Patterns of the files of a model beside its description."""

_READ = [artifact.ABOUT, CARD, *_PARTS]
_OF_EVERY_REPOSITORY = {".gitattributes", CARD}


def is_name(text: str) -> bool:
    """Whether a text is OWNER/NAME, as the hub allows it."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str) -> None:
    """Raise InputError unless a text is OWNER/NAME."""
    if not is_name(text):
        raise InputError(
            f"A model must be named OWNER/NAME, such as anna/flowers, in letters, digits, '-', '_' and '.', got "
            f"{quoted(text)}."
        )


class Store(Protocol):
    """A place that holds models by OWNER/NAME."""

    def push(self, name: str, folder: Path) -> str:
        """Write a model and its card from a folder, in place of an earlier one; return where it is."""
        ...

    def fetch(self, name: str) -> Path:
        """Folder of a model on this machine, not verified."""
        ...


class FolderStore:
    """A folder with models in ``OWNER/NAME``.

    Args:
        root: the folder; made by the first push.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def push(self, name: str, folder: Path) -> str:
        """Copy and verify a model and its card.

        Raises:
            InputError: if the name is wrong, or another thing has it.
            DataError: if the model is damaged.
        """
        check_name(name)
        target = self.root / name
        artifact.copy(folder, target)
        shutil.copyfile(folder / CARD, target / CARD)
        return str(target)

    def fetch(self, name: str) -> Path:
        """Folder of a model.

        Raises:
            InputError: if there is none, naming those that there are.
        """
        check_name(name)
        if not artifact.exists(self.root / name):
            known = sorted(f.parent.relative_to(self.root).as_posix() for f in self.root.glob(f"*/*/{artifact.ABOUT}"))
            listed = f"There are {', '.join(known)}." if known else "There are none."
            raise InputError(f"{self.root} holds no model {quoted(name)}. {listed}")
        return self.root / name


class HubStore:
    """The Hugging Face hub; its token is that of ``hf auth login`` or of the variable ``HF_TOKEN``.

    Args:
        api: offers ``create_repo``, ``list_repo_files``, ``upload_folder`` and ``snapshot_download`` of
            :class:`huggingface_hub.HfApi`; None for that.
        public: make a new repository public; an existing one stays as it is.
    """

    def __init__(self, api: Any = None, *, public: bool = False) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi() if api is None else api
        self.public = public

    def push(self, name: str, folder: Path) -> str:
        """Write a model and its card in one commit; return the address.

        Raises:
            InputError: if the name is wrong, the repository holds other things, or there is no token for it.
            DataError: if the hub cannot be reached.
        """
        check_name(name)
        with _explaining(name, "Connect to the network, or write to a folder: --to DIR"):
            self.api.create_repo(name, private=not self.public, exist_ok=True)
            files = set(self.api.list_repo_files(name))
            if artifact.ABOUT not in files and (others := sorted(files - _OF_EVERY_REPOSITORY)):
                raise InputError(
                    f"{name} on the hub holds {others[0]} and no model of ostinato. Choose another OWNER/NAME."
                )
            self.api.upload_folder(
                repo_id=name,
                folder_path=str(folder),
                commit_message="Write a model of ostinato",
                allow_patterns=_READ,
                delete_patterns=_PARTS,
            )
        return f"https://huggingface.co/{name}"

    def fetch(self, name: str) -> Path:
        """Download a model into the hub's cache; without a network, take what is there.

        Raises:
            InputError: if the name is wrong, or there is no such repository or no right to read it.
            DataError: if the hub cannot be reached, or the repository holds no model.
        """
        check_name(name)
        with _explaining(name, "Its cache on this machine does not hold the model, either. Connect to the network"):
            folder = Path(self.api.snapshot_download(name, allow_patterns=_READ))
        if not artifact.exists(folder):
            raise DataError(f"{name} on the hub holds no model of ostinato: it has no {artifact.ABOUT}.")
        return folder


@contextmanager
def _explaining(name: str, without_network: str) -> Iterator[None]:
    """Turn the errors of the hub into errors for users; ``without_network`` is the advice if it cannot be reached."""
    from huggingface_hub import errors

    try:
        yield
    except OstinatoError:
        raise
    except errors.GatedRepoError:
        raise InputError(
            f"{name} on the hub is gated: its owner must give you access. Ask at https://huggingface.co/{name}, and "
            "then run: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"The hub has no repository {name}, or it is private and you may not read it. Check the name; for a "
            "private one, run: hf auth login"
        ) from None
    except errors.LocalTokenNotFoundError:
        raise _no_token(name) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise _no_token(name) from None
        if status == 403:
            raise InputError(
                f"{name}: the hub refuses it to your token. Take your own name or organisation as OWNER, and a token "
                "that may write: hf auth login"
            ) from None
        raise DataError(f"{name}: the hub answered with an error ({status}). Repeat the command later.") from None
    # HTTPError is that of httpx or httpx2, by the release of huggingface-hub.
    except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise DataError(f"{name}: the hub cannot be reached ({type(error).__name__}). {without_network}.") from None
    except errors.HFValidationError as error:
        raise InputError(f"{name} is no name of the hub: {error}") from None


def _no_token(name: str) -> InputError:
    return InputError(
        f"{name}: the hub needs a token. Run 'hf auth login', or set HF_TOKEN to one of "
        "https://huggingface.co/settings/tokens, and repeat the command."
    )
