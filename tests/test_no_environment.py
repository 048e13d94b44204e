"""Training on data without a named environment."""

import copy
import csv
import json
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import random_table
from episodes import ID, episode
from pendulum import empty_workplace

import offlinerl
from offlinerl.agents.bc import BC
from offlinerl.agents.dqn import DQN
from offlinerl.agents.xql import XQL
from offlinerl.cli import main
from offlinerl.data.inferred import spec_of_data
from offlinerl.data.minari_writer import write_minari
from offlinerl.data.validate import validate
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table
from offlinerl.training.held_out import HeldOut, hold_out
from offlinerl.types import Spec
from offlinerl.util.errors import UserError

FEW = dict(updates=20, eval_every=10, batch=8, log_every=5, compile=False)


@pytest.fixture
def here(tmp_path):
    with empty_workplace(tmp_path) as folder:
        yield folder


def logs(rows=200, episode=20, discrete=False, seed=0):
    """Arrays of Pendulum's shapes: the action follows from the observation, as those of an expert do."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(rows + 1, 3)).astype(np.float32)
    action = np.tanh(obs[:-1, :1] - obs[:-1, 1:2])
    last = np.arange(rows) % episode == episode - 1
    return dict(
        obs=obs[:-1], action=(action[:, 0] > 0).astype(np.int64) + 3 if discrete else action, reward=obs[:-1, 2],
        terminated=last & (np.arange(rows) % (2 * episode) == episode - 1), truncated=last, next_obs=obs[1:],
    )  # fmt: skip


def test_a_training_without_an_environment_leaves_losses_and_a_policy_that_acts(here, capsys):
    run = offlinerl.fit("bc", logs(), seeds=[0, 1], over=dict(train={**FEW, "updates": 400, "eval_every": 200}))
    said = capsys.readouterr().out
    for words in ("no environment is named", "the range of the data", "1 episode is held out"):
        assert words in said
    assert f"offlinerl evaluate {run.folder} --env ID" in said
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["last"] is None and summary["best"] is None and summary["env"] is None and run.scores is None
    assert set(summary["losses"]) == set(summary["held_out"]) == {"actor_loss"}
    for losses in (summary["losses"], summary["held_out"]):
        assert len(losses["actor_loss"]) == 2 and np.isfinite(losses["actor_loss"]).all()
    held_out = run.held_out
    assert held_out["update"].tolist() == [200, 200, 400, 400] and held_out["seed"].tolist() == [0, 1, 0, 1]
    assert held_out["actor_loss"][2:].tolist() == summary["held_out"]["actor_loss"]
    assert held_out["actor_loss"][2:].mean() < held_out["actor_loss"][:2].mean()  # it learns to imitate the data
    assert run.table == {} and (run.folder / "curves.png").stat().st_size > 1_000
    assert (run.folder / "best.ckpt").exists() and not (run.folder / "evaluations.csv").exists()
    policy = offlinerl.load_policy(run.folder, seed=1)
    assert repr(policy) == "<DeployedPolicy BC, seed 1: 3 observations to 1 action>"
    obs = logs(seed=1)["obs"]
    error = policy(obs) - np.tanh(obs[:, :1] - obs[:, 1:2])
    assert np.abs(error).mean() < 0.5 * np.abs(np.tanh(obs[:, :1] - obs[:, 1:2])).mean()


def parted(rows=200):
    """The data of ``logs``, but the action depends on a part that a robot does not have."""
    arrays = logs(rows)
    for name in ("obs", "next_obs"):
        arrays[name] = dict(state=arrays[name][:, 2:], secret=arrays[name][:, :2])
    return arrays


@pytest.mark.parametrize("given", [parted, lambda: offlinerl.load_dataset(parted())])
def test_obs_keys_choose_parts_of_a_data_objects_observations(here, given):
    run = offlinerl.fit("bc", given(), obs_keys=["state"], over=dict(train=FEW))
    assert [(leaf.path, leaf.shape) for leaf in run.agent.spec.obs] == [("", (1,))]
    again = offlinerl.fit(dataset=given(), resume=run.folder, over=dict(train=dict(updates=30)))
    assert [leaf.shape for leaf in again.agent.spec.obs] == [(1,)]
    assert offlinerl.load_dataset(given(), obs_keys=["state"]).obs.shape == (200, 1)
    with pytest.raises(UserError, match="observations have no part 'stat'; they have state, secret"):
        offlinerl.fit("bc", given(), obs_keys=["stat"], over=dict(train=FEW))


def test_parts_of_a_data_object_follow_the_environments_order(here):
    class Parted(gym.Env):
        observation_space = gym.spaces.Dict(state=gym.spaces.Box(-9, 9, (1,)), secret=gym.spaces.Box(-9, 9, (2,)))
        action_space = gym.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return dict(state=np.zeros(1, np.float32), secret=np.zeros(2, np.float32)), {}

        def step(self, action):
            return self.reset()[0], 0.0, False, True, {}

    few, data = dict(train={**FEW, "final_episodes": 1}), parted()
    run = offlinerl.fit("bc", data, env=Parted, obs_keys=["state", "secret"], over=few)
    assert [leaf.shape for leaf in run.agent.spec.obs] == [(3,)] and run.scores is not None
    for name in ("obs", "next_obs"):
        data[name] = dict(secret=data[name]["secret"], state=data[name]["state"] + 5)
    alone = offlinerl.fit("bc", data, env=Parted, over=few, normalize=True)
    mean = next(tensor for name, tensor in alone.agent.state_dict().items() if name.endswith("encoder.mean")).flatten()
    np.testing.assert_allclose(mean, [5, 0, 0], atol=0.3)
    for name in ("obs", "next_obs"):
        del data[name]["state"]
    with pytest.raises(UserError, match="Parted observes state, secret, and arrays secret: choose those of both"):
        offlinerl.fit("bc", data, env=Parted, over=few)


def test_obs_keys_are_refused_for_a_vector_without_an_environment(here):
    with pytest.raises(UserError, match="arrays: its observations are one vector without parts; leave out obs_keys"):
        offlinerl.fit("bc", logs(), obs_keys=["state"], over=dict(train=FEW))
    arrays, columns = logs(), dict(obs="observations", action="actions", reward="rewards", terminated="terminals")
    with h5py.File("log.hdf5", "w") as file:
        for name, column in columns.items():
            file[column] = arrays[name]
    with pytest.raises(UserError, match="log.hdf5: its observations are one vector without parts; leave out --obs-key"):
        offlinerl.fit("bc", "log.hdf5", obs_keys=["nope"], over=dict(train=FEW))


def test_other_obs_keys_are_refused_for_data_read_with_some_parts(here):
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = offlinerl.load_dataset(parted()).to_pandas()
    columns = "obs.state=obs_state_0 obs.secret=obs_secret_0,obs_secret_1 action=action_0 reward=reward episode=episode"
    run = offlinerl.fit("bc", frame, columns=columns, obs_keys=["state"], over=dict(train=FEW))
    assert [leaf.shape for leaf in run.agent.spec.obs] == [(1,)]
    data = offlinerl.load_dataset(frame, columns=columns, obs_keys=["state"])
    assert offlinerl.fit("bc", data, obs_keys=["state"], over=dict(train=FEW)).agent.spec.obs == run.agent.spec.obs
    with pytest.raises(UserError, match="one vector of state already; leave out obs_keys, or give them to load_data"):
        offlinerl.fit("bc", data, obs_keys=["secret"], over=dict(train=FEW))


def test_bounds_that_are_too_narrow_are_said_with_the_flag_that_gave_them(here, capsys):
    data, few = logs(), dict(updates=1, compile=False, batch=8)
    largest = float(np.abs(data["action"]).max())
    offlinerl.fit("bc", data, limits=dict(action_range=(-0.9 * largest, 0.9 * largest)), **few)
    said = capsys.readouterr().out
    assert f"to {0.9 * largest:.6g}, and are clipped to them; a wider --action-range would keep them" in said
    with pytest.raises(UserError, match="in other units; rescale them, or give a wider --action-range"):
        offlinerl.fit("bc", data, limits=dict(action_range=(-0.01 * largest, 0.01 * largest)), **few)


def test_a_policy_keeps_its_bounds_when_it_continues_on_other_data(here, capsys):
    data, still = logs(), dict(updates=1, lr=1e-30, compile=False, batch=8)
    first = offlinerl.fit("bc", data, over=dict(train=FEW))
    spiked = data | dict(action=data["action"].copy())
    spiked["action"][7] = 50  # of a sensor that failed once
    capsys.readouterr()
    second = offlinerl.fit("bc", spiked, init=first.folder, **still)
    said = capsys.readouterr().out
    assert f"to {data['action'].max():.6g}, the bounds in {first.folder.resolve()}/last.ckpt" in said
    assert "1 of 200 entries of the actions (0.5%) lie outside the bounds, " in said
    assert ", and are clipped to them" in said and "--action-range" not in said
    np.testing.assert_allclose(second.policy(data["obs"]), first.policy(data["obs"]), rtol=1e-5)
    (first.folder / "last.ckpt").unlink()
    again = offlinerl.fit(dataset=spiked, resume=second.folder, updates=2)
    assert again.agent.spec == second.agent.spec
    with pytest.raises(UserError, match="in dimension 0, and this run within -2 to 2, to which they would be"):
        offlinerl.fit("bc", data, env="Pendulum-v1", init=second.folder, **still)


def test_a_score_can_be_measured_later_in_a_named_environment(here, capsys):
    run = offlinerl.fit("bc", logs(), over=dict(train=FEW))
    with pytest.raises(UserError, match="does not name its environment; name one with --env"):
        offlinerl.evaluate(run.folder)
    assert offlinerl.evaluate(run.folder, env="Pendulum-v1", episodes=1)["env"] == "Pendulum-v1"
    with pytest.raises(UserError, match="has 4 observations"):
        offlinerl.evaluate(run.folder, env="CartPole-v1", episodes=1)
    assert main(["report", str(run.folder)]) == 0
    assert "had no environment" in capsys.readouterr().out


def test_a_proposed_command_can_be_pasted(here, capsys):
    run = offlinerl.fit("bc", logs(), over=dict(train=FEW), out="my runs/first")
    assert "offlinerl evaluate 'my runs/first' --env ID" in capsys.readouterr().out
    with pytest.raises(UserError, match="resume it with --resume 'my runs/first' or name another"):
        offlinerl.fit("bc", logs(), out=run.folder)
    assert run.folder == Path("my runs/first")


def test_the_command_line_trains_on_a_file_without_an_environment(here, capsys):
    import h5py

    arrays = logs()
    with h5py.File("robot.hdf5", "w") as file:
        for ours, theirs in dict(
            obs="observations", action="actions", reward="rewards", terminated="terminals", truncated="timeouts"
        ).items():
            file[theirs] = arrays[ours]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FEW.items() if name != "compile"]
    assert main(["fit", "bc", "--dataset", "robot.hdf5", "--out", "run", "--compile", "false", *flags]) == 0
    assert "bc on robot: the last losses" in capsys.readouterr().out
    with open("run/metrics.csv") as file:
        assert [row["update"] for row in csv.DictReader(file)] == ["10", "20"]
    assert main(["fit", "--resume", "run", "--updates", "30"]) == 0
    assert json.loads(Path("run/summary.json").read_text())["updates"] == 30
    assert offlinerl.load_policy("run")(np.zeros(3)).shape == (1,)
    assert main(["fit", "xql", "--dataset", "robot.hdf5", "--online-steps", "10"]) == 1
    assert "fine-tuning needs an environment" in capsys.readouterr().err
    assert main(["fit", "bc", "--dataset", "robot.hdf5", "--env", "Pendulum-v1", "--actions", "discrete"]) == 1
    assert "Pendulum-v1 defines its actions itself" in capsys.readouterr().err


def test_a_run_that_is_shorter_than_the_interval_measures_ten_times(here):
    run = offlinerl.fit("bc", logs(), over=dict(train=dict(updates=200, batch=8, compile=False)))
    assert run.held_out["update"].tolist() == [*range(20, 201, 20)]
    assert sorted(set(run.metrics["update"].tolist())) == [*range(20, 201, 20)]
    asked = offlinerl.fit("bc", logs(), over=dict(train=dict(updates=200, eval_every=200, batch=8, compile=False)))
    assert asked.held_out["update"].tolist() == [200]


def overfitting(updates, **given):
    """Few rows of random actions, learned by heart by a large network with a high learning rate."""
    few = dict(updates=updates, eval_every=20, batch=64, logger="csv", compile=False, held_out=0.3)
    return offlinerl.fit("bc", noise(), hidden=(256, 256), lr=3e-3, seeds=(0, 1), **few | given)


def noise():
    return logs(60, 10) | dict(action=np.random.default_rng(1).uniform(-1, 1, (60, 1)).astype(np.float32))


def test_the_best_checkpoint_has_the_lowest_held_out_loss(here, capsys):
    run = overfitting(200)
    means = run.held_out["actor_loss"].reshape(-1, 2).mean(1)  # two seeds, every 20 updates
    best = run.summary["best_held_out"]
    assert best["update"] == 20 * (means.argmin() + 1) < 200 and best["mean"] == pytest.approx(means.min())
    assert best["loss"] == "actor_loss" and len(best["per_seed"]) == 2
    words = f"{best['mean']:.4g}, was that after {best['update']} updates: {run.folder}/best.ckpt"
    assert words in capsys.readouterr().out
    kept = torch.load(run.folder / "best.ckpt", weights_only=True)
    assert kept["global_step"] == best["update"]
    shorter = overfitting(best["update"])
    last = torch.load(shorter.folder / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(last[name], kept["state_dict"][name]) for name in last)
    assert (shorter.folder / "best.ckpt").is_file()  # the last one is the best


def test_the_best_checkpoint_outlasts_an_interruption(here):
    whole, part = overfitting(200), overfitting(100)
    again = offlinerl.fit(resume=part.folder, dataset=noise(), updates=200)
    assert again.summary["best_held_out"] == whole.summary["best_held_out"]


def test_patience_ends_a_run_that_gets_no_better(here, capsys):
    whole = overfitting(200)
    best = whole.summary["best_held_out"]["update"]
    run = overfitting(200, patience=2)
    end = run.summary["updates"]
    assert end == best + 40 < 200 and run.summary["best_held_out"] == whole.summary["best_held_out"]
    assert f"update {end}: 2 evaluations in a row were not the best, so the run ends" in capsys.readouterr().out
    assert set(run.held_out["update"].tolist()) == {*range(20, end + 1, 20)}
    shorter = overfitting(end)  # the last policy is that of a run of this length
    first, second = (torch.load(of.folder / "last.ckpt", weights_only=True)["state_dict"] for of in (run, shorter))
    assert all(torch.equal(first[name], second[name]) for name in first)

    over = offlinerl.fit(resume=run.folder, dataset=noise())
    assert over.summary["updates"] == end
    words = f"all {end} updates are done already, and the last policy is evaluated again; to continue to 200, give a la"
    assert words in capsys.readouterr().out
    going_on = offlinerl.fit(resume=run.folder, dataset=noise(), patience=None)
    assert going_on.summary["updates"] == 200
    np.testing.assert_array_equal(going_on.held_out["actor_loss"], whole.held_out["actor_loss"])


def test_patience_outlasts_an_interruption(here):
    whole = overfitting(200, patience=2)
    end = whole.summary["updates"]
    part = overfitting(end - 20, patience=2)
    again = offlinerl.fit(resume=part.folder, dataset=noise(), updates=200)
    assert again.summary["updates"] == end
    np.testing.assert_array_equal(again.held_out["actor_loss"], whole.held_out["actor_loss"])


def test_patience_needs_evaluations(here):
    for agent, few in (("iql", {}), ("bc", dict(held_out=0.0))):
        with pytest.raises(UserError, match="patience needs evaluations, and there is no environment: name one with"):
            offlinerl.fit(agent, logs(), over=dict(train=FEW | few | dict(patience=1)))
    with pytest.raises(UserError, match="patience is for runs of one stage: leave out --train.patience, or --online-s"):
        offlinerl.fit("xql", "kitchen", patience=3, online_steps=10)


def test_a_diverged_policy_is_never_the_best(here, capsys):
    few = dict(updates=40, eval_every=20, batch=64, compile=False, held_out=0.3, hidden=(8,))
    alone = offlinerl.fit("bc", noise(), lr=1e30, **few)
    assert alone.summary["best_held_out"] is None and not (alone.folder / "best.ckpt").exists()
    best = offlinerl.fit("bc", noise(), lr=[1e-3, 1e30], **few).summary["best_held_out"]
    assert best["mean"] == best["per_seed"][0]


def test_losses_that_do_not_tell_a_good_policy_choose_no_checkpoint(here):
    run = offlinerl.fit("iql", logs(), over=dict(train=FEW))
    assert run.summary["best_held_out"] is None and not (run.folder / "best.ckpt").exists()


def test_a_resumed_run_measures_the_same(here):
    settings = dict(train=FEW, agent=dict(dropout=0.1))
    whole = offlinerl.fit("xql", logs(), over=settings, out="whole")
    offlinerl.fit("xql", logs(), over=dict(settings, train={**FEW, "updates": 10}), out="parts")
    parts = offlinerl.fit("xql", logs(), over=dict(train=dict(updates=20)), resume="parts")
    # neither of these has a schedule; how a schedule handles another length is tested elsewhere
    for name, column in whole.held_out.items():
        np.testing.assert_array_equal(column, parts.held_out[name])
    assert whole.summary["losses"] == parts.summary["losses"]
    again = offlinerl.fit(dataset=logs(), resume="whole")  # nothing is left to do, and nothing is lost
    assert again.summary["losses"] == whole.summary["losses"] and len(again.summary["losses"]) == 3


def test_measuring_does_not_change_an_agent_and_gives_the_loss_before_an_update():
    data = random_table(200)
    rest, kept = hold_out(data, 0.2)
    spec = Spec(5, 2, (-4.0, -4.0), (4.0, 4.0))
    agent = BC(spec, (0, 1), dropout=0.3, hidden=(16, 16))
    agent.configure_optimizers()
    agent.learn(OfflineData(Table.of(agent, rest), agent.seeds, 8, 5).draw())
    before = [tensor.clone() for tensor in agent.trained_tensors()]
    random = [state.clone() for state in agent.rng.state_dict()["states"]]
    measure = HeldOut(agent, lambda: OfflineData(Table.of(agent, kept), agent.seeds, 8, 1), len(kept))
    first = measure.metrics()
    assert agent.updates == 5 and first == measure.metrics()
    assert all(map(torch.equal, before, agent.trained_tensors()))
    assert all(map(torch.equal, random, agent.rng.state_dict()["states"]))

    still = BC(spec, (0, 1), hidden=(16, 16))  # the same without dropout, to be compared with the formula
    still.configure_optimizers()
    measure = HeldOut(still, lambda: OfflineData(Table.of(still, kept), still.seeds, 8, 1), len(kept))
    source, expected = OfflineData(Table.of(still, kept), still.seeds, 8, 1), []
    for _ in range(-(-len(kept) // 8)):
        batch = source.draw()
        expected.append(-still.actor(batch.obs[0]).log_prob(batch.action[0]).mean(-1))
    torch.testing.assert_close(torch.tensor(measure.metrics()["actor_loss"]), torch.stack(expected).mean(0).detach())


def measured(agent, batch):
    agent.configure_optimizers()
    measure = HeldOut(agent, lambda: OfflineData(batch, agent.seeds, 64, 1), len(batch))
    return measure.metrics()


def test_held_out_losses_are_those_of_the_current_networks():
    """Without dropout, before any of the updates that a loss needs, and with the target networks of the last update."""
    data, spec = random_table(64), Spec(5, 2, (-4.0, -4.0), (4.0, 4.0))
    found = {}
    for dropout in (0.0, 0.5):
        agent = BC(spec, (0,), dropout=dropout, hidden=(16, 16))
        found[dropout] = measured(agent, Table.of(agent, data))
    assert found[0.0] == found[0.5]
    found = {}
    for updates in (1, 4):
        agent = XQL(spec, (0,), value_updates=updates, hidden=(16, 16), lr=0.1)
        found[updates] = measured(agent, Table.of(agent, data))
    assert found[1] == found[4]
    found, spec = {}, Spec(5, 1, (0.0,), (1.0,), num_actions=2)
    discrete = replace(data, action=(data.action[:, :1] > 0).astype(np.float32))
    for updates in (9, 10):
        agent = DQN(spec, (0,), target_every=10, hidden=(16, 16))
        with torch.no_grad():
            for p in agent.target.parameters():
                p.mul_(3)
        agent.updates = updates
        found[updates] = measured(agent, Table.of(agent, discrete))
    assert found[9] == found[10]


def test_episodes_are_held_out_whole():
    data = random_table(400)
    rest, kept = hold_out(data, 0.1)
    assert len(kept.episode_starts) == 2 and len(rest) + len(kept) == len(data)
    rows = {tuple(row) for row in data.obs}
    assert {tuple(row) for row in rest.obs} | {tuple(row) for row in kept.obs} == rows
    assert hold_out(data, 0.0) == (data, None)
    one = data.take([0])
    assert hold_out(one, 0.5) == (one, None)  # nothing would be left to learn from
    two = data.take([0, 1])
    assert [len(part.episode_starts) for part in hold_out(two, 0.1)] == [1, 1]


def test_the_kind_and_bounds_of_actions_are_taken_from_the_data():
    arrays = logs(discrete=True)
    spec, said = spec_of_data(offlinerl.load_dataset(arrays))
    assert (spec.num_actions, spec.first_action, spec.obs_dim) == (2, 3, 3)
    assert said == "discrete actions from 3 to 4, those in the data"
    spec, said = spec_of_data(offlinerl.load_dataset(arrays), "continuous")
    assert (spec.num_actions, spec.action_low, spec.action_high) == (0, (3.0,), (4.0,))
    arrays["action"] = arrays["action"].astype(float)
    assert spec_of_data(offlinerl.load_dataset(arrays))[0].num_actions == 0
    assert spec_of_data(offlinerl.load_dataset(arrays), "discrete")[0].num_actions == 2
    data = offlinerl.load_dataset(logs())
    spec, said = spec_of_data(data, action_range=[-2, 2])
    assert (spec.action_low, spec.action_high) == ((-2.0,), (2.0,)) and "within -2 to 2, the bounds as given" in said
    spec, _ = spec_of_data(data)
    assert (spec.action_low, spec.action_high) == ((float(data.action.min()),), (float(data.action.max()),))
    with pytest.raises(UserError, match="arrays has actions of 1 dimension, and --action-range has bounds of 2"):
        spec_of_data(data, action_range=[[-1, -2], [1, 2]])
    with pytest.raises(UserError, match="discrete actions are one whole number a row"):
        spec_of_data(data, "discrete")
    with pytest.raises(UserError, match="leave out --action-range"):
        spec_of_data(offlinerl.load_dataset(logs(discrete=True)), action_range=[0, 1])


def test_a_training_that_diverges_without_an_environment_is_said(here, capsys):
    data = logs()
    data["obs"] = (1e25 * data["obs"]).astype(np.float32)
    offlinerl.fit("iql", data, updates=30, compile=False, batch=8)
    advice = "its weights are not finite; lower the learning rate, or normalise large observations"
    assert f"the training of seed 0 diverged, and {advice}" in " ".join(capsys.readouterr().out.split())
    offlinerl.fit("iql", logs(), updates=30, compile=False, batch=8)
    assert "diverged" not in capsys.readouterr().out


def test_discrete_actions_keep_the_numbers_of_the_data(here):
    for agent in ("dqn", "bc"):
        run = offlinerl.fit(agent, logs(discrete=True), over=dict(train=FEW))
        assert set(run.policy(logs(seed=2)["obs"]).tolist()) <= {3, 4}
    with pytest.raises(UserError, match="seem to be discrete: if they are continuous, give --actions continuous"):
        offlinerl.fit("td3bc", logs(discrete=True), over=dict(train=FEW))
    run = offlinerl.fit("bc", logs(discrete=True), over=dict(train=FEW), actions="continuous")
    assert 3 <= run.policy(np.zeros(3))[0] <= 4
    with pytest.raises(UserError, match="actions must be discrete or continuous, not 'round'"):
        offlinerl.fit("bc", logs(), over=dict(train=FEW), actions="round")


def test_without_an_environment_bounds_come_from_the_minari_dataset(here, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(here))
    space = gym.spaces.Box(-3, 5, (1,), np.float32)
    made = [episode(n)._replace(actions=np.full((3 + n, 1), 0.5, np.float32)) for n in range(3)]
    write_minari(
        here / ID, made, dataset_id=ID, env_spec=None,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (4,), np.float32), action_space=space,
    )  # fmt: skip
    spec, said = spec_of_data(offlinerl.load_dataset(ID))
    assert (spec.action_low, spec.action_high) == ((-3.0,), (5.0,)) and said.endswith("as the dataset states")
    assert offlinerl.fit("bc", ID, over=dict(train=FEW)).summary["env"] is None


def test_the_environment_of_a_dataset_need_not_be_installed(here, monkeypatch, capsys):
    """An environment that is not installed, and one that is switched off."""
    spec = copy.deepcopy(gym.spec("Pendulum-v1"))
    spec.id, spec.entry_point = "NotInstalled-v7", "nowhere:Robot"
    made = [episode(n)._replace(actions=np.full((3 + n % 5, 1), 0.5, np.float32)) for n in range(6)]
    for name, of in dict(lost=spec, swing=gym.spec("CartPole-v1")).items():
        write_minari(
            here / f"minari/test/{name}-v0", made, dataset_id=f"test/{name}-v0", env_spec=of,
            observation_space=gym.spaces.Box(-np.inf, np.inf, (4,), np.float32),
            action_space=gym.spaces.Box(-1, 1, (1,), np.float32),
        )  # fmt: skip
    flags = ["--batch", "8", "--updates", "6", "--eval-every", "3", "--compile", "false"]
    assert main(["fit", "bc", "--dataset", "test/lost-v0", *flags]) == 1
    said = capsys.readouterr().err
    assert "environment NotInstalled-v7 cannot be made: No module named 'nowhere'; install that module" in said
    assert said.endswith("; or train on the dataset alone, with --env none\n")
    for name in ("lost", "swing"):
        assert main(["fit", "bc", "--dataset", f"test/{name}-v0", "--env", "none", "--out", name, *flags]) == 0
        said = capsys.readouterr().out
        assert "no environment is named" in said and "-1 to 1, the bounds as the dataset states" in said
        assert json.loads(Path(name, "summary.json").read_text())["env"] is None
        assert offlinerl.load_policy(name)(made[0].observations[0]).shape == (1,)
    assert main(["fit", "--resume", "lost", "--updates", "9"]) == 0
    assert main(["fit", "bc", "--dataset", "test/lost-v0", "--env", "none", "--online-steps", "5"]) == 1
    assert "fine-tuning needs an environment" in capsys.readouterr().err
    assert main(["fit", "td3", "--env", "none", "--steps", "5"]) == 1
    assert "nowhere to act: give one instead of none" in capsys.readouterr().err


def test_the_held_out_share_is_a_setting(here):
    run = offlinerl.fit("bc", logs(), over=dict(train={**FEW, "held_out": 0.0}))
    assert run.summary["held_out"] is None and run.held_out == {}
    over = dict(train={**FEW, "held_out": 0.5, "eval_episodes": 1, "final_episodes": 1})
    run = offlinerl.fit("bc", logs(), env="Pendulum-v1", over=over)
    assert run.scores["mean"] < 0 and run.summary["held_out"]["actor_loss"] and len(run.held_out["update"]) == 2


def test_choices_that_never_occur_are_counted():
    arrays = logs(discrete=True)
    for choices, said in {
        (-3, 1, 5, 1000): "from -3 to 1000, the range of the data, in which 1,000 of the 1,004 choices never occur",
        (2, 4): "from 2 to 4, the range of the data, in which 1 of the 3 choices never occurs",
        (3, 4): "from 3 to 4, those in the data",
    }.items():
        arrays["action"] = np.resize(choices, len(arrays["reward"]))
        assert spec_of_data(offlinerl.load_dataset(arrays))[1] == f"discrete actions {said}"


@pytest.mark.parametrize("ids", [(100_000_001, 100_000_002), (0, (1 << 24) + 1), (-(1 << 24) - 1, 0)])
def test_ids_of_actions_that_float32_merges_are_refused(here, ids):
    rows = "".join(f"{row / 10},{ids[row % 2]},{row % 5 // 4}\n" for row in range(20))
    Path("log.csv").write_text(f"obs,action,done\n{rows}")
    says = r"discrete actions beyond \+-16,777,215, which float32 does not tell apart: number them from 0 on"
    with pytest.raises(UserError, match=says):
        spec_of_data(offlinerl.load_dataset("log.csv"))
    (finding,) = (finding for finding in validate("log.csv") if finding.fault)
    assert finding.kind == "refused" and "which float32 does not tell apart" in finding.message
    data = offlinerl.load_dataset("log.csv")
    assert spec_of_data(data, "continuous")[0].num_actions == 0
