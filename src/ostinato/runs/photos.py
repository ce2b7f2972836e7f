"""Choice of a backbone for a run on photos that names none."""

from __future__ import annotations

from collections.abc import Callable

from ostinato.backbones.timm_weights import cached, download
from ostinato.config import RunConfig
from ostinato.defaults import DEFAULT_BACKBONE, PHOTO_BACKBONES
from ostinato.distributed import ProcessGroup
from ostinato.streams import kind_of


def with_photo_backbone(config: RunConfig, tell: Callable[[str], None], processes: ProcessGroup) -> RunConfig:
    """Give a run on a folder of images a backbone that was pre-trained on photos, unless it names a backbone.

    Args:
        config: checked configuration.
        tell: receives what was chosen, and without a choice the one command that changes it.
        processes: that share the run; the main process chooses.

    Raises:
        InputError: if the path of the data is wrong.
    """
    if {"name", "weights"} & config.backbone.model_fields_set or config.backbone.size or config.data.sets:
        return config
    if kind_of(config.data.path) != "folder":
        return config
    name = processes.broadcast_object(_available(tell) if processes.is_main else None)
    if name is None:
        return config
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"name": name})})


def _available(tell: Callable[[str], None]) -> str | None:
    """Name of a backbone for photos on this machine, downloaded if there is none; None without a network."""
    name = next((name for name in PHOTO_BACKBONES if cached(name)), None)
    if name is None:
        name = PHOTO_BACKBONES[0]
        tell(f"Looking for the backbone {name}, which was pre-trained on photos (120 MB, downloaded once)")
        if not download(name):
            tell(f"It could not be downloaded. With a network, run once: hf download timm/{name}")
            return None
    tell(f"Backbone: {name}, pre-trained on photos. backbone={DEFAULT_BACKBONE} takes the small one without.")
    return name
