"""The Python way in: names at the top, plain objects, numpy in and out."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from pendulum import empty_workplace

import offlinerl
from offlinerl.util.errors import UserError

FEW = dict(updates=4, eval_every=4, eval_episodes=1, final_episodes=1, batch=8, compile=False)


def test_every_public_name_is_there():
    for name in offlinerl.__all__:
        assert getattr(offlinerl, name) is not None, name
    assert "fit" in dir(offlinerl)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        offlinerl.fitt  # noqa: B018


def test_importing_loads_no_torch():
    code = "import offlinerl, sys; offlinerl.UserError; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_from_collecting_to_acting(tmp_path):
    with empty_workplace(tmp_path):
        offlinerl.collect("random", "Pendulum-v1", "some/random-v0", episodes=2)
        summary = offlinerl.fit("bc", "some/random-v0", seeds=[3, 5], over=dict(train=FEW), out=Path("run"))
        found = offlinerl.evaluate("run", episodes=2)
        assert summary["last"]["per_seed"] and found["seeds"] == [3, 5]
        assert json.loads(Path("run/summary.json").read_text())["last"] == summary["last"]
        policy, other = offlinerl.load_policy("run"), offlinerl.load_policy("run", seed=5)
    env = gym.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    action = policy(obs)
    assert action.shape == (1,) and env.action_space.contains(action)
    batch = np.stack([obs, obs + 0.1])
    np.testing.assert_allclose(policy(batch)[0], action, rtol=1e-5)
    assert policy(batch).shape == (2, 1) and not np.allclose(policy(batch), other(batch))
    with pytest.raises(UserError, match=r"takes observations of shape \(3,\), not \(2,\)"):
        policy(obs[:2])
    with pytest.raises(UserError, match="no policy of seed 4; there are those of 3, 5"):
        offlinerl.load_policy(tmp_path / "run", seed=4)


def test_a_deployed_policy_acts_as_the_agent_and_discrete_actions_by_their_names(spec):
    agent = offlinerl.XQL(spec, (0, 1), hidden=(8,))
    agent.configure_optimizers()
    from offlinerl.rollout.deployed import DeployedPolicy

    obs = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    meant = agent.act(torch.from_numpy(obs).expand(2, -1, -1))[1].detach().numpy()
    np.testing.assert_allclose(DeployedPolicy(agent, 1)(obs), meant, rtol=1e-5, atol=1e-6)
    discrete = offlinerl.Spec(5, 1, (0.0,), (2.0,), 3, first_action=4)
    policy = DeployedPolicy(offlinerl.DQN(discrete, (0,), hidden=(8,)))
    assert set(policy(obs).tolist()) <= {4, 5, 6} and policy(obs[0]) in (4, 5, 6)


def test_a_policy_object_is_evaluated():
    class Still(offlinerl.Policy):
        def act(self, obs, explore=False):
            return torch.zeros(*obs.shape[:2], 1)

    found = offlinerl.evaluate(Still(), "Pendulum-v1", episodes=2)
    assert found["mean_length"] == 200 and found["mean"] < 0
    with pytest.raises(UserError, match="give env"):
        offlinerl.evaluate(Still())


@pytest.mark.parametrize("successors", [True, False])
def test_a_dataset_from_arrays(successors):
    rows = np.arange(6, dtype=np.float64)[:, None]
    arrays = dict(
        obs=rows, action=rows, reward=rows[:, 0], terminated=np.array([0, 0, 1, 0, 0, 0]),
        truncated=np.array([0, 0, 0, 0, 0, 1]),
    )  # fmt: skip
    if successors:
        arrays["next_obs"] = rows + 1
    data = offlinerl.load_dataset(arrays)
    assert data.obs.dtype == np.float32
    if successors:
        np.testing.assert_array_equal(data.next_obs[:, 0], [1, 2, 3, 4, 5, 6])
        np.testing.assert_array_equal(data.last, [False, False, True, False, False, True])
    else:  # the row that was cut off has no successor
        np.testing.assert_array_equal(data.obs[:, 0], [0, 1, 2, 3, 4])
        np.testing.assert_array_equal(data.next_obs[[0, 1, 3, 4], 0], [1, 2, 4, 5])
        np.testing.assert_array_equal(data.last, [False, False, True, False, True])
    np.testing.assert_array_equal(data.terminated, arrays["terminated"][: len(data)] == 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(reward=None), "the arrays lack reward"), (dict(reward=np.zeros(3)), "unequal lengths"),
        (dict(obs=np.full((4, 1), np.nan)), "obs has NaN"),
        (dict(terminated=np.full(4, 0.5)), "terminated must be 0 or 1"),
    ],
)  # fmt: skip
def test_arrays_that_are_not_sound_are_refused(change, says):
    arrays = dict(obs=np.zeros((4, 1)), action=np.zeros((4, 1)), reward=np.zeros(4), terminated=np.zeros(4)) | change
    with pytest.raises(UserError, match=says):
        offlinerl.load_dataset({name: array for name, array in arrays.items() if array is not None})


def test_what_minari_opened_is_a_dataset(tmp_path):
    import minari

    with empty_workplace(tmp_path):
        offlinerl.collect("random", "Pendulum-v1", "some/random-v0", episodes=2)
        data = offlinerl.load_dataset(minari.load_dataset("some/random-v0"))
        np.testing.assert_array_equal(data.obs, offlinerl.load_dataset("some/random-v0").obs)
