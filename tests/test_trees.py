"""Observations that are images, and dictionaries of images and vectors, from the file to the network."""

import json
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from minari.data_collector.episode_buffer import EpisodeBuffer
from pendulum import empty_workplace

from offlinerl.agents.bc import BC
from offlinerl.agents.iql import IQL
from offlinerl.agents.is_reinforce import ISREINFORCE
from offlinerl.agents.onestep import OneStep
from offlinerl.agents.ppo import PPO
from offlinerl.agents.xql import XQL
from offlinerl.cli import main
from offlinerl.data.dataset import Dataset
from offlinerl.data.load import load
from offlinerl.envs import spaces
from offlinerl.experience.ring import Replay
from offlinerl.experience.sources import EpisodeData, OfflineData
from offlinerl.experience.table import Table
from offlinerl.learning.rng import generator
from offlinerl.nn.encoders import Images, encoder_of
from offlinerl.types import Leaf, Spec, Transition
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_leaves, tree_map

LEAVES = (Leaf("image", (16, 16, 3), "uint8"), Leaf("state", (7,), "float32"))
SPEC = Spec(LEAVES, 2, (-1.0, -1.0), (1.0, 1.0))


def random_rows(rows, seed=0):
    """Rows in episodes of 10, whose images and states encode their positions."""
    rng = np.random.default_rng(seed)
    observations = dict(
        image=rng.integers(0, 256, (rows + rows // 10, 16, 16, 3), dtype=np.uint8),
        state=rng.normal(size=(rows + rows // 10, 7)).astype(np.float32),
    )
    at = np.arange(rows) + np.arange(rows) // 10
    last = np.arange(rows) % 10 == 9
    return Dataset(
        observations, at, at + 1, rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rng.normal(size=rows).astype(np.float32), last & (np.arange(rows) % 20 == 9), last, "random",
    )  # fmt: skip


def rngs(*seeds):
    return [generator(seed, "test") for seed in seeds]


def test_each_successor_is_stored_once():
    obs = dict(image=np.arange(24, dtype=np.uint8).reshape(6, 2, 2), state=np.arange(6, dtype=np.float32)[:, None])
    following = tree_map(lambda leaf: np.concatenate([leaf[1:], leaf[-1:]]), obs)
    following["state"] = following["state"].copy()
    following["state"][2] = 99  # the end of an episode: its last observation belongs to no row
    columns = dict(
        action=np.zeros((6, 1), np.float32), reward=np.zeros(6, np.float32),
        terminated=np.zeros(6, bool), last=np.array([0, 0, 1, 0, 0, 1], bool),
    )  # fmt: skip
    data = Dataset.of_rows(obs, following, **columns)
    assert {len(leaf) for _, leaf in tree_leaves(data.observations)} == {7}
    for (_, found), (_, meant) in zip(
        tree_leaves((data.obs, data.next_obs)), tree_leaves((obs, following)), strict=True
    ):
        np.testing.assert_array_equal(found, meant)
        assert found.dtype == meant.dtype


@pytest.mark.parametrize("n", [1, 3])
def test_a_table_gives_the_rows_of_its_dataset(n):
    data = random_rows(60)
    rows = torch.randint(60, (2, 3, 4))
    found = Table(data, SPEC, 0.9, n).transitions(rows)
    steps = torch.minimum(torch.full_like(rows, n), 10 - rows % 10)
    tail = (rows + steps - 1).numpy()
    for path in ("image", "state"):
        for have, want in ((found.obs, data.obs[path][rows]), (found.next_obs, data.next_obs[path][tail])):
            np.testing.assert_array_equal(have[path].numpy(), want)
            assert have[path].numpy().dtype == want.dtype
    rows, steps = rows.numpy(), steps.numpy()
    sums = sum(0.9**k * np.where(k < steps, data.reward[np.minimum(rows + k, 59)], 0) for k in range(n))
    np.testing.assert_allclose(found.reward.numpy(), sums, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.discount.numpy(), 0.9**steps * ~data.terminated[tail], rtol=1e-6)
    np.testing.assert_array_equal(found.last.numpy(), data.last[tail])


def test_a_window_has_steps_of_one_episode():
    data = random_rows(60)
    table, rows = Table(data, SPEC, 0.9), torch.tensor([[3, 17], [50, 59]])
    found = table.windows(rows, 6)
    assert found.obs["image"].shape == (2, 2, 6, 16, 16, 3) and found.obs["image"].dtype == torch.uint8
    for window in np.ndindex(2, 2):
        row = int(rows[window])
        here = np.minimum(np.arange(row, row + 6), row // 10 * 10 + 9)
        part = tree_map(lambda x, window=window: x[window].numpy(), found)
        np.testing.assert_array_equal(part.obs["state"], data.obs["state"][here])
        np.testing.assert_allclose(part.action, data.action[here], atol=2e-5)
        np.testing.assert_array_equal(part.reward, data.reward[here])
        np.testing.assert_array_equal(part.step, here % 10)
        np.testing.assert_array_equal(part.mask, np.arange(6) <= 9 - row % 10)
        to_go = [data.reward[step : step // 10 * 10 + 10].sum() for step in here]
        np.testing.assert_allclose(part.to_go, to_go, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [XQL, IQL, OneStep])
def test_values_at_random_actions_see_the_same_observations(kind):
    source = OfflineData(Table(random_rows(60), SPEC, 0.9), (0, 1), 4)
    agent = kind(SPEC, (0, 1), hidden=(8,), random_actions=2)
    source.table.next_actions = agent.next_actions
    metrics, _ = agent.learn(source.draw(2))
    assert all(metric.isfinite().all() for metric in metrics.values())


def test_whole_episodes_of_images_and_vectors_train():
    source = EpisodeData(Table(random_rows(60), SPEC, 0.9), (0, 1), 4)
    agent = ISREINFORCE(SPEC, (0, 1), hidden=(8,), behavior_updates=1)
    for name in ("behavior_loss", "policy_loss"):
        assert agent.learn(source.draw(1))[0][name].isfinite().all()


def test_a_goal_is_a_later_observation_of_the_same_episode():
    data = random_rows(60)
    data.observations["state"][:, 0] = np.arange(66)  # 11 observations to an episode
    rows = torch.arange(60).repeat_interleave(500)
    goals = Table(data, SPEC, 0.9).goals(rows, torch.rand(len(rows)))["state"][:, 0].long().view(60, 500)
    for row, found in enumerate(goals):
        later = np.arange(data.next_at[row], row // 10 * 11 + 11)
        counts = np.bincount(found.numpy(), minlength=66)
        assert counts.sum() == counts[later].sum() == 500
        assert (abs(counts[later] - 500 / len(later)) < 6 * (500 / len(later)) ** 0.5).all()


def test_frames_are_stacked_within_their_episode():
    data = random_rows(60)
    data.observations["image"][:] = np.arange(66, dtype=np.uint8)[:, None, None, None]
    data.observations["state"][:] = np.arange(66)[:, None]
    spec = Spec((Leaf("image", (16, 16, 9), "uint8"), Leaf("state", (21,), "float32")), 2, (-1.0, -1.0), (1.0, 1.0))
    batch = Table(data, spec, 0.9, n_step=2, stack=3).transitions(torch.arange(60))

    def frames(places):
        """Each frame and the two before it, as far as its episode goes back."""
        return np.stack([np.maximum(places - back, places // 11 * 11) for back in (2, 1, 0)], -1)

    tail = np.minimum(np.arange(60) + 1, np.arange(60) // 10 * 10 + 9)
    for obs, places in ((batch.obs, data.at), (batch.next_obs, data.next_at[tail])):
        assert obs["image"].shape == (60, 16, 16, 9) and obs["image"].dtype == torch.uint8
        np.testing.assert_array_equal(obs["image"][:, 0, 0].numpy(), frames(places).repeat(3, -1))
        np.testing.assert_array_equal(obs["state"].numpy(), frames(places).repeat(7, -1))


def test_a_memory_mapped_dataset_is_not_read_into_memory(tmp_path):
    data = random_rows(60)
    data.write(tmp_path / "columns")
    mapped = Dataset.mapped(tmp_path / "columns")
    assert {type(leaf) for _, leaf in tree_leaves(mapped.observations)} == {np.memmap}
    assert mapped.name == data.name and mapped.provenance == data.provenance
    table, rows = Table(mapped, SPEC, 0.9), torch.arange(60)
    assert table.observations["image"].column.ctypes.data == mapped.observations["image"].ctypes.data, (
        "they were copied"
    )
    for (_, one), (_, other) in zip(
        tree_leaves(table.transitions(rows)), tree_leaves(Table(data, SPEC, 0.9).transitions(rows)), strict=True
    ):
        assert torch.equal(one, other)


def steps_of(lengths, S=1, E=1, stack=1):
    """Steps of episodes of these lengths, in every environment. Image and state show the number of a frame; an
    environment shows the latest ``stack`` frames."""
    number = 0
    for length in lengths:
        frames = [number] * (stack - 1) + list(range(number, number + length + 1))
        number += length + 1
        for t in range(length):
            obs, following = (
                dict(
                    image=np.tile(np.uint8(frames[at : at + stack]).repeat(3), (S, E, 16, 16, 1)),
                    state=np.tile(np.float32(frames[at : at + stack]).repeat(7), (S, E, 1)),
                )
                for at in (t, t + 1)
            )
            last = np.full((S, E), t == length - 1)
            yield Transition(obs, np.zeros((S, E, 2)), np.full((S, E), obs["state"].max()), last, following, last)


def test_a_ring_keeps_every_image_once():
    ring = Replay(SPEC, (0, 1), 1000, 2)
    assert ring.nbytes <= 1.2 * 2 * 1000 * (16 * 16 * 3 + 4 * (7 + 2 + 3))
    assert ring.observations["image"].dtype == torch.uint8


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("lengths", [[9] * 12, [1] * 40, [3, 1, 1, 12, 2, 7, 1, 1, 1, 30]])
def test_a_ring_of_images_returns_what_was_observed(lengths, stack):
    """Also if episodes are so short that the oldest steps must be dropped early."""
    leaves = (Leaf("image", (16, 16, 3 * stack), "uint8"), Leaf("state", (7 * stack,), "float32"))
    spec, steps = Spec(leaves, 2, (-1.0, -1.0), (1.0, 1.0)), list(steps_of(lengths, stack=stack))
    for priorities in (None, (0.6, 0.4)):
        ring = Replay(spec, (0,), 16, priorities=priorities, stack=stack)
        for added, step in enumerate(steps, 1):
            ring.add(step)
            assert min(added, 7) <= len(ring) <= 16
            batch = ring.transitions(torch.arange(len(ring)).view(1, 1, -1))
            newest = steps[added - len(ring) : added]
            if len(ring) == 16:  # all of it can be drawn, and positions are counted from the first row
                newest = newest[16 - added % 16 :] + newest[: 16 - added % 16]
            for field in ("obs", "next_obs"):
                for path in ("image", "state"):
                    want = np.concatenate([getattr(step, field)[path] for step in newest], 1)
                    np.testing.assert_array_equal(getattr(batch, field)[path][0].numpy(), want)
        drawn = ring.sample(20, 50).reward.unique().tolist()
        assert drawn == sorted({float(step.reward[0, 0]) for step in newest})
        again = Replay(spec, (0,), 16, priorities=priorities, stack=stack)
        again.load_state_dict(ring.state_dict())
        for step in steps[:5]:
            ring.add(step)
            again.add(step)
        for (_, one), (_, other) in zip(tree_leaves(ring.sample(2, 9)), tree_leaves(again.sample(2, 9)), strict=True):
            assert torch.equal(one, other)


def test_a_ring_does_not_connect_an_abandoned_episode_with_the_next():
    """For example after a restart, where unfinished episodes start again without an end."""
    spec = Spec(1, 1, (-1.0,), (1.0,))
    ring, rows = Replay(spec, (0,), 20, gamma=0.5, n_step=3), [(0, 1), (1, 2), (10, 11), (11, 12), (12, 13)]
    for obs, following in rows:
        column = np.full((1, 1), 1.0)
        shown = (np.full((1, 1, 1), number, np.float32) for number in (obs, following))
        ring.add(Transition(next(shown), column[..., None], column, column == 0, next(shown), column == 0))
    batch = ring.transitions(torch.arange(5).view(1, 1, -1))
    assert batch.next_obs.flatten().tolist() == [2, 2, 13, 13, 13]
    assert batch.last.flatten().tolist() == [1, 1, 0, 0, 0]


def test_a_table_takes_hardly_more_than_what_is_stored():
    data = random_rows(1000)
    stored = sum(leaf.nbytes for _, leaf in tree_leaves(data.observations)) + data.action.nbytes + data.reward.nbytes
    table = Table(data, SPEC, 0.99)
    assert table.observations["image"].dtype == torch.uint8
    assert table.nbytes <= 1.1 * stored
    assert table.observations["image"].data_ptr() == data.observations["image"].ctypes.data, "images were copied"


def test_a_ring_keeps_images_as_they_are_and_never_mixes_episodes():
    ring, stored = Replay(SPEC, (0, 1), 24, 2, gamma=0.5, n_step=3), {}
    rng = np.random.default_rng(0)
    for t in range(30):
        obs, following = (
            dict(image=np.full((2, 2, 16, 16, 3), number, np.uint8), state=np.full((2, 2, 7), number, np.float32))
            for number in (t, t + 1)
        )
        last = np.full((2, 2), t % 5 == 4)
        step = Transition(obs, rng.normal(size=(2, 2, 2)), np.ones((2, 2)), last & (t % 10 == 9), following, last)
        ring.add(step)
        stored[t] = min(t + 2, t // 5 * 5 + 4, 29) + 1  # the observation after three steps
    batch = ring.sample(4, 50)
    assert batch.obs["image"].shape == (4, 2, 50, 16, 16, 3) and batch.obs["image"].dtype == torch.uint8
    first, tail = batch.obs["state"][..., 0], batch.next_obs["state"][..., 0]
    assert torch.equal(batch.obs["image"][..., 0, 0, 0].float(), first)
    assert torch.equal(batch.next_obs["image"][..., 0, 0, 0].float(), tail)
    assert [stored[int(t)] for t in first.flatten()] == tail.flatten().tolist()
    again = Replay(SPEC, (0, 1), 24, 2, gamma=0.5, n_step=3)
    again.load_state_dict(ring.state_dict())
    for (_, one), (_, other) in zip(tree_leaves(ring.sample(2, 9)), tree_leaves(again.sample(2, 9)), strict=True):
        assert torch.equal(one, other)


def test_convolutions_of_stacked_seeds_equal_those_alone():
    images = torch.randint(256, (2, 5, 20, 20, 3), dtype=torch.uint8)
    both = Images((20, 20, 3), rngs(3, 4))
    features = both(images)
    assert features.shape == (2, 5, both.features)
    for s, seed in enumerate((3, 4)):
        alone = Images((20, 20, 3), rngs(seed))
        torch.testing.assert_close(features[s : s + 1], alone(images[s : s + 1]))
    x = (images[1] / 255 - 0.5).permute(0, 3, 1, 2)
    for layer in both.layers:
        x = torch.relu(torch.nn.functional.conv2d(x, layer.weight[1], layer.bias[1], layer.stride))
    torch.testing.assert_close(features[1], x.flatten(1))


@pytest.mark.parametrize("shape", [(84, 84, 3), (64, 64, 1), (24, 24), (5, 9, 3)])
def test_images_of_any_size_have_features(shape):
    encoder = encoder_of(Spec((Leaf("", shape, "uint8"),), 1, (-1.0,), (1.0,)), rngs(0))
    assert encoder(torch.zeros(1, 2, *shape, dtype=torch.uint8)).shape == (1, 2, encoder.features)


@pytest.mark.parametrize("agent_class", [BC, XQL])
def test_a_stack_that_learns_from_images_equals_its_seeds_alone(agent_class):
    def trained(seeds):
        agent = agent_class(SPEC, seeds, hidden=(16,))
        source = OfflineData(Table(random_rows(60), SPEC, agent.gamma), seeds, batch_size=8, updates=3)
        agent.learn(source.draw())
        return agent

    stack, alone = trained((0, 1)), trained((1,))
    before = agent_class(SPEC, (0, 1), hidden=(16,))
    for (name, both), one in zip(stack.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)
        if "encoder" in name and "target" not in name:
            assert not torch.equal(both, dict(before.named_parameters())[name]), f"{name} was not trained"


def test_an_agent_for_vectors_refuses_images():
    with pytest.raises(UserError, match="observations must be one vector here, not image .* choose parts with"):
        PPO(SPEC, (0,))


def test_a_space_of_parts_keeps_its_images():
    space = gym.spaces.Dict(
        state=gym.spaces.Box(-1, 1, (7,), np.float64), image=gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    )
    leaves = spaces.parts(space)
    assert {leaf.path: leaf.shape for leaf in Spec.of(spaces.observed(leaves), gym.spaces.Discrete(2)).obs} == {
        "image": (16, 16, 3), "state": (7,),
    }  # fmt: skip
    columns = dict(image=np.zeros((2, 16, 16, 3), np.uint8), state=np.zeros((2, 7)))
    seen = spaces.observe(leaves, [columns[path] for path in leaves])
    assert seen["image"].dtype == np.uint8 and seen["state"].shape == (2, 7)


class Camera(gym.Env):
    """Six steps, which an image and a vector count.

    Args:
        discrete: whether actions are the numbers 3, 4 and 5, rather than vectors.
    """

    observation_space = gym.spaces.Dict(
        image=gym.spaces.Box(0, 255, (64, 64, 3), np.uint8), state=gym.spaces.Box(-1, 1, (7,), np.float32)
    )

    def __init__(self, discrete=False):
        self.action_space = gym.spaces.Discrete(3, start=3) if discrete else gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.seen(), {}

    def seen(self):
        return dict(image=np.full((64, 64, 3), self.count, np.uint8), state=np.full(7, self.count / 10, np.float32))

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1
        return self.seen(), float(np.sum(action)), self.count == 6, False, {}


@pytest.fixture
def recorded(tmp_path):
    """Let Minari make a dataset, and return its name."""

    def record(discrete):
        env, buffers = gym.make("test/Camera-v0", discrete=discrete), []
        env.action_space.seed(0)
        for seed in range(8):
            shown, steps = [env.reset(seed=seed)[0]], []
            while not steps or not steps[-1][2]:
                action = env.action_space.sample()
                obs, *outcome, _ = env.step(action)
                shown.append(obs)
                steps.append((action, *outcome))
            observations = {path: np.stack([obs[path] for obs in shown]) for path in ("image", "state")}
            buffers.append(EpisodeBuffer(seed, seed, None, observations, *map(np.array, zip(*steps, strict=True)), {}))
        minari.create_dataset_from_buffers(
            "test/camera-v0", buffers, env, algorithm_name="random", author="test", jpeg_encoding=False
        )
        return "test/camera-v0"

    with empty_workplace(tmp_path):
        gym.register("test/Camera-v0", f"{__name__}:Camera", max_episode_steps=10)
        yield record
        del gym.registry["test/Camera-v0"]


@pytest.mark.parametrize(("agent", "discrete"), [("bc", False), ("xql", False), ("xql", True), ("dqn", True)])
def test_a_dataset_of_images_that_minari_made_trains_and_evaluates(agent, discrete, recorded):
    dataset = recorded(discrete)
    data = load(dataset)
    assert data.observations["image"].dtype == np.uint8 and len(data.observations["image"]) == 8 * 7
    np.testing.assert_array_equal(data.obs["image"][:, 0, 0, 0], np.tile(np.arange(6), 8))
    np.testing.assert_array_equal(data.next_obs["image"][:, 5, 5, 1], np.tile(np.arange(1, 7), 8))
    if discrete:
        assert set(data.action[:, 0]) <= {3, 4, 5}
    few = ["--updates", "2", "--eval-every", "2", "--eval-episodes", "1", "--final-episodes", "1", "--batch", "4"]
    assert main(["fit", agent, "--dataset", dataset, *few, "--compile", "false", "--out", "run"]) == 0
    assert main(["evaluate", "run", "--episodes", "2", "--json", "found.json"]) == 0
    assert json.loads(Path("found.json").read_text())["mean_length"] == 6
    if not discrete:
        assert main(["collect", "run", "--env", "test/Camera-v0", "--episodes", "2", "--dataset", "test/again-v0"]) == 0
        assert load("test/again-v0").observations["image"].dtype == np.uint8
