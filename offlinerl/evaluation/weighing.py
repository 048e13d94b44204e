"""Agents evaluated on the logged probabilities of a behaviour: importance sampling and doubly robust.

The policy is the one that an agent's ``log_prob`` describes, a distribution: of a Gaussian not its mean, by which the
agent acts when it does not explore, but its samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offlinerl.agents.base import Agent
from offlinerl.data.dataset import Dataset
from offlinerl.evaluation.fqe import ROWS_ACTED_ON, Choice, Followed, first_seed, fit_q, in_unit_of
from offlinerl.evaluation.off_policy import Estimate, doubly_robust, importance_sampling
from offlinerl.experience.table import Table
from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, tree_map

DRAWS = 8
"""Actions of a Gaussian policy by which its value of an observation is averaged."""


def weighted_importance_sampling(agent: Agent, data: Dataset, gamma: float, *, stack: int = 1) -> Estimate:
    """What the first seed's policy would return, by ``off_policy.importance_sampling``, weighted.

    Args:
        agent: whose policy has a ``log_prob``.
        data: with a ``log_prob``.
        gamma: discount factor of a step.
        stack: frames to an observation.

    Raises:
        UserError: the data or the policy has no probabilities.
    """
    table = Table(data, agent.spec, gamma, device=agent.device, stack=stack)
    target, behavior = log_probs(agent, data, table)
    return importance_sampling(data, target, behavior, gamma, log=True, weighted=True)


def weighted_doubly_robust(agent: Agent, data: Dataset, gamma: float, *, stack: int = 1, **fitting: Any) -> Estimate:
    """What the first seed's policy would return, by ``off_policy.doubly_robust``, weighted, with the mean values of the
    critics of fitted Q evaluation. The interval is that of the episodes, and takes the critics as they are.

    Args:
        agent: see ``weighted_importance_sampling``, as for the others not named here.
        data: see there.
        gamma: see there.
        stack: see there.
        fitting: as for ``fqe.fit_q``.

    Raises:
        UserError: see there.
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
    """See that an agent can be weighed, at the cost of one row.

    Args:
        agent: see ``weighted_importance_sampling``, as for the others.
        data: see there.
        stack: see there.

    Raises:
        UserError: the data or the policy has no probabilities.
    """
    row = data[:1]
    log_probs(agent, row, Table(row, agent.spec, 1.0, device=agent.device, stack=stack))


def log_probs(agent: Agent, data: Dataset, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The logarithms of the data's actions under the first seed's policy and under the behaviour, ``[rows]`` each.

    Raises:
        UserError: the data or the policy has none.
    """
    if data.log_prob is None:
        raise UserError(
            f"{data.name or 'the data'} does not say with which probability its actions were taken, which importance"
            " sampling weighs by: `collect` it with a policy that samples, give its column log_prob, or take fqe"
        )
    agent = first_seed(agent)
    action = torch.from_numpy(np.asarray(data.action) - np.float32(agent.spec.first_action)).to(agent.device)
    found = []
    with torch.no_grad():
        for rows in rows_of(table):
            obs = tree_map(lambda x: x.unsqueeze(0), table.observed(0, rows))
            known = None if agent.spec.whole else agent.log_prob(obs, action[rows].unsqueeze(0))
            if known is None and agent.spec.whole:
                raise UserError(
                    f"the actions of {type(agent).__name__} are rounded to whole numbers, whose probabilities are not"
                    " known: rank it by fqe, or by acting with --episodes"
                )
            if known is None:
                raise UserError(
                    f"the policy of {type(agent).__name__} has no probabilities to weigh by, for it is a function of"
                    " what it sees: rank it by fqe, or by acting with --episodes"
                )
            found.append(known[0])
    return torch.cat(found).cpu().numpy(), np.asarray(data.log_prob, np.float64)


def drawn_choice_of(agent: Agent) -> Choice:
    """The first seed's policy of an agent as a distribution, as fitted Q evaluation follows it: samples of a Gaussian,
    probabilities of discrete actions."""
    agent = first_seed(agent)
    spec, in_unit = agent.spec, in_unit_of(agent)

    @torch.no_grad()
    def choose(obs: Tree) -> Tensor:
        obs = tree_map(lambda x: x.unsqueeze(0), obs)
        if not spec.num_actions:
            return in_unit(agent.act(obs, explore=True)[0])
        like = agent.act(obs)
        every = [agent.log_prob(obs, torch.full_like(like, number))[0] for number in range(spec.num_actions)]
        return torch.stack(every, -1).exp().float()

    return choose


def rows_of(table: Table | Followed) -> tuple[Tensor, ...]:
    """The numbers of all rows, some at a time."""
    return torch.arange(len(table), device=table.starts.device).split(ROWS_ACTED_ON)
