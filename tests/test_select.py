"""Choosing among policies, on a dataset and by episodes."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import h5py
import imageio.v3 as imageio
import numpy as np
import pendulum
import pytest
import test_formats
import torch

import offlinerl
from offlinerl.agents.checkpoint import load_agent
from offlinerl.cli import main
from offlinerl.data.load import load
from offlinerl.evaluation import plots
from offlinerl.evaluation.fqe import choice_of, fitted_q_evaluation
from offlinerl.evaluation.off_policy import Estimate
from offlinerl.evaluation.statistics import CAUTION, confidence_bounds, expected_maximum, next_to_play
from offlinerl.training import choosing
from offlinerl.training.choosing import share_out
from offlinerl.util.errors import UserError

# Episodes shared out


def test_bounds_by_hand():
    count, total, squares = np.array([2.0, 4.0]), np.array([6.0, 4.0]), np.array([20.0, 6.0])
    # means 3 and 1, squared errors 20 - 18 and 6 - 4, in all 4 of 1 + 3 degrees of freedom: a variance of 1
    np.testing.assert_allclose(confidence_bounds(count, total, squares, 2), [3 + 2 / np.sqrt(2), 1 + 2 / 2])
    np.testing.assert_allclose(confidence_bounds(count, total, squares, -1), [3 - 1 / np.sqrt(2), 1 - 1 / 2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_policy_that_failed_leaves_the_others_their_episodes(bad):
    rng, played = np.random.default_rng(0), [0] * 4

    def play(number, episode):
        played[number] += 1
        return bad if number == 1 else rng.normal(number)

    returns = [[] for _ in played]
    share_out(play, 40, returns)
    assert played[1] == 1 and played[3] > played[0] and sum(played) == 40
    sums = [np.array([[sum(x**p for x in of_one) for of_one in returns]]) for p in (0, 1, 2)]
    bounds = confidence_bounds(*sums, CAUTION)[0]
    alone = confidence_bounds(*(of[:, [0, 2, 3]] for of in sums), CAUTION)[0]
    assert bounds[1] == -np.inf and bounds[[0, 2, 3]].tolist() == alone.tolist()
    assert next_to_play(np.ones(3), np.array([bad, 1, bad]), np.array([bad, 1, bad])) == 1


def next_by_drawing(returns, draws):
    """The result of ``next_to_play``, with expected improvements as means over normal draws ``[draws]``."""
    errors = sum(((np.array(x) - np.mean(x)) ** 2).sum() for x in returns)
    deviation = np.sqrt(errors / max(sum(map(len, returns)) - len(returns), 1))
    mean, error = zip(*[(np.mean(x), deviation / np.sqrt(len(x))) for x in returns], strict=True)
    leader = max(range(len(returns)), key=lambda i: mean[i] - error[i])
    improvement = {
        i: np.maximum(mean[i] - mean[leader] + np.hypot(error[i], error[leader]) * draws, 0).mean()
        for i in range(len(returns)) if i != leader
    }  # fmt: skip
    challenger = max(improvement, key=improvement.get)
    return leader if len(returns[leader]) < len(returns[challenger]) else challenger


def test_the_next_episode_is_played_by_the_leader_or_a_challenger():
    rng = np.random.default_rng(0)
    drawn, draws = rng.normal([[0.0], [1.0], [0.8]], 1.0, (3, 60)), rng.normal(size=200_000)
    asked = []

    def play(policy, episode):
        asked.append((policy, episode))
        return drawn[policy, episode]

    returns = [[], [], []]
    share_out(play, 60, returns)
    assert asked[:3] == [(0, 0), (1, 0), (2, 0)]
    seen = [list(drawn[policy, :1]) for policy in range(3)]
    for policy, episode in asked[3:]:
        assert policy == next_by_drawing(seen, draws) and episode == len(seen[policy])
        seen[policy].append(drawn[policy, episode])
    assert returns == seen and sum(map(len, returns)) == 60
    with pytest.raises(UserError, match="3 policies need at least 6 episodes, not 5: give more --episodes"):
        share_out(play, 5, [[], [], []])


def test_while_policies_cannot_be_distinguished_all_play():
    returns = [[], [], [], []]
    share_out(lambda policy, episode: float(policy == 3 and episode == 4), 24, returns)
    assert returns[3][:5] == [0, 0, 0, 0, 1] and min(map(len, returns)) >= 4


KINDS = ("normal", "success", "tasks", "deviations", "failures", "tails", "starts")
"""Kinds of distributions of returns."""


def problems(kind, rng, trials=300, policies=10, episodes=1000):
    """True means of policies, ``[trials, P]``, and their returns in episodes, ``[trials, P, episodes]``."""
    shape = trials, policies, episodes
    mean, noise = rng.normal(size=(trials, policies, 1)), rng.normal(size=shape)
    if kind in ("success", "tasks"):
        chance, of = (rng.beta(3, 1.5, mean.shape), 1) if kind == "success" else (rng.beta(2, 2, mean.shape), 4)
        return chance[..., 0], rng.binomial(of, chance, shape) / of
    mean = 80 - 20 * rng.exponential(size=mean.shape) if kind == "failures" else 70 + 9 * mean
    if kind == "deviations":
        noise *= np.exp(0.7 * rng.normal(size=mean.shape))
    if kind == "tails":
        noise = rng.standard_t(3, shape) / np.sqrt(3)
    if kind == "starts":
        noise = np.sqrt(0.5) * (noise + rng.normal(size=(trials, 1, episodes)))
    return mean[..., 0], mean + 25 * noise


def found_by(share, mean, returns, episodes):
    """Whether the first policy is within 5% of the best, ``[episodes, trials]``, and how far its mean is from it in
    units of the best."""
    trials, every = np.arange(len(mean)), np.ones(mean.shape, int)
    sums = np.stack([every, returns[..., 0], returns[..., 0] ** 2]).astype(float)
    regret = []
    for _ in range(mean.shape[1], episodes + 1):
        first = confidence_bounds(*sums, CAUTION).argmax(1)
        regret.append(1 - mean[trials, first] / mean.max(1))
        policy = share(*sums)
        value = returns[trials, policy, sums[0, trials, policy].astype(int)]
        sums[:, trials, policy] += np.stack([np.ones_like(value), value, value**2])
    return np.array(regret) <= 0.05, np.array(regret)


def needed_by(share, mean, returns, episodes=1000):
    """Episodes until the first policy is within 5% of the best and stays so, ``[trials]``, and the regrets on the
    way."""
    found, regret = found_by(share, mean, returns, episodes)
    throughout = np.cumprod(found[::-1], 0).sum(0)  # for this number of episodes at the end
    return mean.shape[1] + len(found) - throughout, regret


def equal_shares(count, *_):
    return count.argmin(1)


@pytest.mark.parametrize(
    "kinds", [KINDS[:3], pytest.param(KINDS, marks=pytest.mark.slow)], ids=lambda kinds: f"{len(kinds)} kinds"
)
def test_a_good_policy_is_found_in_half_the_episodes_that_equal_shares_need(kinds):
    """Episodes until the first-ranked of ten policies stays within 5% of the best; the ratio is per problem."""
    ratios = []
    for kind in kinds:
        mean, returns = problems(kind, np.random.default_rng(3))
        needed, regret = {}, {}
        for share in (next_to_play, equal_shares):
            needed[share], regret[share] = needed_by(share, mean, returns)  # with fewer, equal shares would not finish
        hard = needed[equal_shares] > 10  # only problems in which episodes can be saved
        ratios += list(needed[next_to_play][hard] / needed[equal_shares][hard])
        for budget in (20, 40, 60, 100, 200):
            assert regret[next_to_play][budget - 10].mean() < regret[equal_shares][budget - 10].mean()
    assert len(ratios) > 220 * len(kinds) and np.median(ratios) <= 0.5


# Expected performance


def test_the_expected_best_of_k_is_the_mean_over_all_draws():
    values = np.array([3.0, -1.0, 4.0, 4.0])
    for k in range(1, 5):
        expected = np.mean([max(draw) for draw in itertools.product(values, repeat=k)])
        assert expected_maximum(values)[k - 1] == pytest.approx(expected)


def test_expected_performance_is_plotted(tmp_path):
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


def test_policies_are_ranked_on_their_dataset(runs, here, capsys, monkeypatch):
    argv = ["select", *map(str, runs), "--updates", "15", "--critics", "2", "--gamma", "0.9"]
    assert main([*argv, "--json", "found.json", "--png", "found.png"]) == 0
    said = capsys.readouterr().out
    found = json.loads((here / "found.json").read_text())
    assert found["tried"] == 3 and found["method"] == dict(name="fqe", updates=15, critics=2, gamma=0.9)
    assert "3 policies tried, by fitted Q evaluation on the dataset: discounted return" in said
    assert [row["rank"] for row in found["policies"]] == [1, 2, 3]
    estimates = [row["estimate"] for row in found["policies"]]
    assert estimates == sorted(estimates, reverse=True)
    first = found["policies"][0]
    assert f"offlinerl export {first['run']} --seed {first['seed']} --onnx policy.onnx" in said
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
    monkeypatch.setattr(choosing, "offline", lambda *_, **__: [dict(estimate=np.nan, ci95=[np.nan] * 2)] * 3)
    assert main([*argv, "--json", "none.json", "--png", "none.png"]) == 0
    assert "no estimate is a number, so that there is nothing to draw into none.png" in capsys.readouterr().out
    assert json.loads((here / "none.json").read_text())["tried"] == 3 and not (here / "none.png").exists()
    monkeypatch.undo()
    again = offlinerl.select(here, updates=15, critics=2, gamma=0.9, png="drawn.png")
    assert again["policies"] == found["policies"] and imageio.imread(here / "drawn.png").std() > 5
    assert main([*argv, "--dataset", pendulum.ID, "--offline", "--json", "again.json"]) == 0
    assert json.loads((here / "again.json").read_text()) == found


def test_ends_of_the_data_may_count_as_terminal(runs, capsys):
    """Pendulum's episodes are all truncated. If ends count as terminal, values include only rewards in the data."""
    argv, few = ["select", str(runs[1]), "--critics", "2", "--gamma", "0.9"], ["--updates", "15"]
    assert main([*argv, *few, "--terminal-ends", "--json", "terminal.json"]) == 0
    found = json.loads(Path("terminal.json").read_text())
    assert found["method"] == dict(name="fqe", updates=15, critics=2, gamma=0.9, terminal_ends=True)
    data, agent = load(pendulum.ID, reward="none"), load_agent(runs[1])
    assert not data.terminated.any()
    alone = fitted_q_evaluation(
        choice_of(agent), replace(data, terminated=data.last), agent.spec, critics=2, updates=15, gamma=0.9
    )
    assert found["policies"][0]["estimate"] == pytest.approx(alone.value)
    assert main(["select", str(runs[1]), "--terminal-ends", "--by", "wis"]) == 2
    assert "--terminal-ends applies to fitted Q evaluation: leave it out" in capsys.readouterr().err


def test_an_estimate_beyond_all_returns_of_the_data_is_named(runs, monkeypatch, capsys):
    data = load(pendulum.ID, reward="none")
    returns = [float((0.99 ** np.arange(len(r)) * r).sum()) for r in np.split(data.reward, data.episode_starts[1:])]
    found = iter([min(returns) + 1e-3, max(returns) + 1e-3, max(returns)])
    monkeypatch.setattr(
        choosing, "fitted_q_evaluation", lambda *_, **__: Estimate(value := next(found), (value, value))
    )
    choosing.select(runs)
    assert "1 of 3 estimates lies beyond what any episode of the data returned" in capsys.readouterr().out


def test_a_dataset_whose_rewards_follow_a_rule_is_refused(runs):
    with pytest.raises(UserError, match='follow the rule minus_one already, .* load it with reward="none"'):
        offlinerl.select(runs, offlinerl.load_dataset(pendulum.ID, reward="minus_one"), updates=2, critics=2)
    found = offlinerl.select(runs, offlinerl.load_dataset(pendulum.ID, reward="none"), updates=2, critics=2)
    assert found["policies"] == offlinerl.select(runs, updates=2, critics=2)["policies"]


@pytest.mark.parametrize("agent, task", [("bc", pendulum.ID), ("dqn", "cart/pole-v0")])
def test_a_policy_that_diverged_comes_last_and_is_not_deployed(agent, task, here, capsys):
    run = here / f"diverged-{agent}"
    if agent == "dqn":
        assert main(["collect", "random", "--env", "CartPole-v1", "--episodes", "6", "--dataset", task]) == 0
    few = ("--compile", "false", "--updates", 10, "--batch", 16, "--eval-every", 10, "--eval-episodes", 1,
           "--final-episodes", 2, "--agent.hidden", "[8]", "--seeds", "0,1")  # fmt: skip
    assert pendulum.fit(agent, "--dataset", task, "--out", run, *few) == 0
    saved = torch.load(run / "last.ckpt", weights_only=True)
    for value in saved["state_dict"].values():
        if value.is_floating_point() and value.ndim and len(value) == 2:
            value[0] = torch.nan
    torch.save(saved, run / "last.ckpt")
    found = offlinerl.select(run, updates=10, critics=2)
    assert [row["seed"] for row in found["policies"]] == [1, 0] and np.isnan(found["policies"][1]["estimate"])
    said = "the policy of seed 0 returns actions that are not finite: its training diverged"
    assert capsys.readouterr().out.count(said) == 1
    policy = offlinerl.load_policy(run, seed=0)
    with pytest.raises(offlinerl.UserError, match=said):
        policy(np.zeros(policy.spec.obs_dim))
    with pytest.raises(offlinerl.UserError, match=said):
        offlinerl.export(run, here / "diverged.pt", seed=0)


def test_policies_are_ranked_by_acting(runs, here, capsys):
    argv = ["select", *map(str, runs), "--episodes"]
    assert main([*argv, "8", "--json", "acted.json"]) == 0
    assert "3 policies tried, by episodes in the environment: return" in capsys.readouterr().out
    found = json.loads((here / "acted.json").read_text())
    assert sum(row["episodes"] for row in found["policies"]) == 8 and found["unit"] == "return"
    assert all(row["episodes"] >= 1 and row["estimate"] < 0 for row in found["policies"])
    assert main([*argv, "5"]) == 1
    assert "3 policies need at least 6 episodes" in capsys.readouterr().err
    assert main([*argv, "8", "--env", "Pendulum-v1", "--json", "named.json"]) == 0
    longer = json.loads((here / "named.json").read_text())["policies"]  # episodes than where the runs were trained
    assert sum(row["episodes"] for row in longer) == 8
    assert max(row["estimate"] for row in longer) < min(row["estimate"] for row in found["policies"])
    assert main([*argv, "8", "--env", "CartPole-v1"]) == 1
    assert "CartPole-v1 has" in capsys.readouterr().err
    assert main(["select", str(runs[0]), "--env", "Pendulum-v1"]) == 2


def test_files_with_the_same_name_are_distinguished(runs, here, capsys):
    files = [run / "last.ckpt" for run in runs]
    assert main(["select", *map(str, files), "--updates", "2", "--critics", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [sum(line.startswith(f"{file} ") for line in lines) for file in files] == [2, 1]


def test_policies_with_memory_are_refused_before_others_are_evaluated(runs, monkeypatch):
    monkeypatch.delattr(choosing, "fitted_q_evaluation")
    monkeypatch.setattr(choosing, "choice_of", lambda agent: choice_of(agent) if 5 not in agent.seeds else refuse())
    with pytest.raises(UserError, match="remembers"):
        choosing.select(runs)


def refuse():
    raise UserError("it remembers")


def test_policies_that_cannot_be_ranked_are_reported(runs, here, capsys):
    def said(*argv, status=1):
        assert main(["select", *map(str, argv)]) == status
        return capsys.readouterr().err

    assert "there is no checkpoint nowhere" in said("nowhere")
    assert "is given twice" in said(runs[0], runs[0])
    assert "--updates applies to an evaluation on a dataset" in said(runs[0], "--episodes", 9, "--updates", 5, status=2)
    (here / "alone").mkdir()
    (here / "alone" / "last.ckpt").write_bytes((runs[1] / "last.ckpt").read_bytes())
    assert "names no dataset that it learned from: name one with --dataset" in said("alone")
    assert "an interval needs at least 2 critics, not 1" in said(runs[1], "--critics", 1)


# What the numbers mean


SHORT = dict(train=dict(updates=4, batch=8, eval_every=4, compile=False), agent=dict(hidden=[8]))
FITTED = dict(updates=2, critics=2)


def write_log(path, rows=60):
    numbers = np.random.default_rng(0).normal(size=(rows, 5))
    lines = [",".join([*map(str, row), str(t // 10)]) for t, row in enumerate(numbers)]
    Path(path).write_text("x,y,u,v,r,run\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def logged(here):
    """Runs on one table that name its columns in different ways."""
    log = write_log(here / "log.csv")
    columns = dict(
        xy="obs=x,y action=u,v", same="obs=[xy] action=u,v", yx="obs=y,x action=u,v", vu="obs=x,y action=v,u",
        part="obs.place=x,y action=u,v", turned="obs.place=y,x action=u,v", other="obs=x,r action=u,v",
    )  # fmt: skip
    return {
        name: offlinerl.fit(
            "td3bc", log, columns=f"{words} reward=r episode=run", over=SHORT, out=here / f"log-{name}"
        ).folder
        for name, words in columns.items()
    }


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ("yx", "the columns of the observations (--columns) of {other} are y, x, and those of {first} x, y: policies"),
        ("other", "the columns of the observations (--columns) of {other} are x, r, and those of {first} x, y: polic"),
        ("vu", "the columns of the actions (--columns) of {other} are v, u, and those of {first} u, v: policies can"),
        ("turned", "the columns of the observations (--columns) of {other} are y, x, and those of {first} x, y: poli"),
        ("same", None),
        ("part", None),
    ],
)
def test_runs_that_name_columns_otherwise_are_not_ranked_together(logged, other, says):
    runs = dict(first=logged["xy"], other=logged[other])
    if says is None:
        assert offlinerl.select([*runs.values()], **FITTED)["tried"] == 2
        return
    for given in ({}, dict(dataset=logged["xy"].parent / "log.csv")):
        with pytest.raises(UserError) as error:
            offlinerl.select([*runs.values()], **given, **FITTED)
        assert str(error.value).startswith(says.format(**runs))


def test_runs_of_other_files_may_name_columns_otherwise(logged, here):
    text = Path(write_log(here / "second.csv")).read_text()
    Path("second.csv").write_text(text.replace("x,y", "p,q", 1))
    names = dict(pq="p,q", qp="q,p")
    runs = [
        offlinerl.fit(
            "td3bc", "second.csv", columns=f"obs={obs} action=u,v reward=r episode=run", over=SHORT, out=here / name
        ).folder
        for name, obs in names.items()
    ]
    assert offlinerl.select([logged["xy"], runs[0]], **FITTED)["tried"] == 2
    with pytest.raises(UserError, match="are q, p, and those of .*pq p, q: policies can be ranked together"):
        offlinerl.select(runs, **FITTED)


def test_a_dataset_in_another_order_than_a_run_ranks_nothing(logged, here):
    data = offlinerl.load_dataset(here / "log.csv", columns="obs=y,x action=u,v reward=r episode=run")
    with pytest.raises(UserError, match=r"of .*log-xy are x, y, and those of the dataset log y, x: give the dataset"):
        offlinerl.select(logged["xy"], data, **FITTED)
    assert offlinerl.select(logged["yx"], data, **FITTED)["tried"] == 1


def test_actions_by_a_pattern_in_another_order_rank_nothing(here):
    runs, columns = {}, "obs=x,y action=a_* reward=r episode=run"
    for name, order in dict(x="a_1,a_2", z="a_2,a_1").items():
        log = Path(write_log(here / f"pattern-{name}.csv"))
        log.write_text(log.read_text().replace("u,v", order, 1))
        runs[name] = offlinerl.fit("td3bc", log, columns=columns, over=SHORT, out=here / f"by-pattern-{name}").folder
        assert offlinerl.load_policy(runs[name]).agent.task["actions"] == order.split(",")
    with pytest.raises(UserError, match=r"columns of the actions .* are a_2, a_1, and those of .* a_1, a_2"):
        offlinerl.select([runs["x"], runs["z"]], **FITTED)
    with pytest.raises(UserError, match="are a_1, a_2, and those of the dataset pattern-z a_2, a_1"):
        offlinerl.select(runs["x"], here / "pattern-z.csv", **FITTED)
    with pytest.raises(UserError, match="in the order a_1, a_2, and this run in the order a_2, a_1"):
        offlinerl.fit("td3bc", here / "pattern-z.csv", columns=columns, init=runs["x"], over=SHORT)


@pytest.fixture(scope="module")
def parted(here):
    """Runs on one robomimic file with the parts of its observations in two orders, and in its own."""
    rng = np.random.default_rng(0)
    with h5py.File(here / "parts.hdf5", "w") as file:
        for number in range(6):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"], demo["rewards"], demo["dones"] = rng.normal(size=(9, 2)), np.zeros(9), np.arange(9) == 8
            demo["obs/a"], demo["obs/b"] = rng.normal(size=(2, 9, 2))
    keys = dict(ab=["a", "b"], ba=["b", "a"], default=None)
    return {
        name: offlinerl.fit("td3bc", here / "parts.hdf5", obs_keys=keys, over=SHORT, out=here / f"parts-{name}").folder
        for name, keys in keys.items()
    }


def test_runs_with_parts_in_another_order_are_not_ranked_together(parted):
    for first in ("ab", "default"):
        with pytest.raises(UserError) as error:
            offlinerl.select([parted[first], parted["ba"]], **FITTED)
        says = "the parts of the observations (--obs-keys) of {} are b, a, and those of {} a, b: policies can be ranked"
        assert str(error.value).startswith(says.format(parted["ba"], parted[first]))
    assert offlinerl.select([parted["ab"], parted["default"]], **FITTED)["tried"] == 2


def test_initial_weights_are_for_one_order_of_columns_and_parts(parted, logged, here):
    with pytest.raises(UserError, match=r"\(--obs-keys\) in the order a, b, and this run in the order b, a: give them"):
        offlinerl.fit("td3bc", here / "parts.hdf5", obs_keys=["b", "a"], init=parted["ab"], over=SHORT)
    columns = "obs=y,x action=u,v reward=r episode=run"
    with pytest.raises(UserError, match=r"\(--columns\) in the order x, y, and this run in the order y, x: give"):
        offlinerl.fit("td3bc", here / "log.csv", columns=columns, init=logged["xy"], over=SHORT)
    offlinerl.fit("td3bc", here / "log.csv", columns=columns, init=logged["yx"], over=SHORT, out=here / "from-yx")


def test_a_file_that_changed_since_the_training_is_said(here, capsys):
    log, reading = write_log(here / "changing.csv"), dict(columns="obs=x,y action=u,v reward=r episode=run")
    for name in ("before", "again"):
        offlinerl.fit("td3bc", log, **reading, over=SHORT, out=here / name)
    offlinerl.select(["before", "again"], **FITTED)
    warning = "its contents are not those that"
    assert warning not in capsys.readouterr().out
    write_log(log, rows=70)
    offlinerl.fit("td3bc", log, **reading, over=SHORT, out=here / "after")
    capsys.readouterr()
    offlinerl.select(["before", "after", "again"], **FITTED)
    assert f"changing: {warning} before, again were trained on: the file has changed" in capsys.readouterr().out
    for given in (log, "changing.csv", Path(log)):
        offlinerl.select(["before", "after", "again"], given, **FITTED)
        assert f"changing: {warning} before, again were trained on: the file has changed" in capsys.readouterr().out
    offlinerl.select(["before", "again"], write_log(here / "other.csv", rows=70), **FITTED)
    assert warning not in capsys.readouterr().out, "another dataset has other contents"


def test_a_dataset_that_was_moved_is_asked_for_and_read_as_before(here, capsys):
    log = Path(write_log(here / "moving.csv"))
    offlinerl.fit("td3bc", log, columns="obs=x,y action=u,v reward=r episode=run", over=SHORT, out=here / "moving")
    before = offlinerl.select("moving", **FITTED)
    (here / "elsewhere").mkdir()
    moved = log.rename(here / "elsewhere" / "moving.csv")
    with pytest.raises(UserError, match=f"the dataset {log} of the run in moving is missing; .* with --dataset"):
        offlinerl.select("moving", **FITTED)
    assert offlinerl.select("moving", moved, **FITTED) == before
    capsys.readouterr()
    write_log(moved, rows=70)
    offlinerl.select("moving", moved, **FITTED)
    assert "moving: its contents are not those that moving was trained on" in capsys.readouterr().out


def test_unfinished_runs_are_ranked_if_they_are_named(here):
    log = write_log(here / "short.csv")
    offlinerl.fit("td3bc", log, columns="obs=x,y action=u,v reward=r episode=run", over=SHORT, out=here / "stopped/one")
    (here / "stopped/one/summary.json").unlink()
    with pytest.raises(UserError, match="the runs below .*stopped are not finished: name those to rank, as in .*one"):
        offlinerl.select(here / "stopped", **FITTED)
    assert offlinerl.select(here / "stopped/one", **FITTED)["tried"] == 1


def test_a_moved_file_is_read_with_its_subset(here, capsys):
    test_formats.robomimic(here / "lift.hdf5", [test_formats.episode(number, 20) for number in range(4)])
    offlinerl.fit("td3bc", here / "lift.hdf5", subset="train", over=SHORT, out=here / "lift")
    before = offlinerl.select("lift", **FITTED)
    moved = (here / "lift.hdf5").rename(here / "raised.hdf5")
    assert offlinerl.select("lift", moved, **FITTED) == before
    assert "its contents are not those" not in capsys.readouterr().out
