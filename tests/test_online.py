"""Agents that learn by acting: the loop between environments, replay buffer and updates."""

import copy
from fractions import Fraction
from itertools import chain

import counting
import numpy as np
import pytest
import torch
from conftest import random_table
from torch.utils._pytree import tree_map_only

from offlinerl import agents
from offlinerl.agents.dqn import DQN
from offlinerl.agents.sac import SAC
from offlinerl.agents.td3 import TD3
from offlinerl.experience.ring import Replay
from offlinerl.experience.sources import OfflineData, ReplayData
from offlinerl.experience.table import Table
from offlinerl.learning.rng import generator
from offlinerl.nn.actors import SquashedGaussianActor
from offlinerl.nn.encoders import Identity
from offlinerl.rollout.collector import Collector
from offlinerl.types import Batch, Spec
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map

SMALL = dict(hidden=(16, 16))
VARIANTS = {
    "td3": ("Pendulum-v1", {}, None),
    "td3-ou-weighted": ("Pendulum-v1", dict(exploration="ou", n_step=3, decay_steps=60, hold=0.5), (0.6, 0.4)),
    "ddpg": ("Pendulum-v1", {}, None),
    "ddpg-parameter": ("Pendulum-v1", dict(exploration="parameter", layer_norm=True), None),
    "d4pg": ("Pendulum-v1", dict(num_atoms=11), (0.6, 0.4)),
    "sac": ("Pendulum-v1", {}, None),
    "sac-weighted": ("Pendulum-v1", dict(n_step=2), (0.6, 0.4)),
    "xtd3": ("Pendulum-v1", {}, None),
    "xsac": ("Pendulum-v1", {}, None),
    "dqn": ("CartPole-v1", dict(target_every=4), None),
    "dqn-double-weighted": (
        "CartPole-v1",
        dict(double_q=True, target_every=4, decay_steps=60, max_grad_norm=1.0),
        (0.6, 0.4),
    ),
}


@pytest.fixture(autouse=True)
def environments():
    counting.register()


class Loop:
    """An agent with its environments, replay and source."""

    def __init__(self, variant, seeds=(0, 1), envs=1, double=False, steps_per_update=1, env=None, **more):
        name, settings, priorities = variant.partition("-")[0], *VARIANTS[variant][1:]
        self.collector = Collector({"id": env or VARIANTS[variant][0]}, seeds, range(envs))
        self.agent = agents.get(name)(self.collector.spec, seeds, **SMALL, **settings)
        if double:
            self.agent.double()
            act = self.agent.act
            self.agent.act = lambda obs, explore=False: act(obs.double(), explore).float()
        self.replay = Replay(self.collector.spec, seeds, 200, envs, self.agent.gamma, self.agent.n_step, priorities)
        self.source = ReplayData(
            self.agent, self.collector, self.replay, 16, steps_per_update=steps_per_update, **{"warm_up": 20, **more}
        )
        self.double = double

    def run(self, steps):
        for block in chain.from_iterable(self.source.epoch(steps)):
            if self.double:
                block = tree_map(lambda x: x.double(), block)
            metrics, priority = self.agent.learn(block)
            self.agent.metrics |= metrics
            self.source.learned(priority)
        return self


def rows_of(replay):
    """Columns ``[S, rows, ...]``: obs, action, reward, terminated, next_obs, last."""
    one_step = copy.copy(replay)
    one_step.n_step = 1
    batch = one_step.transitions(torch.arange(len(replay)).expand(1, len(replay.newest), -1))
    obs, action, reward, discount, next_obs, last = (x[0] for x in batch[:6])
    return obs, action, reward, (discount == 0).float(), next_obs, last


@pytest.mark.parametrize("variant", VARIANTS)
def test_updates_are_finite_and_move_every_group(variant):
    loop = Loop(variant).run(18)
    before = copy.deepcopy(dict(loop.agent.named_parameters()))
    loop.run(8)
    assert loop.agent.updates == 6 and loop.agent.steps == 26
    for name, value in loop.agent.metrics.items():
        assert value.shape == (2,) and value.isfinite().all(), name
    for name, p in loop.agent.named_parameters():
        assert p.isfinite().all() and not torch.equal(p, before[name]), f"{name} did not move"


@pytest.mark.parametrize("variant", VARIANTS)
def test_stacked_seeds_equal_seeds_alone_with_environments_in_the_loop(variant):
    seeds = (3, 1)
    stack = Loop(variant, seeds, envs=2, double=True).run(36)
    assert stack.agent.updates == 16
    for s, seed in enumerate(seeds):
        alone = Loop(variant, (seed,), envs=2, double=True).run(36)
        for have, want in zip(rows_of(stack.replay), rows_of(alone.replay), strict=True):
            torch.testing.assert_close(have[s], want[0], rtol=0, atol=1e-5)
        for (name, p), q in zip(stack.agent.named_parameters(), alone.agent.parameters(), strict=True):
            torch.testing.assert_close(p[s], q[0], rtol=0, atol=1e-6, msg=f"{name} of seed {seed}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_diverged_seed_leaves_the_others_alone(variant):
    healthy, ill = Loop(variant, (0, 1, 2)).run(24), Loop(variant, (0, 1, 2)).run(24)
    batch = healthy.replay.sample(4, 16)
    with torch.no_grad():
        for p in ill.agent.parameters():
            p[1] = float("nan")
    healthy.agent.learn(batch)
    ill.agent.learn(batch)
    for (name, p), q in zip(healthy.agent.named_parameters(), ill.agent.parameters(), strict=True):
        assert torch.equal(p[0], q[0]) and torch.equal(p[2], q[2]), f"{name} differs by a bit"


def test_no_reset_is_ever_a_successor():
    """Over several episodes of different lengths in every environment; see ``counting``."""
    loop = Loop("td3", seeds=(0, 1), envs=3, env=counting.ID).run(150)
    assert loop.collector.episodes.min() >= 5
    obs, action, reward, terminated, next_obs, last = (x.flatten(0, 1) for x in rows_of(loop.replay))
    assert torch.equal(next_obs[:, 0], obs[:, 0]), "a successor belongs to another episode"
    assert torch.equal(next_obs[:, 1], obs[:, 1] + 1), "a step is missing or false"
    torch.testing.assert_close(next_obs[:, 2], obs[:, 2] + 2 * action[:, 0], rtol=0, atol=1e-5)
    assert torch.equal(reward, next_obs[:, 1])
    assert last.sum() > 20 and (terminated <= last).all()
    ends = last.bool()
    assert (terminated[ends] == 0).any() and (terminated[ends] == 1).any(), "both kinds of ending must occur"


def test_truncation_bootstraps_in_the_loop():
    loop = Loop("td3", seeds=(0,), env=counting.ID).run(100)
    _, _, _, terminated, _, last = (x[0] for x in rows_of(loop.replay))
    batch = loop.replay.transitions(torch.arange(100).view(1, 1, -1))
    cut = (last == 1) & (terminated == 0)
    assert cut.any()
    assert (batch.discount[0, 0][cut] == pytest.approx(0.99)) and (batch.last[0, 0][cut] == 1).all()
    assert (batch.discount[0, 0][terminated == 1] == 0).all()


@pytest.mark.parametrize(
    "envs, steps_per_update, block, updates",
    [
        (1, 1, 1, 80), (2, 1, 1, 80), (1, 4, 2, 20), (4, 2, 1, 40), (1, 2, 16, 40),
        (1, Fraction(1, 3), 1, 240), (1, Fraction(1, 3), 12, 240), (2, Fraction(1, 5), 1, 400),
    ],
)  # fmt: skip
def test_the_schedule_of_steps_and_updates(envs, steps_per_update, block, updates):
    loop = Loop("td3", (0,), envs, steps_per_update=steps_per_update, updates=block, warm_up=20).run(100)
    assert loop.source.steps == loop.agent.steps == 100 and loop.replay.added == 100 // envs
    block_steps = loop.source.block_steps
    late = -(-21 // block_steps) * block_steps - block_steps  # the agent learns in the block in which the warm-up ends
    assert loop.agent.updates == (100 - late) // steps_per_update
    assert abs(loop.agent.updates - updates) <= max(block, loop.source.block_steps / steps_per_update)


def test_warm_up_covers_the_actions_and_then_the_policy_acts():
    loop = Loop("td3", (0,), warm_up=150).run(150)
    actions = rows_of(loop.replay)[1][0, :, 0]
    assert actions.min() < -0.9 and actions.max() > 0.9 and abs(actions.mean()) < 0.2
    assert loop.agent.updates == 0
    loop.run(20)
    obs, action, *_ = (x[:, 150:170] for x in rows_of(loop.replay))
    assert (action - loop.agent.actor(obs)).abs().max() < 0.8


def test_an_episode_is_determined_by_its_seed_and_actions():
    """Environments saved in the middle of episodes are restored to the same states and continue identically."""
    whole = Loop("td3-ou-weighted", envs=2, env=counting.ID).run(34)
    state, exploring = copy.deepcopy(whole.source.state_dict()), copy.deepcopy(whole.agent.explore_state())
    again = Loop("td3-ou-weighted", envs=2, env=counting.ID)
    again.agent.load_state_dict(whole.agent.state_dict())
    assert again.source.load_state_dict(state)
    again.agent.load_explore_state(exploring)
    for _ in range(20):
        a, b = whole.collector.step(whole.agent), again.collector.step(again.agent)
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


class OnGPU:
    """A tensor that numpy cannot read, like a tensor on a GPU."""

    def __init__(self, tensor):
        self.cpu, self.tolist = (lambda: tensor), tensor.tolist


def test_a_state_that_was_loaded_to_a_gpu_is_resumed():
    whole = Loop("td3", envs=2, env=counting.ID).run(34)
    state = copy.deepcopy(whole.source.state_dict())
    away = tree_map_only(torch.Tensor, OnGPU, state)
    again = Loop("td3", envs=2, env=counting.ID)
    assert again.source.load_state_dict(away)
    assert np.array_equal(again.collector.episodes, whole.collector.episodes)
    assert np.array_equal(again.collector.began, whole.collector.began)


def test_a_simulator_that_is_not_reproducible_starts_new_episodes():
    whole = Loop("td3", envs=2, env=counting.ID).run(34)
    state = whole.source.state_dict()
    under_way = ~state["interaction"]["began"].numpy()
    assert under_way.any()
    state["interaction"]["obs"] += 1
    again = Loop("td3", envs=2, env=counting.ID)
    assert not again.source.load_state_dict(state)
    assert again.collector.began.all()
    step = again.collector.step(again.agent)
    assert (step.obs[..., 1] == 0).all() and (again.collector.episodes == whole.collector.episodes + 1).all()


def test_td3_delays_its_actor_and_targets():
    loop = Loop("td3", (0,)).run(21)
    agent = loop.agent
    parts = ("actor", "target_actor", "target_critic")
    start = {part: copy.deepcopy(getattr(agent, part).state_dict()) for part in parts}
    moved = []
    for _ in range(4):
        critic = agent.critic.net.layers[0].weight.clone()
        agent.learn(loop.replay.sample(1, 16))
        assert not torch.equal(critic, agent.critic.net.layers[0].weight)
        moved.append([any(not torch.equal(p, start[part][n]) for n, p in getattr(agent, part).state_dict().items())
                      for part in parts])  # fmt: skip
        start = {part: copy.deepcopy(getattr(agent, part).state_dict()) for part in parts}
    assert agent.period == 2
    assert moved == [[True] * 3, [False] * 3] * 2, "one update was taken in the loop before"


def test_td3_holds_both_learning_rates_and_then_reduces_them_to_zero():
    loop = Loop("td3-ou-weighted").run(40)
    for updates, rate in ((30, 3e-4), (45, 1.5e-4), (60, 0.0)):
        loop.run(updates + 20 - loop.agent.steps)
        assert loop.agent.updates == updates
        loop.agent.before_update()
        for optimizer in loop.agent.optim.values():
            assert optimizer.param_groups[0]["lr"].item() == pytest.approx(rate, abs=1e-10)


def test_td3_target_by_hand():
    spec = Spec(3, 2, (-1.0, -1.0), (1.0, 1.0))
    agent = TD3(spec, (0,), target_noise=0.2, target_noise_clip=0.1, **SMALL)
    agent.configure_optimizers()
    with torch.no_grad():
        for p in agent.target_critic.parameters():
            p += 0.1  # so that it differs from the online network
    batch = Batch(*(torch.randn(1, 8, *shape) for shape in ((3,), (2,), (), (), (3,), ())))
    noise = agent.draw(8)
    smoothing = (0.2 * noise["target"]).clamp(-0.1, 0.1)
    assert smoothing.abs().max() == pytest.approx(0.1), "the clip must matter in this test"
    action = (agent.target_actor(batch.next_obs) + smoothing).clamp(-1, 1)
    q1, q2 = agent.target_critic(batch.next_obs, action)[0]
    target = batch.reward[0] + batch.discount[0] * torch.minimum(q1, q2)
    have = agent.critic(batch.obs, batch.action)[0]
    want = ((target - have) ** 2).mean(-1).sum()
    assert agent.update(batch, noise, 0)["critic_loss"].item() == pytest.approx(want.item(), rel=1e-5)


def test_dqn_target_by_hand_and_hard_copies():
    spec = Spec(3, 1, (0.0,), (2.0,), 3)
    batch = Batch(*(torch.randn(1, 8, *shape) for shape in ((3,), (1,), (), (), (3,), ())))
    batch = batch._replace(action=torch.randint(3, (1, 8, 1)).float())
    for double in (False, True):
        agent = DQN(spec, (0,), double_q=double, target_every=3, **SMALL)
        agent.configure_optimizers()
        with torch.no_grad():
            for p in agent.target.parameters():
                p += torch.randn(p.shape)
        slow, fast = agent.target(batch.next_obs)[0], agent.q(batch.next_obs)[0]
        best = (fast if double else slow).argmax(-1)
        target = batch.reward[0] + batch.discount[0] * slow[torch.arange(8), best]
        q = agent.q(batch.obs)[0][torch.arange(8), batch.action[0, :, 0].long()]
        want = torch.nn.functional.huber_loss(q, target)
        assert agent.update(batch, {}, 0)["q_loss"].item() == pytest.approx(want.item(), rel=1e-5)
    block = tree_map(lambda x: x.unsqueeze(0), batch)
    same = []
    for _ in range(7):
        before = agent.q.net.layers[0].weight.clone()
        agent.learn(block)
        same.append(torch.equal(agent.target.net.layers[0].weight, before))
    assert same == [True, False, False, True, False, False, True]


def test_dqn_explores_by_its_schedule():
    spec = Spec(3, 1, (0.0,), (3.0,), 4)
    agent = DQN(spec, (0,), epsilon=1.0, final_epsilon=0.2, epsilon_steps=100, **SMALL)
    obs = torch.zeros(1, 4000, 3)
    greedy = agent.act(obs)
    assert (greedy == greedy[0, 0]).all()
    for steps, share in ((0, 0.75), (50, 0.45), (1000, 0.15)):  # a quarter of random actions are greedy
        agent.steps = steps
        explored = agent.act(obs, explore=True)
        assert set(explored.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}
        assert (explored != greedy).float().mean().item() == pytest.approx(share, abs=0.03)
    agent.steps, agent.updates, agent.offline_updates = 1, 100, 100
    assert agent.share_of_random() == pytest.approx(0.2), "what was learnt from a dataset is acted by, not forgotten"


@pytest.mark.parametrize("steps_per_update", [4, 1, Fraction(1, 5)])
def test_exploration_follows_the_steps_whatever_the_updates_per_step(steps_per_update):
    loop = Loop("dqn", (0,), steps_per_update=steps_per_update, warm_up=20).run(60)
    assert loop.agent.progress == loop.agent.steps == 60
    checkpoint = {}
    loop.agent.on_save_checkpoint(checkpoint)
    again = Loop("dqn", (0,)).agent
    again.on_load_checkpoint(checkpoint)
    assert again.progress == 60


def test_steps_of_fine_tuning_are_counted_after_the_updates_on_the_dataset():
    loop = Loop("td3", (0,), steps_per_update=Fraction(1, 2), warm_up=0)
    data = random_table(50, spec=loop.agent.spec)
    loop.agent.learn(OfflineData(Table.of(loop.agent, data), (0,), 16, 30).draw())
    assert loop.agent.progress == 30
    loop.run(10)
    assert (loop.agent.updates, loop.agent.progress) == (50, 40)


def test_many_updates_per_step_are_drawn_in_parts():
    """As many batches as 2,000 updates have at once may not fit the memory; they are the same ones."""
    parts, whole = (Loop("td3", (0,), steps_per_update=Fraction(1, 100), updates=200, warm_up=2) for _ in range(2))
    blocks = [block.obs for block in chain.from_iterable(parts.source.epoch(4))]
    assert [len(block) for block in blocks] == [0, 64, 64, 64, 8]
    whole.source.draw()
    assert torch.equal(torch.cat(blocks), whole.source.draw().obs)


def test_squashed_gaussian_against_torch():
    from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

    actor = SquashedGaussianActor(Identity(3), 2, (16,), [generator(0, "actor"), generator(1, "actor")])
    drawn = torch.Generator().manual_seed(0)  # torch's own is inexact where an action rounds to 1, which is rare
    obs, noise = torch.randn(2, 50, 3, generator=drawn), torch.randn(2, 50, 2, generator=drawn)
    action, log_prob = actor(obs, noise)
    mean, std = actor.mean_and_std(obs)
    squashed = TransformedDistribution(Normal(mean, std), TanhTransform(cache_size=1))
    squashed = Independent(squashed, 1)
    torch.testing.assert_close(action, torch.tanh(mean + std * noise))
    torch.testing.assert_close(log_prob, squashed.log_prob(action), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted, rises", [(5.0, True), (-50.0, False)])
def test_sac_adapts_its_temperature_to_the_target_entropy(wanted, rises):
    spec = Spec(3, 2, (-1.0, -1.0), (1.0, 1.0))
    agent = SAC(spec, (0, 1), target_entropy=wanted, **SMALL)
    block = Batch(*(torch.randn(5, 2, 8, *shape) for shape in ((3,), (2,), (), (), (3,), ())))
    agent.learn(block)
    assert ((agent.temperature().flatten() > 1) == rises).all()
    still = SAC(spec, (0, 1), target_entropy=wanted, learn_alpha=False, **SMALL)
    still.learn(block)
    assert (still.temperature() == 1).all()


def test_agents_refuse_the_wrong_kind_of_actions():
    with pytest.raises(UserError, match="dqn"):
        TD3(Spec(3, 1, (0.0,), (1.0,), 2), (0,))
    with pytest.raises(UserError, match="td3"):
        DQN(Spec(3, 1, (-1.0,), (1.0,)), (0,))


def test_actions_can_reach_the_environments_bounds():
    collector = Collector({"id": "Pendulum-v1"}, (0,))
    agent = TD3(collector.spec, (0,), **SMALL)
    with torch.no_grad():
        agent.actor.net.layers[-1].bias.fill_(50.0)
    transition = collector.step(agent)
    assert transition.action.item() == pytest.approx(1, abs=0.5), "the replay holds actions in units of [-1, 1]"
    assert collector.recordings[0].actions[0].item() == pytest.approx(2 * transition.action.item())
