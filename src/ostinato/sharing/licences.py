"""Licence of a backbone's weights, as their publisher gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ostinato.backbones.weights import of_transformers
from ostinato.defaults import DEFAULT_BACKBONE
from ostinato.records import BackboneRecord

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Licence:
    """A licence.

    Attributes:
        name: as the hub writes it, such as "apache-2.0"; "unknown" where nobody gives one.
        source: who gives it, or why it is unknown.
    """

    name: str
    source: str


def licence_of(backbone: BackboneRecord, api: Any) -> Licence:
    """Find the licence of weights.

    Args:
        backbone: record of the backbone.
        api: offers ``model_info`` of :class:`huggingface_hub.HfApi`; None to ask nobody.
    """
    name = backbone.name
    if backbone.weights is not None:
        of_name = licence_of(backbone.model_copy(update={"weights": None}), None)
        hint = "" if of_name.name == UNKNOWN else f"; {of_name.source}, {of_name.name}"
        return Licence(UNKNOWN, f"they were read from a file{hint}")
    if name == DEFAULT_BACKBONE:
        return Licence("apache-2.0", "they come with ostinato")
    if of_transformers(name, None):
        return _of_card(name, api)
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(name)
    licence = None if found is None else found.license
    if licence is None:
        return _of_card(f"timm/{name}", api)
    return Licence(licence, f"timm gives it for {name}")


def _of_card(name: str, api: Any) -> Licence:
    """The licence in the card of a model on the hub."""
    from huggingface_hub import errors

    if api is None:
        return Licence(UNKNOWN, f"the card of {name} on the hub was not read")
    try:
        card = api.model_info(name).card_data
    except (errors.HTTPError, errors.OfflineModeIsEnabled):  # pyright: ignore[reportPrivateImportUsage]  # no network
        return Licence(UNKNOWN, f"the card of {name} on the hub could not be read")
    licence = None if card is None else card.get("license")
    if not isinstance(licence, str):
        return Licence(UNKNOWN, f"the card of {name} on the hub gives none")
    return Licence(licence, f"the card of {name} on the hub gives it")
