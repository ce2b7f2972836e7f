"""Caches of frozen features and token states of repeated inputs."""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ostinato.backbones.base import Backbone
from ostinato.backbones.edits import Tokens
from ostinato.errors import DataError
from ostinato.paths import user_path

KEY_BYTES = 16

_HASHED = 32
"""Images that are hashed on a GPU at a time: eight bytes for each of one, and as many for its product."""

_BLOCK = 2**20
"""Bytes that are asked for at once."""

PLAIN = b""
"""Name of no edit."""


class FeatureCache:
    """Features of a frozen backbone by the content of each input.

    Test images are scored after every task, training images are read again for statistics and, without augmentation,
    in every epoch; their frozen features never change. The key is a hash of the pixels that enter the backbone, so that
    no image can get the features of another.

    Args:
        max_bytes: memory for images that come again, and a quarter more for passing ones; beyond it any may be dropped.
    """

    def __init__(self, max_bytes: int = 2**28) -> None:
        self.max_bytes = max_bytes
        self._kept = _Rows(max_bytes)
        # Augmented images rarely come again: they must not displace those that do.
        self._passing = _Rows(max_bytes // 4)
        self._folder: Path | None = None
        self._file: FeatureFile | None = None

    def __len__(self) -> int:
        """Number of images in memory."""
        return len(self._kept) + len(self._passing)

    def persist(self, folder: str | Path) -> None:
        """Also keep features in a file in ``folder``, created if missing, shared by all runs with the same weights.

        Raises:
            InputError: if no folder can have that name.
        """
        self._folder = user_path(str(folder), "cache")

    @property
    def persistent(self) -> bool:
        """Whether features are also kept on disk."""
        return self._folder is not None

    def features(self, backbone: Backbone, images: Tensor, *, passing: bool = False) -> Tensor:
        """Plain features (B, D) of images (B, 3, S, S); the backbone runs on unknown images only.

        Args:
            backbone: the same at every call.
            images: pixels as they enter it.
            passing: images that may never come again, such as augmented ones; kept in memory only.
        """
        if not len(images):
            return backbone(images)
        (rows,) = self.under(backbone, images, [PLAIN], lambda new: [backbone(new)], passing=passing)
        return rows

    def under(
        self,
        backbone: Backbone,
        images: Tensor,
        edits: Sequence[bytes],
        compute: Callable[[Tensor], Sequence[Tensor]],
        *,
        passing: bool = False,
    ) -> list[Tensor]:
        """Features (B, D) of images under each of several edits.

        Args:
            backbone: the same at every call.
            images: pixels as they enter it, at least one.
            edits: a name of each, which no other edit has; ``PLAIN`` for none. Only plain features are kept on disk.
            compute: features under all edits of images that are unknown under one of them.
            passing: images that may never come again, such as augmented ones; kept in memory only.
        """
        if self._folder is not None and self._file is None:
            self._file = FeatureFile(self._folder / f"{_identity(backbone)}.features", backbone.dim)
        keys = keys_of(backbone, images, stored=self._file is not None)
        found = [[self._find(key, edit) for key in keys] for edit in edits]
        new = [i for i in range(len(keys)) if any(rows[i] is None for rows in found)]
        fresh = [computed.cpu() for computed in compute(images[new])] if new else []
        unknown = [[i for i in new if rows[i] is None] for rows in found]
        for rows, computed in zip(found, fresh, strict=False):
            for i, row in zip(new, computed, strict=True):
                rows[i] = row if rows[i] is None else rows[i]
        # Joined before rows are kept, which may overwrite others.
        joined = [torch.stack([row for row in rows if row is not None]) for rows in found]
        for edit, missing, features in zip(edits, unknown, joined, strict=True):
            self._keep(edit, {keys[i]: features[i] for i in missing}, passing)
        return [features.to(images.device) for features in joined]

    def _keep(self, edit: bytes, rows: dict[bytes, Tensor], passing: bool) -> None:
        for key, row in rows.items():
            (self._passing if passing else self._kept).put(key + edit, row)
        if self._file is not None and not passing and edit == PLAIN and rows:
            self._file.append(rows)

    def _find(self, key: bytes, edit: bytes) -> Tensor | None:
        for rows in (self._kept, self._passing):
            if (row := rows.get(key + edit)) is not None:
                return row
        return self._file.get(key) if self._file is not None and edit == PLAIN else None


def keys_of(backbone: Backbone, x: Tensor, *, stored: bool = False) -> list[bytes]:
    """Hash the content of each input.

    Images on a GPU are hashed there, since a copy to the CPU and its hash take longer than the pass that a known key
    saves. ``stored`` asks for keys that are the same in every process.
    """
    if x.dtype == torch.uint8 and x.device.type != "cpu" and not stored:
        return linear_keys(x)
    return [hashlib.blake2b(content, digest_size=KEY_BYTES).digest() for content in backbone.contents(x)]


def linear_keys(x: Tensor) -> list[bytes]:
    """Keys of images (B, ...) uint8: two random linear maps of the pixels into integers modulo 2^64.

    Two images differ by less than 2^8 in a pixel. One map therefore gives them the same number with a probability of at
    most 2^-57, and both maps do with at most 2^-114. The maps are drawn once per process: nobody can choose images for
    one key.
    """
    maps = _maps(x[0].numel(), x.device)
    rows = []
    for part in x.reshape(len(x), -1).split(_HASHED):
        pixels = part.to(torch.int64)
        rows.append(torch.stack([(pixels * row).sum(1) for row in maps], dim=1))
    return [row.tobytes() for row in torch.cat(rows).cpu().numpy()]


@functools.cache
def _maps(n: int, device: torch.device) -> Tensor:
    """Coefficients (2, n) of the linear maps, drawn from the system's randomness."""
    return torch.frombuffer(bytearray(os.urandom(16 * n)), dtype=torch.int64).view(2, n).to(device)


class StateCache:
    """Token states that enter a layer of the plain frozen backbone, by the content of each input.

    For methods that change nothing below a layer, on repeated (un-augmented) images: an image passes the lower layers
    once. A ViT-B state takes 0.3 MB, so that the cache is optional.

    Args:
        max_bytes: memory for states of all layers; beyond it any may be dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        self._rows = _Rows(max_bytes)

    @torch.no_grad()
    def states(self, backbone: Backbone, images: Tensor, layer: int) -> Tokens:
        """States (B, N, D) that enter ``layer``; the backbone runs on unknown images only."""
        keys = [key + layer.to_bytes(2) for key in keys_of(backbone, images)]
        rows = [self._rows.get(key) for key in keys]
        new = [i for i, row in enumerate(rows) if row is None]
        if new:
            computed = backbone.run(backbone.embed(images[new]), stop=layer)
            seen = None if computed.mask is None else computed.mask.sum(1).tolist()
            for j, i in enumerate(new):
                rows[i] = computed.h[j] if seen is None else computed.h[j, : seen[j]]
        found = [row for row in rows if row is not None]
        # Joined before rows are kept, which may overwrite others.
        tokens = _together(found)
        for i in new:
            self._rows.put(keys[i], found[i])
        return tokens


def _together(rows: list[Tensor]) -> Tokens:
    """Join states (N_i, D) into one batch, the shorter ones padded and masked."""
    sizes = torch.tensor([len(row) for row in rows])
    if bool((sizes == sizes[0]).all()):
        return Tokens(torch.stack(rows))
    h = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Tokens(h, (torch.arange(h.shape[1]) < sizes[:, None]).to(h.device))


class _Slots:
    """Memory for rows outside the allocator's heap.

    Rows that are kept between the large temporaries of a pass leave holes in the heap that no temporary fits: a run
    lost ten times the memory of its rows.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        self._fresh: dict[tuple[torch.Size, torch.dtype], tuple[Tensor, int]] = {}  # a block, and its first unused slot

    def copy(self, row: Tensor) -> Tensor:
        """A copy of a row, which training may use, too."""
        with torch.inference_mode(False):
            if row.device.type != "cpu":
                return torch.empty_like(row).copy_(row)
            kind = row.shape, row.dtype
            if free := self._free.get(kind):
                return free.pop().copy_(row)
            block, used = self._fresh.get(kind, (row[:0], 0))
            if used == len(block):
                n = max(1, _BLOCK // row.nbytes)
                block = torch.frombuffer(mmap.mmap(-1, n * row.nbytes), dtype=row.dtype).view(n, *row.shape)
                used = 0
            self._fresh[kind] = block, used + 1
            return block[used].copy_(row)

    def release(self, row: Tensor) -> None:
        """Take back a row that is no longer used."""
        if row.device.type == "cpu":
            self._free.setdefault((row.shape, row.dtype), []).append(row)


class _Rows:
    """Rows by key within a budget.

    The dropped row is drawn at random: repeated passes over more images than fit still find some, whereas the oldest
    row would always be the next one needed. A dropped row may be overwritten: use a found one before the next is put.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self._bytes = max_bytes, 0
        self._rows: dict[bytes, Tensor] = {}
        self._keys: list[bytes] = []
        self._draw = random.Random(0)
        self._slots = _Slots()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> Tensor | None:
        return self._rows.get(key)

    def put(self, key: bytes, row: Tensor) -> None:
        """Keep a copy of a row."""
        if key in self._rows:  # the same image twice in one batch
            return
        # An entry also holds its key and the tensor object, roughly 200 bytes.
        while self._rows and self._bytes + row.nbytes + 200 * (len(self._rows) + 1) > self.max_bytes:
            at = self._draw.randrange(len(self._keys))
            self._keys[at], self._keys[-1] = self._keys[-1], self._keys[at]
            old = self._rows.pop(self._keys.pop())
            self._bytes -= old.nbytes
            self._slots.release(old)
        self._rows[key] = self._slots.copy(row)
        self._keys.append(key)
        self._bytes += row.nbytes


class FeatureFile:
    """Rows of features in a file that several processes may append to.

    A record is the key, a CRC-32 of the row, and the row in fp32. A record cut short by a crash, or with a wrong
    checksum, is ignored and computed again.

    Args:
        path: the file, created with its folder if missing.
        dim: width D of a row.

    Raises:
        DataError: if the file cannot be created or read.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self.path, self.dim = path, dim
        self._record = np.dtype([("key", f"V{KEY_BYTES}"), ("crc", "<u4"), ("row", "<f4", (dim,))])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._remap()
        except OSError as error:
            raise DataError(f"cache: {path} cannot be used ({error.strerror}); give another folder.") from None
        self._where = {bytes(key): i for i, key in enumerate(self._map["key"])}

    def __len__(self) -> int:
        """Rows in the file when it was opened, and those appended since."""
        return len(self._where)

    def _remap(self) -> None:
        whole = self.path.stat().st_size // self._record.itemsize
        # Mapped, not read: rows are loaded on access.
        self._map = np.memmap(self.path, self._record, "r", shape=(whole,)) if whole else np.zeros(0, self._record)

    def get(self, key: bytes) -> Tensor | None:
        """Row (D,) of a key, or None where there is no intact one."""
        i = self._where.get(key)
        if i is None:
            return None
        if i >= len(self._map):  # written since the file was mapped
            self._remap()
        record = self._map[i]
        row = np.ascontiguousarray(record["row"])
        return torch.from_numpy(row.copy()) if zlib.crc32(row.tobytes()) == int(record["crc"]) else None

    def append(self, rows: dict[bytes, Tensor]) -> None:
        """Append rows in one write, after whole records only."""
        import fcntl

        parts = []
        for key, row in rows.items():
            data = row.to(torch.float32).numpy().astype("<f4").tobytes()
            parts.append(key + struct.pack("<I", zlib.crc32(data)) + data)
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # A partial record left by a crash would shift all that follow.
            whole = file.seek(0, 2) // self._record.itemsize
            file.seek(whole * self._record.itemsize)
            file.write(b"".join(parts))
        self._where |= {key: whole + i for i, key in enumerate(rows)}


def _identity(backbone: Backbone) -> str:
    """Name of a cache, different wherever features may differ: weights, precision, device and settings."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    place = next(backbone.parameters()).device.type
    digest.update(repr((*backbone.settings(), str(backbone.dtype), place)).encode())
    return digest.hexdigest()[:24]
