"""DrQ-v2 against its paper, and the random shift against slow references."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from offlinerl.agents import outline
from offlinerl.agents.bc import BC
from offlinerl.agents.drqv2 import DrQv2, noisy
from offlinerl.data import registry
from offlinerl.envs.make import with_limits
from offlinerl.learning.augmentation import offsets, shift
from offlinerl.learning.rng import Streams
from offlinerl.nn.encoders import SAC_AE, Images
from offlinerl.training import config
from offlinerl.training.build import compute_as_asked
from offlinerl.types import Batch, Leaf, Spec
from offlinerl.util.errors import UserError

SPEC = Spec((Leaf("", (20, 20, 9), "uint8"),), 2, (-1.0, -1.0), (1.0, 1.0))
TINY = dict(features=4, hidden=(8,))


def batch_of(spec, S=1, B=4, seed=0):
    g = torch.Generator().manual_seed(seed)

    def images():
        return torch.randint(0, 256, (S, B, *spec.obs[0].shape), dtype=torch.uint8, generator=g)

    def numbers(*shape):
        return torch.rand(S, B, *shape, generator=g)

    return Batch(images(), 2 * numbers(spec.action_dim) - 1, numbers(), 0.9 * numbers(), images(), torch.zeros(S, B))


# The random shift


@pytest.mark.parametrize("shape", [(2, 3, 7, 9, 6), (1, 2, 7, 9)])
def test_the_shift_is_a_crop_of_the_padded_image(shape):
    pad, rng = 4, np.random.default_rng(0)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    by = rng.integers(-pad, pad + 1, (*shape[:2], 2))
    by[0, 0] = (-pad, pad)  # the outermost corner
    found = shift(torch.from_numpy(images), torch.from_numpy(by), len(shape) - 2).numpy()
    for s in range(shape[0]):
        for b in range(shape[1]):
            padded = np.pad(images[s, b], [(pad, pad)] * 2 + [(0, 0)] * (len(shape) - 4), mode="edge")
            for i in range(shape[2]):
                for j in range(shape[3]):
                    np.testing.assert_array_equal(
                        found[s, b, i, j], padded[i + by[s, b, 0] + pad, j + by[s, b, 1] + pad]
                    )


def test_the_shift_is_grid_sample_s_at_whole_pixels():
    """The authors' implementation: a grid over the padded image, in units of its size, moved by whole pixels."""
    pad, size, B = 4, 84, 6
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (B, size, size, 9), dtype=torch.uint8, generator=rng)
    by = torch.randint(-pad, pad + 1, (B, 2), generator=rng)
    padded = nn.functional.pad(images.permute(0, 3, 1, 2).float(), (pad,) * 4, "replicate")
    eps = 1 / (size + 2 * pad)
    line = torch.linspace(-1 + eps, 1 - eps, size + 2 * pad)[:size]
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).expand(B, -1, -1, -1)
    moved = grid + (by.flip(-1) + pad).view(B, 1, 1, 2) * 2 / (size + 2 * pad)
    wanted = nn.functional.grid_sample(padded, moved, padding_mode="zeros", align_corners=False)
    found = shift(images[None], by[None])[0].permute(0, 3, 1, 2).float()
    assert (found - wanted).abs().max() < 0.01  # of 255


def test_all_frames_of_a_window_have_the_same_shift():
    images = torch.arange(2 * 3 * 5 * 5, dtype=torch.uint8).view(1, 2, 3, 5, 5, 1)
    by = torch.tensor([[[1, -2], [0, 3]]])
    found = shift(images, by)
    for t in range(3):
        assert torch.equal(found[:, :, t], shift(images[:, :, t], by))


def test_offsets_are_uniform_and_differ_between_seeds():
    drawn = offsets(Streams((0, 1), "test"), 9000, 4)
    assert drawn["obs"].shape == (2, 9000, 2) and not torch.equal(drawn["obs"], drawn["next_obs"])
    for s in range(2):
        assert torch.equal(drawn["obs"][s], offsets(Streams((s,), "test"), 9000, 4)["obs"][0])
    counts = torch.stack([(drawn["next_obs"] == k).sum((0, 1)) for k in range(-4, 5)])
    assert counts.sum() == drawn["next_obs"].numel() and (counts - 2000).abs().max() < 200


def test_any_agent_learns_from_shifted_images():
    """A single pixel is set; its new position shows by how much the image was shifted."""
    spec = Spec((Leaf("image", (9, 9, 1), "uint8"), Leaf("state", (2,), "float32")), 2, (-1.0, -1.0), (1.0, 1.0))
    image = torch.zeros(1, 1, 400, 9, 9, 1, dtype=torch.uint8)
    image[:, :, :, 4, 4] = 255
    obs, row = dict(image=image, state=torch.rand(1, 1, 400, 2)), torch.zeros(1, 1, 400)
    block = Batch(obs, torch.zeros(1, 1, 400, 2), row, row, obs, row)
    for most in (0, 2):
        agent, seen = BC(spec, (0,), shift=most), []
        agent.update = lambda batch, noise, k, seen=seen: seen.append(batch) or {}
        agent.learn(block)
        at = torch.stack([(4 - x.nonzero()[0, :2]) for x in seen[0].obs["image"][0]])
        assert at.abs().max() == most and torch.equal(seen[0].obs["state"], obs["state"][0])
        assert len(at.unique(dim=0)) == (2 * most + 1) ** 2


# The algorithm


def test_losses_and_targets_by_hand():
    """Computed with plain modules, one row at a time, from the paper's equations."""
    agent = DrQv2(SPEC, (0,), lr=1e-3, shift=0, **TINY)
    agent.steps, batch = 40_000, batch_of(SPEC)
    noise = agent.draw(4)
    before = copy.deepcopy(agent)
    metrics = agent.update(batch, noise, 0) if agent.configure_optimizers() else None

    def encoded(of, obs):
        x = obs.float().permute(2, 0, 1)[None] / 255 - 0.5
        for layer, (_, _, stride) in zip(of.encode.layers, SAC_AE, strict=True):
            x = torch.relu(nn.functional.conv2d(x, layer.weight[0], layer.bias[0], stride=stride))
        return x.flatten()

    def trunk(of, h):
        x = h @ of.linear.weight[0] + of.linear.bias[0, 0]
        x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
        return torch.tanh(x * of.norm.weight[0, 0] + of.norm.bias[0, 0])

    def through(net, x, *lead):
        first, last = ((layer.weight[lead], layer.bias[lead][0]) for layer in net.layers)
        return torch.relu(x @ first[0] + first[1]) @ last[0] + last[1]

    def q(critic, h, action):
        x = torch.cat([trunk(critic.encoder, h), action])
        return torch.stack([through(critic.net, x, 0, n)[0] for n in range(2)])

    def act(of, h, noise):
        return (torch.tanh(through(of.actor.net, trunk(of.actor.encoder, h), 0)) + noise).clamp(-1, 1)

    critic_loss, actor_loss = 0.0, 0.0
    with torch.no_grad():
        for b in range(4):
            h, next_h = encoded(before, batch.obs[0, b]), encoded(before, batch.next_obs[0, b])
            next_action = act(before, next_h, noise["next_action"][0, b])
            target = batch.reward[0, b] + batch.discount[0, b] * q(before.target, next_h, next_action).min()
            critic_loss += (q(before.critic, h, batch.action[0, b]) - target).square().sum() / 4
            action = act(before, h, noise["action"][0, b])  # features from before the critics' step, as in their code
            actor_loss -= q(agent.critic, h, action).min() / 4
    torch.testing.assert_close(metrics["critic_loss"][0], critic_loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics["actor_loss"][0], actor_loss, rtol=1e-3, atol=1e-4)
    for slow, fast, was in zip(*(m.parameters() for m in (agent.target, agent.critic, before.target)), strict=True):
        torch.testing.assert_close(slow, 0.99 * was + 0.01 * fast)


def test_the_actor_does_not_train_the_encoder():
    agent = DrQv2(SPEC, (0,), **TINY)
    trained = {id(p) for p in agent.configure_optimizers()[1].param_groups[0]["params"]}
    assert trained == {id(p) for p in agent.actor.parameters()}
    agent.descend = lambda name, loss, **_: torch.autograd.grad(
        loss.sum(), [*agent.encode.parameters()], allow_unused=True, retain_graph=True
    )
    metrics = agent.update(batch_of(SPEC), agent.draw(4), 0)
    assert len(metrics["actor_loss"]) == 8 and all(g is None for g in metrics["actor_loss"])
    assert all(g is not None for g in metrics["critic_loss"])


def test_noise_is_clipped_and_scheduled():
    """sigma(t) = 1 + min(t / 100000, 1) (0.1 - 1), and the noise of updates stays within 0.3."""
    agent = DrQv2(SPEC, (0,), **TINY)
    for steps, sigma in ((0, 1.0), (25_000, 0.775), (50_000, 0.55), (100_000, 0.1), (900_000, 0.1)):
        agent.steps = steps
        assert agent.scheduled_sigma() == pytest.approx(sigma)
        drawn = agent.draw(20_000)["action"]
        assert drawn.abs().max() <= 0.3
        inside = drawn[drawn.abs() < 0.3]
        share = torch.distributions.Normal(0, sigma).cdf(torch.tensor(0.3)) * 2 - 1
        assert len(inside) / drawn.numel() == pytest.approx(float(share), abs=0.01)
    explored = agent.act(torch.zeros(1, 3, 20, 20, 9, dtype=torch.uint8), explore=True)
    assert explored.shape == (1, 3, 2) and len(explored.unique()) == 6


def test_the_gradient_passes_through_clipping():
    action = torch.tensor([0.9, -0.2], requires_grad=True)
    found = noisy(action, torch.tensor([0.3, 0.1]))
    torch.testing.assert_close(found.detach(), torch.tensor([1 - 1e-6, -0.1]))
    assert torch.equal(torch.autograd.grad(found.sum(), action)[0], torch.ones(2))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_stacked_seeds_equal_their_own_updates(compiled):
    blocks = [batch_of(SPEC, 1, 4, seed) for seed in (0, 1)]
    both = Batch(*(torch.cat(pair)[None] for pair in zip(*(b[:6] for b in blocks), strict=True)))
    stacked = DrQv2(SPEC, (0, 1), **TINY)
    stacked.compile = compiled
    for _ in range(2):
        stacked.learn(both)
    for s, block in enumerate(blocks):
        alone = DrQv2(SPEC, (s,), **TINY)
        for _ in range(2):
            alone.learn(Batch(*(x[None] for x in block[:6])))
        for mine, theirs in zip(alone.parameters(), stacked.parameters(), strict=True):
            torch.testing.assert_close(mine[0], theirs[s], rtol=1e-3, atol=1e-5)


# How an update is computed


def trained(updates=30, seeds=(0,), **how):
    """Losses of every update on one batch, ``[updates, S]`` by name, and the agent."""
    agent = DrQv2(SPEC, seeds, lr=3e-3, shift=0, sigma=0.1, **TINY)
    compute_as_asked(agent, dict(compile=False) | how, updates)
    block = Batch(*(x.expand(len(seeds), *x.shape[1:])[None] for x in batch_of(SPEC, B=32)[:6]))
    found = [agent.learn(block)[0] for _ in range(updates)]
    return {name: torch.stack([metrics[name] for metrics in found]) for name in found[0]}, agent


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_layout_of_images_changes_results_by_rounding(seeds):
    usual, _ = trained(5, seeds)
    for channels_last in (True, False):
        found, agent = trained(5, seeds, channels_last=channels_last)
        assert agent.encode.channels_last is channels_last
        for name, values in found.items():
            torch.testing.assert_close(values, usual[name], rtol=1e-3, atol=1e-5)


def test_the_channels_last_setting_decides_the_memory_layout(monkeypatch):
    given, convolve = [], nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", lambda x, *args, **how: given.append(x) or convolve(x, *args, **how))
    for channels_last in (True, False):
        trained(1, channels_last=channels_last)
        assert given[0].is_contiguous(memory_format=torch.channels_last) == channels_last
        assert given[0].is_contiguous() != channels_last
        given.clear()


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
def test_bf16_learns_almost_the_same(compile):
    """On average over seeds: rounding may lead a single one, with so small a network, to other losses."""
    usual, _ = trained(60, range(12))
    found, agent = trained(60, range(12), precision="bf16", compile=compile)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in agent.parameters())
    for name in ("critic_loss", "q"):
        assert not torch.equal(found[name], usual[name]), "products are rounded"
    assert usual["critic_loss"][-1].mean() < 0.3 * usual["critic_loss"][0].mean(), "there is something to learn"
    assert found["critic_loss"][-10:].mean() < 0.3 * usual["critic_loss"][0].mean()
    torch.testing.assert_close(found["critic_loss"][0], usual["critic_loss"][0], rtol=0.02, atol=0.01)
    torch.testing.assert_close(found["q"][-10:].mean(), usual["q"][-10:].mean(), rtol=0.05, atol=0)


def test_bf16_uses_the_current_weights_within_an_update():
    """The actor uses the critics after their step, which is large here, and not a rounded copy from before it."""
    losses_of = {}
    for precision in ("float32", "bf16"):
        agent = DrQv2(SPEC, (0,), lr=0.3, shift=0, **TINY)
        agent.precision = precision
        agent.configure_optimizers()
        batch = batch_of(SPEC)
        losses_of[precision] = agent._update(batch, agent.draw(4), 0)["actor_loss"]
    torch.testing.assert_close(losses_of["bf16"], losses_of["float32"], rtol=0.05, atol=0.05)


def test_frames_too_small_for_convolutions_are_refused():
    with pytest.raises(UserError, match="images of 2x40 are too small for convolutions, the smallest of which is 3x3"):
        Images((2, 40, 3), Streams((0,), "test").generators, SAC_AE)


# The settings, against the paper

TABLE_1 = """
Cartpole Balance        easy    1e6  4   1
Cartpole Balance Sparse easy    1e6  4   1
Cartpole Swingup        easy    1e6  4   1
Cup Catch               easy    1e6  8   2
Finger Spin             easy    1e6  6   2
Hopper Stand            easy    1e6  14  4
Pendulum Swingup        easy    1e6  2   1
Walker Stand            easy    1e6  18  6
Walker Walk             easy    1e6  18  6
Acrobot Swingup         medium  3e6  4   1
Cartpole Swingup Sparse medium  3e6  4   1
Cheetah Run             medium  3e6  18  6
Finger Turn Easy        medium  3e6  6   2
Finger Turn Hard        medium  3e6  6   2
Hopper Hop              medium  3e6  14  4
Quadruped Run           medium  3e6  56  12
Quadruped Walk          medium  3e6  56  12
Reach Duplo             medium  3e6  55  9
Reacher Easy            medium  3e6  4   2
Reacher Hard            medium  3e6  4   2
Walker Run              medium  3e6  18  6
Humanoid Stand          hard    30e6 54  21
Humanoid Walk           hard    30e6 54  21
Humanoid Run            hard    30e6 54  21
"""
"""Allowed steps, in frames; dimensions of the state and of the action."""

TABLE_2 = dict(
    replay_buffer_capacity=10**6, action_repeat=2, seed_frames=4000, n_step=3, batch=256, gamma=0.99, lr=1e-4,
    update_every=2, tau=0.01, features=50, hidden=1024, clip=0.3, easy=(1.0, 0.1, 100_000),
    medium=(1.0, 0.1, 500_000), hard=(1.0, 0.1, 2_000_000),
)  # fmt: skip


def env_id(task):
    """The suite's name of a task of the paper."""
    domain, name = task.lower().replace("cup catch", "ball_in_cup catch").split(" ", 1)
    if task == "Reach Duplo":
        return "dm_control/manipulation-reach_duplo-v0"
    return f"dm_control/{domain}-{name.replace(' ', '_')}-v0"


def test_the_settings_of_the_24_tasks_are_the_paper_s():
    table = [line.rsplit(None, 4) for line in TABLE_1.strip().splitlines()]
    assert len(table) == 24
    for task, difficulty, frames, _, _ in table:
        entry = registry.limited(registry.task(env_id(task)), dict(pixels=True))
        resolved = config.resolve("drqv2", outline("drqv2"), entry, "replay")
        agent, train, walker = resolved["agent"], resolved["train"], task.startswith("Walker")
        repeat = entry.env["pixels"]["repeat"]
        assert (repeat, entry.env["stack"], entry.env["pixels"]["size"]) == (TABLE_2["action_repeat"], 3, 84)
        assert train["steps"] * repeat == float(frames)
        assert train["warm_up"] * repeat == TABLE_2["seed_frames"]
        assert train["steps_per_update"] == TABLE_2["update_every"]
        assert train["batch"] == (512 if walker else TABLE_2["batch"])
        assert train["capacity"] == (10**5 if task == "Quadruped Run" else TABLE_2["replay_buffer_capacity"])
        assert agent["n_step"] == (1 if walker else TABLE_2["n_step"])
        assert (agent["gamma"], agent["tau"], agent["noise_clip"]) == tuple(
            TABLE_2[k] for k in ("gamma", "tau", "clip")
        )
        humanoid = task.startswith("Humanoid")
        assert (agent["lr"], agent["features"]) == ((8e-5, 100) if humanoid else (TABLE_2["lr"], TABLE_2["features"]))
        assert agent["hidden"] == [TABLE_2["hidden"]] * 2 and agent["shift"] == 4
        assert (agent["sigma"], agent["final_sigma"], agent["sigma_steps"]) == TABLE_2[difficulty]
    known = config.read(config.paths.share("configs", "drqv2", "online.yaml"))["environments"]
    assert set(known) == {env_id(row[0]) for row in table}


def test_the_24_tasks_have_the_paper_s_actions():
    pytest.importorskip("dm_control", reason="dm_control is not installed: pip install 'offlinerl[pixels]'")
    from offlinerl.envs.make import make

    for line in TABLE_1.strip().splitlines():
        task, *_, actions = line.rsplit(None, 4)
        env = make({"id": env_id(task)})
        assert env.action_space.shape == (int(actions),), task
        env.close()


def test_pixel_settings_are_completed_and_kept():
    limited = with_limits({"id": "HalfCheetah-v5"}, dict(pixels=True, stack=4))
    assert limited["stack"] == 4 and limited["pixels"] == dict(size=84, repeat=2, fast=False, camera=None)
