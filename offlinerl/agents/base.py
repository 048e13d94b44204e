"""The interface of all algorithms: a LightningModule whose parameters have a leading axis of seeds."""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

import offlinerl
from offlinerl.learning import augmentation, densities
from offlinerl.learning.compile import Step, capture, put_back, signature
from offlinerl.learning.optim import Adam, clip_norm
from offlinerl.learning.parallel import mean_over_processes, reduce_over_processes
from offlinerl.learning.rng import EnvStreams, Streams, generator
from offlinerl.learning.seeds import Number
from offlinerl.nn.encoders import LAYERS, Encoder, Frozen, Images, Latents, Normalized, encoder_of
from offlinerl.types import Batch, Metrics, Spec
from offlinerl.util.errors import UserError
from offlinerl.util.settings import Config as BaseConfig
from offlinerl.util.settings import (
    fixed,
    make,
    members,
    named,
    plain,
    series_of,
    setting,
    settings_of,
    typed,
    values_of,
)
from offlinerl.util.trees import Tree, first_leaf, tree_map

__all__ = ["Agent", "Config", "Noise", "fixed", "setting"]

torch.serialization.add_safe_globals([Spec])  # checkpoints hold one and are read with weights_only=True

Noise = dict[str, Any]
"""The random numbers of one update: trees of tensors ``[S, ...]``."""


class Blocks(Protocol):
    """An iterable of blocks ``[K, S, B, ...]`` to learn from. It makes a block after the agent has learned from the
    one before."""

    learned: Callable[[Tensor | None], None]
    """Call it after each block with the priorities of the block's rows, or None."""

    def __iter__(self) -> Iterator[Batch]: ...


OF_KIND = dict(discrete="bc, iql, xql, discrete_cql and dqn", continuous="bc, iql, xql, td3 and sac")

CPU_ROWS = 1280
"""The most rows, S times B, that a CPU trains at once. Measured on cores with 1 MiB of L2 cache: with more rows, each
row takes longer."""


COLUMNS = (
    "update", "step", "seed", "updates_per_second", "steps_per_second", "episode_return", "episode_length",
)  # fmt: skip
"""Columns that every run's ``metrics.csv`` may have, besides ``agent.SETTING``; no metric may have such a name."""


@dataclass(frozen=True)
class Config(BaseConfig):
    """The settings of every agent."""

    normalize: bool = setting(
        False, "normalise vector observations by the mean and standard deviation of every dimension in the dataset"
    )
    convolutions: str = setting(
        "nature", "convolutional layers for images", choices=("nature", "sac_ae", "minatar", "world_models")
    )
    encoder: str | None = setting(
        None, "run or checkpoint of a vae, whose latents replace images as input; it is not trained further"
    )
    shift: int = setting(0, "maximum random shift of images in training, in pixels (Yarats et al., 2022)", low=0)


class Agent(L.LightningModule, ABC):
    """The base class. An algorithm defines its settings, ``build``, ``act``, ``update`` and ``configure_optimizers``,
    and ``draw`` if its update needs random numbers.

    It knows nothing of environments, loggers or devices. ``update`` depends only on its arguments, which include the
    random numbers, and on the parameters, so that it can be compiled, resumed and tested.

    Args:
        spec: shapes and bounds of the task, or the mapping that a checkpoint stores for them.
        seeds: distinct integers.
        settings: by name, those of ``config_class``. Where a setting has several values, every seed is trained with
            each of them.

    Attributes:
        config: the settings; one with several values is a tensor ``[S, 1]``, one value per member.
        members: for every slice of the leading axis, its seed and its value of every setting that has several; see
            ``offlinerl.util.settings.members``.
        seeds: the members' seeds, S integers.
        n_step: number of rewards in an n-step return.
        updates: gradient steps taken.
        offline_updates: those taken before the first environment step.
        steps: environment steps that each seed has collected to learn from; the source of the data counts them.
        task: what evaluation needs to know about the task, as plain data; saved with the checkpoint.
        compile: whether ``learn`` compiles ``update``.
        compiling: whether it is compiling right now, which takes about a minute.
        precision: "float32" or "bf16", of the matrix products in an update; parameters, optimiser moments and acting
            are float32.
        processes: world size, the number of processes that train it data parallel.
        stack: the slice of the seeds that it trains: all of them, except in a ``part``.
        metrics: the latest value of each metric, averaged over a block, ``[S]``.
        reports: whether ``training_step`` reports the metrics; a run, which records them itself, sets it to False.

    Raises:
        UserError: the algorithm does not support the task's kind of actions, or a setting is wrong.
    """

    config_class: type[BaseConfig] = Config
    """The dataclass of the algorithm's settings."""
    config: Any
    period = 1
    """Number of updates after which the pattern of ``update`` repeats (for TD3, the policy delay)."""
    kinds = ("transitions",)
    """The kinds of batch it can learn from: "transitions" ``[S, B, ...]`` of any policy; "windows" of T steps, T being
    the setting ``context``, or whole "episodes", both ``[S, B, T, ...]``; "rollouts" ``[S, E, T, ...]`` of its current
    policy; or, for an agent without a policy, "observations", which are transitions of single frames. The user's flags
    decide which of them it gets."""
    next_actions = False
    """Whether its batches must hold the dataset's next actions."""
    returns_to_go: str | None = None
    """The returns to go that its batches must hold, if any: "finite", the discounted sum of the rewards to the end of
    the episode; or "infinite", in which the last reward of a truncated episode repeats forever."""
    divisible = True
    """Whether a batch may be split over processes; False where the weight of a row depends on all other rows."""
    judged_by: str | None = None
    """The metric whose value on held-out data says how good its policy is, or what else it trains: without an
    environment, the checkpoint with the lowest is kept as the best. None: no metric does."""
    discrete: bool | None = False
    """Whether its actions are discrete rather than vectors; None: it supports both."""

    def __init__(self, spec: Spec | Mapping[str, Any], seeds: Sequence[int] = (0,), **settings: Any):
        super().__init__()
        if isinstance(spec, Mapping):
            spec = Spec(**{key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()})
        name = type(self).__name__
        if not isinstance(spec, Spec):
            raise UserError(
                f"{name} is made for a Spec, the shapes of a task, and not for {spec!r:.40}: offlinerl.fit trains it on"
                " a dataset or in an environment"
            )
        if self.discrete not in (None, bool(spec.num_actions)):
            others = "discrete" if spec.num_actions else "continuous"
            raise UserError(f"{name} does not support {others} actions; agents that do are {OF_KIND[others]}")
        self.automatic_optimization = False
        self.spec, seeds = spec, [*map(int, seeds)]
        self.config = make(self.config_class, settings, f"{name} has no setting")
        if getattr(self.config, "decay_steps", None) == "updates":
            raise UserError(
                f"{name} needs decay_steps as a number; `updates` only works in a run, which knows its length"
            )
        self.save_hyperparameters(dict(spec=json.loads(json.dumps(asdict(spec))), seeds=seeds, **plain(self.config)))
        self.members = members(seeds, self.config)
        self.seeds = tuple(member["seed"] for member in self.members)
        self.n_step = getattr(self.config, "n_step", 1)
        self.updates = self.offline_updates = self.steps = 0
        self.task: dict[str, Any] = {}
        self.compile, self.compiling, self.precision, self.processes = False, False, "float32", 1
        self.stack = slice(None)
        self.metrics: Metrics = {}
        self.reports = True
        self.optim: dict[str, Adam] = {}
        self.rng = Streams(self.seeds, "update")
        self.explore_rng = EnvStreams(self.seeds, (0,), "explore")
        self._parts: list[Agent] = []
        self._steps: dict[tuple, list[Step]] = {}
        self._checked: set[int] = set()  # the kinds of update whose metrics were checked
        self.frozen = self._frozen()
        self._kept: tuple[Tree, Tree] = None, None
        self.register_buffer("action_mid", torch.from_numpy(spec.action_mid), persistent=False)
        self.register_buffer("action_half", torch.from_numpy(spec.action_half), persistent=False)
        self._set_values()
        self.build()

    # What an algorithm defines

    def build(self) -> None:
        """Create the networks and any other state, from ``config``, ``spec`` and ``seeds``."""

    @abstractmethod
    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        """Actions in the environment's units: ``[S, E, O] -> [S, E, A]``; a discrete action is its index, A = 1."""

    @abstractmethod
    def update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        """One gradient step for every seed.

        Args:
            batch: ``[S, B, ...]``, with actions scaled to [-1, 1].
            noise: what ``draw`` returned for this update.
            k: what ``phase`` returned for this update.

        Returns:
            Metrics, ``[S]`` each, and perhaps "priority", ``[S, B]``, for a prioritised replay buffer.
        """

    def draw(self, batch_size: int) -> Noise:
        """The random numbers of one update; none by default."""
        return {}

    def log_prob(self, obs: Tree, action: Tensor, explore: bool = False) -> Tensor | None:
        """Log-probabilities of discrete actions, or log-densities of action vectors in the environment's units,
        ``[S, E, O], [S, E, A] -> [S, E]`` float64; see ``offlinerl.learning.densities``. None, the default, if unknown.

        Args:
            obs: observations.
            action: as ``act`` returns them, within the bounds.
            explore: True: under the distribution that ``act`` samples from when it explores. False: under the policy
                itself, as a distribution even where ``act`` takes its most likely action. The result is None where
                the policy is deterministic.
        """
        return None

    def phase(self) -> int:
        """The kind of the next update; by default its index within ``period``."""
        return self.updates % self.period

    # What the base class provides

    @property
    def progress(self) -> int:
        """The count of exploration schedules: environment steps, after the updates on a dataset if there were any."""
        return self.offline_updates + self.steps

    @property
    def gamma(self) -> Number:
        """Discount factor per step. Like ``n_step``, it is applied where transitions are built."""
        return getattr(self.config, "gamma", 0.99)

    def init_rng(self, network: str) -> list[torch.Generator]:
        """S random generators for the initial weights of one network."""
        return [generator(seed, f"init {network}") for seed in self.seeds]

    def encoder(self, network: str) -> Encoder:
        """The encoder of one network, from observations to features; an algorithm may use another."""
        if self.frozen is not None:
            return Latents(self.frozen, self.spec.obs[0].shape[-1] // self.frozen.shape[-1])
        rng = self.init_rng(f"{network} encoder")
        layers = LAYERS[getattr(self.config, "convolutions", "nature")]
        return encoder_of(self.spec, rng, getattr(self.config, "normalize", False), layers)

    def _frozen(self) -> Frozen | None:
        """The pretrained encoder that ``spec`` describes, or None."""
        if (self.spec.latent is None) != (getattr(self.config, "encoder", None) is None):
            raise UserError("encoder only works in a run, which reads it; for an agent made by hand, set Spec.latent")
        if self.spec.latent is None:
            return None
        if getattr(self.config, "shift", 0):
            raise UserError("shift moves images, but the agent learns from an encoder's latents: give --agent.shift 0")
        layers, latents, channels = self.spec.latent
        return Frozen((*self.spec.obs[0].shape[:2], channels), latents, layers)

    @property
    def kept_spec(self) -> Spec:
        """The spec of the observations that replay buffers and tables store: latents instead of images where there is
        a frozen encoder."""
        if self.frozen is None:
            return self.spec
        features = self.spec.obs[0].shape[-1] // self.frozen.shape[-1] * self.frozen.latents
        return replace(self.spec, obs=features, latent=None)

    def kept(self, obs: Tree) -> Tree:
        """What replay buffers and tables store for observations ``[..., H, W, C]``, as numpy arrays: the latents if
        there is a frozen encoder. The latest result is cached."""
        if self.frozen is None:
            return obs
        if obs is not self._kept[0]:
            self._kept = obs, self.frozen(torch.from_numpy(obs).to(self.device)).cpu().numpy()
        return self._kept[1]

    def normalize_by(self, moments: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Set the statistics that ``Normalized`` encoders shift and scale vectors by; checkpoints contain them.

        Args:
            moments: mean and standard deviation ``[O]`` of every vector, by its path, as ``Dataset.moments`` has them.

        Raises:
            UserError: there are moments, but none of the agent's encoders is a ``Normalized``.
        """
        encoders = [module for module in self.modules() if isinstance(module, Normalized)]
        if moments and not encoders:
            raise UserError(
                f"the encoders of {type(self).__name__} do not normalise: leave out normalize, or use a"
                " Normalized of offlinerl.nn.encoders for every vector"
            )
        for encoder in encoders:
            encoder.set(*moments[encoder.path])

    def adam(self, lr: Number | Mapping[str, Number], eps: float = 1e-8, **modules: nn.Module) -> list[Adam]:
        """One optimiser for each named group of parameters, for ``configure_optimizers`` to return.

        A trainer calls that method again before it fits: optimisers that exist, perhaps restored from a checkpoint, are
        kept. A subclass may add groups of its own.

        Args:
            lr: learning rate, one for all groups or by name.
            eps: see ``Adam``.
        """
        rates = lr if isinstance(lr, Mapping) else dict.fromkeys(modules, lr)
        for name, module in modules.items():
            if name not in self.optim:
                self.optim[name] = Adam(module.parameters(), self._exactly(rates[name]), eps=eps)
        return [self.optim[name] for name in modules]

    def _exactly(self, number: Number) -> float | list[float]:
        """The exact values of a setting with several values, which its float32 tensor may have rounded."""
        for name, values in self._values().items():
            if values is number:
                return [member[name] for member in self.members]
        return number.flatten().tolist() if isinstance(number, Tensor) else number

    def descend(self, name: str, loss: Tensor, max_norm: float | None = None) -> Tensor:
        """One gradient step of a group on its loss.

        The loss is averaged over B and summed over critics and seeds: with a mean over seeds, each seed's step
        size would depend on the number of seeds.

        Args:
            name: the group, as named in ``adam``.
            loss: per-sample loss, ``[S, B]`` or ``[S, N, B]``.
            max_norm: the norm that each seed's gradient is clipped to. None: no limit.

        Returns:
            The loss of every seed, ``[S]``, without gradient.
        """
        return self.descend_together({name: loss}, max_norm)[name]

    def descend_together(self, losses: Mapping[str, Tensor], max_norm: float | None = None) -> dict[str, Tensor]:
        """One gradient step of several groups, each on its own loss; ``max_norm`` bounds the joint norm of a seed's
        gradients."""
        found: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        for name, loss in losses.items():
            if name not in self.optim:
                known = ", ".join(self.optim) or "none"
                raise UserError(
                    f"{type(self).__name__} descends {name!r}, but its configure_optimizers names other groups: {known}"
                )
            found[name] = loss.mean(-1).flatten(1).sum(-1) if loss.ndim > 2 else loss.mean(-1)  # [S]
            gradients += torch.autograd.grad(found[name].sum(), self.optim[name].parameters)
        if self.processes > 1:
            gradients = mean_over_processes(gradients, self.processes)
        if max_norm is not None:
            gradients = clip_norm(gradients, max_norm)
        remaining = iter(gradients)
        for name in losses:
            self.optim[name].descend([next(remaining) for _ in self.optim[name].parameters])
        return {name: loss.detach() for name, loss in found.items()}

    def mean_of_all(self, x: Tensor) -> Tensor:
        """The mean of a tensor over all processes, without gradient; with one process, the tensor itself."""
        return x if self.processes == 1 else mean_over_processes([x], self.processes)[0]

    def largest_of_all(self, x: Tensor) -> Tensor:
        """The maximum of every entry over all processes, without gradient; with one process, the tensor itself."""
        return x if self.processes == 1 else reduce_over_processes(x, "max")

    def weighted(self, batch: Batch, loss: Tensor) -> Tensor:
        """A loss ``[S, B]`` or ``[S, N, B]`` times the importance weights of a batch from a prioritised replay."""
        if batch.weight is None:
            return loss
        return loss * (batch.weight if loss.ndim == 2 else batch.weight.unsqueeze(1))

    def to_env(self, action: Tensor) -> Tensor:
        """Scale actions from [-1, 1] to the environment's bounds; a discrete action stays its index."""
        return action if self.spec.num_actions else self.action_mid + self.action_half * action

    def in_unit(self, action: Tensor) -> Tensor:
        """Scale the environment's actions to [-1, 1], as the environment takes them after rounding and clipping."""
        taken = action.round() if self.spec.whole else action
        return ((taken - self.action_mid) / torch.where(self.action_half > 0, self.action_half, 1.0)).clamp(-1, 1)

    def clipped_normal(self, action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """``log_prob`` under a Normal, in units of [-1, 1], whose samples are clipped: ``[S, E, A] -> [S, E]``."""
        return densities.clipped_normal(action, self.to_env(mean), self.action_half * std, *self.bounds)

    def log_prob_under(self, policy: Any, action: Tensor) -> Tensor:
        """``log_prob`` under a distribution: a categorical one, or a Normal whose samples are clipped."""
        if self.spec.num_actions:
            return policy.log_prob(action).double()
        return self.clipped_normal(action, policy.mean, policy.stddev)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lower and the upper bounds of actions, ``[A]`` each, in the environment's units."""
        return self.action_mid - self.action_half, self.action_mid + self.action_half

    def member(self, seed: int | None = None, **values: float) -> int:
        """The index on the leading axis of the first member with this seed and these values.

        Raises:
            UserError: there is no such member.
        """
        config, own = self.config_class, settings_of(self.config_class)
        asked: dict[str, Any] = {} if seed is None else dict(seed=seed)
        asked |= {name: typed(config, name, value) if name in own else value for name, value in values.items()}
        for s, member in enumerate(self.members):
            if all(member.get(name) == value for name, value in asked.items()):
                return s
        raise UserError(
            f"there is no policy of {named(asked)}; there are those of {'; '.join(map(named, self.members))}"
        )

    def share_batches(self, processes: int, rank: int = 0) -> None:
        """Train data parallel from now on: all processes hold the same weights, each is given a part of every batch,
        and they step by the mean of their gradients. A torch process group must exist.

        Args:
            processes: the world size; 1 to train alone again.
            rank: of this process; every rank draws its own random numbers.
        """
        self.processes = processes
        if rank:
            self.rng = Streams(self.seeds, "update", rank=rank)
        self._forget_parts()

    # Exploring

    def explore_in(self, lanes: Sequence[int]) -> None:
        """Act in these E environments of every seed from now on, in new episodes. All state that acting changes is
        created anew here; the previous objects are not modified."""
        self.explore_rng = EnvStreams(self.seeds, lanes, "explore")

    def acting_in(self, lanes: Sequence[int]) -> Agent:
        """An agent that shares this one's parameters in memory and acts in other environments, without changing the
        state of this one's acting."""
        other = copy.copy(self)
        other.explore_in(lanes)
        return other

    def begin(self, where: np.ndarray, episodes: np.ndarray) -> None:
        """Called before ``act`` when episodes begin.

        Args:
            where: ``[S, E]`` bool, True where an episode begins.
            episodes: ``[S, E]``, the episodes' numbers, counted from 0 in every environment.
        """
        if where.shape[1] != len(self.explore_rng.lanes):
            self.explore_in(range(where.shape[1]))
        self.explore_rng.begin(where, episodes)

    def receive(self, reward: np.ndarray) -> None:
        """Called after each step with the environment's rewards ``[S, E]`` for the latest actions."""

    def exploring(self, obs: Tensor) -> EnvStreams:
        """The random streams to explore with, given observations ``[S, E, O]``."""
        if len(self.explore_rng.lanes) != (lanes := first_leaf(obs).shape[1]):
            self.explore_in(range(lanes))
        return self.explore_rng

    # The training loop

    def before_update(self) -> None:
        """Called before every update, outside the compiled graph; schedules go here."""

    def cosine(self, name: str, steps: int | None, hold: float = 0.0) -> None:
        """Anneal a group's learning rate to zero by a cosine over ``steps`` updates; None: leave it constant. For the
        first ``hold`` of them, a fraction below 1, it stays constant."""
        if steps:
            gone = (min(self.updates / steps, 1.0) - hold) / (1 - hold)
            self.optim[name].anneal(0.5 * (1 + math.cos(math.pi * max(gone, 0.0))))

    def linear(self, steps: int | None) -> None:
        """Anneal the learning rates of all groups linearly to zero over ``steps`` environment steps; None: leave them
        constant."""
        if steps:
            for optimizer in self.optim.values():
                optimizer.anneal(max(0.0, 1 - self.steps / steps))

    def learn(self, block: Batch) -> tuple[Metrics, Tensor | None]:
        """Make K updates, one for each batch of a block ``[K, S, B, ...]``.

        Returns:
            The mean of each metric over those updates of the block that returned it; and the new priorities
            ``[K, S, B]`` of the block's rows, or None if ``update`` returns none or the rows have no weights.
        """
        self.prepare()
        updates, _, batch_size = block.action.shape[:3]
        if updates and not self._parts:
            self._parts = [self.part(seeds) for seeds in self.division(batch_size)]
            self._require_no_buffers()
        self.rng.to(self.device).ahead(updates if self.device.type == "cuda" else 1)
        found: dict[str, list[Tensor]] = {}
        for k in range(updates):
            self.before_update()
            batch = tree_map(lambda x, k=k: x[k], block)
            noise = self.draw(batch_size)
            if (shift := getattr(self.config, "shift", 0)) and self.spec.has_images:
                noise = dict(noise, shift=augmentation.offsets(self.rng, batch_size, shift))
            for name, value in self._step(batch, noise, self.phase()).items():
                found.setdefault(name, []).append(value)
            self.updates += 1
            if not self.steps:
                self.offline_updates = self.updates
        priority = torch.stack(found.pop("priority")) if "priority" in found else None
        means = {name: torch.stack(values).mean(0) if updates > 1 else values[0] for name, values in found.items()}
        return means, priority

    def measure(self, batch: Batch) -> Metrics:
        """The metrics of an update on a batch ``[S, B, ...]``, by the current networks and without dropout or random
        shifts of images. Algorithms do not expose their losses as functions, so an update is made, with learning rates
        of 0 because later losses may depend on earlier steps, and everything that it changed is restored."""
        self.prepare()
        batch_size = batch.action.shape[1]
        self.rng.to(self.device).ahead(1)
        noise = {name: drawn for name, drawn in self.draw(batch_size).items() if name != "dropout"}
        with put_back(self.trained_tensors()):
            for optimizer in self.optim.values():
                optimizer.anneal(0.0)
            return {name: value.clone() for name, value in self._update(batch, noise, self.phase()).items()}

    def prepare(self) -> None:
        """Make the optimisers, if there are none yet."""
        if not self.optim:
            self.configure_optimizers()

    def _step(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        given = {name: column for name, column in batch._asdict().items() if column is not None}
        inputs, tree = tree_flatten((given, noise))
        whole = len(self._parts) == 1
        pieces = [inputs] if whole else [[x[part.stack] for x in inputs] for part in self._parts]
        key = (self.compile, k, signature(pieces[0]))
        if key not in self._steps:
            steps = [_of_leaves(partial(part._update, k=k), type(batch), tree) for part in self._parts]
            if self.compile:
                self.compiling = True
                try:
                    steps = capture(steps, pieces[0], [part.trained_tensors() for part in self._parts])
                finally:
                    self.compiling = False
            self._steps[key] = steps
        done = [step(*piece) for step, piece in zip(self._steps[key], pieces, strict=True)]
        return done[0] if whole else {name: torch.cat([metrics[name] for metrics in done]) for name in done[0]}

    def _update(self, batch: Batch, noise: Noise, k: int) -> Metrics:
        """``update``, on randomly shifted images and in bf16 where the settings say so."""
        if "shift" in noise:
            noise = dict(noise)
            batch = augmentation.shifted(batch, noise.pop("shift"), self.spec)
        rounding: AbstractContextManager[Any] = nullcontext()
        if self.precision != "float32":  # no cache: weights change within an update, so rounded copies become stale
            rounding = torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        with rounding:
            metrics = self._checked_metrics(self.update(batch, noise, k), k)
        if getattr(batch, "weight", None) is None:  # rows are drawn uniformly
            metrics = {name: value for name, value in metrics.items() if name != "priority"}
        exact = torch.float32, torch.float64
        return {name: value if value.dtype in exact else value.float() for name, value in metrics.items()}

    def _checked_metrics(self, metrics: Metrics, k: int) -> Metrics:
        """Return what ``update`` returned, and check it the first time for each kind of update.

        Raises:
            UserError: it is not a dictionary of metrics of the right shapes, or a metric has a reserved name.
        """
        if k in self._checked:
            return metrics
        where, S = f"{type(self).__name__}.update", len(self.seeds)
        if not isinstance(metrics, Mapping):
            raise UserError(f"{where} returns {type(metrics).__name__}; return a dictionary of metrics")
        for name, value in metrics.items():
            if name in COLUMNS or name.startswith("agent."):
                raise UserError(f"{where} returns a metric {name}, which is a column of metrics.csv already: rename it")
            if not isinstance(value, Tensor):
                raise UserError(
                    f"{where} returns {type(value).__name__} as {name}; return a tensor with one number per seed"
                )
            rows = name == "priority"
            want = f"[{S}, B], one number per row" if rows else f"[{S}], one number per seed"
            if value.ndim != 1 + rows or value.shape[0] != S:
                raise UserError(f"{where} returns {name} of shape {[*value.shape]}; return {want}")
        self._checked.add(k)
        return metrics

    def lay_out(self, channels_last: bool) -> None:
        """Set the memory format of all convolutions, channels last or contiguous; see ``Images``."""
        for module in self.modules():
            if isinstance(module, Images):
                module.channels_last = channels_last

    def division(self, batch_size: int) -> list[slice]:
        """Split the seeds into groups that are updated together, one group after another.

        A GPU updates all at once, since kernel launches are its bottleneck. A CPU takes groups so small that the
        activations of a layer fit its cache.
        """
        S = len(self.seeds)
        rows = CPU_ROWS if self.device.type == "cpu" else S * batch_size
        size = max(n for n in range(1, S + 1) if S % n == 0 and (n == 1 or n * batch_size <= rows))
        return [slice(s, s + size) for s in range(0, S, size)]

    def part(self, stack: slice) -> Agent:
        """An agent of some of the seeds that shares this one's memory: training the part trains the whole."""
        stacked = [*self.parameters()]
        for optimizer in self.optim.values():
            stacked += [moment for moments in optimizer.state.values() for moment in moments.values()]
            stacked += [t for group in optimizer.param_groups for t in (group["beta_powers"], group["lr"]) if t.ndim]
        memo: dict[int, Any] = {id(t): t for t in self.trained_tensors()}
        for t in stacked:
            piece = t.detach()[stack]
            memo[id(t)] = nn.Parameter(piece, t.requires_grad) if isinstance(t, nn.Parameter) else piece
        part = copy.copy(self)
        part.seeds, part.members, part.stack = self.seeds[stack], self.members[stack], stack
        part.config = copy.copy(self.config)
        part._set_values({name: values[stack] for name, values in self._values().items()})
        for name in ("_parameters", "_modules", "optim"):
            part.__dict__[name] = copy.deepcopy(self.__dict__[name], memo)
        return part

    def _require_no_buffers(self) -> None:
        """Raise a UserError if the seeds are trained in parts, and a class outside this package has a buffer with an
        axis of seeds, which no part would have its share of."""
        S, inherited = len(self.seeds), ("action_mid", "action_half")
        for module in self.modules() if len(self._parts) > 1 else ():
            for name, buffer in module.named_buffers(recurse=False):
                own = not type(module).__module__.startswith(("offlinerl.", "torch.")) and name not in inherited
                if own and buffer.shape[:1] in ((), (S,)):
                    raise UserError(
                        f"{type(module).__name__} has the buffer {name}, but the seeds are trained in parts, which"
                        " divide parameters only: make it torch.nn.Parameter(..., requires_grad=False) with a leading"
                        f" axis of {S}; or give it a leading axis of 1 if it has none of seeds"
                    )

    def trained_tensors(self) -> list[Tensor]:
        """Every tensor that an update may change or of which a part has a slice: parameters, target networks, buffers,
        optimiser states and settings with several values."""
        tensors = [*self.parameters(), *self.buffers(), *self._values().values()]
        for optimizer in self.optim.values():
            leaves, _ = tree_flatten([list(optimizer.state.values()), optimizer.param_groups])
            tensors += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return list({id(t): t for t in tensors}.values())

    def training_step(self, blocks: Blocks, _: int) -> None:
        """Learn from each block in turn, and report the new priorities of its rows."""
        for block in blocks:
            metrics, priority = self.learn(block)
            self.metrics |= metrics
            blocks.learned(priority)
        if self.reports:
            self.report(bool(self.trainer.loggers))
        # Lightning does not see our optimisers step, so its global_step would stay at zero, and callbacks that wait
        # for it would never save. Count the updates there too.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.total.ready = progress.total.completed = self.updates

    def report(self, logger: bool) -> None:
        """Give the latest metrics to Lightning's callbacks and loggers, by name: their means over the seeds, and those
        of each of several seeds, as in ``actor_loss`` and ``actor_loss/seed_0``. Loggers count them in updates.

        Args:
            logger: whether loggers get them too.
        """
        values = {name: value.mean() for name, value in self.metrics.items()}
        if len(self.members) > 1:
            ends = [series_of(member) for member in self.members]
            values |= {f"{name}/{end}": of[s] for name, of in self.metrics.items() for s, end in enumerate(ends)}
        if logger:
            self.log("step", float(self.updates), batch_size=1)  # the axis of all others
        self.log_dict(values, logger=logger, batch_size=1)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["offlinerl"] = dict(
            agent=f"{type(self).__module__}:{type(self).__name__}",
            version=offlinerl.__version__,
            updates=self.updates,
            offline_updates=self.offline_updates,
            steps=self.steps,
            rng=self.rng.state_dict(),
            explore=self.explore_state(),
            task=self.task,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["offlinerl"]
        self.updates, self.task = saved["updates"], saved["task"]
        self.rng.to(self.device).load_state_dict(saved["rng"])
        if "explore" in saved:  # checkpoints of older versions lack it
            self.steps = saved["steps"]
            # Those of older versions lack this; they made at most one update per step.
            self.offline_updates = saved.get("offline_updates", max(0, self.updates - self.steps))
            self.load_explore_state(saved["explore"])
        self._forget_parts()

    def explore_state(self) -> dict[str, Any]:
        """The state needed to continue exploring in the middle of an episode."""
        return dict(lanes=self.explore_rng.state_dict())

    def load_explore_state(self, state: dict[str, Any]) -> None:
        self.explore_rng.load_state_dict(state["lanes"])

    def _forget_parts(self) -> None:
        self._parts.clear()
        self._steps.clear()

    def _values(self) -> dict[str, Tensor]:
        """The settings with several values, ``[S, 1]`` each."""
        return {name: getattr(self.config, name) for name in values_of(self.members[0])}

    def _set_values(self, values: Mapping[str, Tensor] | None = None) -> None:
        """Store these tensors in the settings; by default the members' values, on the agent's device."""
        for name in values_of(self.members[0]):
            of = self.action_half.new_tensor([[member[name]] for member in self.members])
            object.__setattr__(self.config, name, of if values is None else values[name])

    def _apply(self, *args: Any, **kwargs: Any) -> Agent:
        places = [t.data_ptr() for t in (*self.parameters(), *self.buffers())]
        super()._apply(*args, **kwargs)
        self._set_values()
        if places != [t.data_ptr() for t in (*self.parameters(), *self.buffers())]:
            self._forget_parts()  # they refer to the parameters' old memory
        return self


def _of_leaves(update: Callable[..., Metrics], kind: type[Batch], tree: TreeSpec) -> Step:
    """Turn an update into a function of the flat leaves of its arguments."""

    def step(*leaves: Tensor) -> Metrics:
        given, noise = tree_unflatten(leaves, tree)
        return update(kind(**given), noise)

    return step
