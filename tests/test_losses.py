"""Every loss, compared with numbers computed by hand and with the quantity that it should estimate."""

import math

import pytest
import torch

from offlinerl.learning import losses


def test_gumbel_by_hand():
    # beta 2: z = (1, -1, 0), m = max z = 1; exp(z - 1) - z / e - 1 / e
    loss = losses.gumbel(torch.tensor([2.0, -2.0, 0.0]), beta=2.0)
    e = math.e
    expected = [1 - 1 / e - 1 / e, math.exp(-2) + 1 / e - 1 / e, 1 / e - 0 - 1 / e]
    assert loss.tolist() == pytest.approx(expected, abs=1e-6)


def test_gumbels_largest_z_is_at_least_minus_one():
    # z = (-3, -2): the largest is -2, but m stays -1; exp(z + 1) - z e - e
    loss = losses.gumbel(torch.tensor([-3.0, -2.0]), beta=1.0)
    expected = [math.exp(-2) + 3 * math.e - math.e, math.exp(-1) + 2 * math.e - math.e]
    assert loss.tolist() == pytest.approx(expected, rel=1e-6)


def test_gumbel_clips_above_only():
    error = torch.tensor([50.0, 7.0, -50.0], requires_grad=True)
    loss = losses.gumbel(error, beta=1.0, clip=7.0)
    assert loss[0].item() == pytest.approx(loss[1].item())  # both sit at the clip
    loss.sum().backward()
    assert error.grad[0] == 0, "a clipped sample has no gradient"
    assert error.grad[2] < 0, "a sample far below keeps its gradient"


def test_gumbel_does_not_mix_seeds():
    error = torch.tensor([[0.0, 1.0], [60.0, 80.0]])
    alone = losses.gumbel(error[:1], beta=1.0)
    assert torch.equal(losses.gumbel(error, beta=1.0)[:1], alone)
    assert losses.gumbel(error, beta=1.0).isfinite().all()


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 10.0])
def test_gumbel_minimiser_is_the_soft_maximum(beta):
    q = torch.randn(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def slope(v: float) -> float:
        value = torch.tensor(v, dtype=torch.float64, requires_grad=True)
        losses.gumbel(q - value, beta).mean().backward()
        return value.grad.item()

    low, high = q.min().item(), q.max().item()
    assert slope(low) < 0 < slope(high)
    for _ in range(60):  # the loss is convex in V, so its slope changes sign once
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    soft_maximum = beta * (torch.logsumexp(q / beta, 0) - math.log(len(q)))
    assert low == pytest.approx(soft_maximum.item(), abs=1e-9)


def test_expectile_by_hand():
    loss = losses.expectile(torch.tensor([2.0, -3.0, 0.0]), tau=0.7)
    assert loss.tolist() == pytest.approx([0.7 * 4, 0.3 * 9, 0.0], abs=1e-6)


def test_expectile_of_a_half_is_half_the_square():
    error = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(losses.expectile(error, 0.5), 0.5 * losses.squared(error))


def test_squared_by_hand():
    assert losses.squared(torch.tensor([3.0, -2.0])).tolist() == [9.0, 4.0]


def test_alignment_by_hand():
    right, up, left = [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]
    slopes = torch.tensor([[[right, right], [right, up], [right, left]]])  # [1, 3, 2, 2]: three critics, two rows
    found = losses.alignment(slopes)
    torch.testing.assert_close(found, torch.tensor([[3.0, -1.0]]))  # (1 + 1 + 1) 2 / 2, and (0 - 1 + 0) 2 / 2
    assert losses.alignment(torch.zeros(1, 3, 1, 2)).item() == 0


def test_soft_maximum_by_hand():
    q, density = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.5, 0.25], [0.5, 0.5]])
    by_hand = [math.log((math.exp(1) / 0.5 + math.exp(2) / 0.25) / 2), math.log(2)]
    torch.testing.assert_close(losses.soft_maximum(q, density.log()), torch.tensor(by_hand))


def test_huber_by_hand():
    loss = losses.huber(torch.tensor([2.0, -20.0, 30.0, -25.0]), delta=20.0)
    assert loss.tolist() == [2.0, 200.0, 20 * (30 - 10.0), 20 * (25 - 10.0)]


def test_awr_by_hand():
    log_prob, advantage = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([2.0, -2.0, 100.0])
    loss = losses.awr(log_prob, advantage, temperature=0.5)
    assert loss.tolist() == pytest.approx([math.e, 2 / math.e, 300.0], rel=1e-6)


def test_awr_sends_no_gradient_through_the_advantage():
    log_prob = torch.zeros(3, requires_grad=True)
    advantage = torch.ones(3, requires_grad=True)
    losses.awr(log_prob, advantage, 1.0).sum().backward()
    assert log_prob.grad.tolist() == pytest.approx([-math.e] * 3, rel=1e-6)
    assert advantage.grad is None


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.gumbel(x, 1.0, 5.0), lambda x: losses.expectile(x, 0.7), losses.squared,
        lambda x: losses.huber(x, 1.0), lambda x: losses.awr(x, x, 1.0),
    ],
)  # fmt: skip
def test_losses_are_per_sample_and_broadcast(loss):
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    out = loss(x)
    assert out.shape == x.shape
    for s in range(3):
        assert torch.equal(loss(x[s]), out[s]), "leading axes must not see each other"


def test_projection_by_hand():
    atoms = torch.tensor([0.0, 1.0, 2.0, 3.0])
    probability = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    # 0.5 + 0.5 z = (0.5, 1, 1.5, 2): halves of the first to 0 and 1, of the third to 1 and 2
    moved = losses.project(probability, atoms, torch.tensor([0.5]), torch.tensor([0.5]))
    assert moved[0].tolist() == pytest.approx([0.05, 0.05 + 0.2 + 0.15, 0.15 + 0.4, 0.0])
    # a terminal step with a reward of 1.25 moves all mass there
    over = losses.project(probability, atoms, torch.tensor([1.25]), torch.tensor([0.0]))
    assert over[0].tolist() == pytest.approx([0, 0.75, 0.25, 0])
    # mass outside the support goes to its ends
    for reward, end in ((-10.0, 0), (10.0, 3)):
        out = losses.project(probability, atoms, torch.tensor([reward]), torch.tensor([1.0]))
        assert out[0, end].item() == pytest.approx(1)


def test_projection_keeps_the_mean_inside():
    torch.manual_seed(0)
    atoms = torch.linspace(-10, 10, 51)
    probability = torch.randn(2, 7, 51).softmax(-1)
    reward, discount = torch.randn(2, 7), torch.rand(2, 7) * 0.8
    projected = losses.project(probability, atoms, reward, discount)
    torch.testing.assert_close(projected.sum(-1), torch.ones(2, 7))
    torch.testing.assert_close((projected * atoms).sum(-1), reward + discount * (probability * atoms).sum(-1))


def test_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(0.25), math.log(0.75)]], requires_grad=True)
    target = torch.tensor([[0.5, 0.5]], requires_grad=True)
    loss = losses.cross_entropy(logits, target)
    assert loss.item() == pytest.approx(-0.5 * math.log(0.25) - 0.5 * math.log(0.75))
    loss.sum().backward()
    assert target.grad is None and logits.grad[0].tolist() == pytest.approx([-0.25, 0.25])


def test_policy_gradient_and_surrogate_by_hand():
    log_prob, advantage = torch.tensor([-1.0, -2.0]), torch.tensor([3.0, -4.0])
    assert losses.policy_gradient(log_prob, advantage).tolist() == [3.0, -8.0]
    gain = losses.surrogate(log_prob, torch.tensor([-1.0, -3.0]), advantage)
    assert gain.tolist() == pytest.approx([-3.0, 4 * math.e])


def test_the_surrogates_gradient_at_the_old_policy_is_the_policy_gradient():
    log_prob = torch.randn(2, 50, dtype=torch.float64).requires_grad_()
    advantage = torch.randn(2, 50, dtype=torch.float64)
    (ours,) = torch.autograd.grad(losses.policy_gradient(log_prob, advantage).sum(), log_prob)
    (theirs,) = torch.autograd.grad(losses.surrogate(log_prob, log_prob, advantage).sum(), log_prob)
    assert torch.allclose(ours, theirs)


def test_ppo_clip_by_hand():
    # ratios 1.5, 1.5, 0.5, 0.5; the clip only removes the incentive to move further
    old = torch.zeros(4)
    new = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    loss = losses.ppo_clip(new, old, torch.tensor([2.0, -2.0, 2.0, -2.0]), clip=0.2)
    assert loss.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6])
    loss.sum().backward()
    assert new.grad.tolist() == pytest.approx([0.0, 3.0, -1.0, 0.0])


def test_ppo_without_a_clip_is_the_surrogate():
    new, old, advantage = torch.randn(3, 4, 64)
    new.requires_grad_()
    (clipped,) = torch.autograd.grad(losses.ppo_clip(new, old, advantage, math.inf).sum(), new)
    (plain,) = torch.autograd.grad(losses.surrogate(new, old, advantage).sum(), new)
    assert torch.equal(clipped, plain)


def test_sampled_kl_by_hand_and_on_average():
    ratio = torch.tensor([2.0, 0.5])
    got = losses.sampled_kl(ratio.log(), torch.zeros(2))
    assert got.tolist() == pytest.approx([1 - math.log(2), -0.5 + math.log(2)])
    old, new = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.3, 0.8)
    torch.manual_seed(0)
    x = old.sample((200_000,))
    sampled = losses.sampled_kl(new.log_prob(x), old.log_prob(x))
    error = sampled.std() / len(x) ** 0.5
    assert abs(sampled.mean() - torch.distributions.kl_divergence(old, new)) < 4 * error


@pytest.mark.parametrize("T", [1, 2, 3, 8, 100])
def test_accumulate_is_the_recursion(T):
    generator = torch.Generator().manual_seed(T)
    x, factor = torch.randn(2, 3, T, generator=generator, dtype=torch.float64), torch.rand(2, 3, T, generator=generator)
    expected, after = torch.empty_like(x), torch.zeros(2, 3, dtype=torch.float64)
    for t in reversed(range(T)):
        after = expected[..., t] = x[..., t] + factor[..., t] * after
    assert torch.allclose(losses.accumulate(x, factor.double()), expected)


def test_gae_by_hand():
    # an episode that terminates after two steps, then one that the rollout ends after one; gamma 0.5, lambda 0.5
    reward, discount = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, 0.5])
    last, value, next_value = (
        torch.tensor([0.0, 1.0, 0.0]),
        torch.tensor([4.0, 6.0, 8.0]),
        torch.tensor([6.0, 99.0, 10]),
    )
    # deltas: 1 + 3 - 4 = 0; 2 - 6 = -4; 3 + 5 - 8 = 0
    got = losses.gae(reward, discount, last, value, next_value, 0.5)
    assert got.tolist() == pytest.approx([0 + 0.25 * -4, -4.0, 0.0])


def test_gae_bootstraps_a_truncation_and_goes_no_further():
    reward, discount = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5])
    got = losses.gae(reward, discount, torch.tensor([1.0, 1.0]), torch.zeros(2), torch.tensor([10.0, 20.0]), 1.0)
    assert got.tolist() == [6.0, 11.0]


def test_gae_with_lambda_0_and_1_is_td_and_monte_carlo():
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 4, 30, generator=generator, dtype=torch.float64).unbind()
    next_value = torch.cat([value[:, 1:], torch.zeros(4, 1, dtype=torch.float64)], 1)
    last, discount = torch.zeros(4, 30), torch.full((4, 30), 0.9, dtype=torch.float64)
    last[:, -1], discount[:, -1] = 1, 0
    td = losses.gae(reward, discount, last, value, next_value, 0.0)
    assert torch.allclose(td, reward + discount * next_value - value)
    powers = 0.9 ** torch.arange(30, dtype=torch.float64)
    returns = torch.stack([(reward[:, t:] * powers[: 30 - t]).sum(-1) for t in range(30)], -1)
    assert torch.allclose(losses.gae(reward, discount, last, value, next_value, 1.0), returns - value)


def test_trajectory_weights_and_their_effective_sample_size_by_hand():
    log_ratio = torch.tensor([[2.0, 0.5, 4.0], [1.0, 1.0, 1.0]]).log().requires_grad_()
    weights = losses.trajectory_weights(log_ratio, limit=3.0)
    assert weights.tolist() == [pytest.approx([2.0, 1.0, 3.0]), [1.0, 1.0, 1.0]]
    weights.sum().backward()
    assert log_ratio.grad[0].tolist() == pytest.approx([3.0, 1.0, 0.0])  # the weight at the limit has no gradient
    assert losses.effective_sample_size(torch.zeros(7)).item() == pytest.approx(7)
    assert losses.effective_sample_size(torch.tensor([0.0, -800.0, -900.0])).item() == pytest.approx(1)
    assert losses.effective_sample_size(torch.tensor([3.0, 1.0]).log()).item() == pytest.approx(16 / 10)


def test_standardized_does_not_mix_seeds():
    x = torch.tensor([[1.0, 2.0, 3.0], [100.0, 300.0, 500.0]])
    expected = [-1.0, 0.0, 1.0]
    for row in losses.standardized(x).tolist():
        assert row == pytest.approx(expected)
