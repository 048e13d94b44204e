import copy

import pytest
import torch

from offlinerl.learning.optim import Adam
from offlinerl.learning.rng import Streams, generator
from offlinerl.nn.actors import GaussianActor
from offlinerl.nn.critics import Critic
from offlinerl.nn.encoders import Identity, Images, orthogonal_kernels
from offlinerl.nn.layers import MLP, Linear, drop, dropout_masks, soft_update
from offlinerl.util.errors import UserError


def rng(*seeds):
    return [generator(seed, "test") for seed in seeds]


def test_initial_weights_do_not_depend_on_the_number_of_threads():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            kernels = orthogonal_kernels([generator(0, "test")], 32, 32, 3, 3)
            found.append((Linear(256, 256, (1,), [generator(0, "test")]).weight, kernels))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_linear_is_orthogonal_with_gain_root_two():
    weight = Linear(6, 4, (2, 3), rng(0, 1)).weight.detach()
    gram = weight.transpose(-1, -2) @ weight  # columns are orthogonal, for there are fewer of them
    torch.testing.assert_close(gram, 2 * torch.eye(4).expand(2, 3, 4, 4), atol=1e-5, rtol=0)


def test_linear_applies_each_slice_to_its_own_input():
    layer = Linear(3, 2, (2,), rng(0, 1))
    with torch.no_grad():
        layer.bias.normal_()
    x = torch.randn(2, 5, 3)
    for s in range(2):
        torch.testing.assert_close(layer(x)[s], x[s] @ layer.weight[s] + layer.bias[s])


def test_layer_norm_comes_before_relu_and_matches_torch():
    net = MLP([3, 8, 1], (1,), rng(0), layer_norm=True)
    x = torch.randn(1, 4, 3)
    hidden = torch.nn.functional.layer_norm(net.layers[0](x), (8,), eps=1e-6)
    torch.testing.assert_close(net(x), net.layers[1](torch.relu(hidden)))


def test_critics_differ_and_get_the_same_input():
    critic = Critic(Identity(3), 2, (8,), rng(0, 1))
    q = critic(torch.randn(2, 5, 3), torch.randn(2, 5, 2))
    assert q.shape == (2, 2, 5)
    assert not torch.allclose(q[:, 0], q[:, 1])


def test_dropout_rate_scale_and_streams():
    streams = Streams((0, 1), "dropout")
    (kept,) = dropout_masks(streams, 0.1, 1000, [1000])
    assert kept.shape == (2, 1000, 1000)
    # 10^6 draws per seed: the standard error of the rate is 0.0003
    assert (1 - kept).mean((1, 2)).tolist() == pytest.approx([0.1, 0.1], abs=0.0015)
    assert not torch.equal(kept[0], kept[1])
    x = torch.ones(2, 1000, 1000)
    assert drop(x, kept, 0.1).mean().item() == pytest.approx(1.0, abs=0.002)
    assert set(drop(x, kept, 0.5).unique().tolist()) == {0.0, 2.0}


def test_random_numbers_do_not_depend_on_the_other_seeds():
    stacked, alone = Streams((5, 6), "x"), Streams((6,), "x")
    assert torch.equal(stacked.bits((7, 9))[1], alone.bits((7, 9))[0])
    assert torch.equal(stacked.normal((4,))[1], alone.normal((4,))[0])
    other = Streams((6,), "y")
    assert not torch.equal(other.normal((4,)), Streams((6,), "x").normal((4,)))


def test_streams_resume():
    streams = Streams((0, 1), "x")
    streams.uniform(0, 1, (3,))
    state = streams.state_dict()
    ahead = streams.integers(100, (5,))
    again = Streams((0, 1), "x")
    again.load_state_dict(state)
    assert torch.equal(again.integers(100, (5,)), ahead)


def test_actor_squashes_the_mean_only():
    actor = GaussianActor(Identity(3), 2, (8,), rng(0))
    with torch.no_grad():
        actor.log_std.fill_(5.0)  # above its upper bound
    obs = torch.randn(1, 6, 3) * 100
    normal = actor(obs)
    assert actor.mean(obs).abs().max() <= 1
    assert normal.base_dist.scale.max().item() == pytest.approx(torch.tensor(2.0).exp().item())
    far = torch.full((1, 6, 2), 3.0)  # outside the tanh's range, yet of finite density
    assert normal.log_prob(far).isfinite().all() and normal.log_prob(far).shape == (1, 6)


def test_soft_update_by_hand():
    slow, fast = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        slow.weight.fill_(1.0)
        fast.weight.fill_(3.0)
    soft_update(slow, fast, 0.25)
    assert slow.weight.item() == 1.5 and fast.weight.item() == 3.0


def test_adam_equals_torch():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    a, b = Adam([ours], 1e-2), torch.optim.Adam([theirs], 1e-2)
    draws = torch.Generator().manual_seed(0)
    for step in range(200):
        gradient = torch.randn(3, 4, generator=draws) * (1 + step % 5)
        ours.grad, theirs.grad = gradient, gradient.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adam_sets_tiny_moments_to_zero_instead_of_subnormal_numbers():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    a, b = Adam([ours], 1e-2), torch.optim.Adam([theirs], 1e-2)
    for step in range(2_500):
        ours.grad = theirs.grad = torch.full((3, 4), 1e-13 if step == 0 else 0.0)
        a.step()
        b.step()
    state, powers = a.state[ours], a.param_groups[0]["beta_powers"]
    assert not state["exp_avg"].any() and not state["exp_avg_sq"].any() and not powers[:, 0].any()
    assert (powers[:, 1] - 0.999**2_500).abs().max() < 1e-5
    assert b.state[theirs]["exp_avg"].all()  # torch keeps a tiny moment
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)


def test_adam_continues_from_its_state_to_the_bit():
    def run(optimizer, p, seed, steps):
        draws = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            optimizer.descend([torch.randn(4, generator=draws)])

    p = torch.nn.Parameter(torch.ones(4))
    optimizer = Adam([p], 1e-2)
    run(optimizer, p, 0, 5)
    q = torch.nn.Parameter(p.detach().clone())
    other = Adam([q], 1e-2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, p, 1, 5)
    run(other, q, 1, 5)
    assert torch.equal(p, q)


@pytest.mark.parametrize("shape", [(4, 84, 84), (3, 64, 80), (4, 84, 84, 3)])
def test_images_with_their_channels_first_are_refused(shape):
    with pytest.raises(UserError, match="other axes than height, width and channels"):
        Images(shape, [torch.Generator()])
    for fits in ((84, 84, 12), (84, 84), (10, 10, 40)):
        Images(fits, [torch.Generator()])
