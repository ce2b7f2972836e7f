"""Models for others: written with a model card to the Hugging Face hub or to a folder, and read from there."""

from ostinato.sharing.exchange import pull, push
from ostinato.sharing.stores import FolderStore, HubStore, Store, is_name

__all__ = ["FolderStore", "HubStore", "Store", "is_name", "pull", "push"]
