"""Policies evaluated with the logged probabilities of the behaviour policy, compared with exact values."""

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pendulum
import pytest
import torch

import offlinerl
from offlinerl import agents, tabular
from offlinerl.cli import main
from offlinerl.envs.finite import FINITE_ID, kwargs_of
from offlinerl.evaluation.weighing import weighted_doubly_robust, weighted_importance_sampling
from offlinerl.learning import densities
from offlinerl.learning.rng import EnvStreams
from offlinerl.rollout.policy import Noisy, Policy, Uniform
from offlinerl.training import choosing
from offlinerl.training.choosing import select
from offlinerl.training.collection import collect
from offlinerl.types import Spec
from offlinerl.util.errors import UserError

# Densities

BOX = Spec(3, 2, (-2.0, 0.0), (1.0, 0.5))
"""Bounds other than [-1, 1], so that a missing scale is detected."""


def total(log_prob, spec, n=400):
    """The integral of a density over a box of two dimensions by midpoints, and the sums over its sides and corners."""
    found = 0.0
    low, high = spec.action_low, spec.action_high
    inner = [low[d] + (np.arange(n) + 0.5) * (high[d] - low[d]) / n for d in range(2)]
    for one in (inner[0], np.array([low[0], high[0]])):
        for other in (inner[1], np.array([low[1], high[1]])):
            grid = np.stack(np.meshgrid(one, other, indexing="ij"), -1).reshape(1, -1, 2)
            width = np.prod([(high[d] - low[d]) / n for d, of in enumerate((one, other)) if len(of) == n])
            found += width * log_prob(torch.from_numpy(grid)).exp().sum().item()
    return found


def on_bounds(action):
    low, high = (torch.tensor(side) for side in (BOX.action_low, BOX.action_high))
    return ((action[0] <= low) | (action[0] >= high)).any(-1)


CONTINUOUS = ["bc", "iql", "xql", "awac", "sac", "cql", "ppo", "reinforce"]


def agent_of(name, spec=BOX, **settings):
    torch.manual_seed(0)
    agent = agents.get(name)(spec, (3,), hidden=(8,), **settings)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return agent


@pytest.mark.parametrize("name", CONTINUOUS)
def test_densities_of_agents_integrate_to_one(name):
    agent, obs = agent_of(name), torch.randn(1, 1, 3)
    # a tanh-Gaussian has no mass on the bounds, where its density may be infinite: its sides are left out
    squashed = name in ("sac", "cql")

    @torch.no_grad()
    def log_prob(action):
        found = agent.log_prob(obs.expand(1, action.shape[1], 3), action)[0]
        return torch.where(on_bounds(action), -torch.inf, found) if squashed else found

    assert total(log_prob, BOX) == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_samples_are_as_frequent_as_their_densities_say(name):
    """The mean of 1 / density over samples within a box is its area; with a wrong scale it is not."""
    agent, n = agent_of(name), 20_000
    obs = torch.randn(1, 1, 3).expand(1, n, 3)
    with torch.no_grad():
        action = agent.act(obs, explore=True)
        low, high = (torch.tensor(side) for side in (BOX.action_low, BOX.action_high))
        action = torch.minimum(torch.maximum(action, low), high)
        weight = (-agent.log_prob(obs, action)[0]).exp()
    middle, half = (low + high) / 2, (high - low) / 2
    inside = ((action[0] - middle).abs() < 0.5 * half).all(-1)
    area = float(half.prod())
    assert (inside * weight).mean() == pytest.approx(area, rel=0.15)
    for d in range(2):  # clipped samples are on the bounds
        side = (action[0, :, d] >= high[d] - 1e-6) & ((action[0, :, 1 - d] - middle[1 - d]).abs() < 0.5 * half[1 - d])
        if side.float().mean() > 0.01 and name not in ("sac", "cql"):
            assert (side * weight).mean() == pytest.approx(float(half[1 - d]), rel=0.3)


def test_densities_by_hand():
    low, high, mean, std, x = torch.tensor([[-2.0], [2.0], [0.6], [0.7], [0.9]], dtype=torch.float64)
    normal = torch.distributions.Normal(mean, std)
    squash = torch.distributions.TransformedDistribution(
        normal, [torch.distributions.TanhTransform(), torch.distributions.AffineTransform(0.0, 2.0)]
    )
    found = densities.squashed_normal(2 * torch.tanh(x), mean, std, low, high)
    assert found.item() == pytest.approx(squash.log_prob(2 * torch.tanh(x)).item(), rel=1e-5)
    assert torch.isfinite(densities.squashed_normal(high, mean, std, low, high))
    assert densities.clipped_normal(x, mean, std, low, high).item() == pytest.approx(normal.log_prob(x).item())
    beyond = densities.clipped_normal(high, mean, std, low, high).exp().item()
    assert beyond == pytest.approx(1 - normal.cdf(high).item(), rel=1e-5)
    assert densities.clipped_normal(low, mean, std, low, high).exp().item() == pytest.approx(normal.cdf(low).item())
    fixed = torch.tensor([1.0, 1.0])
    both = densities.clipped_normal(
        torch.tensor([0.9, 1.0]), torch.tensor([0.6, 1.0]), torch.tensor([0.7, 0.0]), -fixed * torch.tensor([2, -1]),
        fixed * torch.tensor([2, 1]),
    )  # fmt: skip
    assert both.item() == pytest.approx(normal.log_prob(x).item()), "a dimension without a choice does not count"
    greedy = torch.tensor([[1.0]])
    chances = [densities.epsilon_greedy(torch.tensor([[float(a)]]), greedy, 0.3, 3).exp().item() for a in range(3)]
    assert chances == pytest.approx([0.1, 0.8, 0.1])


def test_discrete_agents_have_probabilities():
    spec, obs = Spec(3, 1, (0.0,), (3.0,), 4), torch.randn(1, 5, 3)
    for name, settings in dict(ppo={}, reinforce={}, dqn={}).items():
        agent = agent_of(name, spec, **settings)
        every = torch.stack([agent.log_prob(obs, torch.full((1, 5, 1), float(a))) for a in range(4)])
        torch.testing.assert_close(every.exp().sum(0), torch.ones(1, 5, dtype=torch.float64), rtol=1e-5, atol=1e-5)
        assert torch.equal(every.argmax(0).float().unsqueeze(-1), agent.act(obs))
    share = agent.log_prob(obs, agent.act(obs), explore=True).exp()  # DQN at its first step: all actions are random
    torch.testing.assert_close(share, torch.full((1, 5), 0.25, dtype=torch.float64))


def test_noise_and_random_actions_have_densities():
    agent, streams = agent_of("td3"), EnvStreams((3,), (0, 1), "noise")
    obs = torch.randn(1, 2, 3)
    for policy in (Noisy(agent, 0.3, BOX, streams), Uniform(BOX, streams)):
        with torch.no_grad():
            drawn = policy.act(obs)
            assert policy.log_prob(obs, drawn).shape == (1, 2)

            def log_prob(action, policy=policy):
                found = policy.log_prob(obs, action)[0]
                return found if isinstance(policy, Noisy) else torch.where(on_bounds(action), -torch.inf, found)

            if isinstance(policy, Noisy):
                policy.chosen = policy.chosen[:, :1]
            assert total(log_prob, BOX) == pytest.approx(1, abs=5e-3)
    assert Noisy(agent, 0.0, BOX, streams).log_prob(obs, drawn) is None
    assert agent.log_prob(obs, drawn) is None
    exploring = agent.log_prob(obs, drawn, explore=True)
    sigma, middle = agent.config.sigma, agent.act(obs)
    low, high = (torch.tensor(side) for side in (BOX.action_low, BOX.action_high))
    expected = densities.clipped_normal(drawn, middle, sigma * torch.tensor(BOX.action_half), low, high)
    torch.testing.assert_close(exploring, expected, rtol=1e-4, atol=1e-4)


# Finite problems


class Tabular(Policy):
    """A user's own policy over one-hot states, ``[states, actions]``."""

    def __init__(self, probability, seed=0):
        self.probability = torch.from_numpy(probability)
        self.rng = torch.Generator().manual_seed(seed)

    def act(self, obs, explore=False):
        shares = obs.double() @ self.probability
        return torch.multinomial(shares.flatten(0, 1), 1, generator=self.rng).view(*obs.shape[:2], 1).float()

    def log_prob(self, obs, action, explore=False):
        return (obs.double() @ self.probability).gather(-1, action.long()).squeeze(-1).log()


def softmax_run(folder, logits):
    """A run whose policy is a softmax of a table."""
    states, actions = logits.shape
    agent = agents.get("reinforce")(Spec(states, 1, (0.0,), (actions - 1.0,), actions), (0,), hidden=())
    weight, bias = agent.policy.parameters()
    with torch.no_grad():
        weight.copy_(torch.from_numpy(logits).float().view_as(weight))
        bias.zero_()
    content = dict(optimizer_states=[o.state_dict() for o in agent.configure_optimizers()])
    content |= dict(state_dict=agent.state_dict(), hyper_parameters=dict(agent.hparams))
    agent.on_save_checkpoint(content)
    folder.mkdir(parents=True)
    torch.save(content, folder / "last.ckpt")
    return folder


def problem(number, folder, episodes=200):
    """A target policy's run and its exact value, and the data that a behaviour collected, by their names."""
    rng = np.random.default_rng([22, number])
    mdp = tabular.random_mdp(6, 3, 0.85, rng)
    logits = rng.normal(size=(6, 3))
    changed = logits + 0.7 * rng.normal(size=logits.shape)
    behavior, target = map(tabular.softmax_policy, (logits, changed))
    env, name = dict(id=FINITE_ID, kwargs=kwargs_of(mdp, random_horizon=True)), f"finite/of{number}-v0"
    collect(Tabular(behavior, number), env, name, episodes=episodes, out=folder / f"collect{number}")
    run = softmax_run(folder / f"run{number}", changed)
    return run, tabular.performance(mdp, target), name, (behavior, target)


@pytest.fixture
def here(tmp_path):
    with pendulum.empty_workplace(tmp_path) as folder:
        yield folder


@pytest.mark.slow
def test_intervals_hold_the_exact_values_of_random_mdps(here, count=20):
    inside, widths = dict(wis=0, dr=0), dict(wis=[], dr=[])
    for number in range(count):
        run, exact, name, _ = problem(number, here)
        for by in inside:
            found = select([run], by=by, dataset=name, gamma=1.0, updates=300, critics=2)
            (row,) = found["policies"]
            low, high = row["ci95"]
            inside[by] += low <= exact <= high
            widths[by].append(high - low)
            assert found["method"]["name"] == by and 1 < row["effective"] <= 200
    assert min(inside.values()) >= 0.85 * count, inside
    assert max(map(np.median, widths.values())) < 2


def test_the_logged_probabilities_are_those_of_the_behaviour(here):
    _, _, name, (behavior, _) = problem(0, here, episodes=20)
    data = offlinerl.load_dataset(name)
    states, actions = data.obs.argmax(-1), data.action[:, 0].astype(int)
    np.testing.assert_allclose(data.log_prob, np.log(behavior[states, actions]), rtol=1e-5)


def test_the_command_ranks_by_weights(here, capsys):
    run, exact, name, _ = problem(3, here)
    argv = ["select", str(run), "--by", "wis", "--dataset", name, "--gamma", "0.999"]
    assert main([*argv, "--json", "found.json"]) == 0
    said = capsys.readouterr().out
    (row,) = json.loads((here / "found.json").read_text())["policies"]
    assert "by weighted importance sampling on the dataset" in said and "effective" in said
    assert f"{row['effective']:.1f}" in said and "do not rely" not in said
    for episodes, says in (
        ("0-9", "1 of 1 policy is weighed by fewer than 20 episodes, as few as "),
        ("0-24", "1 of 1 policy is so unlike the behaviour that fewer than 20 episodes"),
    ):
        argv = ["datasets", "filter", name, "--episodes", episodes, "--out", "few.hdf5", "--overwrite"]
        assert main(argv) == 0
        argv = ["select", str(run), "--by", "dr", "--dataset", "few.hdf5", "--updates", "5", "--gamma", "0.999"]
        assert main(argv) == 0
        assert says in " ".join(capsys.readouterr().out.split())


def test_a_policy_that_no_episode_can_be_of_has_no_estimate(here, capsys):
    pole = ["collect", "random", "--env", "CartPole-v1", "--episodes", "20", "--dataset", "pole/random-v0"]
    fit = ["fit", "dqn", "--dataset", "pole/random-v0", "--env", "none", "--updates", "2", "--batch", "4", "--out", "q"]
    assert main(pole) == main(fit) == 0
    assert main(["select", "q", "--by", "wis", "--dataset", "pole/random-v0", "--json", "found.json"]) == 0
    (row,) = json.loads((here / "found.json").read_text())["policies"]
    assert row["effective"] == 0 and row["estimate"] is None
    said = " ".join(capsys.readouterr().out.split())
    assert "where it is 0, no episode could be of the policy, and nothing is estimated" in said


def test_data_and_policies_that_cannot_be_weighed_are_refused(here, capsys):
    run, _, name, _ = problem(4, here, episodes=5)

    def said(*argv, status=1):
        assert main(["select", *map(str, argv)]) == status
        return capsys.readouterr().err

    data = offlinerl.load_dataset(name)
    bare = offlinerl.load_dataset(
        dict(obs=data.obs, next_obs=data.next_obs, action=data.action[:, 0].astype(int), reward=data.reward,
             terminated=data.terminated, truncated=data.last)
    )  # fmt: skip
    bare.write("bare")
    for by in ("wis", "dr"):
        assert "does not state the probabilities of its actions" in said(
            run, "--by", by, "--dataset", "bare", *["--updates", 5] * (by == "dr")
        )
    assert "--updates applies to fitted Q evaluation" in said(run, "--by", "wis", "--updates", 5, status=2)
    assert "--by applies to an evaluation on a dataset" in said(run, "--by", "wis", "--episodes", 9, status=2)
    with pytest.raises(UserError, match="no evaluation 'is': choose fqe, wis or dr"):
        select([run], by="is", dataset=name)


def test_the_first_of_several_seeds_is_weighed_and_rounded_actions_are_refused():
    rng = np.random.default_rng(0)
    action = rng.integers(0, 3, (40, 2)).astype(np.float32)
    data = offlinerl.load_dataset(
        dict(obs=rng.normal(size=(40, 3)).astype(np.float32), action=action, reward=np.ones(40, np.float32),
             terminated=np.ones(40, bool), log_prob=np.zeros(40, np.float32))
    )  # fmt: skip
    spec = Spec(3, 2, (0.0, 0.0), (2.0, 2.0))
    both = agents.get("bc")(spec, (0, 1), hidden=(4,))
    alone = both.part(slice(0, 1))
    few = dict(updates=3, critics=2, hidden=(4,))
    for found in (weighted_importance_sampling, weighted_doubly_robust):
        more = few if found is weighted_doubly_robust else {}
        assert found(both, data, 0.9, **more).effective == found(alone, data, 0.9, **more).effective > 0
    with pytest.raises(UserError, match="rounded to whole numbers, whose probabilities are not known"):
        weighted_importance_sampling(agents.get("bc")(replace(spec, whole=True), (0,), hidden=(4,)), data, 0.9)


def test_deterministic_policies_are_refused_and_sampling_ones_accepted(here, capsys, monkeypatch):
    few = ("--compile", "false", "--updates", 4, "--batch", 16, "--eval-every", 4, "--eval-episodes", 1,
           "--final-episodes", 1, "--agent.hidden", "[8]")  # fmt: skip
    assert main(["collect", "random", "--env", "Pendulum-v1", "--dataset", "swing/random-v0", "--episodes", "3"]) == 0
    data = offlinerl.load_dataset("swing/random-v0")
    np.testing.assert_allclose(data.log_prob, -np.log(4), rtol=1e-6)  # torques from -2 to 2
    for agent in ("td3bc", "bc"):
        assert pendulum.fit(agent, "--dataset", "swing/random-v0", "--seeds", "0", "--out", here / agent, *few) == 0
    capsys.readouterr()
    assert main(["select", "td3bc", "--by", "wis"]) == 1
    assert "the policy of TD3BC is deterministic and has no probabilities" in capsys.readouterr().err
    with pytest.raises(UserError, match="TD3BC is deterministic and has no"), monkeypatch.context() as patch:
        patch.delattr(choosing, "weighted_doubly_robust")  # this would take long, and does not start
        select(["bc", "td3bc"], by="dr")
    for by in (["wis"], ["dr", "--updates", "3", "--critics", "2"]):
        assert main(["select", "bc", "--by", *by]) == 0
        assert "1 of 1 policy is" in capsys.readouterr().out


@pytest.mark.parametrize("name, env", [("sac", "Pendulum-v1"), ("td3", "Pendulum-v1"), ("dqn", "CartPole-v1")])
def test_agents_that_learn_log_their_probabilities(here, name, env):
    settings = dict(agent=dict(hidden=[8]), train=dict(warm_up=20, batch=8, compile=False))
    offlinerl.collect(name, env, "mine/learning-v0", steps=60, over=settings, seed=1)
    data = offlinerl.load_dataset("mine/learning-v0")
    assert data.log_prob is not None and len(data) >= 60
    if name == "dqn":
        assert (data.log_prob <= np.log(0.5) + 1e-6).sum() > 10 and (data.log_prob <= 1e-6).all()
    else:
        np.testing.assert_allclose(data.log_prob[:20], -np.log(4), rtol=1e-6)
        assert len(np.unique(data.log_prob[20:60])) > 20


def test_a_checkpoint_logs_probabilities_only_if_its_actions_have_noise(here):
    env = gym.make("Pendulum-v1")
    agent = agents.get("sac")(Spec.of(env.observation_space, env.action_space), (0,), hidden=(8,))
    for noise, known in ((0.2, True), (0.0, False)):
        name = f"mine/noise{int(known)}-v0"
        offlinerl.collect(agent, "Pendulum-v1", name, episodes=1, noise=noise)
        data = offlinerl.load_dataset(name)
        assert (data.log_prob is not None) == known
        if known:
            with torch.no_grad():
                mean = agent.act(torch.from_numpy(data.obs).unsqueeze(0))[0].numpy()
            normal = -0.5 * ((data.action - mean) / 0.4) ** 2 - np.log(0.4) - 0.5 * np.log(2 * np.pi)
            inside = np.abs(data.action[:, 0]) < 2
            np.testing.assert_allclose(data.log_prob[inside], normal[inside, 0], rtol=1e-3, atol=1e-3)
