"""Our updates compared with plain eager PyTorch, in one run: ``python tests/benchmarks/plain_updates.py``.

The plain ones are written like single-file implementations: torch.nn layers, one of torch's optimisers per network, and
a new index into five arrays for every update. Unlike such files, they never call ``.item()`` and never log.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offlinerl import benchmark
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table

O, A = benchmark.KITCHEN.obs_dim, benchmark.KITCHEN.action_dim


def mlp(inputs: int, outputs: int, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (inputs, 256):
        layers.append(nn.Linear(size, 256))
        layers += [nn.LayerNorm(256, eps=1e-6)] * norm
        layers.append(nn.ReLU())
        layers += [nn.Dropout(dropout)] * (dropout > 0)
    return nn.Sequential(*layers, nn.Linear(256, outputs))


def adam(*modules: nn.Module, lr: float = 3e-4) -> torch.optim.Adam:
    return torch.optim.Adam([p for module in modules for p in module.parameters()], lr)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def follow(targets: Iterable[nn.Module], networks: Iterable[nn.Module]) -> None:
    for target, network in zip(targets, networks, strict=True):
        for slow, fast in zip(target.parameters(), network.parameters(), strict=True):
            slow.mul_(0.995).add_(fast, alpha=0.005)


class PlainXQL:
    """The same algorithm, networks and hyperparameters as ``offlinerl.agents.xql`` on Kitchen."""

    def __init__(self) -> None:
        self.value, self.actor = mlp(O, 1, norm=True), mlp(O, A, dropout=0.1)
        self.q1, self.q2, self.target1, self.target2 = (mlp(O + A, 1) for _ in range(4))
        self.log_std = nn.Parameter(torch.zeros(A))
        self.value_adam, self.adam1, self.adam2 = (adam(net) for net in (self.value, self.q1, self.q2))
        self.actor_adam = torch.optim.Adam([*self.actor.parameters(), self.log_std], 3e-4)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_adam, 1_000_000)

    def update(self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor) -> None:
        pair = torch.cat([obs, action], -1)
        with torch.no_grad():
            q = torch.minimum(self.target1(pair), self.target2(pair)).squeeze(-1)
        z = ((q - self.value(obs).squeeze(-1)) / 2.0).clamp(max=7.0)
        m = z.max().clamp(min=-1.0).detach()
        step(self.value_adam, (torch.exp(z - m) - z * torch.exp(-m) - torch.exp(-m)).mean())
        with torch.no_grad():
            weight = torch.exp(0.5 * (q - self.value(obs).squeeze(-1))).clamp(max=100.0)
            target = reward + discount * self.value(next_obs).squeeze(-1)
        std = self.log_std.clamp(-5.0, 2.0).exp()
        log_prob = torch.distributions.Normal(torch.tanh(self.actor(obs)), std).log_prob(action).sum(-1)
        step(self.actor_adam, -(weight * log_prob).mean())
        self.schedule.step()
        step(self.adam1, F.huber_loss(self.q1(pair).squeeze(-1), target, delta=20.0))
        step(self.adam2, F.huber_loss(self.q2(pair).squeeze(-1), target, delta=20.0))
        follow((self.target1, self.target2), (self.q1, self.q2))


class PlainTD3:
    """Like ``offlinerl.agents.td3``, with its defaults."""

    def __init__(self) -> None:
        self.actor, self.q1, self.q2 = mlp(O, A), mlp(O + A, 1), mlp(O + A, 1)
        self.networks = self.actor, self.q1, self.q2
        self.targets = copy.deepcopy(self.networks)
        self.actor_adam, self.critic_adam = adam(self.actor), adam(self.q1, self.q2)
        self.updates = 0

    def update(self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor) -> None:
        actor, q1, q2 = self.targets
        with torch.no_grad():
            noise = (0.2 * torch.randn_like(action)).clamp(-0.5, 0.5)
            next_pair = torch.cat([next_obs, (torch.tanh(actor(next_obs)) + noise).clamp(-1, 1)], -1)
            target = reward + discount * torch.minimum(q1(next_pair), q2(next_pair)).squeeze(-1)
        pair = torch.cat([obs, action], -1)
        errors = (F.mse_loss(q(pair).squeeze(-1), target) for q in (self.q1, self.q2))
        step(self.critic_adam, sum(errors))
        self.updates += 1
        if self.updates % 2 == 0:
            step(self.actor_adam, -self.q1(torch.cat([obs, torch.tanh(self.actor(obs))], -1)).mean())
            follow(self.targets, self.networks)


class PlainSAC:
    """Like ``offlinerl.agents.sac``, with its defaults."""

    actor_lr = 3e-4

    def __init__(self) -> None:
        self.actor, self.q1, self.q2 = mlp(O, 2 * A), mlp(O + A, 1), mlp(O + A, 1)
        self.critics = self.q1, self.q2
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.actor_adam, self.critic_adam = adam(self.actor, lr=self.actor_lr), adam(*self.critics)
        self.alpha_adam = torch.optim.Adam([self.log_alpha], self.actor_lr)

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """An action and its log-density."""
        mean, log_std = self.actor(obs).chunk(2, -1)
        policy = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
        u = policy.rsample()
        log_prob = policy.log_prob(u) - 2 * (math.log(2) - u - F.softplus(-2 * u))
        return torch.tanh(u), log_prob.sum(-1)

    def least(self, critics: Iterable[nn.Module], obs: Tensor, action: Tensor) -> Tensor:
        pair = torch.cat([obs, action], -1)
        return torch.minimum(*(q(pair).squeeze(-1) for q in critics))

    def update(self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor) -> None:
        alpha = self.log_alpha.exp().detach()
        step(self.critic_adam, self.critic_loss(obs, action, reward, discount, next_obs, alpha))
        own, log_prob = self.sample(obs)
        step(self.actor_adam, (alpha * log_prob - self.least(self.critics, obs, own)).mean())
        step(self.alpha_adam, -(self.log_alpha * (log_prob.detach() - A)).mean())
        follow(self.targets, self.critics)

    def critic_loss(
        self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor, alpha: Tensor
    ) -> Tensor:
        with torch.no_grad():
            next_action, log_prob = self.sample(next_obs)
            target = reward + discount * (self.least(self.targets, next_obs, next_action) - alpha * log_prob)
        pair = torch.cat([obs, action], -1)
        return sum(0.5 * F.mse_loss(q(pair).squeeze(-1), target) for q in self.critics)  # type: ignore[return-value]


class PlainCQL(PlainSAC):
    """Like ``offlinerl.agents.cql``, with its defaults."""

    actor_lr, samples = 3e-5, 10

    def critic_loss(
        self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor, alpha: Tensor
    ) -> Tensor:
        many = obs.unsqueeze(1).expand(-1, self.samples, -1)  # [B, samples, O]
        with torch.no_grad():
            next_action, _ = self.sample(next_obs)
            target = reward + discount * self.least(self.targets, next_obs, next_action)
            here, log_here = self.sample(many)
            there, log_there = self.sample(next_obs.unsqueeze(1).expand_as(many))
            uniform = torch.empty_like(here).uniform_(-1, 1)
            log_density = torch.cat([torch.full_like(log_here, -A * math.log(2)), log_here, log_there], 1)
            pairs = torch.cat([many.repeat(1, 3, 1), torch.cat([uniform, here, there], 1)], -1)
        pair, loss = torch.cat([obs, action], -1), torch.zeros(())
        for net in self.critics:
            q = net(pair).squeeze(-1)
            maximum = (net(pairs).squeeze(-1) - log_density).logsumexp(-1) - math.log(3 * self.samples)
            loss = loss + 0.5 * F.mse_loss(q, target) + 5.0 * (maximum - q).mean()
        return loss


PLAIN = dict(xql=PlainXQL, td3=PlainTD3, sac=PlainSAC, cql=PlainCQL)


def plain_rate(plain: PlainXQL | PlainTD3 | PlainSAC, columns: tuple[Tensor, ...], batch: int) -> float:
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < 1.0:
        for _ in range(5):
            rows = torch.randint(len(columns[0]), (batch,))
            plain.update(*(column[rows] for column in columns))
        done += 5
    return done / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", nargs="+", choices=PLAIN, default=list(PLAIN))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, seeds = torch.device("cpu"), range(args.seeds)
    table = Table(benchmark.synthetic_table(), benchmark.KITCHEN, 0.99)
    columns = table.transitions(torch.arange(len(table)))[:5]
    source = OfflineData(table, seeds, args.batch)
    print(f"{benchmark.cpu_name()}, {args.threads} threads, batch {args.batch}, {args.seeds} seed(s), float32")
    for name in args.agents:
        plain = PLAIN[name]()
        eager, compiled = (benchmark.build(name, seeds, device, compile) for compile in (False, True))
        flops = benchmark.count_flops(benchmark.build(name, seeds, device, False), source) / args.seeds
        plain_rate(plain, columns, args.batch)
        rates = benchmark.interleaved(
            args.repeats,
            plain=lambda plain=plain: plain_rate(plain, columns, args.batch),
            eager=lambda agent=eager: benchmark.updates_rate(agent, source) * args.seeds,
            compiled=lambda agent=compiled: benchmark.updates_rate(agent, source) * args.seeds,
            limit=lambda flops=flops: benchmark.matmul_rate(args.batch, args.seeds, device) / flops,
        )
        for loop, rate in rates.items():
            print(f"{name:<5}{loop:<10}{rate:8.1f} updates/s  {rate / rates['plain']:5.2f}x", flush=True)


if __name__ == "__main__":
    main()
