"""FQE: fitted Q evaluation (Le, Voloshin & Yue, ICML 2019), which estimates a policy's return from a dataset."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent, Config, Noise, setting
from offlinerl.data.dataset import Dataset
from offlinerl.evaluation.off_policy import Estimate
from offlinerl.evaluation.statistics import of_replicates
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table
from offlinerl.learning import losses
from offlinerl.learning.rng import Streams
from offlinerl.nn.critics import ActionValues, Critic
from offlinerl.nn.layers import soft_update
from offlinerl.types import Batch, Metrics, Spec
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, tree_map

ROWS_ACTED_ON = 1 << 12
"""Number of observations for which the target policy computes actions at a time."""

Choice = Callable[[Tree], Tensor]
"""A target policy: maps observations ``[B, ...]`` to actions in units of [-1, 1], ``[B, A]``, or to the probabilities
of discrete actions, ``[B, actions]``."""


@dataclass(frozen=True)
class FQEConfig(Config):
    gamma: float = setting(0.99, "discount factor per step", low=0, high=1)
    tau: float = setting(
        0.05,
        "update rate of the target network; a value propagates one step back in about 1 / tau updates",
        above=0,
        high=1,
    )
    lr: float = setting(3e-4, "Adam's learning rate", above=0)
    hidden: tuple[int, ...] = setting((256, 256), "sizes of the hidden layers")
    layer_norm: bool = setting(True, "LayerNorm in the critic for continuous actions, to prevent divergence")
    decay_steps: int | None = setting(None, "updates over which the learning rate decays to zero along a cosine", low=1)
    scale: float = setting(1.0, "units of reward per unit of the network's output", above=0)


class FQE(Agent):
    """Regresses ``Q(s, a)`` on ``r + gamma E_pi Q'(s', pi(s'))`` (paper, algorithm 3), with a target network Q' as in
    Paine et al., Hyperparameter selection for offline reinforcement learning, 2020, section 3.2.

    In its batches, ``next_action`` is what the target policy does in ``next_obs``; see ``Choice``. Every seed is a
    separate critic.
    """

    config_class = FQEConfig
    discrete = None

    def build(self) -> None:
        config, spec, encoder, init = self.config, self.spec, self.encoder("critic"), self.init_rng("critic")
        if spec.num_actions:
            self.critic: ActionValues | Critic = ActionValues(encoder, spec.num_actions, config.hidden, init)
        else:
            self.critic = Critic(encoder, spec.action_dim, config.hidden, init, 1, layer_norm=config.layer_norm)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return self.adam(self.config.lr, critic=self.critic)

    def before_update(self) -> None:
        self.cosine("critic", self.config.decay_steps)

    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        with torch.no_grad():
            next_q = self.expected(self.target, batch.next_obs, batch.next_action)  # [S, B]
            target = batch.reward / self.config.scale + batch.discount * next_q  # [S, B]
        q = self.q(batch.obs, batch.action)
        loss = self.descend("critic", losses.squared(target - q))
        soft_update(self.target, self.critic, self.config.tau)
        return dict(critic_loss=loss, q=self.config.scale * q.detach().mean(-1))

    def expected(self, critic: ActionValues | Critic, obs: Tree, action: Tensor | None) -> Tensor:
        """Q of actions ``[S, B, A]``, or the mean of Q under the probabilities ``[S, B, actions]`` of discrete actions;
        ``[S, B]`` in units of ``scale``."""
        if self.spec.num_actions:
            return (critic(obs) * action).sum(-1)
        return critic(obs, action).squeeze(1)

    def q(self, obs: Tree, action: Tensor) -> Tensor:
        """Q of actions ``[S, B, A]``, discrete ones given by index; ``[S, B]`` in units of ``scale``."""
        if self.spec.num_actions:
            return self.critic(obs).gather(-1, action.long()).squeeze(-1)
        return self.expected(self.critic, obs, action)

    @torch.no_grad()
    def value(self, obs: Tree, action: Tensor) -> Tensor:
        """V of the target policy by every critic, ``[S, B]`` in units of reward, given observations ``[S, B, ...]`` and
        what the policy does in them; see ``Choice``."""
        return self.config.scale * self.expected(self.critic, obs, action)

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        raise UserError("FQE evaluates a policy and has none of its own: act with that one")


class Followed(Table):
    """The rows of a dataset, where ``next_action`` is what a target policy does in the next observation. Episodes are
    not divided at ``leaps``.

    Args:
        choice: the target policy.
        dataset: see ``Table``, also for the other arguments.

    Attributes:
        first: what the policy does in the first observation of every episode, ``[n, A or actions]``.
    """

    def __init__(self, choice: Choice, dataset: Dataset, spec: Spec, gamma: float, **settings: Any):
        super().__init__(dataset, spec, gamma, **settings)
        self.starts, self.lengths = self.whole
        every = torch.arange(len(self), device=self.numbers.device)
        self.chosen = torch.cat([choice(self.observed(1, rows)) for rows in every.split(ROWS_ACTED_ON)])
        self.first = torch.cat([choice(self.observed(0, rows)) for rows in self.starts.split(ROWS_ACTED_ON)])

    def transitions(self, rows: Tensor) -> Batch:
        return super().transitions(rows)._replace(next_action=self.chosen[rows])


class Resampled(OfflineData):
    """Uniform minibatches from bootstrap resamples. Each seed has its own resample: n of the n episodes, drawn with
    replacement.

    The arguments are those of ``OfflineData``.

    Attributes:
        times: ``[S, n]``, how often each episode is in the resample of a seed.
    """

    def __init__(self, table: Table, seeds: Sequence[int], batch_size: int, updates: int = 50):
        super().__init__(table, seeds, batch_size, updates)
        n = len(table.starts)
        drawn = Streams(seeds, "episodes", table.starts.device).integers(n, (n,))  # [S, n]
        self.times = torch.zeros_like(drawn).scatter_add_(1, drawn, torch.ones_like(drawn))
        self.ends = (self.times * table.lengths).cumsum(-1)  # [S, n] rows of the resample up to each episode's end

    def draw(self, updates: int | None = None) -> Batch:
        numbers = self.streams.integers(2**62, (updates or self.piece, self.batch_size))  # [S, K, B]
        numbers = numbers % self.ends[:, -1, None, None]
        episodes = torch.searchsorted(self.ends, numbers.flatten(1), right=True).view_as(numbers)
        lengths = self.table.lengths[episodes]
        from_end = self.ends.gather(1, episodes.flatten(1)).view_as(numbers) - 1 - numbers
        rows = self.table.starts[episodes] + from_end % lengths
        return self.table.transitions(rows.transpose(0, 1))


def fit_q(
    choice: Choice,
    data: Dataset,
    spec: Spec,
    *,
    critics: int = 5,
    updates: int = 10_000,
    batch: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
    stack: int = 1,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> tuple[FQE, Followed, Resampled]:
    """Train the critics of fitted Q evaluation. Every critic has its own initial weights and its own bootstrap resample
    of the episodes.

    Args:
        choice: the target policy.
        data: n episodes, with the rewards to evaluate by.
        spec: shapes and bounds of the task. The critics see images, even if the agent has a frozen encoder.
        critics: S, at least 2.
        updates: number of gradient steps.
        batch: transitions per gradient step and critic.
        seed: of the first critic; the others have the next integers.
        device: where to compute.
        stack: number of frames in an observation.
        progress: called repeatedly with the number of updates since the last call.
        settings: of ``FQEConfig``. The default of ``scale`` is the root mean square of the data's discounted returns
            from all rows on, and that of ``decay_steps`` is ``updates``.

    Returns:
        The critics, the table that they learned from, and the source that drew their batches.

    Raises:
        UserError: the data's shapes are not those of ``spec``, or a setting is wrong.
    """
    if critics < 2:
        raise UserError(f"an interval needs at least 2 critics, not {critics}")
    settings = dict(decay_steps=updates) | settings
    gamma = settings.setdefault("gamma", FQEConfig.gamma)
    settings.setdefault("scale", typical_return(data, gamma))
    spec = replace(spec, latent=None)
    agent = FQE(spec, range(seed, seed + critics), **settings).to(device)
    if agent.config.normalize:
        agent.normalize_by(data.moments)
    agent.configure_optimizers()
    table = Followed(choice, data, spec, gamma, device=device, stack=stack)
    source = Resampled(table, agent.seeds, batch)
    for block in source.blocks(updates):
        agent.learn(block)  # type: ignore[arg-type]  # a block of transitions
        if progress:
            progress(len(block.reward))
    return agent, table, source


def fitted_q_evaluation(choice: Choice, data: Dataset, spec: Spec, **fitting: Any) -> Estimate:
    """Estimate the expected discounted return of a policy from a dataset of other policies: the mean of ``Q(s, pi(s))``
    over the first observations of the episodes.

    Every critic has its own resample of the episodes, for training and for the mean, so that the interval is a
    bootstrap interval (Efron & Tibshirani, 1993; Hao et al., Bootstrapping fitted Q-evaluation for off-policy
    inference, ICML 2021). It does not include errors that all critics share, such as those from actions that the
    dataset never takes.

    The arguments, and what is raised, are those of ``fit_q``.
    """
    agent, table, source = fit_q(choice, data, spec, **fitting)
    critics = len(agent.seeds)
    totals = torch.zeros(critics, device=table.starts.device)
    for rows, action, times in zip(
        table.starts.split(ROWS_ACTED_ON), table.first.split(ROWS_ACTED_ON), source.times.split(ROWS_ACTED_ON, 1),
        strict=True,
    ):  # fmt: skip
        obs, action = tree_map(lambda x: x.expand(critics, *x.shape), (table.observed(0, rows), action))
        totals += (times * agent.value(obs, action)).sum(-1)
    return Estimate(*of_replicates((totals / len(table.starts)).cpu().numpy()))


def typical_return(data: Dataset, gamma: float) -> float:
    """Root mean square of the discounted returns from all rows to the ends of their episodes, or to an earlier terminal
    step; 1 if all are 0."""
    reward, ends = (torch.from_numpy(np.array(column)) for column in (data.reward, data.last | data.terminated))
    returns = losses.accumulate(reward.double(), gamma * (~ends).double())
    return float(returns.square().mean().sqrt()) or 1.0


def first_seed(agent: Agent) -> Agent:
    """An agent with only the first of the agent's seeds."""
    return agent.part(slice(0, 1)) if len(agent.seeds) > 1 else agent


@torch.no_grad()
def has_diverged(agent: Agent) -> bool:
    """Whether the actions of an agent's first seed are not finite."""
    agent = first_seed(agent)
    return not agent.act(tree_map(lambda x: x.unsqueeze(0), _observations(agent))).isfinite().all()


def _observations(agent: Agent) -> Tree:
    """Random observations with the task's shapes, ``[4, ...]``."""
    g = torch.Generator().manual_seed(0)
    parts = {
        leaf.path: (64 * torch.rand(4, *leaf.shape, generator=g)).to(agent.device, getattr(torch, leaf.dtype))
        for leaf in agent.spec.obs
    }
    return parts.get("", parts)


def choice_of(agent: Agent) -> Choice:
    """The policy of an agent's first seed, without exploration, as a target policy of fitted Q evaluation.

    Raises:
        UserError: the policy depends on earlier steps of the episode, which a Q function of observations cannot.
    """
    agent = first_seed(agent)
    spec = agent.spec

    @torch.no_grad()
    def choose(obs: Tree) -> Tensor:
        action = agent.act(tree_map(lambda x: x.unsqueeze(0), obs))[0]  # [B, A]
        if spec.num_actions:
            return torch.nn.functional.one_hot(action[:, 0].long(), spec.num_actions).float()
        return agent.in_unit(action)

    some = _observations(agent)
    if not torch.equal(choose(some), choose(some)):
        raise UserError(
            f"{type(agent).__name__} acts by what it remembers of the episode, which fitted Q evaluation cannot model;"
            " rank it by acting, with --episodes"
        )
    return choose
