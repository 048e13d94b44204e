"""Ours against a plain eager PyTorch XQL with four optimisers, in one run: ``python tests/benchmarks/plain_xql.py``.

The plain one is what a single-file implementation does: torch.nn layers, one optimiser a network, a fresh index
into five arrays every update. It never asks for a value with ``.item()`` and never logs, which single files do.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

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


class PlainXQL:
    """The same algorithm, networks and hyperparameters as ``offlinerl.agents.xql`` on Kitchen."""

    def __init__(self) -> None:
        self.value, self.actor = mlp(O, 1, norm=True), mlp(O, A, dropout=0.1)
        self.q1, self.q2, self.target1, self.target2 = (mlp(O + A, 1) for _ in range(4))
        self.log_std = nn.Parameter(torch.zeros(A))
        actor_parameters = [*self.actor.parameters(), self.log_std]
        parameters = (self.value.parameters(), actor_parameters, self.q1.parameters(), self.q2.parameters())
        self.optimizers = [torch.optim.Adam(p, 3e-4) for p in parameters]
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizers[1], 1_000_000)

    def step(self, number: int, loss: torch.Tensor) -> None:
        self.optimizers[number].zero_grad()
        loss.backward()
        self.optimizers[number].step()

    def update(self, obs, action, reward, discount, next_obs) -> None:
        pair = torch.cat([obs, action], -1)
        with torch.no_grad():
            q = torch.minimum(self.target1(pair), self.target2(pair)).squeeze(-1)
        z = ((q - self.value(obs).squeeze(-1)) / 2.0).clamp(max=7.0)
        m = z.max().clamp(min=-1.0).detach()
        self.step(0, (torch.exp(z - m) - z * torch.exp(-m) - torch.exp(-m)).mean())
        with torch.no_grad():
            weight = torch.exp(0.5 * (q - self.value(obs).squeeze(-1))).clamp(max=100.0)
            target = reward + discount * self.value(next_obs).squeeze(-1)
        std = self.log_std.clamp(-5.0, 2.0).exp()
        log_prob = torch.distributions.Normal(torch.tanh(self.actor(obs)), std).log_prob(action).sum(-1)
        self.step(1, -(weight * log_prob).mean())
        self.schedule.step()
        self.step(2, F.huber_loss(self.q1(pair).squeeze(-1), target, delta=20.0))
        self.step(3, F.huber_loss(self.q2(pair).squeeze(-1), target, delta=20.0))
        with torch.no_grad():
            for slow, fast in ((self.target1, self.q1), (self.target2, self.q2)):
                for p, q in zip(slow.parameters(), fast.parameters(), strict=True):
                    p.mul_(0.995).add_(q, alpha=0.005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, seeds = torch.device("cpu"), range(args.seeds)
    table = Table(benchmark.synthetic_table(), benchmark.KITCHEN, 0.99)
    columns = table.transitions(torch.arange(len(table)))[:5]
    plain = PlainXQL()
    eager, compiled = (benchmark.build("xql", seeds, device, compile) for compile in (False, True))
    source = OfflineData(table, seeds, args.batch)

    def plain_rate() -> float:
        import time

        done, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < 1.0:
            for _ in range(5):
                rows = torch.randint(len(columns[0]), (args.batch,))
                plain.update(*(column[rows] for column in columns))
            done += 5
        return done / elapsed

    flops = benchmark.count_flops(benchmark.build("xql", seeds, device, False), source) / args.seeds
    plain_rate()
    rates = benchmark.interleaved(
        args.repeats,
        plain=plain_rate,
        eager=lambda: benchmark.updates_rate(eager, source) * args.seeds,
        compiled=lambda: benchmark.updates_rate(compiled, source) * args.seeds,
        limit=lambda: benchmark.matmul_rate(args.batch, args.seeds, device) / flops,
    )
    print(f"{benchmark.cpu_name()}, {args.threads} threads, batch {args.batch}, {args.seeds} seed(s), float32")
    for name, rate in rates.items():
        print(f"{name:<10}{rate:8.0f} updates/s  {rate / rates['plain']:5.2f}x")


if __name__ == "__main__":
    main()
