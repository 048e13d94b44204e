"""Observations of every space become the vectors of Gymnasium's ``flatten``, in files and in environments."""

import json
from collections import OrderedDict

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from minari.serialization import serialize_space

import offlinerl
from offlinerl.cli import main
from offlinerl.data.episode import Episode
from offlinerl.data.load import load
from offlinerl.data.minari_writer import write_minari
from offlinerl.envs import spaces
from offlinerl.envs.make import make, spec_of
from offlinerl.evaluation.task import Task
from offlinerl.training.tasks import with_leaves
from offlinerl.util.errors import UserError

ACTION = Box(-1, 1, (2,), np.float32)
SPACES = {
    "discrete": Discrete(5),
    "started": Discrete(4, start=-2),
    "binary": MultiBinary(3),
    "binary matrix": MultiBinary([2, 2]),
    "multi": MultiDiscrete([3, 2, 4]),
    "multi started": MultiDiscrete([3, 2], start=[5, -1]),
    "multi matrix": MultiDiscrete([[3, 2], [2, 2]]),
    "matrix": Box(-1, 1, (2, 3), np.float64),
    "whole": Box(-3, 3, (2,), np.int64),
    "issue": Dict(d=Discrete(3), b=MultiBinary(2), m=MultiDiscrete([2, 3]), x=Box(-1, 1, (2,), np.float32)),
    "odd order": Dict(OrderedDict([("z", Discrete(3)), ("a", Box(-1, 1, (2,))), ("m", Discrete(2, start=1))])),
    "nested": Dict(outer=Dict(z=Discrete(2), a=Dict(q=MultiBinary(2), p=Box(-1, 1, (1,)))), b=Discrete(3)),
    "tuple": Tuple([Discrete(3), Box(-1, 1, (2,)), Tuple([MultiBinary(2), Discrete(2)])]),
    "dict of tuple": Dict(t=Tuple([Discrete(3), Dict(c=Discrete(2), a=Box(-1, 1, (1,)))]), s=Discrete(2, start=3)),
}


class Spaced(gym.Env):
    """Shows random observations of a space for ten steps."""

    action_space = ACTION

    def __init__(self, space="issue"):
        self.observation_space = SPACES[space]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 1.0, False, False, {}


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    gym.register("Spaced-v0", "test_spaces:Spaced", max_episode_steps=10)
    yield tmp_path
    del gym.registry["Spaced-v0"]


def stack(space, samples):
    """Samples as Minari stores them."""
    if isinstance(space, Dict):
        return {key: stack(part, [sample[key] for sample in samples]) for key, part in space.spaces.items()}
    if isinstance(space, Tuple):
        parts = enumerate(space.spaces)
        return {f"_index_{i}": stack(part, [sample[i] for sample in samples]) for i, part in parts}
    return np.stack(samples)


def record(root, space, episodes=3, name="test/spaced-v0", stored=None, env=None):
    space.seed(0)
    samples, items = [], []
    for _ in range(episodes):
        own = [space.sample() for _ in range(11)]
        samples.append(own)
        last = np.arange(10) == 9
        actions = np.random.default_rng(0).uniform(-1, 1, (10, 2)).astype(np.float32)
        items.append(Episode(stack(space, own), actions, np.ones(10), ~last & last, last))
    spec = gym.make("Spaced-v0", space=env, disable_env_checker=True).spec if env else None
    path = write_minari(
        root / "minari" / name, items, dataset_id=name, env_spec=spec, observation_space=stored or space,
        action_space=ACTION,
    )  # fmt: skip
    return path, samples


@pytest.mark.parametrize("name", SPACES)
def test_a_stored_observation_is_what_gymnasium_flattens_it_to(name, registered):
    space = SPACES[name]
    _, samples = record(registered, space)
    data = load("test/spaced-v0")
    wanted = np.stack([gym.spaces.flatten(space, sample) for own in samples for sample in own[:-1]])
    np.testing.assert_array_equal(data.obs, wanted.astype(np.float32))
    wanted = np.stack([gym.spaces.flatten(space, sample) for own in samples for sample in own[1:]])
    np.testing.assert_array_equal(data.next_obs, wanted.astype(np.float32))


@pytest.mark.parametrize("name", SPACES)
def test_an_environment_shows_flattened_observations(name):
    env, own = make({"id": "Spaced-v0", "kwargs": {"space": name}}), SPACES[name]
    seen = [env.reset(seed=3)[0], *(env.step(np.zeros(2, np.float32))[0] for _ in range(4))]
    own.seed(3)
    for got in seen:
        np.testing.assert_array_equal(got, gym.spaces.flatten(own, own.sample()))
        assert env.observation_space.contains(got.astype(env.observation_space.dtype))
    assert env.observation_space.shape == (gym.spaces.flatdim(own),)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_is_restored_from_json_with_its_order(name):
    again = spaces.from_json(json.loads(serialize_space(SPACES[name])))
    assert again == SPACES[name]
    assert list(spaces.parts(again)) == list(spaces.parts(SPACES[name]))


def deployed(name, keys=None):
    """An untrained policy as a run in the environment has it."""
    about = {"id": "Spaced-v0", "kwargs": {"space": name}}
    env = make(about, keys)
    agent = offlinerl.SAC(spec_of(env), (0,), hidden=(8,))
    agent.task = with_leaves(Task(about, keys), env, None).plain()
    return offlinerl.DeployedPolicy(agent)


def batch_of(space, samples):
    """Samples as a vector environment returns them."""
    if isinstance(space, Tuple):
        return tuple(batch_of(part, [sample[i] for sample in samples]) for i, part in enumerate(space.spaces))
    if isinstance(space, Dict):
        return {key: batch_of(part, [sample[key] for sample in samples]) for key, part in space.spaces.items()}
    return np.stack(samples)


@pytest.mark.parametrize("name", SPACES)
def test_a_policy_takes_what_its_environment_returns(name):
    policy, space = deployed(name), SPACES[name]
    space.seed(0)
    samples = [space.sample() for _ in range(7)]
    vectors = [gym.spaces.flatten(space, sample).astype(np.float32) for sample in samples]
    for sample, vector in zip(samples, vectors, strict=True):
        np.testing.assert_array_equal(policy(sample), policy(vector))
    np.testing.assert_array_equal(policy(batch_of(space, samples)), policy(np.stack(vectors)))


def test_a_policy_takes_the_parts_that_it_was_trained_on_in_their_order():
    policy = deployed("issue", ["x", "d"])
    obs = dict(d=2, b=np.ones(2, np.int8), m=np.array([1, 0]), x=np.array([0.5, -0.25], np.float32))
    np.testing.assert_array_equal(policy(obs), policy(np.array([0.5, -0.25, 0, 0, 1], np.float32)))
    np.testing.assert_array_equal(policy(dict(x=obs["x"], d=2)), policy(obs))
    for wrong, says in (
        (dict(x=obs["x"], b=obs["b"]), "it lacks the part d; the parts are x, d"),
        (dict(obs, x=np.zeros(3)), r"its part x has the shape \(3,\), not \(2,\)"),
        (dict(obs, d="two"), "its part d holds no numbers"),
        (dict(obs, d=7), r"the observation holds 7 instead of a whole number from 0 to 2"),
    ):
        with pytest.raises(UserError, match=says):
            policy(wrong)


def test_discrete_observations_of_a_policy_are_checked():
    with pytest.raises(UserError, match="the observation holds 5 instead of a whole number from 0 to 4"):
        deployed("discrete")(5)
    with pytest.raises(UserError, match="5 whole numbers may be as many observations or one as a vector"):
        deployed("discrete")(np.array([0, 1, 0, 0, 0]))
    assert deployed("discrete")([0, 1, 2, 3]).shape == (4, 2) and deployed("discrete")([0, 1, 2, 3, 4]).shape == (5, 2)
    for wrong in ("a", None, {}):
        with pytest.raises(UserError):
            deployed("discrete")(wrong)


def test_parts_that_are_stored_as_one_vector_keep_their_order(registered, refused):
    """``collect`` stores the flattened parts, so another order in training would permute what a policy sees."""
    few = ("--updates", 2, "--compile", "false", "--batch", 4, "--eval-episodes", 1, "--final-episodes", 1)
    for keys, dataset in ((None, "test/all-v0"), ("x,d", "test/two-v0")):
        chosen = ("--obs-keys", keys) if keys else ()
        collected = ("collect", "random", "--env", "Spaced-v0", "--episodes", 2, "--dataset", dataset, *chosen)
        assert main([*map(str, collected)]) == 0
    fit = ("fit", "bc", "--dataset")
    says = refused(*fit, "test/all-v0", *few, "--obs-keys", "x,d,b,m")
    assert "test/all-v0 stores its observations as one vector of d, b, m, x: leave out --obs-keys" in says
    assert "one vector of x, d: leave out" in refused(*fit, "test/two-v0", *few, "--obs-keys", "d,x")
    assert main([*map(str, (*fit, "test/two-v0", *few, "--obs-keys", "x,d", "--out", "two"))]) == 0
    again = ("collect", "two", "--env", "Spaced-v0", "--episodes", 1, "--dataset", "test/again-v0")
    says = refused(*again, "--obs-keys", "d,x")
    assert "Spaced-v0 is observed in the order d, x, and the policy takes x, d: give --obs-keys in that order" in says
    assert main([*map(str, (*again, "--out", "again"))]) == 0


class Talking(Spaced):
    """Shows a text beside two numbers."""

    def __init__(self):
        self.observation_space = Dict(s=Text(4), x=Box(-1, 1, (2,)))


def test_parts_that_are_not_asked_for_may_be_of_any_kind(registered):
    gym.register("Talking-v0", Talking, max_episode_steps=10)
    try:
        argv = ("collect", "random", "--env", "Talking-v0", "--episodes", "1", "--dataset", "test/t-v0")
        assert main([*argv, "--obs-keys", "x"]) == 0 and load("test/t-v0").obs.shape == (10, 2)
    finally:
        del gym.registry["Talking-v0"]


def test_a_policy_acts_in_its_own_environment_after_a_run(registered):
    few = dict(steps=16, eval_every=16, eval_episodes=1, final_episodes=1, batch=8, warm_up=4, compile=False)
    env = gym.make("Spaced-v0", space="nested", disable_env_checker=True)
    run = offlinerl.fit("sac", env=lambda: env, over=dict(train=few), out="run")
    obs, _ = env.reset(seed=0)
    action = run.policy(obs)
    np.testing.assert_array_equal(action, offlinerl.load_policy("run")(obs))
    np.testing.assert_array_equal(action, run.policy(gym.spaces.flatten(env.observation_space, obs)))


@pytest.mark.parametrize("name", ["issue", "nested", "tuple", "odd order", "discrete", "started"])
def test_a_dataset_fits_its_own_environment(name, registered):
    record(registered, SPACES[name], env=name)
    few = "--updates 4 --eval-every 4 --eval-episodes 1 --final-episodes 1 --compile false --batch 4 --out run"
    assert main(["fit", "bc", "--dataset", "test/spaced-v0", *few.split()]) == 0
    assert main(["evaluate", "run/last.ckpt", "--episodes", "1"]) == 0


def test_a_collected_dataset_fits_its_environment_too(registered):
    collect = ["collect", "random", "--env", "Spaced-v0", "--dataset", "test/c-v0", "--episodes", "2"]
    assert main([*collect, "--obs-keys", "x,d"]) == 0
    assert load("test/c-v0").obs.shape == (20, 5)
    few = "--updates 4 --eval-every 4 --eval-episodes 1 --final-episodes 1 --compile false --batch 4 --out run"
    assert main(["fit", "bc", "--dataset", "test/c-v0", *few.split()]) == 0


def test_parts_stored_in_another_order_are_matched_by_name(registered):
    ordered = SPACES["odd order"]
    stored = Dict(OrderedDict((key, ordered[key]) for key in ("m", "a", "z")))
    record(registered, ordered, stored=stored, env="odd order")
    few = "--updates 4 --eval-every 4 --eval-episodes 1 --final-episodes 1 --compile false --batch 4 --out run"
    assert main(["fit", "bc", "--dataset", "test/spaced-v0", *few.split()]) == 0
    from offlinerl.agents.checkpoint import load_agent

    assert list(load_agent("run/last.ckpt", "cpu").task["obs_keys"]) == ["m", "a", "z"]


def test_chosen_parts_keep_their_order_and_may_be_nested():
    space = SPACES["nested"]
    assert list(spaces.parts(space, ["outer/a/p", "b"])) == ["outer/a/p", "b"]
    assert list(spaces.parts(space, ["outer/a"])) == ["outer/a/p", "outer/a/q"] or list(
        spaces.parts(space, ["outer/a"])
    ) == ["outer/a/q", "outer/a/p"]
    with pytest.raises(UserError, match="no part 'outer/no'; they have"):
        spaces.parts(space, ["outer/no"], "some-v0")
    env = make({"id": "Spaced-v0", "kwargs": {"space": "nested"}}, ["outer/a/p", "b"])
    assert env.observation_space.shape == (4,)


@pytest.mark.parametrize(
    "space, value, words",
    [
        (Discrete(3), 3, "holds 3 instead of a whole number from 0 to 2"),
        (Discrete(3), -1, "holds -1"),
        (Discrete(3, start=2), 1, "whole number from 2 to 4"),
        (Discrete(3), 0.5, "holds 0.5"),
        (Discrete(3), np.nan, "holds nan"),
        (MultiDiscrete([2, 3]), [1, 3], "holds 3 instead of a whole number from 0 to 2"),
        (MultiDiscrete([2, 3], start=[1, 0]), [0, 0], "from 1 to 2"),
    ],
)
def test_discrete_values_outside_their_space_are_refused(space, value, words):
    good = np.stack([space.sample(), space.sample()]).astype(float)
    with pytest.raises(UserError, match=f"row 2 .*{words}"):
        spaces.encode(space, np.concatenate([good, [value]]))


def test_spaces_that_cannot_become_vectors_are_refused_by_name(registered):
    space = Dict(x=Box(-1, 1, (1,), np.float32), words=Text(5))
    with pytest.raises(UserError, match="cannot be converted into a vector"):
        spaces.observed(spaces.parts(space))


@pytest.mark.parametrize("kind", [Dict, Tuple])
def test_other_parts_can_be_used_beside_one_that_cannot_become_a_vector(kind, registered):
    parts = dict(x=Box(-1, 1, (2,), np.float32), d=Discrete(3))
    parts, words = (parts, dict(words=Text(5))) if kind is Dict else ([*parts.values()], [Text(5)])
    _, samples = record(registered, kind(parts), stored=kind(parts | words if kind is Dict else parts + words))
    keys = ["d", "x"] if kind is Dict else ["_index_1", "_index_0"]
    assert load("test/spaced-v0", obs_keys=keys).obs.shape == (30, 5)
    for keys in (None, ["words" if kind is Dict else "_index_2"]):
        with pytest.raises(
            UserError, match="a space of kind Text cannot be converted into a vector; leave it out, with"
        ):
            load("test/spaced-v0", obs_keys=keys)


def test_observations_that_cannot_become_one_vector_are_refused(registered):
    with pytest.raises(
        UserError, match="a space of kind Text cannot be converted into a vector; leave it out of the data"
    ):
        spaces.from_json(json.loads(serialize_space(Text(5))))


def test_stored_discrete_values_outside_their_space_are_refused_with_their_place(registered):
    path, _ = record(registered, SPACES["issue"])
    import h5py

    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        file["episode_1/observations/d"][4] = 7
    with pytest.raises(UserError, match="episode 1: observation 4 holds 7 instead of a whole number from 0 to 2"):
        load("test/spaced-v0")
