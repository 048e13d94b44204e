"""What holds for every agent: updates are finite and change only its own parameters, and seeds are independent."""

import copy

import pytest
import torch

from offlinerl import agents
from offlinerl.agents import base as agent_module
from offlinerl.agents.bc import BC
from offlinerl.agents.iql import IQL
from offlinerl.agents.xql import XQL
from offlinerl.learning import losses
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map

SMALL = dict(hidden=(16, 16))
VARIANTS = {
    "xql": lambda spec, seeds: XQL(spec, seeds, **SMALL),
    "xql-dropout": lambda spec, seeds: XQL(spec, seeds, dropout=0.1, decay_steps=50, **SMALL),
    "xql-smoothed": lambda spec, seeds: XQL(spec, seeds, random_actions=1, action_noise=0.1, value_updates=2, **SMALL),
    "iql": lambda spec, seeds: IQL(spec, seeds, dropout=0.1, **SMALL),
    "bc": lambda spec, seeds: BC(spec, seeds, dropout=0.1, **SMALL),
}


@pytest.fixture(params=VARIANTS)
def build(request):
    return VARIANTS[request.param]


def parameters_of(agent, s):
    return {name: p[s].detach().clone() for name, p in agent.named_parameters()}


def test_every_file_is_an_agent():
    assert {"xql", "iql", "bc"} <= set(agents.names())
    assert agents.get("iql") is IQL
    with pytest.raises(UserError, match="did you mean xql"):
        agents.get("xqll")


def test_updates_are_finite_and_move_every_group(build, spec, source_of):
    agent = build(spec, (0, 1))
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    metrics, _ = agent.learn(source_of((0, 1)).draw())
    assert agent.updates == 5
    for name, value in metrics.items():
        assert value.shape == (2,) and value.isfinite().all(), name
    for name, p in agent.named_parameters():
        assert p.isfinite().all() and not torch.equal(p, before[name]), f"{name} did not move"


def test_descend_changes_only_its_own_parameter_group(spec, source_of):
    agent = XQL(spec, (0,), **SMALL)
    agent.configure_optimizers()
    batch = tree_map(lambda x: x[0], source_of((0,)).draw(1))
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    agent.descend("critic", losses.squared(agent.critic(batch[0], batch[1]) - agent.value(batch[0]).unsqueeze(1)))
    moved = {name.split(".")[0] for name, p in agent.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"critic"}
    assert all(p.grad is None for p in agent.parameters())


def test_stacked_seeds_equal_seeds_alone(build, spec, source_of):
    """In double precision, so that no rounding error flips a ReLU and is amplified by Adam."""

    def train(agent, source):
        agent.double()
        for _ in range(4):
            agent.learn(tree_map(lambda x: x.double(), source.draw()))

    seeds = (3, 1, 4)
    stack = build(spec, seeds)
    start = copy.deepcopy(stack)
    train(stack, source_of(seeds))
    for s, seed in enumerate(seeds):
        alone = build(spec, (seed,))
        for name, p in parameters_of(alone, 0).items():
            assert torch.equal(p, parameters_of(start, s)[name]), f"{name} does not start where seed {seed} does"
        train(alone, source_of((seed,)))
        for name, p in parameters_of(alone, 0).items():
            torch.testing.assert_close(parameters_of(stack, s)[name], p, rtol=0, atol=1e-9, msg=name)


def test_seeds_in_turn_equal_seeds_at_once(build, spec, source_of, monkeypatch):
    def train(rows, size):
        monkeypatch.setattr(agent_module, "CPU_ROWS", rows)
        agent, data = build(spec, (3, 1, 4, 1)), source_of((3, 1, 4, 1))
        agent.double()
        for _ in range(3):
            metrics, _ = agent.learn(tree_map(lambda x: x.double(), data.draw()))
        assert [part.seeds[0] for part in agent._parts] == [3, 1, 4, 1][::size]
        return agent, metrics

    (at_once, metrics), (in_pairs, metrics_of_pairs) = train(10**9, 4), train(2 * 32, 2)
    for (name, p), q in zip(at_once.named_parameters(), in_pairs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)
    for name, optimizer in at_once.optim.items():
        [group], [other] = optimizer.param_groups, in_pairs.optim[name].param_groups
        assert torch.equal(group["beta_powers"], other["beta_powers"]) and group["lr"] == other["lr"], name
        for p, q in zip(group["params"], other["params"], strict=True):
            torch.testing.assert_close(optimizer.state[p], in_pairs.optim[name].state[q], rtol=0, atol=1e-9, msg=name)
    torch.testing.assert_close(metrics, metrics_of_pairs, rtol=0, atol=1e-9)


def test_an_agent_cast_to_another_dtype_trains_its_own_parameters(spec, source_of):
    agent, data = XQL(spec, (0,), **SMALL), source_of((0,))
    agent.learn(data.draw())
    agent.double().float()  # the parameters are in other memory now
    before = agent.actor.log_std.clone()
    agent.learn(data.draw())
    assert not torch.equal(agent.actor.log_std, before)


def test_seeds_differ(build, spec):
    agent = build(spec, (0, 1))
    first = dict(agent.named_parameters())["actor.net.layers.0.weight"]
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_diverged_seed_leaves_the_others_alone(build, spec, source_of, poison):
    healthy, ill = build(spec, (0, 1, 2)), build(spec, (0, 1, 2))
    with torch.no_grad():
        for p in ill.parameters():
            p[1] = poison
    a, b = source_of((0, 1, 2)), source_of((0, 1, 2))
    for _ in range(3):
        healthy.learn(a.draw())
        ill.learn(b.draw())
    for name, p in ill.named_parameters():
        want = dict(healthy.named_parameters())[name]
        for s in (0, 2):
            assert torch.equal(p[s], want[s]), f"{name} of seed {s} differs by a bit"


def test_the_target_follows_the_critic(spec, source_of):
    agent = XQL(spec, (0,), tau=0.1, **SMALL)
    old_target = agent.target.net.layers[0].weight.clone()
    agent.learn(source_of((0,)).draw(1))
    new_critic = agent.critic.net.layers[0].weight
    torch.testing.assert_close(agent.target.net.layers[0].weight, 0.9 * old_target + 0.1 * new_critic)
    assert not any(p.requires_grad for p in agent.target.parameters())


def test_xql_update_by_hand(spec, source_of):
    """One update against the paper's order of steps, written out with torch.optim and one network at a time."""
    agent = XQL(spec, (7,), beta=1.5, clip=3.0, temperature=0.7, **SMALL)
    agent.configure_optimizers()
    by_hand = copy.deepcopy(agent)
    block = source_of((7,)).draw(1)
    agent.learn(block)

    batch = tree_map(lambda x: x[0], block)
    adam = {name: torch.optim.Adam(getattr(by_hand, name).parameters(), 3e-4) for name in ("value", "actor", "critic")}

    def step(name, loss):
        adam[name].zero_grad()
        loss.backward()
        adam[name].step()

    q = by_hand.target(batch.obs, batch.action).amin(1).detach()
    z = ((q - by_hand.value(batch.obs)) / 1.5).clamp(max=3.0)
    m = max(z.max().item(), -1.0)
    step("value", (torch.exp(z - m) - z * torch.exp(torch.tensor(-m)) - torch.exp(torch.tensor(-m))).mean())
    advantage = (q - by_hand.value(batch.obs)).detach()
    mean, std = by_hand.actor.mean(batch.obs), by_hand.actor.std()
    log_prob = torch.distributions.Normal(mean, std).log_prob(batch.action).sum(-1)
    step("actor", -((0.7 * advantage).exp().clamp(max=100) * log_prob).mean())
    target = (batch.reward + batch.discount * by_hand.value(batch.next_obs)).detach()
    huber = torch.nn.HuberLoss(delta=20.0)
    both = by_hand.critic(batch.obs, batch.action)
    step("critic", huber(both[:, 0], target) + huber(both[:, 1], target))
    for slow, fast in zip(by_hand.target.parameters(), by_hand.critic.parameters(), strict=True):
        slow.data.mul_(0.995).add_(0.005 * fast.data)
    for (name, p), want in zip(agent.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, want, rtol=1e-5, atol=1e-6, msg=name)


def test_truncation_bootstraps_and_termination_does_not_in_the_critics_target(spec, source_of):
    """The critic's regression target uses discount and never last."""
    block = source_of((0,)).draw(1)
    flipped = block._replace(last=1 - block.last)
    a, b = XQL(spec, (0,), **SMALL), XQL(spec, (0,), **SMALL)
    a.learn(block)
    b.learn(flipped)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    c = XQL(spec, (0,), **SMALL)
    c.learn(block._replace(discount=torch.zeros_like(block.discount)))
    assert not torch.equal(a.critic.net.layers[0].weight, c.critic.net.layers[0].weight)


def test_only_the_actors_rate_decays_by_a_cosine(spec, source_of):
    agent = XQL(spec, (0,), decay_steps=10, **SMALL)
    source = source_of((0,))
    agent.learn(source.draw())
    agent.before_update()
    rate = {name: optimizer.param_groups[0]["lr"].item() for name, optimizer in agent.optim.items()}
    assert rate == pytest.approx(dict(value=3e-4, actor=1.5e-4, critic=3e-4))
    agent.learn(source.draw())
    agent.before_update()
    assert agent.optim["actor"].param_groups[0]["lr"].item() == pytest.approx(0, abs=1e-10)


def test_actions_stay_within_the_environments_bounds(source_of):
    from offlinerl.types import Spec

    spec = Spec(5, 2, (-2.0, 0.0), (2.0, 10.0))
    agent = BC(spec, (0, 1), **SMALL)
    obs = torch.randn(2, 50, 5) * 100
    for explore in (False, True):
        action = agent.act(obs, explore)
        assert action.shape == (2, 50, 2)
        assert (action[..., 0].abs() <= 2).all() and (action[..., 1] >= 0).all() and (action[..., 1] <= 10).all()
    assert torch.equal(agent.act(obs), agent.act(obs)), "without exploration actions are deterministic"
    assert not torch.equal(agent.act(obs, True), agent.act(obs, True))


def test_a_delayed_updates_period_continues_across_blocks(spec, source_of):
    seen = []

    class Delayed(BC):
        period = 3

        def update(self, batch, noise, k):
            seen.append(k)
            return super().update(batch, noise, k)

    agent = Delayed(spec, (0,), **SMALL)
    for updates in (1, 2, 4, 1):
        agent.learn(source_of((0,)).draw(updates))
    assert seen == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_metric_is_averaged_over_the_updates_that_report_it(spec, source_of):
    class Delayed(BC):
        period = 2

        def update(self, batch, noise, k):
            metrics = dict(one=torch.full((1,), float(next(numbers))))
            return metrics | dict(two=10 + metrics["one"]) if k == 1 else metrics

    agent, numbers = Delayed(spec, (0,), **SMALL), iter(range(4))
    assert agent.learn(source_of((0,)).draw(4))[0] == dict(one=1.5, two=12.0)
