"""Choosing among policies, on a dataset and by episodes."""

import itertools
import json

import imageio.v3 as imageio
import numpy as np
import pendulum
import pytest

from offlinerl.agents.checkpoint import load_agent
from offlinerl.cli import main
from offlinerl.data.load import load
from offlinerl.evaluation import plots
from offlinerl.evaluation.fqe import choice_of, fitted_q_evaluation
from offlinerl.evaluation.statistics import confidence_bounds, expected_maximum
from offlinerl.training.choosing import CAUTION, HOPE, share_out
from offlinerl.util.errors import UserError

# Episodes shared out


def test_bounds_by_hand():
    count, total, squares = np.array([2.0, 4.0]), np.array([6.0, 4.0]), np.array([20.0, 6.0])
    # means 3 and 1, squared errors 20 - 18 and 6 - 4, in all 4 of 1 + 3 degrees of freedom: a variance of 1
    np.testing.assert_allclose(confidence_bounds(count, total, squares, 2), [3 + 2 / np.sqrt(2), 1 + 2 / 2])
    np.testing.assert_allclose(confidence_bounds(count, total, squares, -1), [3 - 1 / np.sqrt(2), 1 - 1 / 2])


def test_the_next_episode_is_of_the_policy_with_the_highest_bound():
    rng = np.random.default_rng(0)
    drawn = rng.normal([[0.0], [1.0], [0.8]], 1.0, (3, 60))
    asked = []

    def play(policy, episode):
        asked.append((policy, episode))
        return drawn[policy, episode]

    returns = [[], [], []]
    share_out(play, 60, returns)
    assert asked[:6] == [(policy, episode) for policy in range(3) for episode in range(2)]
    seen = {policy: list(drawn[policy, :2]) for policy in range(3)}
    for policy, episode in asked[6:]:
        errors = sum(((np.array(x) - np.mean(x)) ** 2).sum() for x in seen.values())
        deviation = np.sqrt(errors / (sum(map(len, seen.values())) - 3))
        bounds = [np.mean(x) + 2 * deviation / np.sqrt(len(x)) for x in seen.values()]
        assert policy == np.argmax(bounds) and episode == len(seen[policy])
        seen[policy].append(drawn[policy, episode])
    assert returns == [seen[0], seen[1], seen[2]] and sum(map(len, returns)) == 60
    with pytest.raises(UserError, match="3 policies need at least 6 episodes, not 5: give more --episodes"):
        share_out(play, 5, [[], [], []])


def trials_of(share, mean, deviation, episodes, rng):
    """Whether a policy within 5% of the best is first after every episode, ``[episodes, trials]``, in trials of one
    problem each, with means ``[trials, P]``."""
    trials, each = np.arange(len(mean)), mean[:, None] + deviation * rng.normal(size=(len(mean), 2, mean.shape[1]))
    count, total, squares = np.full_like(mean, 2), each.sum(1), np.square(each).sum(1)
    good, found = mean >= 0.95 * mean.max(1, keepdims=True), []
    for t in range(episodes - 2 * mean.shape[1]):
        found.append(good[trials, confidence_bounds(count, total, squares, CAUTION).argmax(1)])
        policy = share(t, count, total, squares)
        value = mean[trials, policy] + deviation * rng.normal(size=len(mean))
        count[trials, policy] += 1
        total[trials, policy] += value
        squares[trials, policy] += value**2
    return np.array(found)


@pytest.mark.parametrize("spread", (6, 12))
def test_bounds_find_a_good_policy_in_half_the_episodes_that_equal_shares_need(spread):
    """Episodes after which a policy within 5% of the best is first in 85% of the problems."""

    def bandit(t, *sums):
        return confidence_bounds(*sums, HOPE).argmax(1)  # as share_out does

    def equal(t, *_):
        return np.full(300, t % 10)

    mean, needed = 70 + spread * np.random.default_rng(spread).normal(size=(300, 10)), {}
    for share in (bandit, equal):
        found = trials_of(share, mean, 25, 600, np.random.default_rng(1)).mean(1) >= 0.85
        assert found.any()
        needed[share] = 20 + found.argmax()
    assert needed[bandit] <= 0.5 * needed[equal]


# Expected performance


def test_the_expected_best_of_k_is_the_mean_over_all_draws():
    values = np.array([3.0, -1.0, 4.0, 4.0])
    for k in range(1, 5):
        expected = np.mean([max(draw) for draw in itertools.product(values, repeat=k)])
        assert expected_maximum(values)[k - 1] == pytest.approx(expected)


def test_expected_performance_is_drawn(tmp_path):
    path = plots.online_performance(np.array([3.0, -1.0, 4.0]), "return", "episodes", tmp_path / "new" / "a.png")
    assert imageio.imread(path).std() > 5


# The command


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    with pendulum.workplace(tmp_path_factory.mktemp("select")) as folder:
        yield folder


@pytest.fixture(scope="module")
def runs(here):
    """Two short runs, of two seeds and of one."""
    few = ("--compile", "false", "--updates", 10, "--batch", 16, "--eval-every", 10, "--eval-episodes", 1,
           "--final-episodes", 2, "--agent.hidden", "[8]")  # fmt: skip
    for name, seeds in (("a", "0,1"), ("b", "5")):
        assert pendulum.fit("bc", "--dataset", pendulum.ID, "--seeds", seeds, "--out", here / name, *few) == 0
    return [here / "a", here / "b"]


def test_policies_are_ranked_on_their_dataset(runs, here, capsys):
    argv = ["select", *map(str, runs), "--updates", "15", "--critics", "2", "--gamma", "0.9"]
    assert main([*argv, "--json", "found.json", "--png", "found.png"]) == 0
    said = capsys.readouterr().out
    found = json.loads((here / "found.json").read_text())
    assert found["tried"] == 3 and found["method"] == dict(name="fqe", updates=15, critics=2, gamma=0.9)
    assert "3 policies tried, by fitted Q evaluation on the dataset: discounted return" in said
    assert [row["rank"] for row in found["policies"]] == [1, 2, 3]
    estimates = [row["estimate"] for row in found["policies"]]
    assert estimates == sorted(estimates, reverse=True)
    assert {(row["run"], row["seed"]) for row in found["policies"]} == {
        (str(runs[0]), 0), (str(runs[0]), 1), (str(runs[1]), 5),
    }  # fmt: skip
    (row,) = [row for row in found["policies"] if row["seed"] == 5]
    agent = load_agent(runs[1])
    alone = fitted_q_evaluation(
        choice_of(agent), load(pendulum.ID, reward="none"), agent.spec, critics=2, updates=15, gamma=0.9
    )
    assert row["estimate"] == pytest.approx(alone.value) and row["ci95"] == pytest.approx(alone.interval)
    assert imageio.imread(here / "found.png").std() > 5
    assert main([*argv, "--dataset", pendulum.ID, "--offline", "--json", "again.json"]) == 0
    assert json.loads((here / "again.json").read_text()) == found


def test_policies_are_ranked_by_acting(runs, here, capsys):
    argv = ["select", *map(str, runs), "--episodes"]
    assert main([*argv, "8", "--json", "acted.json"]) == 0
    assert "3 policies tried, by episodes in the environment: return" in capsys.readouterr().out
    found = json.loads((here / "acted.json").read_text())
    assert sum(row["episodes"] for row in found["policies"]) == 8 and found["unit"] == "return"
    assert all(row["episodes"] >= 2 and row["estimate"] < 0 for row in found["policies"])
    assert main([*argv, "5"]) == 1
    assert "3 policies need at least 6 episodes" in capsys.readouterr().err


def test_what_cannot_be_ranked_is_said(runs, here, capsys):
    def said(*argv, status=1):
        assert main(["select", *map(str, argv)]) == status
        return capsys.readouterr().err

    assert "there is no checkpoint nowhere" in said("nowhere")
    assert "is given twice" in said(runs[0], runs[0])
    assert "--updates is of an evaluation on a dataset" in said(runs[0], "--episodes", 9, "--updates", 5, status=2)
    (here / "alone").mkdir()
    (here / "alone" / "last.ckpt").write_bytes((runs[1] / "last.ckpt").read_bytes())
    assert "does not say of a dataset that it learned from: name one with --dataset" in said("alone")
    assert "an interval needs at least 2 critics, not 1" in said(runs[1], "--critics", 1)
