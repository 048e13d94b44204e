"""The Python interface: public names, plain objects, numpy in and out."""

import hashlib
import inspect
import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from pendulum import empty_workplace, rows, weights

import offlinerl
from offlinerl import api
from offlinerl.cli import main
from offlinerl.data import fingerprint, registry
from offlinerl.data.dataset import Dataset
from offlinerl.data.fingerprint import checksum_of_successors
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table
from offlinerl.training import choosing, request
from offlinerl.util.errors import UserError

FEW = dict(updates=4, eval_every=4, eval_episodes=1, final_episodes=1, batch=8, compile=False)
ACTING = dict(steps=40, warm_up=20, eval_every=20, eval_episodes=1, final_episodes=2, batch=8, compile=False)


class Room(gym.Env):
    """A user's own, unregistered environment: walk to the middle, in one of four directions if discrete."""

    def __init__(self, discrete=False, limit=20):
        self.limit, self.closed = limit, False
        self.observation_space = gym.spaces.Box(-3, 3, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(4) if discrete else gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-3, 3, 2).astype(np.float32), 0
        return self.place.copy(), {}

    def step(self, action):
        way = action if np.ndim(action) else np.array([(1, 0), (0, 1), (-1, 0), (0, -1)][action])
        self.place = np.clip(self.place + way, -3, 3).astype(np.float32)
        self.steps += 1
        far = float(np.linalg.norm(self.place))
        return self.place.copy(), -far, far < 0.5, self.steps == self.limit, {}

    def close(self):
        self.closed = True


class Unrecorded(gym.Wrapper):
    """A wrapper that Gymnasium cannot create again."""


def walk(episodes=4, limit=20):
    """Arrays of random episodes in a room."""
    env, found = Room(limit=limit), []
    env.action_space.seed(0)
    for episode in range(episodes):
        (obs, _), over = env.reset(seed=episode), False
        while not over:
            action = env.action_space.sample()
            after, reward, terminated, truncated, _ = env.step(action)
            found.append((obs, action, reward, terminated, truncated, after))
            obs, over = after, terminated or truncated
    names = ("obs", "action", "reward", "terminated", "truncated", "next_obs")
    return {name: np.array(column) for name, column in zip(names, zip(*found, strict=True), strict=True)}


@pytest.fixture
def here(tmp_path):
    with empty_workplace(tmp_path) as folder:
        yield folder


def test_every_public_name_is_there():
    for name in offlinerl.__all__:
        assert getattr(offlinerl, name) is not None, name
    assert "fit" in dir(offlinerl)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        offlinerl.fitt  # noqa: B018


def test_importing_loads_no_torch():
    code = "import offlinerl, sys; offlinerl.UserError; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_collecting_training_evaluating_and_acting_in_python(tmp_path):
    with empty_workplace(tmp_path):
        offlinerl.collect("random", "Pendulum-v1", "some/random-v0", episodes=2)
        run = offlinerl.fit("bc", "some/random-v0", seeds=[3, 5], over=dict(train=FEW | dict(log_every=4)), out="run")
        found = offlinerl.evaluate("run", episodes=2)
        assert found["seeds"] == [3, 5]
        assert run.summary == json.loads(Path("run/summary.json").read_text()) and run.scores == run.summary["last"]
        assert run.scores["mean"] == pytest.approx(np.mean(run.scores["per_seed"])) and len(run.scores["ci95"]) == 2
        assert run.folder == Path("run") and run.agent.updates == 4 and "summary" not in repr(run)
        np.testing.assert_array_equal(run.table["seed"], [3, 5])
        np.testing.assert_allclose(run.table["score"], run.scores["per_seed"])
        assert run.metrics["update"].tolist() == [4, 4] and np.isfinite(run.metrics["actor_loss"]).all()
        policy, other = offlinerl.load_policy("run"), offlinerl.load_policy("run", seed=5)
        example = np.ones(3, np.float32)
        assert run.policy is run.policy and run.policy(example) == policy(example)
        assert run.load_policy(5)(example) == other(example)
    env = gym.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    action = policy(obs)
    assert action.shape == (1,) and env.action_space.contains(action)
    batch = np.stack([obs, obs + 0.1])
    np.testing.assert_allclose(policy(batch)[0], action, rtol=1e-5)
    assert policy(batch).shape == (2, 1) and not np.allclose(policy(batch), other(batch))
    with pytest.raises(UserError, match=r"takes observations of shape \(3,\), not \(2,\)"):
        policy(obs[:2])
    with pytest.raises(UserError, match="no policy of seed 4; there are those of seed 3; seed 5"):
        offlinerl.load_policy(tmp_path / "run", seed=4)


def test_a_deployed_policy_acts_like_the_agent_and_returns_the_environments_actions(spec):
    agent = offlinerl.XQL(spec, (0, 1), hidden=(8,))
    agent.configure_optimizers()
    from offlinerl.rollout.deployed import DeployedPolicy

    obs = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    meant = agent.act(torch.from_numpy(obs).expand(2, -1, -1))[1].detach().numpy()
    np.testing.assert_allclose(DeployedPolicy(agent, 1)(obs), meant, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(DeployedPolicy(agent, 1)(obs[::-1]), meant[::-1], rtol=1e-5, atol=1e-6)
    discrete = offlinerl.Spec(5, 1, (0.0,), (2.0,), 3, first_action=4)
    policy = DeployedPolicy(offlinerl.DQN(discrete, (0,), hidden=(8,)))
    assert set(policy(obs).tolist()) <= {4, 5, 6} and policy(obs[0]) in (4, 5, 6)


def test_a_policy_of_a_stack_uses_the_normalisation_of_its_own_seed(spec, tmp_path):
    from offlinerl.agents import checkpoint, shipped
    from offlinerl.rollout.deployed import DeployedPolicy

    agent = offlinerl.PPO(spec, (0, 1), hidden=(8,), normalize_obs=True)
    seen = torch.randn(2, 50, spec.obs_dim, generator=torch.Generator().manual_seed(0))
    agent.obs_norm.see(seen * torch.tensor([1.0, 9.0]).view(2, 1, 1))
    want = agent.act(seen)[1].detach().numpy()
    np.testing.assert_allclose(DeployedPolicy(agent, 1)(seen[1].numpy()), want, rtol=1e-5, atol=1e-6)
    shipped.write(agent.part(slice(1, 2)), tmp_path / "policy.safetensors", {})
    again = DeployedPolicy(checkpoint.load_agent(tmp_path / "policy.safetensors"))
    np.testing.assert_allclose(again(seen[1].numpy()), want, rtol=1e-5, atol=1e-6)


def test_an_agent_can_begin_in_any_number_of_environments(spec):
    for agent in (offlinerl.SAC(spec, (0,), hidden=(8,)), offlinerl.TD3(spec, (0,), hidden=(8,), exploration="ou")):
        agent.begin(np.ones((1, 3), bool), np.zeros((1, 3), int))
        obs = torch.zeros(1, 3, spec.obs_dim)
        first = agent.act(obs, explore=True)
        agent.begin(np.ones((1, 3), bool), np.zeros((1, 3), int))
        torch.testing.assert_close(agent.act(obs, explore=True), first)


def test_a_policy_acts_although_its_agent_was_exploring(spec):
    """In several environments, as at the end of an online run."""
    from offlinerl.rollout.deployed import DeployedPolicy

    agent = offlinerl.TD3(spec, (0, 1), hidden=(8,), exploration="ou")
    agent.configure_optimizers()
    obs = torch.randn(2, 3, spec.obs_dim)
    agent.explore_in(range(3))
    agent.begin(np.ones((2, 3), bool), np.zeros((2, 3), int))
    agent.act(obs, explore=True)
    want = agent.act(obs)[1, 0].detach().numpy()
    np.testing.assert_allclose(DeployedPolicy(agent, 1)(obs[1, 0].numpy()), want, rtol=1e-5, atol=1e-6)


def test_an_observation_of_several_shapes_is_refused(spec):
    with pytest.raises(UserError, match="takes arrays as observations"):
        offlinerl.DeployedPolicy(offlinerl.BC(spec, hidden=(8,)))((np.zeros(3), np.zeros(2)))


def test_a_policy_object_is_evaluated():
    found = offlinerl.evaluate(Still(), "Pendulum-v1", episodes=2)
    assert found["mean_length"] == 200 and found["mean"] < 0
    with pytest.raises(UserError, match="give env"):
        offlinerl.evaluate(Still())


def test_arrays_may_have_the_names_of_files_and_say_which_episode_a_row_is_of():
    obs, names = np.arange(6.0)[:, None], ["observations", "actions", "rewards", "terminals"]
    arrays = dict(zip(names, [obs, obs, obs[:, 0], np.zeros(6, bool)], strict=True))
    data = offlinerl.load_dataset(arrays | dict(episode=["a", "a", "a", "b", "b", "b"]))
    assert data.episode_lengths.tolist() == [2, 2] and data.obs[:, 0].tolist() == [0, 1, 3, 4]  # the last have no next
    with pytest.raises(UserError, match="the rows of episode a are not together: sort them by episode"):
        offlinerl.load_dataset(arrays | dict(episode=["a", "a", "a", "b", "b", "a"]))
    with pytest.raises(UserError, match=r"episode has shape \(2,\), but there are 6 rows"):
        offlinerl.load_dataset(arrays | dict(episode=[1, 2]))
    with pytest.raises(UserError, match="the arrays have action twice, also as actions: leave one out"):
        offlinerl.load_dataset(arrays | dict(action=obs))
    odd = offlinerl.load_dataset(arrays | dict(episode=[None, None, None, 1, 1, 1]))
    assert odd.episode_lengths.tolist() == [2, 2]
    column = offlinerl.load_dataset(arrays | dict(episode=np.repeat([[0], [1]], 3, 0)))
    assert column.episode_lengths.tolist() == [2, 2]


def test_arrays_may_be_the_columns_of_a_table():
    table = dict(x=np.arange(6.0), joint=np.ones((6, 2)), r=np.zeros(6), run=[0, 0, 0, 1, 1, 1])
    data = offlinerl.load_dataset(table, columns="obs=x action=joint reward=r episode=run")
    assert data.episode_lengths.tolist() == [2, 2] and data.action.shape == (4, 2)


def test_fit_takes_the_columns_of_a_table(here):
    table = dict(x=np.arange(20.0), u=np.linspace(-1, 1, 20), run=np.repeat([0, 1], 10))
    run = offlinerl.fit("bc", table, columns="obs=x action=u episode=run", **dict(updates=2, batch=4, compile=False))
    assert run.summary["data"]["rows"] == 18
    with pytest.raises(UserError, match="does not name an environment of its own: give --env"):
        offlinerl.collect(run.folder, None, "some/own-v1", episodes=1, limits=dict(max_episode_steps=5))


def test_a_policy_collects_where_it_was_trained(here):
    few = dict(steps=40, warm_up=20, eval_every=40, batch=8, final_episodes=1, compile=False)
    run = offlinerl.fit("td3", env="Pendulum-v1", out="there", **few)
    offlinerl.collect(run.folder, None, "some/own-v0", episodes=1)
    assert len(offlinerl.load_dataset("some/own-v0")) == 200
    with pytest.raises(UserError, match="collect needs --env"):
        offlinerl.collect(Still(), None, "some/own-v1", episodes=1)
    with pytest.raises(UserError, match="collect needs --env, the environment to act in"):
        offlinerl.collect("sac", None, "some/own-v1", steps=20)


def test_a_deployed_policy_is_evaluated_where_it_was_trained(here):
    few = dict(steps=40, warm_up=20, eval_every=40, batch=8, final_episodes=1, compile=False)
    run = offlinerl.fit("td3", env="Pendulum-v1", seeds=[4], **few)
    alone = offlinerl.evaluate(run.policy, episodes=2, seed=3, video="film")
    whole = offlinerl.evaluate(run, episodes=2, seed=3)
    assert alone["per_seed"] == whole["per_seed"] and alone["env"] == "Pendulum-v1"
    assert [file.suffix for file in Path("film").glob("*.gif")] == [".gif"]
    with pytest.raises(UserError, match="the evaluation of a policy that is no checkpoint has no argument 'film'"):
        offlinerl.evaluate(run.policy, film="film")


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
    else:  # the truncated row has no successor
        np.testing.assert_array_equal(data.obs[:, 0], [0, 1, 2, 3, 4])
        np.testing.assert_array_equal(data.next_obs[[0, 1, 3, 4], 0], [1, 2, 4, 5])
        np.testing.assert_array_equal(data.last, [False, False, True, False, True])
    np.testing.assert_array_equal(data.terminated, arrays["terminated"][: len(data)] == 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(obs={}), "the arrays lack obs; needed are"), (dict(obs=dict(a={})), "the arrays lack obs"),
        (dict(action=None), "the arrays lack action"), (dict(reward=np.zeros(3)), "unequal lengths"),
        (dict(obs=np.full((4, 1), np.nan)), "obs has NaN"),
        (dict(terminated=np.full(4, 0.5)), "terminated must be 0 or 1"),
        (dict(cameras=np.zeros(4)), "no use for 'cameras'; known are"),
        (dict(truncate=np.zeros(4)), "no use for 'truncate'; did you mean truncated"),
        (dict(reward=list("abcd")), "reward must be numbers"), (dict(action=dict(left=np.zeros(4))), "action must be"),
        (dict(terminated=0), "terminated must be numbers"), (dict(obs=[[1, 2], [1]] * 2), "the array obs is damaged"),
        (dict(next_obs=np.zeros((4, 2))), "do not match obs of shape"),
        (dict(obs=[], action=[], reward=[], terminated=[]), "they have no rows"),
    ],
)  # fmt: skip
def test_invalid_arrays_are_refused(change, says):
    arrays = dict(obs=np.zeros((4, 1)), action=np.zeros((4, 1)), reward=np.zeros(4), terminated=np.zeros(4)) | change
    with pytest.raises(UserError, match=says):
        offlinerl.load_dataset({name: array for name, array in arrays.items() if array is not None})


def test_arrays_without_rewards_and_ends_are_one_episode_and_said_to_be(here, capsys):
    arrays = dict(obs=np.random.default_rng(0).normal(size=(30, 2)), action=np.linspace(-1, 1, 30))
    run = offlinerl.fit("bc", arrays, hidden=[8], over=dict(train=FEW | dict(held_out=0)))
    assert run.policy([0.5, -0.5]).shape == (1,)
    said = capsys.readouterr().out
    assert "29 transitions in 1 episode" in said and "all rewards are 0" in said
    assert "arrays: nothing in the arrays marks where episodes end, so its 30 rows are one episode" in said
    offlinerl.fit("bc", arrays | dict(episode=np.arange(30) // 10), hidden=[8], over=dict(train=FEW))
    said = capsys.readouterr().out
    assert "27 transitions in 3 episodes" in said and "marks where episodes end" not in said


def test_a_list_of_frames_or_arrays_is_read_as_several_files(here, capsys):
    rng = np.random.default_rng(0)
    logs = [dict(obs=rng.normal(size=(9, 2)), action=rng.uniform(-1, 1, 9), reward=np.ones(9)) for _ in range(3)]
    frames = [pd.DataFrame(dict(x=log["obs"][:, 0], y=log["obs"][:, 1], u=log["action"], r=1.0)) for log in logs]
    columns = dict(obs=["x", "y"], action=["u"], reward=["r"])
    for sources, more in ((logs, {}), (frames, dict(columns=columns)), (tuple(frames), dict(columns=columns))):
        data = offlinerl.load_dataset(sources, **more)
        assert data.episode_lengths.tolist() == [8, 8, 8]
        assert (data.provenance["rows_in_source"], data.provenance["rows_dropped"]) == (27, 3)
        np.testing.assert_array_equal(data.obs[8:16], logs[1]["obs"][:8].astype(np.float32))
        run = offlinerl.fit("bc", sources, hidden=[8], over=dict(train=FEW), **more)
        assert run.policy([0.5, -0.5]).shape == (1,)
        assert "marks where episodes end" not in capsys.readouterr().out
    data = offlinerl.load_dataset([frames[0], frames[1][:0]], columns=columns, name="week")
    assert len(data) == 8 and data.name == "week" and data.provenance["empty_files"] == ["week 1"]
    parts = offlinerl.load_dataset([dict(log, obs=dict(q=log["obs"], t=log["obs"])) for log in logs], obs_keys=["q"])
    assert parts.obs.shape == (24, 2)
    for sources, says in (
        ([], "the list holds no step"),
        ([1.0], "a list must hold data frames or dictionaries of arrays, and 0 is of type"),
        ([*logs, dict(obs=[1])], "3 in the list: the arrays lack action"),
        (["a.csv"], "pattern, such as 'logs/"),
        ([logs[0], dict(logs[0], obs=np.ones((9, 3)))], "of shape"),
    ):
        with pytest.raises(UserError, match=says):
            offlinerl.load_dataset(sources)
    with pytest.raises(UserError, match="list 1 observes the columns y, x, and list 0 x, y"):
        offlinerl.load_dataset([frames[0], frames[1][["y", "x", "u"]]], columns=dict(obs=["[xy]"], action=["u"]))


class Arm(gym.Env):
    """A robot that is observed in parts, some of them nested."""

    observation_space = gym.spaces.Dict(
        robot=gym.spaces.Dict(q=gym.spaces.Box(-1, 1, (2,)), v=gym.spaces.Box(-1, 1, (3,))),
        camera=gym.spaces.Box(0, 255, (16, 16, 3), np.uint8),
    )
    action_space = gym.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, True, {}


@pytest.mark.parametrize("env", [None, Arm])
def test_nested_observations_are_as_their_parts_by_path(here, env):
    rng = np.random.default_rng(0)
    q, v, camera = rng.normal(size=(20, 2)), rng.normal(size=(20, 3)), rng.integers(0, 255, (20, 16, 16, 3), np.uint8)
    arrays = dict(action=rng.uniform(-1, 1, (20, 2)), reward=np.ones(20), terminated=np.arange(20) % 5 == 4)
    data, flat = (
        offlinerl.load_dataset(arrays | dict(obs=obs))
        for obs in (dict(robot=dict(q=q, v=v), camera=camera), {"robot/q": q, "robot/v": v, "camera": camera})
    )
    assert list(data.obs) == list(flat.obs) == ["robot/q", "robot/v", "camera"]
    for of in ("obs", "next_obs"):
        for part in flat.obs:
            np.testing.assert_array_equal(getattr(data, of)[part], getattr(flat, of)[part])
    run = offlinerl.fit("bc", data, env=env, hidden=[8], over=dict(train=FEW))
    assert offlinerl.evaluate(run.folder, env=Arm, episodes=1)["mean"] == 0
    nested = dict(robot=dict(q=q[0], v=v[0]), camera=camera[0])
    acts = [offlinerl.load_policy(run.folder)(obs) for obs in (nested, {part: flat.obs[part][0] for part in flat.obs})]
    np.testing.assert_array_equal(*acts)


class Joints(Arm):
    """The robot without its camera, which agents see as one vector."""

    observation_space = gym.spaces.Dict(robot=Arm.observation_space["robot"])


def test_a_policy_of_vectors_apart_is_told_how_to_see_one_as_its_environment(here):
    rng, few = np.random.default_rng(0), dict(hidden=[8], over=dict(train=FEW))
    robot = dict(v=rng.normal(size=(20, 3)), q=rng.normal(size=(20, 2)))
    arrays = dict(obs=dict(robot=robot), action=rng.uniform(-1, 1, (20, 2)), episode=np.arange(20) // 5)
    with pytest.raises(
        UserError, match="train it with --obs-keys robot/v,robot/q, which makes one vector of its parts"
    ):
        offlinerl.evaluate(offlinerl.fit("bc", arrays, **few).folder, env=Joints, episodes=1)
    for kept in (dict(obs_keys=["robot/v", "robot/q"]), dict(env=Joints)):
        assert (
            offlinerl.evaluate(offlinerl.fit("bc", arrays, **few, **kept).folder, env=Joints, episodes=1)["mean"] == 0
        )


@pytest.mark.parametrize("ids", [False, True])
def test_the_parts_of_successors_may_be_in_another_order(ids):
    rng = np.random.default_rng(0)
    q, dq = rng.normal(size=(51, 2)), 100 + rng.normal(size=(51, 2))
    same = dict(obs=dict(q=q[:-1], dq=dq[:-1]), next_obs=dict(q=q[1:], dq=dq[1:]), action=rng.normal(size=(50, 1)))
    same |= dict(episode=np.repeat([0, 1], 25)) if ids else {}
    other = same | dict(next_obs=dict(dq=dq[1:], q=q[1:]))
    one, two = (offlinerl.load_dataset(arrays) for arrays in (same, other))
    assert len(one.observations["q"]) == len(two.observations["q"]) == 51 + ids
    assert np.array_equal(one.episode_starts, two.episode_starts) and len(two.episode_starts) == 1 + ids
    for path in ("q", "dq"):
        assert np.array_equal(one.next_obs[path], two.next_obs[path])


def test_arrays_of_whole_episodes_are_refused():
    arrays = dict(obs=np.zeros((6, 50, 3)), action=np.zeros((6, 50, 2)))
    with pytest.raises(UserError, match=r"seem to be 6 episodes of 50 steps.*action.reshape\(-1, 2\), and number the"):
        offlinerl.load_dataset(arrays)
    matrices = dict(obs=np.zeros((6, 3)), action=np.zeros((6, 4, 2)))
    assert offlinerl.load_dataset(matrices).action.shape == (5, 8)


def test_masked_values_are_missing():
    masked = np.ma.masked_equal([[1.0], [-999.0], [2.0], [3.0]], -999.0)
    with pytest.raises(UserError, match="obs has NaN or infinite values in 1 rows, the first of them 1"):
        offlinerl.load_dataset(dict(obs=masked, action=np.zeros((4, 1))))
    with pytest.raises(UserError, match="actions has NaN or infinite values in 1 rows, the first of them 1"):
        offlinerl.load_dataset(dict(x=np.zeros(4), u=masked[:, 0].astype(int)), columns="obs=x action=u")
    whole = np.ma.masked_array(np.ones((4, 1)))
    assert offlinerl.load_dataset(dict(obs=whole, action=np.zeros((4, 1)))).obs.shape == (3, 1)


def test_what_d4rls_functions_return_is_a_dataset():
    """``get_dataset`` has all keys of a file, and ``qlearning_dataset`` no timeouts."""
    arrays = walk(limit=7)
    rows = len(arrays["reward"])
    ends = arrays["terminated"] | arrays["truncated"]
    names = dict(obs="observations", action="actions", reward="rewards", terminated="terminals")
    of_file = {name: arrays[field] for field, name in names.items()} | dict(timeouts=arrays["truncated"])
    more = {
        "infos/goal": np.zeros((rows, 2)),
        "metadata/algorithm": "SAC",
        "infos/action_log_probs": np.full(rows, -0.5),
    }
    data = offlinerl.load_dataset(of_file | more)
    assert np.unique(data.log_prob).tolist() == [-0.5] and len(data.episode_starts) == ends.sum()
    assert offlinerl.load_dataset(of_file | {"infos/action_log_probs": np.full(rows, np.nan)}).log_prob is None
    del of_file["timeouts"]
    for cut in (False, True):  # qlearning_dataset leaves out the rows of timeouts
        kept = ~arrays["truncated"] if cut else np.ones(rows, bool)
        data = offlinerl.load_dataset(
            {name: of[kept] for name, of in dict(of_file, next_observations=arrays["next_obs"]).items()}
        )
        lengths = np.diff(np.r_[0, np.flatnonzero(ends) + 1]) - (cut & arrays["truncated"][ends])
        assert data.episode_lengths.tolist() == lengths.tolist() and not len(data.leaps)


def test_names_of_other_libraries_are_understood_in_hints(here, capsys):
    for agent, name, ours in (
        ("iql", "iql_tau", "expectile"), ("iql", "beta", "temperature"), ("ppo", "gae_lambda", "lam"),
        ("awac", "lam", "temperature"), ("ppo", "n_steps", "batch"), ("cql", "cql_n_actions", "samples"),
        ("sac", "learning_starts", "warm_up"), ("ppo", "batch_size", "minibatch or batch"),
        ("dt", "seq_len", "context"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"fit has no argument or setting '{name}'; did you mean {ours}\?"):
            offlinerl.fit(agent, walk(), **{name: 1})
    for name, ours in dict(SAC="sac", TD3BC="td3bc").items():
        with pytest.raises(UserError, match=rf"there is no agent '{name}'; did you mean {ours}"):
            offlinerl.fit(name, walk())
    for flag, says in (
        ("--batch_size", "but there is --batch;"), ("--learning-starts", "here that setting is called warm_up;"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            main(["fit", "sac", "--env", "Pendulum-v1", flag, "3"])
        assert f"there is no {flag}" in (line := capsys.readouterr().err) and says in line
    arguments = inspect.signature(choosing.select).parameters.values()
    assert {*api.SELECTED, "dataset"} == {one.name for one in arguments if one.kind == one.KEYWORD_ONLY}
    with pytest.raises(UserError, match="select has no argument 'envs'"):
        offlinerl.select("runs", envs=Room)


def test_missing_runs_and_invalid_seeds_are_reported():
    for of in (offlinerl.select, offlinerl.report):
        with pytest.raises(offlinerl.UserError, match="there are no runs"):
            of([])
    with pytest.raises(offlinerl.UserError, match="seed must be a whole number of at least 0, not -1"):
        offlinerl.collect("random", "Pendulum-v1", "some/random-v0", steps=10, seed=-1)


class Still(offlinerl.Policy):
    """Does nothing."""

    def act(self, obs, explore=False):
        return torch.zeros(*obs.shape[:2], 1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(seed=-1), "seed must be a whole number of at least 0, not -1"),
        (dict(seed=None), "seed must .* not None"),
        (dict(seed=1.5), "seed must .* not 1.5"),
        (dict(episodes=0), "episodes must be a whole number of at least 1, not 0"),
        (dict(episodes=-1), "episodes must .* not -1"), (dict(episodes="2"), "episodes must .* not '2'"),
        (dict(episodes=1.5), "episodes must .* not 1.5"), (dict(episodes=True), "episodes must .* not True"),
        (dict(episodes=float("inf")), "episodes must .* not inf"),
    ],
)  # fmt: skip
def test_invalid_arguments_of_an_evaluation_are_refused(given, says):
    for policy in (Still(), "nowhere"):
        with pytest.raises(UserError, match=says):
            offlinerl.evaluate(policy, "Pendulum-v1", **given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(noise=-1), "noise must be a number of at least 0, not -1"),
        (dict(noise=float("nan")), "noise .* not nan"),
        (dict(noise="a"), "noise must .* not 'a'"), (dict(envs=0), "envs must be a whole number of at least 1, not 0"),
        (dict(steps=1.5), "steps must .* not 1.5"), (dict(steps=-1), "steps must .* not -1"),
        (dict(episodes=0), "episodes must .* not 0"), (dict(steps=5, episodes=1), "--steps or --episodes, not both"),
        (dict(env=None, steps=5), "needs --env"), (dict(dataset_id=None, steps=5), "dataset_id must be .* not None"),
        (dict(threads=0, steps=5), "threads must be a whole number of at least 1, not 0"),
        (dict(limits=dict(max_episode_step=5), steps=5), "no entry 'max_episode_step'; did you mean"),
    ],
)  # fmt: skip
def test_invalid_arguments_of_a_collection_are_refused(given, says, here):
    with pytest.raises(UserError, match=says):
        offlinerl.collect(**dict(source=Still(), env="Pendulum-v1", dataset_id="own/some-v0") | given)
    assert not any(here.iterdir())


def test_invalid_numbers_are_named(here):
    for threads in (0, -1, 1.5, "a"):
        with pytest.raises(UserError, match="threads must be a whole number of at least 1"):
            offlinerl.fit("bc", walk(), threads=threads)
    with pytest.raises(UserError, match="agent must be a name or a class, not int 3"):
        offlinerl.fit(3, walk())
    Path("run").mkdir()
    Path("run", "last.ckpt").touch()
    for name, wrong in dict(seed=-1, gamma="a", episodes=3.5, updates=0, critics="5").items():
        with pytest.raises(UserError, match=f"{name} must be a .*number (of at least [01]|from 0 to 1), not"):
            offlinerl.select("run", **{name: wrong})


def test_a_run_is_evaluated_by_its_result_with_numbers_of_numpy(here):
    run = offlinerl.fit("bc", walk(), env=Room, over=dict(train=FEW), out="run")
    found = offlinerl.evaluate(run, env=Room, episodes=np.int64(2), seed=np.int64(3))
    assert found == offlinerl.evaluate("run", env=Room, episodes=2, seed=3)
    with pytest.raises(UserError, match="no entry 'max_episode_step'; did you mean max_episode_steps?"):
        offlinerl.evaluate(run, env=Room, limits=dict(max_episode_step=5))
    assert type(offlinerl.evaluate(Still(), "Pendulum-v1", np.int64(1), seed=np.int64(3))["episodes"]) is int
    for wrong, kind in ((None, "NoneType"), (3, "int")):
        with pytest.raises(UserError, match=f"a policy must be .* not {kind}"):
            offlinerl.evaluate(wrong)


def test_load_dataset_refuses_an_environment_for_arrays():
    for source in (walk(), offlinerl.load_dataset(walk())):
        with pytest.raises(offlinerl.UserError, match="give it to offlinerl.fit"):
            offlinerl.load_dataset(source, env="Pendulum-v1")


def test_a_dataset_opened_by_minari_is_accepted(tmp_path):
    import minari

    with empty_workplace(tmp_path):
        offlinerl.collect("random", "Pendulum-v1", "some/random-v0", episodes=2)
        data = offlinerl.load_dataset(minari.load_dataset("some/random-v0"))
        np.testing.assert_array_equal(data.obs, offlinerl.load_dataset("some/random-v0").obs)


def test_datasets_and_environments_may_be_objects(here):
    """A dataset from arrays and an unregistered environment work in every function that accepts names."""
    arrays, room = walk(), Room()
    whole = offlinerl.fit("td3bc", arrays, env=room, over=dict(train=FEW | dict(updates=8)), out="whole")
    run = offlinerl.fit("td3bc", offlinerl.load_dataset(arrays), env=room, over=dict(train=FEW), out="run")
    stated = yaml.safe_load(Path("run/config.yaml").read_text())["fit"]
    assert stated["dataset"]["name"] == "arrays" and stated["dataset"]["rows"] == len(arrays["obs"])
    assert stated["fingerprint"] == run.summary["data"]["sha256"]
    assert (
        stated["env"] == dict(id=f"{Room.__module__}.Room", factory=None) and run.summary["env"] == stated["env"]["id"]
    )
    again = dict(resume="run", over=dict(train=dict(updates=8)))
    lost = "was given as an object, which no file holds: pass it again, in Python, as"
    with pytest.raises(UserError, match=f"the dataset arrays {lost} dataset="):
        offlinerl.fit(**again, env=room)
    with pytest.raises(UserError, match=f"the environment .*Room {lost} env="):
        offlinerl.fit(**again, dataset=arrays)
    with pytest.raises(UserError, match="its contents differ"):
        offlinerl.fit(**again, dataset=arrays | dict(reward=arrays["reward"] + 1), env=room)
    with pytest.raises(UserError, match=r"has --env .*Room, not Pendulum-v1; leave it out, or give that one"):
        offlinerl.fit(**again, dataset=arrays, env="Pendulum-v1")
    resumed = offlinerl.fit(**again, dataset=arrays, env=Room)
    assert resumed.scores == whole.scores
    assert rows(resumed.folder / "evaluations.csv") == rows(whole.folder / "evaluations.csv")
    other = weights(whole.folder)
    assert all(torch.equal(weight, other[name]) for name, weight in weights(resumed.folder).items())
    with pytest.raises(UserError, match=lost):
        offlinerl.evaluate("run")
    found = offlinerl.evaluate("run", env=room, episodes=3, seed=5)
    alone = offlinerl.evaluate(resumed.policy, env=Room, episodes=3, seed=5)  # row by row, which rounds differently
    assert found["mean"] == pytest.approx(alone["mean"], rel=1e-6)
    assert Room().action_space.contains(offlinerl.load_policy("run")(arrays["obs"][0]))
    offlinerl.collect(resumed.policy, room, "own/policy-v0", steps=30)
    offlinerl.collect("random", Room, "own/random-v0", episodes=2, envs=2)
    assert len(offlinerl.load_dataset("own/policy-v0")) == 30
    assert not room.closed, "it is the user's"


def test_a_policy_trained_in_an_environment_object_can_be_exported(here, capsys):
    run = offlinerl.fit("td3bc", walk(), env=Room, over=dict(train=FEW), out="run")
    file = offlinerl.export(run, "policy.safetensors")
    assert offlinerl.load_policy(run).spec == run.agent.spec, "a run stands for its folder"
    said = capsys.readouterr().out
    assert f"its environment {Room.__module__}.Room was given as an object, which no file holds" in said
    obs = walk()["obs"]
    np.testing.assert_array_equal(offlinerl.load_policy(file)(obs), run.policy(obs))
    assert offlinerl.evaluate(file, env=Room, episodes=2)["episodes"] == 2
    with pytest.raises(UserError, match="object, which no file holds: pass it again, in Python, as env="):
        offlinerl.select(run.folder, episodes=4)
    for env in (Room, Room()):
        found = offlinerl.select(run.folder, episodes=4, env=env, seed=3)
        assert found["policies"][0]["episodes"] == 4 and found["unit"] == "return"
    with pytest.raises(UserError, match="--env is where to act: leave it out, or give --episodes"):
        offlinerl.select(run.folder, walk(), env=Room)
    assert offlinerl.select(run.folder, walk(), updates=2, critics=2)["tried"] == 1


def test_a_run_knows_the_successors_of_its_dataset(here):
    """Also successors that are no row's observation, as in a log of single transitions."""
    rng = np.random.default_rng(0)
    obs, after = rng.normal(size=(2, 30, 3))
    ends = np.ones(30, bool)
    arrays = dict(obs=obs, action=obs[:, :1], reward=obs[:, 0], terminated=~ends, truncated=ends, next_obs=after)
    offlinerl.fit("td3bc", arrays, over=dict(train=FEW), out="run")
    longer = dict(resume="run", over=dict(train=dict(updates=8)))
    mended, moved = after.copy(), after.copy()
    mended[7] += 1
    moved[[7, 9]] = after[[9, 7]]
    for others in (mended, moved, obs):
        with pytest.raises(UserError, match="its contents differ"):
            offlinerl.fit(**longer, dataset=arrays | dict(next_obs=others))
    config = Path("run/config.yaml")
    stated = yaml.safe_load(config.read_text())
    del stated["fit"]["successors"]  # as older versions wrote it
    config.write_text(yaml.safe_dump(stated))
    assert offlinerl.fit(**longer, dataset=arrays).summary["updates"] == 8
    with pytest.raises(UserError, match="its contents differ"):
        offlinerl.fit(resume="run", dataset=arrays | dict(next_obs=mended))


def test_a_checksum_of_successors_does_not_depend_on_their_storage():
    """A successor that equals the observation of its own row may be stored separately or shared."""
    columns = dict(action=np.zeros((3, 1)), reward=np.zeros(3), terminated=np.zeros(3, bool), last=np.arange(3) == 2)
    once = Dataset(np.float32([[0], [1], [2]]), np.arange(3), np.array([1, 2, 2]), **columns)
    twice = Dataset(np.float32([[0], [1], [2], [2]]), np.arange(3), np.array([1, 2, 3]), **columns)
    other = Dataset(np.float32([[0], [1], [2], [3]]), np.arange(3), np.array([1, 2, 3]), **columns)
    assert checksum_of_successors(once) == checksum_of_successors(twice) != checksum_of_successors(other)


def test_a_checksum_of_successors_counts_rows_from_the_beginning_of_the_dataset(monkeypatch):
    """Also where the rows are hashed in several blocks."""
    rows, last = np.arange(20), np.arange(20) % 4 == 3
    at = rows + rows // 4
    columns = dict(action=np.zeros((20, 1)), reward=np.zeros(20), terminated=np.zeros(20, bool), last=last)
    data = Dataset(np.arange(25, dtype=np.float32).reshape(25, 1), at, at + 1, **columns)
    for size in (20, 3):
        monkeypatch.setattr(fingerprint, "ROWS_HASHED", size)
        want = hashlib.sha256()
        for first in range(0, 20, size):
            apart = rows[first : first + size][last[first : first + size]]  # all others end in the next row's
            want.update(apart)
            want.update(np.float32(at[apart] + 1))
        assert checksum_of_successors(data) == want.hexdigest()


@pytest.mark.parametrize(
    "given",
    [
        dict(seeds=[1]), dict(out="b"), dict(file=Path("my.yaml")), dict(init=Path("a")), dict(limits=dict(stack=2)),
        dict(obs_keys=["a"]), dict(actions="discrete"), dict(columns=["obs=x"]), dict(subset="train"),
    ],
)  # fmt: skip
def test_settings_of_a_resumed_run_cannot_be_given_again(given):
    flag = dict(file="--config", limits="--stack", obs_keys="--obs-keys").get(*given, f"--{min(given)}")
    with pytest.raises(UserError, match=f"--resume keeps a run's own settings: leave out {flag}$"):
        offlinerl.fit(resume="run", **given)


def test_callbacks_of_a_run_get_its_metrics_and_scores_and_may_end_it(here):
    class Watch(Callback):
        def __init__(self, last):
            self.last, self.told = last, []

        def on_train_batch_end(self, trainer, agent, *_):
            self.told.append({**trainer.callback_metrics})
            trainer.should_stop |= agent.updates == self.last

        def on_train_epoch_end(self, trainer, agent):
            self.told.append({**trainer.callback_metrics})

    settings = FEW | dict(updates=12, seeds=[0, 2], logger="csv,tensorboard")
    watch = Watch(None)
    run = offlinerl.fit("bc", walk(), env=Room, callbacks=[watch], **settings, out="whole")
    assert all({"actor_loss", "actor_loss/seed_0", "actor_loss/seed_2"} <= told.keys() for told in watch.told[::2])
    scores = pd.DataFrame(run.table).groupby("update").score.mean()
    assert [float(told["score"]) for told in watch.told[1:4:2]] == pytest.approx([scores[4], scores[8]])
    plain = offlinerl.fit("bc", walk(), env=Room, **settings, out="plain")
    assert run.metrics.keys() == plain.metrics.keys() and not any("/" in name for name in run.metrics)
    assert run.scores["per_seed"] == plain.scores["per_seed"]

    ended = offlinerl.fit("bc", walk(), env=Room, callbacks=[Watch(8)], **settings, out="ended")
    assert ended.summary["updates"] == 8 and ended.scores["per_seed"] != run.scores["per_seed"]
    resumed = offlinerl.fit(dataset=walk(), env=Room, resume="ended")
    assert resumed.summary["updates"] == 12 and resumed.scores["per_seed"] == run.scores["per_seed"]


def test_callbacks_may_wait_for_scores_and_keep_checkpoints(here):
    class Watch(Callback):
        scores: ClassVar[list[float]] = []

        def on_train_epoch_end(self, trainer, agent):
            self.scores.append(float(trainer.callback_metrics["score"]))

    settings = FEW | dict(updates=8, seeds=[0, 2])
    wait = [EarlyStopping("score", mode="max", patience=9), EarlyStopping("actor_loss", patience=9)]
    once = offlinerl.fit(
        "bc", walk(), env=Room, callbacks=wait, **settings | dict(eval_every=8)
    )  # no score before the end
    keep = ModelCheckpoint(monitor="score", mode="max", filename="{score:.1f}")
    told = Watch()
    twice = offlinerl.fit("bc", walk(), env=Room, callbacks=[*wait, keep, told], **settings)
    assert told.scores[-1] == pytest.approx(twice.scores["mean"]) and len(told.scores) == 2
    assert once.summary["updates"] == twice.summary["updates"] == 8
    [path] = twice.folder.rglob("score=*.ckpt")
    assert offlinerl.load_policy(path, seed=2)(np.zeros(2)).shape == (2,)
    held_out = [EarlyStopping("held_out/actor_loss", patience=9)]
    assert offlinerl.fit("bc", walk(), callbacks=held_out, **settings, held_out=0.5).summary["updates"] == 8


class StopAt(Callback):
    def __init__(self, hook, last=0):
        def stop(trainer, agent, *_, **__):
            trainer.should_stop |= agent.updates >= last

        setattr(self, hook, stop)


@pytest.mark.parametrize(
    "hook", ["setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_end"]
)
def test_a_callback_may_stop_a_run_at_once(hook, here, capsys):
    run = offlinerl.fit(
        "bc", walk(), env=Room, callbacks=[StopAt(hook)], **FEW | dict(updates=200, eval_every=100), out="run"
    )
    assert run.summary["updates"] == (50 if hook == "on_train_batch_end" else 0)
    assert len(run.metrics.get("update", ())) == (hook == "on_train_batch_end")
    assert "warm_up" not in capsys.readouterr().out
    assert offlinerl.fit(dataset=walk(), env=Room, resume="run").summary["updates"] == 200


def test_a_callback_that_stops_at_the_switch_to_fine_tuning_leaves_its_scores(here):
    settings = FEW | dict(updates=8, online_steps=8, online_eval_every=8)
    run = offlinerl.fit("td3bc", walk(), env=Room, callbacks=[StopAt("on_train_batch_end", 8)], **settings, out="run")
    assert run.summary["updates"] == 8 and run.summary["offline"]["per_seed"] == run.scores["per_seed"]


def test_an_agent_of_a_run_reports_to_another_trainer(here):
    agent, seen = offlinerl.fit("bc", walk(), **FEW).agent, []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append({**trainer.callback_metrics})

    source = OfflineData(Table(offlinerl.load_dataset(walk()), agent.spec, 0.99), agent.seeds, 8)
    Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[Watch()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(agent, source.epoch(50))  # fmt: skip
    assert "actor_loss" in seen[0]


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(callbacks=[TQDMProgressBar()]), "a run has its own progress bar: leave others out of callbacks"),
        (dict(callbacks=[print]), "callbacks must be a list of lightning.Callback objects, not"),
        (dict(callbacks=[Callback()], devices=2), "callbacks are for a run in one process"),
    ],
)
def test_unsuitable_callbacks_are_refused(given, says, here):
    with pytest.raises(UserError, match=says):
        offlinerl.fit("bc", walk(), **FEW, **given)
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


def test_scores_follow_the_references_that_are_given(here):
    span = (-60, np.float32(-10))
    run = offlinerl.fit("bc", walk(), env=Room, score_range=span, **FEW, out="run")
    raw = offlinerl.fit("bc", walk(), env=Room, **FEW, out="raw")
    assert run.table["score"] == pytest.approx(100 * (raw.table["score"] + 60) / 50)
    assert run.summary["score_kind"] == "given"
    assert run.summary["dataset_score"] == pytest.approx(2 * (walk()["reward"].sum() / 4 + 60))
    again = offlinerl.fit(dataset=walk(), env=Room, resume="run")
    assert again.summary["score_kind"] == "given" and again.scores["mean"] == run.scores["mean"]
    found, other = (offlinerl.evaluate(of, env=Room, episodes=2, seed=3) for of in (raw, "run"))
    assert found["score_kind"] == "return" and other["mean"] == pytest.approx(2 * (found["mean"] + 60))
    assert offlinerl.evaluate("raw", env=Room, episodes=2, seed=3, score_range=span)["mean"] == other["mean"]
    offlinerl.fit("bc", walk(), score_range=span, **FEW, out="losses")  # it knows no environment until it is evaluated
    assert offlinerl.evaluate("losses", env=Room, episodes=2, seed=3)["score_kind"] == "given"


def test_references_of_an_imported_dataset_score_what_it_trains(here):
    pd.DataFrame(dict(o=np.arange(40.0), a=0.5, r=1.0, run=np.repeat([0, 1], 20))).to_csv("log.csv")
    columns = ("--columns", "obs=o", "action=a", "reward=r", "episode=run")
    assert main(["datasets", "import", "log.csv", "my/log-v0", *columns, "--score-range", "-20,30"]) == 0
    entry = registry.resolve("my/log-v0")
    assert entry.score == {"min": -20, "max": 30, "from": "return", "kind": "minari"}


@pytest.mark.parametrize("span", [(3, 3), (5, 1), (1,), "1,2", (0, float("nan"))])
def test_invalid_references_are_refused(span, here):
    with pytest.raises(UserError, match="score_range must be a list of two numbers, the lower one first, not"):
        offlinerl.fit("bc", walk(), env=Room, score_range=span, **FEW)


def test_numbers_of_numpy_are_seeds():
    for given, seeds in ((np.arange(3), [0, 1, 2]), ([np.int64(1)], [1]), (np.int32(4), [4]), (range(2), [0, 1])):
        stated = request.settings_for("bc", "kitchen", None, given, None, None)[0]["fit"]["seeds"]
        assert stated == seeds and {type(seed) for seed in stated} == {int}
    for wrong in ([True], [0.5], np.arange(2.0), "01"):
        with pytest.raises(UserError, match="seeds must be a list of different whole numbers"):
            request.settings_for("bc", "kitchen", None, wrong, None, None)


def test_unknown_limits_are_named():
    with pytest.raises(UserError, match="no entry 'max_steps'; did you mean max_episode_steps?"):
        offlinerl.fit("bc", "kitchen", limits=dict(max_steps=5))


def test_a_missing_path_is_refused_as_a_source():
    with pytest.raises(UserError, match="there is no agent or checkpoint 'nope'"):
        offlinerl.collect(Path("nope"), "Pendulum-v1", "own/nothing-v0", steps=1)


def test_arguments_that_a_selection_would_not_use_are_refused():
    for given in (dict(episodes=4, by="wis"), dict(episodes=4, dataset="nope"), dict(by="wis", critics=2)):
        with pytest.raises(
            UserError, match=f"--{min(given.keys() - {'episodes'})} applies to an|--critics applies to fitted"
        ):
            offlinerl.select("nowhere", **given)


def test_a_run_from_objects_can_be_repeated_from_its_settings(here):
    offlinerl.fit("bc", walk(), env=Room(), over=dict(train=FEW), out="first")
    with pytest.raises(UserError, match="pass it again, in Python, as dataset="):
        offlinerl.fit(file="first/config.yaml", env=Room())
    with pytest.raises(UserError, match="pass it again, in Python, as env="):
        offlinerl.fit(file="first/config.yaml", dataset=walk())
    offlinerl.fit(file="first/config.yaml", dataset=walk(), env=Room(), out="second")
    assert rows(Path("first/evaluations.csv")) == rows(Path("second/evaluations.csv"))


@pytest.mark.parametrize(("agent", "discrete"), [("sac", False), ("dqn", True)])
def test_acting_in_an_environment_from_a_function(agent, discrete, here):
    def make():
        return Room(discrete)

    run = offlinerl.fit(agent, env=make, seeds=[0, 1], over=dict(train=ACTING), out="run")
    assert len(run.scores["per_seed"]) == 2 and run.table["length"].max() <= 20
    longer = dict(train=dict(steps=60))
    assert offlinerl.fit(resume="run", env=make, over=longer).agent.steps == 60
    offlinerl.collect(
        agent, make, "own/learned-v0", steps=40, over=dict(train=dict(batch=8, warm_up=20, compile=False))
    )
    assert len(offlinerl.load_dataset("own/learned-v0")) == 40


def test_an_environment_object_is_used_by_one_at_a_time(here):
    for _ in range(2):
        for wrong in (
            lambda: offlinerl.fit("sac", env=Room(), over=dict(train=ACTING)),
            lambda: offlinerl.fit("bc", walk(), env=Room(), seeds=[0, 1], over=dict(train=FEW)),
            lambda: offlinerl.collect("random", Room(), "own/random-v0", episodes=2, envs=2),
        ):
            with pytest.raises(UserError, match=r"Room is one environment, but several .* env=lambda: MyEnv\(\)"):
                wrong()
    assert not list(Path().glob("runs/*"))


def test_an_environment_with_a_specification_is_made_again_from_it(here):
    env = gym.wrappers.RescaleAction(gym.make("Pendulum-v1", g=5.0, max_episode_steps=10), -0.5, 0.5)
    run = offlinerl.fit("sac", env=env, seeds=[0, 1], over=dict(train=ACTING), out="run")
    assert run.summary["env"] == "Pendulum-v1" and run.summary["task"]["env"]["kwargs"] == dict(g=5.0)
    assert set(run.table["length"]) == {10} and run.agent.spec.action_high == (0.5,)
    assert offlinerl.fit(resume="run", over=dict(train=dict(steps=60))).agent.steps == 60, "its files say it all"
    assert offlinerl.evaluate("run", episodes=2)["mean_length"] == 10
    odd = Unrecorded(env)
    with pytest.raises(UserError, match="Pendulum-v1 is one environment"):
        offlinerl.fit("sac", env=odd, over=dict(train=ACTING))
    assert offlinerl.evaluate(run.policy, env=odd, episodes=1)["mean_length"] == 10


def test_the_module_of_an_environment_may_have_been_imported_already(here, monkeypatch):
    code = "import gymnasium\ngymnasium.register('RoomOfMine-v0', 'test_python:Room', max_episode_steps=20)\n"
    Path("rooms.py").write_text(code)
    monkeypatch.syspath_prepend(".")
    for _ in range(2):
        data = offlinerl.collect("random", "rooms:RoomOfMine-v0", "own/room-v0", episodes=1)
        assert "RoomOfMine-v0" in gym.registry and data.is_dir()
        shutil.rmtree(data)
    with pytest.raises(UserError, match="rooms:RoomOfMin-v0 cannot be made"):
        offlinerl.collect("random", "rooms:RoomOfMin-v0", "own/room-v0", episodes=1)


def test_limits_hold_for_objects_too():
    still = type(
        "Still", (offlinerl.Policy,), dict(act=lambda self, obs, explore=False: torch.zeros(*obs.shape[:2], 2))
    )
    from offlinerl.envs.make import described, limit_of, make, steps_allowed

    about = described(lambda: Room(limit=10**6))
    assert steps_allowed(about) is None and steps_allowed({**about, "max_episode_steps": 7}) == 7
    assert limit_of(make({**about, "max_episode_steps": 7})) == 7
    assert steps_allowed(described(lambda: gym.wrappers.TimeLimit(Room(), 5))) == 5
    assert offlinerl.evaluate(still(), env=Room, episodes=2)["episodes"] == 2


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (3, "env must be a name, a gymnasium.Env or a function that makes one, not int 3"),
        (lambda: 3, "returns no gymnasium.Env but int 3"),
        (lambda: 1 / 0, "cannot be made: division by zero"),
        (lambda: Room(discrete=True), "the dataset's actions have shape (2,) and the environment's (1,)"),
        (lambda: gym.make("Pendulum-v1"), "the dataset's observations have shape (2,) and the environment's (3,)"),
    ],
)
def test_environments_that_do_not_fit_the_data_are_refused(env, says, here):
    with pytest.raises(UserError) as error:
        offlinerl.fit("bc", walk(), env=env, over=dict(train=FEW))
    assert says in str(error.value)


def test_settings_may_be_of_numpy(here):
    few, limits = dict(FEW, updates=np.int64(4)), dict(action_range=np.array([-1.0, 1.0]))
    run = offlinerl.fit("xql", walk(), hidden=np.array([8, 8]), beta=np.array([1, 2]), limits=limits, **few)
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert settings["agent"]["hidden"] == [8, 8] and settings["agent"]["beta"] == [1.0, 2.0]
    assert settings["fit"]["action_range"] == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(lr=1e-3), "setting 'lr'; did you mean actor_lr or critic_lr?"), (dict(seed=3), "did you mean seeds?"),
        (dict(seed=3, agent="bc"), "did you mean seeds?"), (dict(thread=2), "did you mean threads?"),
        (dict(action_range=[-1, 1]), r"setting 'action_range'; give it as limits=dict\(action_range=...\)"),
    ],
)  # fmt: skip
def test_names_of_settings_are_suggested_in_python(given, says, here):
    with pytest.raises(UserError, match=says):
        offlinerl.fit(given.pop("agent", "td3bc"), walk(), env=Room, **given)


def test_settings_are_given_by_name(here):
    run = offlinerl.fit("xql", walk(), env=Room, over=dict(agent=dict(hidden=[8]), train=FEW), beta=3.0, updates=8)
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert (settings["agent"]["beta"], settings["agent"]["hidden"], settings["train"]["updates"]) == (3.0, [8], 8)
    again = offlinerl.fit(dataset=walk(), env=Room, resume=run.folder, updates=12)
    assert again.summary["updates"] == 12
    few = {name: value for name, value in FEW.items() if name != "updates"}
    assert offlinerl.fit("dt", walk(), env=Room, context=3, warm_up=2, updates=4, **few).summary["updates"] == 4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(updats=3), "fit has no argument or setting 'updats'; did you mean updates"),
        (dict(expectile=0.9), "fit has no argument or setting 'expectile'"),
        (dict(steps=100), "steps"),
        (dict(beta=-1), "beta must be greater than 0, not -1"),
    ],
)
def test_settings_that_do_not_exist_are_named(given, says, here):
    with pytest.raises(UserError, match=says):
        offlinerl.fit("xql", walk(), env=Room, **given)


def test_a_policy_of_images_takes_only_what_it_was_trained_on():
    spec = offlinerl.Spec((("", (20, 20, 3), "uint8"),), 1, (-1.0,), (1.0,))
    policy = offlinerl.DeployedPolicy(offlinerl.BC(spec, (0,), hidden=(8,)))
    frame = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    assert policy(frame) == policy(frame.astype(np.int64)) == policy(frame.astype(float))
    for wrong in (frame / 255, frame + 300.0, -1 - frame.astype(int)):
        with pytest.raises(UserError, match="is an image of uint8: give whole numbers from 0 to 255"):
            policy(wrong)


def test_an_agent_for_no_spec_is_refused():
    with pytest.raises(UserError, match="PPO is made for a Spec, .* and not for 'CartPole-v1': offlinerl.fit trains"):
        offlinerl.PPO("CartPole-v1")


def test_agents_that_do_not_fit_the_environment_are_refused(here):
    with pytest.raises(UserError, match="Room: TD3BC does not support discrete actions"):
        offlinerl.fit("td3bc", walk(), env=lambda: Room(discrete=True), over=dict(train=FEW))


def test_invalid_data_is_refused(here):
    with pytest.raises(UserError, match="a dictionary of arrays or a dataset that Minari opened, not int"):
        offlinerl.fit("bc", 3, env=Room)
    with pytest.raises(UserError, match="dataset must be a name, .* not NoneType"):
        offlinerl.load_dataset(None)
    with pytest.raises(UserError, match="the arrays have unequal lengths"):
        offlinerl.fit("bc", walk() | dict(reward=np.zeros(3)), env=Room)
    with pytest.raises(UserError, match="the dataset's actions have shape"):
        offlinerl.fit("bc", walk() | dict(action=np.zeros((len(walk()["obs"]), 3))), env=Room, over=dict(train=FEW))


def test_an_environment_that_cannot_be_sent_to_workers(here):
    lock = threading.Lock()

    def make():
        with lock:
            return Room()

    with pytest.raises(UserError, match="Room cannot be sent to workers .*: pass a function that can be pickled"):
        offlinerl.collect("sac", make, "own/sac-v0", steps=40, workers=2, over=dict(train=dict(compile=False)))


def test_a_dataset_opened_by_minari_trains_but_a_part_of_it_is_refused(here):
    import minari

    offlinerl.collect("random", "Pendulum-v1", "some/random-v0", episodes=2)
    opened = minari.load_dataset("some/random-v0")
    by_object = offlinerl.fit("bc", opened, over=dict(train=FEW), out="object")
    by_name = offlinerl.fit("bc", "some/random-v0", over=dict(train=FEW), out="name")
    assert by_object.scores == by_name.scores and by_object.summary["data"] == by_name.summary["data"]
    assert offlinerl.fit(resume="object", over=dict(train=dict(updates=8))).agent.updates == 8, "it lies in a folder"
    with pytest.raises(UserError, match="this is a part of the Minari dataset some/random-v0"):
        offlinerl.fit("bc", opened.filter_episodes(lambda episode: episode.id == 0))


def test_a_loaded_dataset_keeps_its_task():
    """It keeps its environment, its score and its reward rule, which is not applied twice."""
    from offlinerl.data import registry, rewards
    from offlinerl.data.load import load

    named, given = (registry.resolve(source) for source in ("kitchen", offlinerl.load_dataset("kitchen")))
    assert (given.name, given.env, given.score, given.family) == (named.name, named.env, named.score, named.family)
    maze = registry.entry("antmaze-umaze-v0")
    stored = replace(offlinerl.load_dataset(walk()), entry=maze)
    for data in (stored, rewards.with_reward(stored, maze.reward)):
        entry = registry.resolve(data)
        assert entry.reward == maze.reward == "minus_one" and load(entry) is data
        np.testing.assert_array_equal(rewards.with_reward(load(entry), entry.reward).reward, stored.reward - 1)
    scaled = rewards.with_reward(stored, "scale_by_return_range")
    with pytest.raises(UserError, match='scaled already, .*: load it with reward="none"'):
        rewards.online_reward(registry.resolve(scaled), scaled)
    with pytest.raises(UserError, match='follow the rule scale_by_return_range, .*: load it with reward="none"'):
        offlinerl.fit("td3bc", scaled, over=dict(train=dict(reward="none")))


def test_single_seeds_and_runs_are_accepted_and_invalid_policies_refused(tmp_path):
    with empty_workplace(tmp_path):
        for call in (
            lambda policy: offlinerl.evaluate(policy, "Pendulum-v1", episodes=1),
            lambda policy: offlinerl.collect(policy, "Pendulum-v1", "mine/some-v0", episodes=1),
        ):
            with pytest.raises(UserError, match="derive from offlinerl.Policy and implement act"):
                call(lambda obs: obs[:, :1])
            with pytest.raises(UserError, match="derive from offlinerl.Policy"):  # it lacks spec and device
                call(SimpleNamespace(act=lambda obs, explore: obs[..., :1], begin=lambda *_: None, seeds=(0,)))
        with pytest.raises(UserError, match="there is no checkpoint runs/nowhere"):
            offlinerl.select("runs/nowhere")
        with pytest.raises(UserError, match="two letters or more"):
            offlinerl.collect("random", "Pendulum-v1", "a/b-v0", episodes=1)
        rng = np.random.default_rng(0)
        arrays = dict(obs=rng.normal(size=(40, 3)), action=rng.uniform(-1, 1, (40, 1)), reward=np.zeros(40),
                      terminated=np.arange(40) % 10 == 9)  # fmt: skip
        few = dict(updates=2, eval_every=2, batch=4, compile=False)
        assert offlinerl.fit("bc", arrays, seeds=3, over=dict(train=few)).summary["seeds"] == [3]
