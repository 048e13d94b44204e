"""Settings with several values, trained side by side: each gives the same result as alone."""

import json
import math
import warnings

import numpy as np
import pendulum
import pytest
import torch
from conftest import SPEC, random_table
from pendulum import ID, differing, fit, rows, summary, weights

import offlinerl
from offlinerl import agents, benchmark
from offlinerl.agents import base
from offlinerl.agents.xql import XQL
from offlinerl.cli import main
from offlinerl.experience.sources import EpisodeData, OfflineData, WindowData
from offlinerl.experience.table import Table
from offlinerl.learning import losses
from offlinerl.learning.optim import Adam
from offlinerl.types import Spec
from offlinerl.util.errors import UserError
from offlinerl.util.settings import members, per_seed_settings, settings_of
from offlinerl.util.trees import tree_map

DISCRETE = Spec(5, 1, (0.0,), (2.0,), num_actions=3)
SMALL = dict(
    hidden=(8, 8), features=4, samples=2, n_step=2, decay_steps=20, minibatch=32, behavior_updates=1,
    context=5, embedding=8, blocks=1, heads=2, longest=30, epochs=1, value_epochs=1, huber=0.5,
)  # fmt: skip
"""Values for the agents that have these settings; some are chosen to matter within a few updates."""

SETTINGS = [
    (name, key)
    for name in agents.names()
    if name != "drqv2"  # needs images, and has only settings that others have
    for key in per_seed_settings(agents.outline(name).config_class)
    if key != "gamma" or "rollouts" not in agents.outline(name).kinds  # only when it acts: see below
]


def source_of(agent):
    if "rollouts" in agent.kinds:
        return benchmark.SyntheticRollouts(agent, 16)
    discrete = agent.spec.num_actions
    table = Table.of(agent, benchmark.synthetic_table(200, agent.spec) if discrete else random_table(200))
    if "transitions" in agent.kinds:
        return OfflineData(table, agent.seeds, 16)
    if "windows" in agent.kinds:
        return WindowData(table, agent.seeds, 16, length=agent.config.context)
    return EpisodeData(table, agent.seeds, 16)


def trained(name, seeds, compile=False, **settings):
    """An agent after a few updates, in double precision."""
    agent_class = agents.get(name)
    known = settings_of(agent_class.config_class)
    agent = agent_class(
        DISCRETE if agent_class.discrete else SPEC,
        seeds,
        **{k: v for k, v in {**SMALL, **settings}.items() if k in known},
    )
    source, agent.compile = source_of(agent), compile
    agent.double()
    for _ in range(2):
        agent.learn(tree_map(lambda x: x.double() if x.is_floating_point() else x, source.draw(2)))
    return agent


def assert_each_is_as_alone(many, name, **others):
    moved = False
    for s, member in enumerate(many.members):
        seed, values = member["seed"], {key: value for key, value in member.items() if key != "seed"}
        alone = trained(name, (seed,), **values, **others)
        for (key, p), q in zip(alone.named_parameters(), many.parameters(), strict=True):
            torch.testing.assert_close(q[s], p[0], rtol=0, atol=1e-9, msg=f"{key} {member}")
            moved |= member["seed"] == many.seeds[0] and not torch.equal(q[0], q[s])
    return moved


@pytest.mark.parametrize(("name", "key"), SETTINGS)
def test_a_value_among_others_learns_as_it_does_alone(name, key):
    default = settings_of(agents.outline(name).config_class)[key].default
    few = (0.001, 0.01) if key in ("clip", "huber") else (0.3, 0.9)  # of the default: errors are small here
    many = trained(name, (3, 1), **{key: [share * default for share in few]})
    assert assert_each_is_as_alone(many, name), "the values make no difference"


def test_every_seed_is_trained_with_every_combination():
    many = trained("xql", (3, 1), beta=[1, 2], tau=[0.01, 0.1])
    assert many.members == [
        dict(seed=seed, beta=beta, tau=tau) for beta in (1.0, 2.0) for tau in (0.01, 0.1) for seed in (3, 1)
    ]
    assert many.seeds == (3, 1) * 4 and many.hparams["seeds"] == [3, 1] and many.hparams["beta"] == [1.0, 2.0]
    assert torch.equal(many.config.beta, torch.tensor([1.0, 1, 1, 1, 2, 2, 2, 2]).unsqueeze(-1).double())
    assert XQL(**many.hparams).members == many.members
    assert_each_is_as_alone(many, "xql")


def test_when_trained_in_turns_each_part_has_its_own_values(monkeypatch):
    settings = dict(beta=[0.5, 1, 2], tau=[0.01, 0.1], lr=[1e-3, 1e-4])
    at_once = trained("xql", (3,), **settings)
    monkeypatch.setattr(base, "CPU_ROWS", 3 * 16)
    in_turns = trained("xql", (3,), **settings)
    assert [len(part.members) for part in in_turns._parts] == [3] * 4
    for (name, p), q in zip(at_once.named_parameters(), in_turns.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)


@pytest.mark.slow
def test_each_part_of_a_compiled_update_has_its_own_values(monkeypatch):
    """The graph is traced with the first part and used for all parts."""
    settings = dict(beta=[1, 2], tau=[0.01, 0.1])
    eager = trained("xql", (3,), **settings)
    monkeypatch.setattr(base, "CPU_ROWS", 16)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="training runs uncompiled")
        compiled = trained("xql", (3,), compile=True, **settings)
    assert len(compiled._parts) == 4
    for (name, p), q in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-8, msg=name)


def test_each_seed_uses_its_own_discount():
    rows, data = torch.randint(0, 400, (3, 2, 7)), random_table()
    found = Table(data, SPEC, torch.tensor([[0.9], [0.5]]), 3).transitions(rows)
    for s, gamma in enumerate((0.9, 0.5)):
        alone = Table(data, SPEC, gamma, 3).transitions(rows[:, s : s + 1])
        for name, column in found._asdict().items():
            if column is not None:
                assert torch.equal(column[:, s : s + 1], getattr(alone, name)), name


def test_losses_accept_one_number_per_seed():
    error = torch.randn(2, 3, 5)
    for loss, numbers in (
        (losses.gumbel, [(0.5, 2.0), (0.1, 7.0)]), (losses.expectile, [(0.7, 0.9)]), (losses.huber, [(0.5, 2.0)]),
    ):  # fmt: skip
        found = loss(error, *(torch.tensor(pair).unsqueeze(-1) for pair in numbers))
        for s in range(2):
            torch.testing.assert_close(found[s], loss(error[s], *(pair[s] for pair in numbers)))


def test_learning_rates_per_seed_decay_as_they_do_alone():
    """Bit for bit; a product in float32 would be rounded twice."""
    rates = [3e-4, 1.7e-3, 0.9e-4]
    together = Adam([torch.nn.Parameter(torch.zeros(3, 2))], rates)
    alone = [Adam([torch.nn.Parameter(torch.zeros(1, 2))], rate) for rate in rates]
    for step in range(200):
        fraction = 0.5 * (1 + math.cos(math.pi * step / 200))
        for optimizer in (together, *alone):
            optimizer.anneal(fraction)
        assert together.param_groups[0]["lr"].tolist() == [a.param_groups[0]["lr"].item() for a in alone]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(beta=[1, 0]), "beta must be greater than 0, not 0"),
        (dict(beta=[1, 1.0]), "beta must be a number or a list of different numbers, not [1, 1.0]"),
        (dict(beta=[]), "beta must be a number or a list of different numbers, not []"),
        (dict(beta=[1, [2]]), "beta must be a number, not [2]"),
        (dict(value_updates=[1, 2]), "value_updates must be a whole number, not [1, 2]; several values are only"),
        (dict(value_layer_norm=[True, False]), "value_layer_norm must be true or false, not [True, False]; several"),
        (dict(hidden=[[8], [9]]), "hidden must be a list of whole numbers, such as [256, 256], not [[8], [9]]"),
    ],
)  # fmt: skip
def test_settings_that_cannot_have_several_values_are_refused(settings, words):
    with pytest.raises(UserError) as error:
        XQL(SPEC, (0,), **settings)
    assert str(error.value).startswith(words)


def test_a_setting_with_a_single_value_names_no_members():
    assert members([4], XQL.config_class(beta=[2])) == [dict(seed=4)]


SHORT = ["--dataset", ID, "--updates", 40, "--batch", 8, "--eval-every", 20, "--eval-episodes", 1, "--final-episodes",
         2, "--log-every", 10, "--compile", "false", "--agent.hidden", "8,8"]  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A run of three values and two seeds, and one of a seed with one of the values."""
    with pendulum.workplace(tmp_path_factory.mktemp("values")) as folder:
        assert fit("xql", "--seeds", "0,3", "--agent.beta", "0.5,1,2", *SHORT, "--out", "many") == 0
        assert fit("xql", "--seeds", "3", "--agent.beta", "1", *SHORT, "--out", "one") == 0
        yield folder


def test_a_run_names_its_members_by_seed_and_value(here):
    found = summary(here / "many")
    named = [(0, 0.5), (3, 0.5), (0, 1.0), (3, 1.0), (0, 2.0), (3, 2.0)]
    assert [(m["seed"], m["beta"]) for m in found["members"]] == named
    assert found["seeds"] == [0, 3] * 3 and [of["settings"]["beta"] for of in found["values"]] == [0.5, 1.0, 2.0]
    assert found["values"][1]["last"]["per_seed"] == found["last"]["per_seed"][2:4]
    for table, repeats in (("metrics.csv", 1), ("evaluations.csv", 1)):
        first = rows(here / "many" / table)[: 6 * repeats]
        assert [(int(row["seed"]), float(row["agent.beta"])) for row in first] == named, table
    assert "agent.beta" not in rows(here / "one" / "metrics.csv")[0]


def test_a_member_of_a_run_equals_a_run_alone(here):
    many, one = weights(here / "many"), weights(here / "one")
    for name, weight in one.items():
        torch.testing.assert_close(many[name][3], weight[0], rtol=0, atol=1e-6, msg=name)
    own = [row for row in rows(here / "many" / "evaluations.csv") if (row["seed"], row["agent.beta"]) == ("3", "1.0")]
    for row, alone in zip(own, rows(here / "one" / "evaluations.csv"), strict=True):
        assert float(row["return"]) == pytest.approx(float(alone["return"]), rel=1e-4)


def test_a_run_of_several_values_resumes_to_the_bit(here):
    assert fit("xql", "--seeds", "0,3", "--agent.beta", "0.5,1,2", *SHORT, "--updates", 20, "--out", "part") == 0
    assert fit("--resume", "part", "--updates", 40) == 0
    assert not differing(here / "part", here / "many")


def test_a_policy_is_found_by_its_seed_and_value(here, refused):
    obs, agent = np.ones(3), offlinerl.load_policy("one")
    action = offlinerl.load_policy("many", 3, beta=1)(obs)
    np.testing.assert_allclose(action, agent(obs), rtol=1e-4)
    np.testing.assert_array_equal(offlinerl.load_policy("many")(obs), offlinerl.load_policy("many", 0, beta=0.5)(obs))
    assert not np.allclose(offlinerl.load_policy("many", 0, beta=1)(obs), action)
    assert main(["export", "many", "--safetensors", "p.safetensors", "--seed", "3", "--agent.beta", "1",
                 "--episodes", "1"]) == 0  # fmt: skip
    assert main(["export", "many", "--torchscript", "p.pt", "--seed", "3", "--agent.beta", "1e0"]) == 0, "as in YAML"
    policy = offlinerl.load_policy("p.safetensors")
    assert policy.agent.hparams["beta"] == 1.0 and np.allclose(policy(obs), action)
    line = refused("export", "many", "--safetensors", "q.safetensors", "--seed", "3", "--agent.beta", "7")
    assert "there is no policy of seed 3, beta 7; there are those of seed 0, beta 0.5; seed 3, beta 0.5;" in line


def test_reports_and_evaluations_distinguish_values(here, capsys):
    assert main(["report", "many", "one", "--out", "compared"]) == 0
    said = capsys.readouterr().out
    for name in ("xql beta=0.5", "xql beta=1.0", "xql beta=2.0"):
        assert name in said
    assert main(["evaluate", "many", "--episodes", "1", "--json", "found.json"]) == 0
    assert "seed 3, beta 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("agent, env", [("dqn", "CartPole-v1"), ("sac", "Pendulum-v1")])
def test_a_value_that_diverges_while_acting_does_not_affect_the_others(agent, env, here, capsys):
    short = [
        "--env", env, "--steps", 160, "--batch", 16, "--eval-every", 80, "--eval-episodes", 1, "--final-episodes", 1,
        "--compile", "false", "--max-episode-steps", 20, "--train.warm_up", 20,
    ]  # fmt: skip
    assert fit(agent, *short, "--agent.lr", "0.001", "--out", f"{agent}-sound") == 0
    capsys.readouterr()
    assert fit(agent, *short, "--agent.lr", "0.001,1e35", "--out", f"{agent}-broken") == 0
    said = "the policy of seed 0, lr 1e+35 returns actions that are not finite"
    assert capsys.readouterr().out.count(said) == 1
    table, alone = rows(here / f"{agent}-broken" / "evaluations.csv"), rows(here / f"{agent}-sound" / "evaluations.csv")
    own, lost = ([float(row["score"]) for row in table if float(row["agent.lr"]) == lr] for lr in (0.001, 1e35))
    np.testing.assert_allclose(own, [float(row["score"]) for row in alone], rtol=1e-3)
    assert len(own) == len(lost) and np.isnan(lost[-1])
    assert fit(agent, *short, "--agent.lr", "1e35,1e36", "--out", f"{agent}-lost") == 1


def test_a_value_that_diverges_does_not_affect_the_others(here, capsys):
    assert fit("bc", *SHORT, "--updates", 60, "--out", "sound") == 0
    assert fit("bc", *SHORT, "--agent.lr", "0.0003,1e35", "--out", "broken") == 0
    capsys.readouterr()
    assert fit("--resume", "broken", "--updates", 60) == 0
    said = "the policy of seed 0, lr 1e+35 returns actions that are not finite: its training diverged; lower the"
    assert capsys.readouterr().out.count(said) == 1
    table, alone = rows(here / "broken" / "evaluations.csv"), rows(here / "sound" / "evaluations.csv")
    own, lost = ([float(row["score"]) for row in table if float(row["agent.lr"]) == lr] for lr in (0.0003, 1e35))
    np.testing.assert_allclose(own[:2], [float(row["score"]) for row in alone[:2]], rtol=1e-4)
    assert len(own) == len(lost) and np.isfinite(own).all() and np.isnan(lost).all()
    mean, missing = summary(here / "broken")["best"]["per_seed"]
    assert missing is None and mean == max(own[0], np.mean(own[1:3]), np.mean(own[3:]))
    assert main(["report", "broken", "--out", "compared"]) == 0
    assert main(["evaluate", "broken", "--episodes", "1", "--json", "found.json"]) == 0
    assert main(["select", "broken", "--episodes", "5"]) == 0
    out = capsys.readouterr().out
    assert "bc lr=0.0003 comes first" in out and out.count(said) == 2
    measured, missing = json.loads((here / "found.json").read_text())["per_seed"]
    assert missing is None and math.isfinite(measured)


def test_select_distinguishes_the_policies_of_a_run(here, capsys):
    assert main(["select", "many", "--episodes", "14", "--json", "chosen.json"]) == 0
    assert "3, beta 0.5" in capsys.readouterr().out
    chosen = json.loads((here / "chosen.json").read_text())["policies"]
    assert sorted((row["seed"], row["values"]["beta"]) for row in chosen) == [
        (seed, beta) for seed in (0, 3) for beta in (0.5, 1.0, 2.0)
    ]


def test_each_member_discounts_its_rollout_with_its_own_gamma(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["--env", "CartPole-v1", "--steps", 128, "--batch", 64, "--eval-every", 128, "--eval-episodes", 1,
             "--final-episodes", 1, "--agent.hidden", "8,8", "--agent.normalize_reward", "true"]  # fmt: skip
    assert fit("a2c", *short, "--agent.gamma", "0.5,0.99", "--out", "many") == 0
    together = weights(tmp_path / "many")
    for s, gamma in enumerate((0.5, 0.99)):
        assert fit("a2c", *short, "--agent.gamma", gamma, "--out", f"alone-{s}") == 0
        for name, weight in weights(tmp_path / f"alone-{s}").items():
            mine = together[name]
            if weight.ndim:  # a metric for all seeds, such as a count, is the same
                mine, weight = mine[s], weight[0]
            torch.testing.assert_close(mine, weight, rtol=1e-4, atol=1e-6, msg=name)


def test_several_values_are_refused_in_a_collection(refused):
    line = refused(
        "collect", "td3", "--env", "Pendulum-v1", "--dataset", "a/b-v0", "--steps", 10, "--agent.tau", "0.1,0.2"
    )
    assert "tau" in line and "one value" in line
