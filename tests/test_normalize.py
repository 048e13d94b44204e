"""Observations normalised by the mean and the deviation of the dataset, which a policy keeps."""

import warnings
from functools import partial
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pendulum
import pytest
import torch
from conftest import ACTING, SPEC, random_table
from test_trees import SPEC as PARTS
from test_trees import random_rows

import offlinerl
from offlinerl import agents
from offlinerl.cli import main
from offlinerl.data import registry, scales
from offlinerl.data.arrays import from_arrays
from offlinerl.data.dataset import Dataset
from offlinerl.data.episode import Episode
from offlinerl.data.minari_writer import write_minari
from offlinerl.data.validate import validate
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table
from offlinerl.learning.rng import generator
from offlinerl.nn.encoders import Identity, Normalized, encoder_of
from offlinerl.types import Spec
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map

FEW = dict(eval_every=1000, eval_episodes=1, final_episodes=1, batch=16, compile=False, block=5)


class Reach(gym.Env):
    """Twenty steps of up to 0.1 m towards a goal on a square of 2 m.

    Args:
        unit: what positions are observed in, as a part of a metre.
    """

    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, unit=1.0):
        self.unit = unit
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self.seen(), {}

    def seen(self):
        return (np.concatenate([self.position, self.goal]) / self.unit).astype(np.float32)

    def step(self, action):
        self.position = self.position + 0.1 * action
        return self.seen(), -float(np.linalg.norm(self.goal - self.position)), False, False, {}


def demonstrations(env, count=60):
    rng = np.random.default_rng(0)
    for number in range(count):
        observations, steps, ended = [env.reset(seed=number)[0]], [], False
        while not ended:
            towards = 10 * (env.unwrapped.goal - env.unwrapped.position) + rng.normal(0, 0.3, 2)
            action = towards.clip(-1, 1).astype(np.float32)
            obs, reward, terminated, truncated, _ = env.step(action)
            observations.append(obs)
            steps.append((action, reward, terminated, truncated))
            ended = truncated
        yield Episode(np.stack(observations), *map(np.array, zip(*steps, strict=True)))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A working directory with the same demonstrations in metres and in millimetres."""
    with pendulum.workplace(tmp_path_factory.mktemp("reach")) as folder:
        for name, unit in (("metres", 1.0), ("millimetres", 0.001)):
            gym.register(f"test/Reach-{name}-v0", f"{__name__}:Reach", max_episode_steps=20, kwargs=dict(unit=unit))
            env = gym.make(f"test/Reach-{name}-v0")
            write_minari(
                folder / "minari/reach" / f"{name}-v0", demonstrations(env), dataset_id=f"reach/{name}-v0",
                env_spec=env.spec, observation_space=env.observation_space, action_space=env.action_space,
            )  # fmt: skip
        yield folder
        for name in ("metres", "millimetres"):
            del gym.registry[f"test/Reach-{name}-v0"]


def run(agent, dataset=None, out="run", normalize=True, over=(), lr=None, **settings):
    """A short training; what it scores per seed."""
    own = dict(normalize=normalize, hidden=[32, 32], **(dict(lr=lr) if lr else {}))
    over = dict(agent=own, train=FEW | dict(over))
    found = offlinerl.fit(agent, dataset, seeds=[0, 1], over=over, out=Path(out), **settings)
    return found.scores["per_seed"]


def kept(folder):
    """The statistics in a run's checkpoint, by name."""
    weights = pendulum.weights(Path(folder))
    return {name: tensor for name, tensor in weights.items() if name.endswith(("encoder.mean", "encoder.scale"))}


@pytest.fixture(scope="module")
def trained(here):
    """Cloned from the same demonstrations in both units, and in millimetres as they are."""
    length = dict(updates=200, eval_every=200, batch=64, final_episodes=10)
    return {
        folder: run("bc", f"reach/{unit}-v0", folder, normalize, length, lr=3e-3)
        for folder, unit, normalize in (
            ("metres", "metres", True), ("millimetres", "millimetres", True), ("raw", "millimetres", False),
        )
    }  # fmt: skip


# What is learnt and kept


def test_millimetres_train_as_well_as_metres(trained):
    np.testing.assert_allclose(trained["millimetres"], trained["metres"], rtol=1e-3)
    assert min(trained["millimetres"]) > -8 and max(trained["raw"]) < -12


def test_a_policy_applies_the_statistics_of_its_checkpoint(here, trained):
    data = offlinerl.load_dataset("reach/millimetres-v0")
    mean, std = data.observations.mean(0, dtype=np.float64), data.observations.astype(np.float64).std(0)
    found = kept("millimetres")
    assert {*found} == {"actor.encoder.mean", "actor.encoder.scale"} and not kept("raw")
    np.testing.assert_allclose(found["actor.encoder.mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(found["actor.encoder.scale"], std, rtol=1e-5)
    obs = np.random.default_rng(0).uniform(-1, 1, (50, 4)).astype(np.float32)
    action = offlinerl.load_policy("millimetres")(1000 * obs)
    np.testing.assert_allclose(action, offlinerl.load_policy("metres")(obs), rtol=1e-2, atol=1e-3)
    assert np.abs(action - (10 * (obs[:, 2:] - obs[:, :2])).clip(-1, 1)).mean() < 0.2
    assert offlinerl.evaluate("millimetres", episodes=10, seed=1_000_000)["per_seed"] == trained["millimetres"]
    offlinerl.collect("millimetres", "test/Reach-millimetres-v0", "reach/again-v0", episodes=3)
    assert offlinerl.load_dataset("reach/again-v0").episode_returns.min() > -20


@pytest.mark.parametrize("name", ACTING)
def test_every_agent_gets_the_same_inputs_as_from_normalised_data(name):
    agent_class, data = agents.get(name), random_table(60)
    spec = SPEC if agent_class.discrete is not True else Spec(5, 1, (0.0,), (2.0,), 3)
    small = dict(embedding=8) if name == "dt" else dict(hidden=(8,))
    normalised, plain = (agent_class(spec, (0, 1), **small, normalize=normalize) for normalize in (True, False))
    data = Dataset(
        **vars(data) | dict(observations=data.observations * np.float32([1, 1e3, 1e-3, 1, 1]) + np.float32(7))
    )
    normalised.normalize_by(data.moments)
    mean, std = (torch.from_numpy(of).float() for of in data.moments[""])
    obs = torch.from_numpy(data.obs[:4])
    torch.testing.assert_close(
        normalised.act(obs.expand(2, -1, -1)), plain.act((obs - mean).div(std).expand(2, -1, -1))
    )
    parameters = dict(plain.named_parameters())
    assert all(torch.equal(p, parameters[key]) for key, p in normalised.named_parameters()), "one starts as the other"


def test_a_traced_update_reads_the_statistics(monkeypatch):
    """The graph before compilation, for two seeds in turn. Another test checks that compiling changes nothing."""
    monkeypatch.setattr("torch._inductor.compile", lambda graph, *_, **__: graph)
    trained, data = [], random_table(60)
    for compile in (False, True):
        agent = offlinerl.BC(SPEC, (0, 1), hidden=(8,), normalize=True)
        agent.normalize_by(data.moments)
        agent.compile, agent.division = compile, lambda _: [slice(0, 1), slice(1, 2)]
        agent.configure_optimizers()
        agent.learn(OfflineData(Table(data, SPEC, agent.gamma), (0, 1), batch_size=8, updates=4).draw())
        trained.append(agent.state_dict().values())
    for eager, traced in zip(*trained, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["bc", "xql", "td3"])
def test_a_stack_equals_its_seeds_alone(name):
    def trained(seeds):
        data = random_table(100)
        agent = agents.get(name)(SPEC, seeds, hidden=(16,), normalize=True)
        agent.normalize_by(data.moments)
        agent.learn(OfflineData(Table(data, SPEC, agent.gamma), seeds, batch_size=8, updates=4).draw())
        return agent

    stack, alone = trained((0, 1)), trained((1,))
    for (key, both), one in zip(stack.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5, msg=key)


def test_a_resumed_run_is_the_one_that_never_stopped(here):
    """Also in fine-tuning after the dataset, where the policy keeps the same statistics."""
    length = dict(updates=10, online_steps=10, online_eval_every=5)
    run("td3", "reach/millimetres-v0", "whole", over=length | dict(online_steps=20))
    run("td3", "reach/millimetres-v0", "part", over=length)
    before = kept("part")
    offlinerl.fit(resume=Path("part"), over=dict(train=dict(online_steps=20)))
    whole, part = pendulum.weights(Path("whole")), pendulum.weights(Path("part"))
    assert len(before) == 8 and all(torch.equal(tensor, part[name]) for name, tensor in before.items())
    assert {*whole} == {*part} and all(torch.equal(tensor, part[name]) for name, tensor in whole.items())


def test_a_run_that_starts_from_a_checkpoint_keeps_its_statistics(here, trained, refused):
    few = dict(updates=2, eval_every=2)
    run("bc", "reach/millimetres-v0", "further", over=few, init=Path("metres"))
    few = dict(steps=10, warm_up=5, eval_every=10, block=1)
    run("bc", None, "acting", over=few, init=Path("metres"), env="test/Reach-millimetres-v0")
    old = kept("metres")
    for folder in ("further", "acting"):
        assert all(torch.equal(tensor, old[name]) for name, tensor in kept(folder).items()) and kept(folder), folder
    argv = ("fit", "bc", "--dataset", "reach/metres-v0", "--seeds", "0,1", "--agent.hidden", "[32,32]", "--out", "no")
    assert "give --agent.normalize true" in refused(*argv, "--init", "metres")
    assert "give --agent.normalize false" in refused(*argv, "--init", "raw", "--agent.normalize", "true")


@pytest.mark.parametrize("agent, hint", [("td3", "checkpoint that has them"), ("ppo", "normalize_obs")])
def test_normalising_without_a_dataset_is_refused(agent, hint, here, refused):
    line = refused("fit", agent, "--env", "Pendulum-v1", "--agent.normalize", "true")
    assert "this run has no dataset" in line and hint in line


# What is normalised


def test_images_are_not_normalised():
    data = random_rows(60)
    rngs = [generator(seed, "test") for seed in (0, 1)]
    encoder, plain = encoder_of(PARTS, rngs, normalize=True), encoder_of(PARTS, rngs)
    plain.load_state_dict(encoder.state_dict(), strict=False)
    assert {*data.moments} == {"state"}
    agent = offlinerl.BC(PARTS, (0, 1), hidden=(8,), normalize=True)
    agent.normalize_by(data.moments)
    encoder.parts[1].set(*data.moments["state"])
    obs = tree_map(lambda leaf: torch.from_numpy(leaf[:9]).expand(2, *[-1] * leaf.ndim), data.obs)
    seen, raw = encoder(obs), plain(obs)
    assert torch.equal(seen[..., :-7], raw[..., :-7])
    mean, std = data.moments["state"]
    np.testing.assert_allclose(seen[0, :, -7:].detach(), (data.obs["state"][:9] - mean) / std, rtol=1e-4, atol=1e-5)
    assert torch.equal(agent.actor.encoder.parts[1].mean, encoder.parts[1].mean)


def test_constant_dimensions_are_safe_and_small_ones_are_scaled():
    rng = np.random.default_rng(0)
    column = rng.normal(size=(1000, 6)).astype(np.float32)
    column[:, 0], column[:, 1] = 0.1, 0
    column[:, 2] = np.where(rng.random(1000) < 0.5, 1000, np.nextafter(np.float32(1000), np.float32(2000)))
    column[:, 3] *= 1e-9
    column[:, 4] = 20 + 1e-4 * column[:, 4]
    (mean, std), encoder = scales.moments(column)[""], Normalized(6)
    assert np.flatnonzero(std == 0).tolist() == [0, 1, 2]
    encoder.set(mean, std)
    seen = encoder(torch.from_numpy(column)[None])[0]
    assert seen[:, :3].abs().max() < 1e-3
    np.testing.assert_allclose(seen[:, 3:].std(0, correction=0), 1, rtol=1e-3)
    elsewhere = encoder(torch.full((1, 1, 6), 1e6))
    assert elsewhere.abs().max() == Normalized.LIMIT


def test_every_frame_of_a_stack_is_normalised_alike():
    data = random_table(40)
    table = Table(data, Spec(10, 2, (-1.0, -1.0), (1.0, 1.0)), 0.99, stack=2)
    one, two = Normalized(5), Normalized(10)
    for encoder in (one, two):
        encoder.set(*data.moments[""])
    obs = table.transitions(torch.arange(40)).obs  # [B, 2 O]
    assert torch.equal(two(obs), torch.cat([one(obs[:, :5]), one(obs[:, 5:])], -1))


def test_moments_are_exact_over_blocks(monkeypatch):
    column = np.random.default_rng(0).normal(3e5, [1, 1000], (1000, 2)).astype(np.float32)  # millimetres, far away
    column[:, 1] = np.sort(column[:, 1])
    monkeypatch.setattr(scales, "blocks", partial(scales.blocks, rows=64))
    monkeypatch.setattr(scales, "WEIGHED", 2 * 64)
    mean, std = scales.moments(column)[""]
    np.testing.assert_allclose(mean, column.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, column.astype(np.float64).std(0), rtol=1e-12)
    steps = np.square(np.diff(column.astype(np.float64), axis=0)).mean(0)
    np.testing.assert_allclose(scales._correlation(column, std), 1 - steps / (2 * std**2), rtol=1e-12)


def test_encoders_that_do_not_normalise_refuse_the_setting():
    class Own(offlinerl.BC):
        def encoder(self, network):
            return Identity(5)

    with pytest.raises(UserError, match="the encoders of Own do not normalise: leave out normalize"):
        Own(SPEC, normalize=True).normalize_by(random_table().moments)


def test_images_alone_are_not_normalised(tmp_path):
    images, last = np.zeros((8, 16, 16, 3), np.uint8), np.arange(8) == 7
    data = dict(obs=images, action=np.full((8, 1), 0.5, np.float32), reward=np.zeros(8), terminated=last)
    with pytest.raises(UserError, match="normalize is for vectors, and .* observes only images"):
        offlinerl.fit("bc", data, over=dict(agent=dict(normalize=True), train=dict(updates=1)), out=tmp_path / "run")


# Reports on scales


def far_apart(observations):
    return scales.far_apart(observations, scales.moments(observations))


def test_scales_that_differ_by_more_than_a_thousand_are_named():
    rng = np.random.default_rng(0)
    column = rng.normal(size=(500, 4)).astype(np.float32)
    assert far_apart(column * np.float32([1, 900, 1, 1])) is None
    said = far_apart(column * np.float32([1, 5000, 0, 2]) + np.float32(3))
    assert "by a factor of 4,595 (a standard deviation of 1 in dimension 0," in said
    assert "in dimension 1)" in said and "--agent.normalize true" in said
    parts = dict(image=np.zeros((500, 4, 4, 3), np.uint8), arm=1e-4 * column, goal=column)
    assert "of arm, of 1" in far_apart(parts) and "of goal)" in far_apart(parts)
    assert far_apart(dict(image=parts["image"])) is None
    column[:, 2], column[7, 3] = np.nan, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "in dimension 1)" in far_apart(column * np.float32([1, 5000, 1, 1]))


def test_noise_is_not_counted_as_the_smallest_scale():
    rng = np.random.default_rng(0)
    walk = rng.normal(size=(500, 2)).cumsum(0)
    noise = rng.normal(size=(500, 1))
    assert far_apart(np.concatenate([walk, 1e-5 * noise], 1)) is None
    assert far_apart(np.concatenate([1e-5 * walk, noise], 1)) is not None
    assert far_apart(np.concatenate([walk * [1e-5, 1], noise], 1)) is not None


def test_the_kitchens_scales_cause_no_warning():
    """Dimensions that differ by more are noisy readings of objects that nothing moves."""
    data = offlinerl.load_dataset("kitchen")
    std = data.moments[""][1]
    assert std.max() > 1000 * std[std > 0].min() and far_apart(data.observations) is None


def test_validate_and_fit_report_scales_once(here, capsys):
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * np.float32([1, 1, 1e4])
    with h5py.File("far.hdf5", "w") as file:
        file["observations"], file["actions"] = obs, np.zeros((50, 1), np.float32)
        file["rewards"], file["terminals"], file["timeouts"] = np.zeros(50), np.zeros(50), np.arange(50) % 10 == 9
    (found,) = [f for f in validate(registry.resolve("far.hdf5", "Pendulum-v1")) if f.kind == "scales"]
    assert not found.fault and "in dimension 2)" in found.message
    assert main(["datasets", "validate", "far.hdf5", "--env", "Pendulum-v1"]) == 0
    assert capsys.readouterr().out.count("note: scales: the scales of the observations differ") == 1
    for normalize in (False, True):
        few = dict(updates=2, eval_every=2)
        run("bc", "far.hdf5", f"far-{normalize}", normalize, few, env="Pendulum-v1")
        assert " ".join(capsys.readouterr().out.split()).count("--agent.normalize true") == (not normalize)
    assert not [f for f in validate(registry.resolve("reach/millimetres-v0")) if f.kind == "scales"]


def test_arrays_are_normalised_too():
    rows = np.arange(20, dtype=np.float64)
    flags = np.zeros(20, bool)
    data = from_arrays(dict(obs=rows, action=np.zeros((20, 1)), reward=flags, terminated=flags))
    assert data.moments[""][0] == pytest.approx(9.5) and data.moments is data.moments


def test_observations_are_not_normalised_twice():
    with pytest.raises(UserError, match="normalize and normalize_obs would normalise observations twice"):
        agents.get("ppo")(SPEC, (0,), normalize=True, normalize_obs=True)
