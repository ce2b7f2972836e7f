"""Frozen features of images that come again, looked up instead of computed."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ostinato.backbones.vision import Backbone


class FeatureCache:
    """Features of a frozen backbone by the content of each image.

    Test images are scored after every task, and training images are read again for statistics; their frozen
    features never change. The key is a hash of the very pixels that enter the backbone, so that no image can
    get the features of another.

    Args:
        max_bytes: memory to use; the images that came first are dropped first.
    """

    def __init__(self, max_bytes: int = 2**28) -> None:
        self.max_bytes = max_bytes
        self._rows: dict[bytes, Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """Images remembered."""
        return len(self._rows)

    def features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Plain features (B, D) of images (B, 3, S, S); the backbone runs on unknown images only."""
        if not len(images):
            return backbone(images)
        pixels = images.cpu().contiguous().numpy()
        keys = [hashlib.blake2b(image, digest_size=16).digest() for image in pixels]
        rows: list[Tensor | None] = [self._rows.get(key) for key in keys]
        if new := [i for i, row in enumerate(rows) if row is None]:
            computed = backbone(images[new]).cpu()
            for i, row in zip(new, computed, strict=True):
                rows[i] = row
                self._put(keys[i], row.clone())
        return torch.stack([row for row in rows if row is not None]).to(images.device)

    def _put(self, key: bytes, row: Tensor) -> None:
        if key in self._rows:  # the same image twice in one batch
            return
        self._rows[key] = row
        self._bytes += row.nbytes
        # An entry also holds its key and the tensor object, roughly 200 bytes.
        while len(self._rows) > 1 and self._bytes + 200 * len(self._rows) > self.max_bytes:
            self._bytes -= self._rows.pop(next(iter(self._rows))).nbytes
