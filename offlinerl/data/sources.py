"""What yields blocks of K updates to an agent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from offlinerl.rng import Streams
from offlinerl.types import Batch, Spec, UserError

ACTION_MARGIN = 1e-5
"""Actions are clipped this far inside their bounds, as in the reference IQL and XQL."""


class OfflineData:
    """Uniform minibatches of a fixed table that lies on the training device, packed so that a block is one
    gather.

    Args:
        table: transitions ``[rows, ...]`` in numpy, actions in the environment's units.
        spec: shapes and bounds they must have.
        seeds: S integers; each draws its own rows.
        batch_size: B.
        updates: K, updates a block.
        device: where the table lies.

    Attributes:
        updates_ahead: updates an epoch; its last block may be shorter than the others.

    Raises:
        UserError: the table's shapes are not those of ``spec``.
    """

    def __init__(
        self,
        table: Batch,
        spec: Spec,
        seeds: Sequence[int],
        batch_size: int,
        updates: int = 50,
        device: torch.device | str = "cpu",
    ):
        check_shapes(table, spec)
        self.batch_size, self.updates, self.updates_ahead = batch_size, updates, updates
        self.streams = Streams(seeds, "rows", device)
        low, high = np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32)
        unit = (table.action - (high + low) / 2) / ((high - low) / 2)
        action = np.clip(unit, -1 + ACTION_MARGIN, 1 - ACTION_MARGIN)
        columns = [table.obs, action, table.reward, table.discount, table.next_obs, table.last]
        widths = [1 if column.ndim == 1 else column.shape[1] for column in columns]
        packed = torch.empty(len(table.reward), sum(widths))  # [rows, O + A + 1 + 1 + O + 1]
        for part, column in zip(packed.split(widths, -1), columns, strict=True):
            part.copy_(torch.from_numpy(np.ascontiguousarray(column)).reshape(len(packed), -1))
        self.widths, self.packed = widths, packed.to(device)

    def draw(self, updates: int | None = None) -> Batch:
        """The next block, ``[K, S, B, ...]``."""
        K, S, B = updates or self.updates, len(self.streams.seeds), self.batch_size
        rows = self.streams.integers(len(self.packed), (K, B)).transpose(0, 1)  # [K, S, B]
        block = self.packed.index_select(0, rows.reshape(-1)).view(K, S, B, -1)
        return self.unpack(block)

    def unpack(self, packed: Tensor) -> Batch:
        obs, action, reward, discount, next_obs, last = packed.split(self.widths, -1)
        return Batch(obs, action, reward.squeeze(-1), discount.squeeze(-1), next_obs, last.squeeze(-1))

    def __len__(self) -> int:
        return -(-self.updates_ahead // self.updates)

    def __iter__(self) -> Iterator[Batch]:
        ahead = self.updates_ahead
        while ahead > 0:
            block = min(self.updates, ahead)
            yield self.draw(block)
            ahead -= block

    def state_dict(self) -> dict:
        return self.streams.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.streams.load_state_dict(state)


def check_shapes(table: Batch, spec: Spec) -> None:
    for name, have, want in (
        ("observations", table.obs.shape[1:], (spec.obs_dim,)),
        ("actions", table.action.shape[1:], (spec.action_dim,)),
    ):
        if tuple(have) != want:
            raise UserError(
                f"the dataset's {name} have shape {tuple(have)} and the environment's {want}; name the"
                " environment the data was collected in with --env"
            )
