"""A dataset on the training device, from which blocks are gathered."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from offlinerl.data.dataset import Dataset, n_step_sums
from offlinerl.types import Batch, Spec
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, tree_leaves, tree_map

ACTION_MARGIN = 1e-5
"""Actions are clipped this far inside their bounds, as in the reference IQL and XQL."""


class Table:
    """The transitions of a dataset. Every observation lies there once, in its own dtype, and a row knows where its own
    and its successor are; the numbers of a row lie side by side, so that one gather brings them all.

    Args:
        dataset: with actions in the environment's units.
        spec: shapes and bounds they must have.
        gamma: discount of one step.
        n_step: rewards summed, at most.
        device: where the table lies.

    Attributes:
        observations: a tree of ``[M, ...]``.
        starts: ``[episodes]`` the first row of each.
        lengths: ``[episodes]`` rows of each.

    Raises:
        UserError: the dataset's shapes are not those of ``spec``.
    """

    def __init__(self, dataset: Dataset, spec: Spec, gamma: float, n_step: int = 1, device: torch.device | str = "cpu"):
        require_shapes(dataset, spec)
        reward, discount, tail = n_step_sums(dataset.reward, dataset.terminated, dataset.last, gamma, n_step)
        action = spec.in_unit(dataset.action) if spec.num_actions else in_unit(dataset.action, spec)
        last = (dataset.last | dataset.terminated)[tail]
        numbers = np.concatenate(
            [action, *(column[:, None] for column in (reward, discount, last))], 1, dtype=np.float32
        )
        self.observations = tree_map(lambda leaf: torch.from_numpy(leaf).to(device), dataset.observations)
        self.numbers = torch.from_numpy(numbers).to(device)  # [rows, A + 3]
        self.widths = [action.shape[1], 1, 1, 1]
        places = np.stack([dataset.at, dataset.next_at[tail]])
        self.places = torch.from_numpy(places).to(device)  # [2, rows]
        self.starts, self.lengths = dataset.episode_starts, dataset.episode_lengths

    def __len__(self) -> int:
        """Transitions."""
        return len(self.numbers)

    def transitions(self, rows: Tensor) -> Batch:
        """The rows of those numbers, ``[...]``: fields ``[..., ...]``."""
        flat = rows.reshape(-1)
        numbers = self.numbers.index_select(0, flat).view(*rows.shape, sum(self.widths))
        action, reward, discount, last = numbers.split(self.widths, -1)
        obs, next_obs = (self.observed(place.index_select(0, flat), rows.shape) for place in self.places)
        return Batch(obs, action, reward.squeeze(-1), discount.squeeze(-1), next_obs, last.squeeze(-1))

    def observed(self, places: Tensor, shape: torch.Size) -> Tree:
        """The observations at those places ``[n]``, as ``[*shape, ...]``."""
        return tree_map(lambda leaf: leaf.index_select(0, places).view(*shape, *leaf.shape[1:]), self.observations)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(leaf.nbytes for _, leaf in tree_leaves((self.observations, self.numbers, self.places)))


def in_unit(action: np.ndarray, spec: Spec) -> np.ndarray:
    """Actions of the environment in units of [-1, 1], clipped a little inside."""
    return np.clip(spec.in_unit(action), -1 + ACTION_MARGIN, 1 - ACTION_MARGIN)


def entries_outside(action: np.ndarray, spec: Spec) -> int:
    """How many entries of continuous actions ``[rows, A]`` lie outside the bounds, beyond what rounding does."""
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    slack = ACTION_MARGIN * np.maximum(high - low, np.maximum(abs(low), abs(high)))
    return int(((action < low - slack) | (action > high + slack)).sum())


def require_shapes(dataset: Dataset, spec: Spec) -> None:
    """Raises a UserError if rows do not have the task's shapes, or hold a discrete action that it does not have."""
    shapes = {leaf.path: leaf.shape for leaf in spec.obs}
    observed = tree_map(lambda leaf: leaf.shape[1:], dataset.observations)
    for name, have, want in (
        ("observations", observed, shapes.get("", shapes)),
        ("actions", dataset.action.shape[1:], (spec.action_dim,)),
    ):
        if have != want:
            raise UserError(
                f"the dataset's {name} have shape {have} and the environment's {want}; name the"
                " environment the data was collected in with --env"
            )
    if spec.num_actions:
        action = spec.in_unit(dataset.action)
        wrong = np.flatnonzero((action != np.floor(action)) | (action < 0) | (action >= spec.num_actions))
        if len(wrong):
            first, final = spec.first_action, spec.first_action + spec.num_actions - 1
            raise UserError(
                f"the action in row {wrong[0]} of the dataset is {dataset.action[wrong[0], 0]:g}, and the environment"
                f" has those from {first} to {final}; repair or remove it"
            )
