"""Checksums by which a run recognises its dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from offlinerl.data.columns import blocks, let_go
from offlinerl.data.dataset import Dataset
from offlinerl.util.trees import tree_leaves

ROWS_HASHED = 1 << 12
"""Number of rows that a checksum copies at a time."""


def contents_of(raw: Dataset) -> dict[str, Any]:
    """The size of a dataset and a checksum of its contents, which does not depend on its file's name."""
    digest = hashlib.sha256()
    for _, leaf in tree_leaves(raw.observations):  # a block of rows at a time
        digest.update(f"{leaf.dtype} {(len(raw), *leaf.shape[1:])}".encode())
        for places in blocks(raw.at, ROWS_HASHED):
            digest.update(np.ascontiguousarray(leaf[places]))
            let_go(leaf)
    for column in (raw.action, raw.reward, raw.terminated, raw.last):
        digest.update(f"{column.dtype} {column.shape}".encode())
        for block in blocks(column):
            digest.update(np.ascontiguousarray(block))
    return dict(rows=len(raw), episodes=len(raw.episode_starts), sha256=digest.hexdigest())


def checksums_of(raw: Dataset, contents: Mapping[str, Any]) -> dict[str, str]:
    """The checksums in a run's section ``fit`` by which it recognises its dataset; ``contents`` is ``contents_of``."""
    return dict(fingerprint=contents["sha256"], successors=checksum_of_successors(raw))


def is_of(about: Mapping[str, Any], checksums: Mapping[str, str]) -> bool:
    """Whether a run's section ``fit`` has these ``fingerprint`` and ``successors`` of a dataset, or lacks them, because
    older versions stored one or none."""
    return all(about.get(name, digest) == digest for name, digest in checksums.items())


def checksum_of_successors(raw: Dataset) -> str:
    """A checksum of the next observations that are not the next row's observation and so are not covered by
    ``contents_of``, and of the numbers of their rows. Those that equal their own row's observation are left out, so
    that the result does not depend on the dataset's memory layout."""
    digest, leaves = hashlib.sha256(), [leaf for _, leaf in tree_leaves(raw.observations)]
    first = 0
    for at, successor in zip(blocks(raw.at, ROWS_HASHED, more=1), blocks(raw.next_at, ROWS_HASHED), strict=True):
        own, following = at[: len(successor)], np.append(at[1:], -1)[: len(successor)]
        rows = np.flatnonzero((successor != own) & (successor != following))
        pairs = [(leaf[own[rows]], leaf[successor[rows]]) for leaf in leaves]
        moved = np.any([(obs != next_obs).any(tuple(range(1, obs.ndim))) for obs, next_obs in pairs], 0)
        digest.update(first + rows[moved])
        for leaf, (_, next_obs) in zip(leaves, pairs, strict=True):
            digest.update(np.ascontiguousarray(next_obs[moved]))
            let_go(leaf)
        first += len(successor)
    return digest.hexdigest()
