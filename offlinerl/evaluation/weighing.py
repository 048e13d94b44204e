"""Off-policy evaluation of agents with logged behaviour probabilities: importance sampling and doubly robust.

The policy that is evaluated is the distribution that an agent's ``log_prob`` describes. For a Gaussian policy these are
its samples, and not the mean, which the agent takes when it does not explore.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent
from offlinerl.data.dataset import Dataset
from offlinerl.evaluation.fqe import ROWS_ACTED_ON, Choice, Followed, first_seed, fit_q
from offlinerl.evaluation.off_policy import Estimate, doubly_robust, importance_sampling
from offlinerl.experience.table import Table
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, tree_map

DRAWS = 8
"""Number of actions sampled from a Gaussian policy to average the value of an observation."""


def weighted_importance_sampling(agent: Agent, data: Dataset, gamma: float, *, stack: int = 1) -> Estimate:
    """Estimate the return of the first seed's policy by weighted importance sampling; see
    ``off_policy.importance_sampling``.

    Args:
        agent: with a policy that has a ``log_prob``.
        data: with a column ``log_prob``.
        gamma: discount factor per step.
        stack: number of frames in an observation.

    Raises:
        UserError: the data or the policy has no probabilities.
    """
    table = Table(data, agent.spec, gamma, device=agent.device, stack=stack)
    target, behavior = log_probs(agent, data, table)
    return importance_sampling(data, target, behavior, gamma, log=True, weighted=True)


def weighted_doubly_robust(agent: Agent, data: Dataset, gamma: float, *, stack: int = 1, **fitting: Any) -> Estimate:
    """Estimate the return of the first seed's policy by the weighted doubly robust estimator (see
    ``off_policy.doubly_robust``), with the mean of the critics of fitted Q evaluation as the model. The interval comes
    from resampling episodes, with the critics fixed.

    Args:
        agent: see ``weighted_importance_sampling``.
        data: see ``weighted_importance_sampling``.
        gamma: see ``weighted_importance_sampling``.
        stack: see ``weighted_importance_sampling``.
        fitting: further arguments of ``fqe.fit_q``.

    Raises:
        UserError: see ``weighted_importance_sampling``.
    """
    target, behavior = log_probs(agent, data, Table(data, agent.spec, gamma, device=agent.device, stack=stack))
    choice = drawn_choice_of(agent)
    fqe, table, _ = fit_q(choice, data, agent.spec, gamma=gamma, device=agent.device, stack=stack, **fitting)
    draws = 1 if agent.spec.num_actions else DRAWS

    @torch.no_grad()
    def value(which: int, rows: Tensor) -> Tensor:
        obs = table.observed(which, rows)
        return torch.stack([fqe.value(*repeated((obs, choice(obs)))).mean(0) for _ in range(draws)]).mean(0)

    def repeated(tree: Tree) -> Tree:
        return tree_map(lambda x: x.expand(len(fqe.seeds), *x.shape), tree)

    Q, V = [], []
    for rows in rows_of(table):
        batch = table.transitions(rows)
        with torch.no_grad():
            Q.append(fqe.config.scale * fqe.q(*repeated((batch.obs, batch.action))).mean(0))
        V.append(value(0, rows))
    ends = (table.starts + table.lengths - 1).split(ROWS_ACTED_ON)
    model, final_V = [torch.cat(parts).double().cpu().numpy() for parts in (Q, V)], [value(1, rows) for rows in ends]
    return doubly_robust(
        data, target, behavior, *model, gamma, final_V=torch.cat(final_V).cpu().numpy(), log=True, weighted=True
    )


def require_log_probs(agent: Agent, data: Dataset, *, stack: int = 1) -> None:
    """Check with one row that importance sampling is possible for an agent and a dataset.

    Args:
        agent: see ``weighted_importance_sampling``.
        data: see ``weighted_importance_sampling``.
        stack: see ``weighted_importance_sampling``.

    Raises:
        UserError: the data or the policy has no probabilities.
    """
    row = data[:1]
    log_probs(agent, row, Table(row, agent.spec, 1.0, device=agent.device, stack=stack))


def log_probs(agent: Agent, data: Dataset, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The log-probabilities of the data's actions under the first seed's policy and under the behaviour policy,
    ``[rows]`` each.

    Raises:
        UserError: the data or the policy has no probabilities.
    """
    if data.log_prob is None:
        raise UserError(
            f"{data.name or 'the data'} does not state the probabilities of its actions, which importance sampling"
            " needs: `collect` it with a policy that samples, give its column log_prob, or use fqe"
        )
    agent = first_seed(agent)
    if agent.spec.whole:
        raise UserError(
            f"the actions of {type(agent).__name__} are rounded to whole numbers, whose probabilities are not known:"
            " rank it by fqe, or by acting with --episodes"
        )
    action = torch.from_numpy(np.asarray(data.action) - np.float32(agent.spec.first_action)).to(agent.device)
    found = []
    with torch.no_grad():
        for rows in rows_of(table):
            obs = tree_map(lambda x: x.unsqueeze(0), table.observed(0, rows))
            known = agent.log_prob(obs, action[rows].unsqueeze(0))
            if known is None:
                raise UserError(
                    f"the policy of {type(agent).__name__} is deterministic and has no probabilities for importance"
                    " sampling: rank it by fqe, or by acting with --episodes"
                )
            found.append(known[0])
    return torch.cat(found).cpu().numpy(), np.asarray(data.log_prob, np.float64)


def drawn_choice_of(agent: Agent) -> Choice:
    """The policy of an agent's first seed as a distribution, as a target policy of fitted Q evaluation: samples of a
    Gaussian, or probabilities of discrete actions."""
    agent = first_seed(agent)
    spec = agent.spec

    @torch.no_grad()
    def choose(obs: Tree) -> Tensor:
        obs = tree_map(lambda x: x.unsqueeze(0), obs)
        if not spec.num_actions:
            return agent.in_unit(agent.act(obs, explore=True)[0])
        like = agent.act(obs)
        every = [agent.log_prob(obs, torch.full_like(like, number))[0] for number in range(spec.num_actions)]
        return torch.stack(every, -1).exp().float()

    return choose


def rows_of(table: Table | Followed) -> tuple[Tensor, ...]:
    """The numbers of all rows, in chunks."""
    return torch.arange(len(table), device=table.starts.device).split(ROWS_ACTED_ON)
