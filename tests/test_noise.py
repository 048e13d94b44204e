"""Exploration noise: moments, autocorrelations, and random streams that belong to an episode."""

import numpy as np
import pytest
import torch
from torch import nn

from offlinerl.agents.td3 import TD3
from offlinerl.learning.exploration import Gaussian, OrnsteinUhlenbeck, ParameterNoise, exploration_of, linear
from offlinerl.learning.rng import EnvStreams, generator
from offlinerl.nn.actors import DeterministicActor
from offlinerl.nn.encoders import Identity
from offlinerl.types import Spec
from offlinerl.util.errors import UserError

SEEDS, LANES = (0, 1), (0, 1, 2)


class Zero(nn.Module):
    """A policy whose action is zero, so that only the noise remains."""

    def forward(self, obs):
        return torch.zeros(*obs.shape[:-1], 2)


def play(process, steps, actor=None, rng=None):
    """Actions ``[T, S, E, A]`` of one long episode."""
    rng = rng or EnvStreams(SEEDS, LANES, "explore")
    process.begin(np.ones((len(rng.seeds), len(rng.lanes)), bool))
    obs = torch.zeros(len(rng.seeds), len(rng.lanes), 4)
    return torch.stack([process.act(actor or Zero(), obs, rng) for _ in range(steps)])


def test_gaussian_noise_has_its_moments_and_no_memory():
    actions = play(Gaussian(0.1), 4000)
    assert actions.mean().abs() < 0.002
    assert actions.std() == pytest.approx(0.1, rel=0.02)
    flat = actions.flatten(1)
    assert ((flat[1:] * flat[:-1]).mean() / flat.var()).abs() < 0.02
    apart = torch.corrcoef(flat.T) - torch.eye(flat.shape[1])
    assert apart.abs().max() < 0.1, "seeds, lanes and dimensions draw the same numbers"


def test_ornstein_uhlenbeck_has_its_variance_and_autocorrelation():
    theta, sigma = 0.15, 0.05
    actions = play(OrnsteinUhlenbeck(sigma, theta), 20_000)[1000:].flatten(1).double()
    assert actions.var() == pytest.approx(sigma**2 / (1 - (1 - theta) ** 2), rel=0.1)
    for lag in (1, 2, 5, 10):
        found = (actions[lag:] * actions[:-lag]).mean() / actions.var()
        assert found == pytest.approx((1 - theta) ** lag, abs=0.04)


def test_ornstein_uhlenbeck_starts_from_zero_where_an_episode_begins():
    process, rng = OrnsteinUhlenbeck(0.2), EnvStreams(SEEDS, LANES, "explore")
    play(process, 50, rng=rng)
    before = process.x.clone()
    began = np.zeros((2, 3), bool)
    began[1, 2] = True
    process.begin(began)
    assert (process.x[1, 2] == 0).all()
    assert torch.equal(process.x[0], before[0]) and torch.equal(process.x[1, :2], before[1, :2])


def test_noise_is_clipped_to_the_actions_range():
    assert play(Gaussian(5.0), 100).abs().max() == 1


def actor_of(seeds=SEEDS):
    return DeterministicActor(Identity(4), 2, (16, 16), [generator(seed, "actor") for seed in seeds], layer_norm=True)


def test_parameter_noise_is_one_perturbed_policy_an_episode():
    process, actor, rng = ParameterNoise(0.2), actor_of(), EnvStreams(SEEDS, LANES, "explore")
    actions = play(process, 5, actor, rng)
    assert (actions == actions[0]).all(), "the policy changed within an episode"
    assert not torch.allclose(actions[0], actor(torch.zeros(2, 3, 4)))
    assert not torch.allclose(actions[0, 0, 0], actions[0, 0, 1]), "two environments share a perturbation"
    again = play(process, 1, actor, rng)
    assert not torch.allclose(again[0], actions[0])
    weight = actor.net.layers[0].weight
    spread = (process.parameters["net.layers.0.weight"] - weight.detach().unsqueeze(1)).std()
    assert spread == pytest.approx(process.sigma.mean().item(), rel=0.15)


def test_parameter_noise_is_for_vectors():
    images, parts = ("", (8, 8, 3), "uint8"), ("position", (3,), "float32")
    for obs in ((images,), (parts, ("velocity", (2,), "float32"))):
        with pytest.raises(UserError, match="exploration parameter needs networks that see one vector"):
            TD3(Spec(obs, 1, (-1.0,), (1.0,)), (0,), exploration="parameter", hidden=(8,), convolutions="minatar")


@pytest.mark.parametrize("start, grows", [(1e-4, True), (10.0, False)])
def test_parameter_noise_adapts_to_the_wanted_distance(start, grows):
    process, actor, rng = ParameterNoise(0.2, growth=1.3), actor_of(), EnvStreams(SEEDS, LANES, "explore")
    play(process, 3, actor, rng)
    process.sigma[:] = start
    play(process, 3, actor, rng)
    before = process.sigma.clone()
    for _ in range(60):
        play(process, 3, actor, rng)
    assert ((process.sigma > before) == grows).all()
    distance = (process.squares / process.steps).sqrt().mean()
    assert 0.05 < distance < 0.6, "sigma has not come near the wanted distance"


@pytest.mark.parametrize("name", ["gaussian", "ou", "parameter"])
def test_a_saved_exploration_continues_as_if_never_stopped(name):
    whole, first, second = exploration_of(name, 0.2), exploration_of(name, 0.2), exploration_of(name, 0.2)
    actor, obs, began = actor_of(), torch.randn(2, 3, 4), np.ones((2, 3), bool)

    def acts(process, rng, count):
        return [process.act(actor, obs, rng) for _ in range(count)]

    rng, other = EnvStreams(SEEDS, LANES, "explore"), EnvStreams(SEEDS, LANES, "explore")
    whole.begin(began)
    first.begin(began)
    want = acts(whole, rng, 6)
    have = acts(first, other, 3)
    resumed = EnvStreams(SEEDS, LANES, "explore")
    resumed.load_state_dict(other.state_dict())
    second.load_state_dict(first.state_dict())
    have += acts(second, resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(want, have, strict=True))


def test_random_numbers_of_an_episode_do_not_depend_on_others():
    many, one = EnvStreams((5, 7), (0, 1, 2), "explore"), EnvStreams((7,), (2,), "explore")
    many.normal((100,))  # whatever was drawn before does not matter
    began = np.zeros((2, 3), bool)
    began[1, 2] = True
    many.begin(began, np.full((2, 3), 4))
    one.begin(np.ones((1, 1), bool), np.array([[4]]))
    assert torch.equal(many.normal((3,))[1, 2], one.normal((3,))[0, 0])
    many.begin(began, np.full((2, 3), 4))
    one.begin(np.ones((1, 1), bool), np.array([[5]]))
    assert not torch.equal(many.normal((3,))[1, 2], one.normal((3,))[0, 0])


@pytest.mark.parametrize("size", [1, 2, 6, 7, 8, 20])
@pytest.mark.parametrize("draw", [lambda rng, shape: rng.normal(shape), lambda rng, shape: rng.uniform(-1, 3, shape)])
def test_random_numbers_drawn_ahead_are_those_drawn_at_every_step(draw, size):
    ahead, plain = EnvStreams(SEEDS, LANES, "noise").ahead(), EnvStreams(SEEDS, LANES, "noise")
    shape, began = (len(SEEDS), len(LANES)), np.random.default_rng(0)
    for step in range(40):
        where = began.random(shape) < 0.2
        for rng in (ahead, plain):
            rng.begin(where, np.full(shape, step))
        assert torch.equal(draw(ahead, (size,)), draw(plain, (size,)))
    with pytest.raises(AssertionError):
        ahead.normal((size + 1,))


def test_linear_schedule():
    assert [linear(1.0, 0.1, 10, step) for step in (0, 5, 10, 1000)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert linear(1.0, 0.1, 0, 0) == pytest.approx(0.1), "without a way there"
