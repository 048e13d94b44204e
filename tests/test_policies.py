"""Policies with memory: what they remember of one episode or environment never affects another.

The environment shows which step of which episode it is in; a policy compares that with what it remembers, at every act.
"""

import copy

import counting
import gymnasium as gym
import imageio
import minari
import numpy as np
import pytest
import torch

from offlinerl.agents.bc import BC
from offlinerl.agents.td3 import TD3
from offlinerl.data.load import load
from offlinerl.envs.pool import Pool
from offlinerl.evaluation.evaluate import evaluate
from offlinerl.evaluation.task import Task
from offlinerl.evaluation.video import record_videos
from offlinerl.learning.rng import EnvStreams
from offlinerl.rollout.collector import Collector
from offlinerl.rollout.policy import Policy, Uniform
from offlinerl.training.collection import collect
from offlinerl.types import Spec
from offlinerl.util.errors import UserError

TASK, DRAWN = Task({"id": counting.ID}), "test/Drawn-v0"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("OFFLINERL_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    counting.register()
    if DRAWN not in gym.registry:
        gym.register(DRAWN, entry_point=Drawn)
    return tmp_path


class Drawn(counting.Counting):
    """Shows its step in its images too."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        return np.full((8, 8, 3), 20 * self.state[1], np.uint8)


class Watchful(Policy):
    """Counts its acts in every environment since ``begin``; this must equal the environment's own count.

    Attributes:
        started: episodes so far.
        over: ``[S, E]``, true where no episode is played.
    """

    def __init__(self, seeds=(0, 1)):
        self.seeds, self.started, self.acts = seeds, 0, np.zeros((0, 0), int)

    def begin(self, where, episodes):
        if self.acts.shape != where.shape:
            self.acts, self.over, self.shown = np.zeros(where.shape, int), np.ones(where.shape, bool), None
            self.episodes, self.memory = np.full(where.shape, -1), self.empty(where.shape)
        assert (episodes == self.episodes)[~where].all(), "an episode changes without beginning"
        self.acts[where], self.over[where], self.episodes = 0, False, episodes.copy()
        self.memory[torch.from_numpy(where)] = -1.0
        self.started += int(where.sum())

    def act(self, obs, explore=False):
        assert obs.shape == (*self.acts.shape, 3)
        steps, resting = obs[..., 1].numpy(), self.over
        # Where no episode is played, the last observation is shown again. If it changes, a step was taken.
        self.over = resting | (steps < self.acts)
        assert (steps == self.acts)[~self.over].all(), "a step is missing"
        assert self.shown is None or torch.equal(obs[resting], self.shown[resting]), "it was not told of an episode"
        action = self.decide(obs, list(zip(*(~self.over).nonzero(), strict=True)))
        self.acts, self.shown = self.acts + 1, obs
        return action


class Stacking(Watchful):
    """Acts on its last three observations, which must be consecutive ones of one episode."""

    def empty(self, shape):
        return torch.zeros(*shape, 3, 3)  # [S, E, frames, O]

    def decide(self, obs, playing):
        self.memory = torch.cat([self.memory[:, :, 1:], obs.unsqueeze(2)], 2)
        for s, e in playing:
            seed, step = obs[s, e, :2].tolist()
            frames = [(seed, step - back) if back <= step else (-1, -1) for back in (2, 1, 0)]
            assert self.memory[s, e, :, :2].tolist() == list(map(list, frames)), "frames of another episode or step"
        return 0.01 * self.memory[..., 1].sum(-1, keepdim=True)


class Chunking(Watchful):
    """Chooses four actions at once, and remembers the observation at that time."""

    def empty(self, shape):
        return torch.zeros(*shape, 3)  # [S, E, O]

    def decide(self, obs, playing):
        place = torch.from_numpy(self.acts % 4).unsqueeze(-1)  # [S, E, 1]
        self.memory = torch.where(place == 0, obs, self.memory)
        for s, e in playing:
            seed, step = obs[s, e, :2].tolist()
            assert self.memory[s, e, :2].tolist() == [seed, step // 4 * 4], "a chunk of another episode or step"
        return 0.01 * (self.memory[..., 1:2] + place)


REMEMBERING = pytest.mark.parametrize("kind", [Stacking, Chunking])


def lengths(first, count):
    return [3 + (first + i) % 7 for i in range(count)]


@REMEMBERING
@pytest.mark.parametrize("envs", [1, 3, 9])
def test_evaluating(kind, envs):
    """Nine environments are more than there are episodes; with fewer, some environments are idle at the end."""
    policy, pool = kind(), Pool(TASK.env, 2 * envs)
    result = evaluate(policy, TASK, 7, 11, pool)
    assert result.lengths.tolist() == [lengths(11, 7)] * 2 and policy.started == 14
    assert np.array_equal(evaluate(policy, TASK, 7, 11, pool).returns, result.returns), "it begins anew"
    pool.close()
    alone = evaluate(kind((5,)), TASK, 7, 11)
    assert np.array_equal(result.returns, np.repeat(alone.returns, 2, 0))


@REMEMBERING
def test_filming(kind, here):
    policy = kind()
    record_videos(policy, Task({"id": DRAWN}), 12, str(here / "films"))
    assert policy.started == 2
    films = [imageio.mimread(here / f"films/seed-{s}.gif") for s in policy.seeds]
    assert [len(film) for film in films] == lengths(12, 1) * 2


@REMEMBERING
@pytest.mark.parametrize("much", [dict(steps=100), dict(episodes=15)])
def test_collecting(kind, much):
    collect(kind(), counting.ID, "test/remembering-v0", envs=3, seed=4, **much)
    rows = load("test/remembering-v0", counting.ID)
    if "steps" in much:
        assert len(rows) == 102, "six environments take whole steps"
    else:
        assert len(rows.episode_starts) == 15
    dataset = minari.load_dataset("test/remembering-v0")
    for episode in dataset:
        assert (episode.observations[:, 0] == episode.observations[0, 0]).all()
        assert episode.observations[:, 1].tolist() == list(range(len(episode.rewards) + 1))
        t = np.arange(len(episode.rewards))
        wanted = sum(np.maximum(t - back, -1) for back in range(3)) if kind is Stacking else t
        np.testing.assert_allclose(episode.actions[:, 0], 0.01 * wanted, rtol=1e-6)


class Least:
    """A policy that has what the protocol requires but does not derive from its class."""

    seeds, spec, device = (0,), None, "cpu"

    def begin(self, where, episodes):
        self.shape = where.shape

    def act(self, obs, explore=False):
        return torch.zeros(*self.shape, 1)


def test_a_policy_needs_no_more_than_the_protocol_requires():
    assert evaluate(Least(), TASK, 2, 11).lengths.tolist() == [lengths(11, 2)]
    for noise in (0.0, 0.3):
        name = f"test/least-{10 * noise:.0f}-v0"
        collect(Least(), counting.ID, name, episodes=2, noise=noise)
        assert (load(name, counting.ID).log_prob is None) == (not noise), "only the noise has a known distribution"


def test_collecting_with_noise_tells_the_policy_what_to_remember():
    still, noisy = Stacking(), Stacking()
    for policy, name, noise in ((still, "still", 0.0), (noisy, "noisy", 0.1)):
        collect(policy, counting.ID, f"test/{name}-v0", envs=2, episodes=6, noise=noise)
    assert still.started == noisy.started
    a, b = (load(f"test/{name}-v0", counting.ID) for name in ("still", "noisy"))
    assert np.array_equal(a.obs[:, :2], b.obs[:, :2]) and not np.array_equal(a.action, b.action)


@pytest.mark.parametrize("exploration", ["gaussian", "ou", "parameter"])
def test_an_evaluation_does_not_change_the_exploration(exploration):
    """An agent evaluated during its episodes, in another number of environments, continues as if it were not."""

    def transitions(interrupted):
        collector = Collector(TASK.env, (0, 1), range(3))
        agent = TD3(collector.spec, (0, 1), hidden=(8,), exploration=exploration, layer_norm=True)
        agent.explore_in(collector.lanes)
        taken = []
        for i in range(20):
            taken.append(collector.step(agent, random=i < 3))
            if interrupted and i % 4 == 0:
                evaluate(agent, TASK, 5)
        state = copy.deepcopy(agent.explore_state())
        collector.close()
        return taken, state

    (a, state), (b, disturbed) = transitions(False), transitions(True)
    for one, other in zip(a, b, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))
    torch.testing.assert_close(state, disturbed, rtol=0, atol=0)


@pytest.mark.parametrize("exploration", ["ou", "parameter"])
def test_exploration_continues_from_a_state_saved_during_the_warm_up(exploration):
    """The agent has not acted yet, but it was told about the current episodes."""

    def begun():
        collector = Collector(TASK.env, (0, 1), range(3))
        agent = TD3(collector.spec, (0, 1), hidden=(8,), exploration=exploration, layer_norm=True)
        agent.explore_in(range(3))
        return collector, agent

    (collector, agent), (again, other) = begun(), begun()
    collector.step(agent, random=True)
    assert again.load_state_dict(copy.deepcopy(collector.state_dict()))
    other.load_explore_state(copy.deepcopy(agent.explore_state()))
    for _ in range(12):
        a, b = collector.step(agent), again.step(other)
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_view_of_an_agent_for_other_environments_shares_its_parameters():
    agent = BC(Spec(3, 1, (-2.0,), (2.0,)), (0,), hidden=(4,))
    other, obs = agent.acting_in(range(2)), torch.ones(1, 2, 3)
    with torch.no_grad():
        before = other.act(obs)
        for p in agent.parameters():
            p += 1
        assert torch.equal(other.act(obs), agent.act(obs)) and not torch.equal(other.act(obs), before)


class Wrong(Policy):
    def __init__(self, action):
        self.action = action

    def act(self, obs, explore=False):
        return self.action.expand(1, obs.shape[1], -1)


@pytest.mark.parametrize(
    "policy, says",
    [(Wrong(torch.zeros(1, 1, 2)), r"shape \(1, .*, 2\) instead of \[S, E, A\]"),
     (Wrong(torch.full((1, 1, 1), torch.nan)), "seed 0 returns actions that are not finite")],
)  # fmt: skip
def test_wrong_actions_are_blamed_on_the_policy(policy, says, here):
    for use in (
        lambda: evaluate(policy, TASK, 1),
        lambda: record_videos(policy, Task({"id": DRAWN}), 0, here / "films"),
        lambda: collect(policy, counting.ID, "test/wrong-v0", steps=5),
    ):
        with pytest.raises(UserError, match=says):
            use()


def test_a_policy_for_another_task_is_refused():
    policy = Stacking()
    policy.spec = Spec(4, 1, (-2.0,), (2.0,))
    with pytest.raises(UserError, match="has 3 observations and 1 action, the policy 4 observations and 1"):
        evaluate(policy, TASK, 1)


def test_random_whole_numbers_are_equally_likely():
    spec = Spec(1, 2, (0.0, -3.0), (2.0, -2.0), whole=True)
    policy = Uniform(spec, EnvStreams((0,), range(3000), "random"))
    action = policy.act(torch.zeros(1, 3000, 1))[0]
    for column, values in zip(action.T, ([0, 1, 2], [-3, -2]), strict=True):
        found, counts = column.unique(return_counts=True)
        assert found.tolist() == values
        assert (counts / 3000 - 1 / len(values)).abs().max() < 0.04


def test_two_episodes_with_one_reset_seed_are_both_collected(monkeypatch):
    """The second is not mistaken for the first, which is already stored."""
    collector = Collector(TASK.env, (0,))
    monkeypatch.setattr(collector, "reset_seed", lambda s, e, episode: [7, 8, 7, 9][episode])
    collector.done.update([7, 8])
    kept = []
    collector.on_episode = lambda s, e, episode: kept.append(collector.episodes[s, e])
    while len(kept) < 2:
        collector.step(collector.uniform)
    collector.close()
    assert kept == [2, 3]


def test_observations_that_are_not_needed_are_not_kept():
    collector = Collector(TASK.env, (0,))
    for _ in range(5):
        collector.step(collector.uniform)
    assert len(collector.recordings[0].observations) <= 1 < len(collector.recordings[0].rewards)
    collector.close()
