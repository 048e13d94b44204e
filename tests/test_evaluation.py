"""Evaluation on environments with known returns, and the statistics of the results."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from offlinerl import agents
from offlinerl.agents.bc import BC
from offlinerl.envs.make import make, spec_of
from offlinerl.envs.pool import Pool
from offlinerl.evaluation.evaluate import evaluate
from offlinerl.evaluation.statistics import bootstrap
from offlinerl.evaluation.task import Task
from offlinerl.types import Spec
from offlinerl.util.errors import UserError

SPEC = Spec(2, 1, (-1.0,), (1.0,))


class Countdown(gym.Env):
    """Its reward is the action, its seed decides the length of an episode, and it shows the seed and the step."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.steps, self.start = 3 + seed % 4, 0, seed
        return self.look(), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == self.length
        return self.look(), float(action[0]), over and self.start % 2 == 0, over, {"success": over}

    def look(self):
        return np.array([self.start, self.steps], np.float32)


@pytest.fixture(autouse=True)
def registered():
    gym.register("Countdown-v0", entry_point=Countdown)
    yield
    del gym.registry["Countdown-v0"]


class Constant(BC):
    """Seed s always does (s + 1) / 10."""

    def act(self, obs, explore=False):
        assert obs.ndim == 3 and obs.shape[0] == len(self.seeds)
        scale = torch.arange(1, len(self.seeds) + 1).view(-1, 1, 1) / 10
        return scale.expand(-1, obs.shape[1], 1)


TASK = Task({"id": "Countdown-v0"}, score={"min": 0.0, "max": 0.5, "from": "return"}, score_kind="normalized")


def test_returns_lengths_and_scores_are_those_of_the_episodes():
    result = evaluate(Constant(SPEC, (0, 1, 2), hidden=(4,)), TASK, episodes=6, seed=10)
    lengths = [3 + (10 + i) % 4 for i in range(6)]
    for s in range(3):
        assert result.lengths[s].tolist() == lengths
        np.testing.assert_allclose(result.returns[s], np.array(lengths) * (s + 1) / 10, rtol=1e-5)
        np.testing.assert_allclose(result.scores[s], 200 * result.returns[s], rtol=1e-6)
    assert result.success.all()
    np.testing.assert_allclose(result.per_seed, result.scores.mean(1))


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_the_number_of_environments_changes_nothing(lanes):
    agent = BC(SPEC, (0, 1), hidden=(8,))
    want = evaluate(agent, TASK, episodes=5, pool=Pool(TASK.env, 2))
    pool = Pool(TASK.env, 2 * lanes)
    got = evaluate(agent, TASK, episodes=5, pool=pool)
    again = evaluate(agent, TASK, episodes=5, pool=pool)
    np.testing.assert_allclose(got.returns, want.returns, rtol=1e-5)
    np.testing.assert_array_equal(got.lengths, want.lengths)
    np.testing.assert_array_equal(again.returns, got.returns)
    pool.close()


def test_a_seed_scores_the_same_alone():
    stack, alone = BC(SPEC, (0, 1), hidden=(8,)), BC(SPEC, (1,), hidden=(8,))
    np.testing.assert_allclose(
        evaluate(stack, TASK, episodes=4).returns[1], evaluate(alone, TASK, episodes=4).returns[0], rtol=1e-5
    )


def test_scores_from_success():
    task = Task({"id": "Countdown-v0"}, score={"min": 0, "max": 1, "from": "success"}, score_kind="normalized")
    assert evaluate(Constant(SPEC, (0,), hidden=(4,)), task, episodes=3).scores.tolist() == [[100, 100, 100]]


def test_an_environment_of_other_shapes_is_refused():
    agent = BC(Spec(3, 1, (-1.0,), (1.0,)), (0,), hidden=(4,))
    with pytest.raises(UserError, match="has 2 observations and 1 action, the policy 3 observations and 1"):
        evaluate(agent, TASK, episodes=1)


def test_a_diverged_policy_is_named():
    agent = BC(SPEC, (0, 7), hidden=(4,))
    with torch.no_grad():
        agent.actor.net.layers[0].weight[1] = float("nan")
    found, alone = evaluate(agent, TASK, episodes=3), evaluate(agent.part(slice(0, 1)), TASK, episodes=3)
    assert found.scores[0].tolist() == alone.scores[0].tolist() and found.lengths[0].tolist() == [3, 4, 5]
    assert np.isnan(found.scores[1]).all() and np.isnan(found.returns[1]).all() and not found.lengths[1].any()
    figures = found.facts()
    assert all(np.isnan(figures[name]) for name in ("mean", "mean_return", "mean_length", "success"))
    assert alone.facts()["mean_length"] == 4 and alone.facts()["success"] == 1
    with pytest.raises(UserError, match="seed 7 returns actions that are not finite.*lower the learning rate$"):
        evaluate(agent.part(slice(1, 2)), TASK, episodes=1)
    score = Task({"id": "Countdown-v0"}, score={"min": 0, "max": 1, "from": "success"}, score_kind="normalized")
    assert np.isnan(evaluate(agent, score, episodes=3).scores[1]).all()
    with torch.no_grad():
        agent.actor.net.layers[0].weight[0] = float("nan")
    with pytest.raises(UserError, match="seed 0 returns actions that are not finite"):
        evaluate(agent, TASK, episodes=1)


@pytest.mark.parametrize("agent", ["dqn", "ppo"])
def test_a_diverged_policy_of_discrete_actions_is_named(agent):
    """An argmax over NaN values returns a number like any other."""
    task = Task({"id": "CartPole-v1"})
    policy = agents.get(agent)(spec_of(make(task.env)), (0, 7), hidden=(4,))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter[1] = float("nan")
    found = evaluate(policy, task, episodes=2)
    assert np.isfinite(found.returns[0]).all() and np.isnan(found.returns[1]).all()
    with pytest.raises(UserError, match="seed 7 returns actions that are not finite"):
        evaluate(policy.part(slice(1, 2)), task, episodes=1)


def test_bootstrap_covers_the_mean_with_the_stated_probability():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        scores = rng.normal(50, 10, (1, 40))
        low, high = bootstrap(scores, draws=1000, seed=trial)
        covered += low <= 50 <= high
    # binomial(200, 0.95) lies in [178, 198] with probability 0.999; the percentile interval is a little narrow
    assert 176 <= covered <= 199


def test_bootstrap_covers_the_mean_where_all_seeds_begin_in_the_same_starts():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        scores = rng.normal(50, 10, (1, 40)) + rng.normal(0, 1, (5, 40))  # the start's own difficulty counts most
        low, high = bootstrap(scores, draws=1000, seed=trial)
        covered += low <= 50 <= high
    assert 176 <= covered <= 199  # as above; 64% if every seed had starts of its own


def test_bootstrap_widens_when_seeds_disagree():
    rng = np.random.default_rng(0)
    agreeing = rng.normal(50, 5, (5, 50))
    disagreeing = agreeing + np.array([[-20], [-10], [0], [10], [20]])
    narrow, wide = bootstrap(agreeing), bootstrap(disagreeing)
    assert wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])
    assert bootstrap(np.full((3, 4), 7.0)) == (7.0, 7.0)


def test_dict_observations_keep_the_order_of_the_keys():
    class Maze(gym.Env):
        observation_space = gym.spaces.Dict(
            {k: gym.spaces.Box(-9, 9, (n,)) for k, n in (("achieved", 2), ("desired", 2), ("state", 3))}
        )
        action_space = gym.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            parts = dict(achieved=np.ones(2), desired=2 * np.ones(2), state=3 * np.ones(3))
            return {k: v.astype(np.float32) for k, v in parts.items()}, {}

    gym.register("Maze-v0", entry_point=Maze)
    try:
        env = make({"id": "Maze-v0"}, obs_keys=["state", "achieved"])
        assert env.reset()[0].tolist() == [3, 3, 3, 1, 1]
        assert spec_of(env).obs_dim == 5
    finally:
        del gym.registry["Maze-v0"]


@pytest.mark.parametrize(
    "env, message",
    [
        ({"id": "NoSuchThing-v0"}, "cannot be made"),
        ({"id": "Pendulum-v1", "kwargs": {"gravity": 1, "no_such": 2}}, "cannot be made"),
    ],
)
def test_environments_that_cannot_be_made_are_refused(env, message):
    with pytest.raises(UserError, match=message):
        Pool(env, 1)
