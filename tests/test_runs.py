"""The source, the start and the files of a run: flags decide them, not the agent's class."""

import dataclasses
from fractions import Fraction
from functools import partial

import numpy as np
import pendulum
import pytest
import torch
import yaml
from conftest import random_table
from pendulum import differing, fit, rows, summary, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offlinerl.agents.checkpoint import read
from offlinerl.agents.td3 import TD3
from offlinerl.cli import main
from offlinerl.experience.ring import Replay
from offlinerl.experience.sources import ReplayData
from offlinerl.experience.table import Table
from offlinerl.learning.exploration import linear
from offlinerl.rollout.collector import Collector
from offlinerl.training.schedule import Schedule, Stage
from offlinerl.training.selection import source_of
from offlinerl.util.errors import UserError

TINY = ("--compile", "false", "--batch", 16, "--eval-episodes", 1, "--final-episodes", 2, "--agent.hidden", "[16,16]")
CARTPOLE = "cartpole/random-v0"


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    with pendulum.workplace(tmp_path_factory.mktemp("runs")) as folder:
        argv = ("collect", "random", "--env", "CartPole-v1", "--dataset", CARTPOLE, "--steps", "200")
        assert main(argv) == 0
        yield folder


@pytest.mark.parametrize(
    ("given", "says"), [(("--log-every", 5), True), (("--log-every", 5, "--train.block", 5), False)]
)
def test_metrics_that_are_wanted_more_often_than_blocks_end_are_said(given, says, here, tmp_path, capsys):
    argv = (
        "bc",
        "--dataset",
        pendulum.ID,
        "--updates",
        60,
        "--eval-every",
        60,
        *TINY,
        *given,
        "--out",
        tmp_path / "run",
    )
    assert fit(*argv) == 0
    assert ("metrics come once per block of 50 updates, and not every 5: for more" in capsys.readouterr().out) == says
    assert {row["update"] for row in rows(tmp_path / "run/metrics.csv")} == (
        {"50", "60"} if says else {str(5 * n) for n in range(1, 13)}
    )


# Flags choose the source


@pytest.mark.parametrize("name", ["td3", "sac", "d4pg", "dqn"])
def test_off_policy_agents_train_on_a_fixed_dataset(name, here):
    folder, dataset = here / f"offline-{name}", CARTPOLE if name == "dqn" else pendulum.ID
    argv = (name, "--dataset", dataset, "--updates", 40, "--eval-every", 20, *TINY)
    assert fit(*argv, "--out", folder) == 0
    found = summary(folder)
    assert (found["updates"], found["steps"], found["clock"], found["dataset"]) == (40, 0, "updates", dataset)
    assert found["env"] == ("CartPole-v1" if name == "dqn" else "Pendulum-v1")
    assert {row["update"] for row in rows(folder / "evaluations.csv")} == {"20", "40"}
    assert "step" not in rows(folder / "metrics.csv")[-1]


@pytest.mark.parametrize(
    "source",
    [
        ("--dataset", pendulum.ID, "--updates", 60),
        pytest.param(("--dataset", pendulum.ID, "--updates", 60, "--devices", 2), marks=pytest.mark.slow),
        ("--env", "Pendulum-v1", "--steps", 60, "--train.warm_up", 0),
    ],
)
def test_patience_ends_a_run_whose_scores_get_no_better(source, here, capsys):
    folder, unit = here / f"patient-{len(source)}-{source[0]}", "step" if source[0] == "--env" else "update"
    still = ("--agent.critic_lr", 1e-30, "--agent.actor_lr", 1e-30)
    argv = ("td3", *source, *TINY, "--eval-every", 10, *still, "--train.patience", 2, "--out", folder)
    assert fit(*argv) == 0
    assert f"{unit} 30: 2 evaluations in a row were not the best, so the run ends" in capsys.readouterr().out
    found = summary(folder)
    assert found[f"{unit}s"] == 30 and found["best"][unit] == 10 and found["last"]["episodes"] == 2
    assert sorted({int(row[unit]) for row in rows(folder / "evaluations.csv")}) == [10, 20, 30]


@pytest.mark.parametrize("name", ["xql", "iql", "bc"])
def test_offline_agents_learn_by_acting(name, here):
    folder = here / f"online-{name}"
    (here / "warm.yaml").write_text("train: {warm_up: 50}\n")
    argv = (name, "--env", "Pendulum-v1", "--steps", 250, "--eval-every", 125, "--config", here / "warm.yaml", *TINY)
    assert fit(*argv, "--out", folder) == 0
    found = summary(folder)
    assert (found["updates"], found["steps"], found["clock"], found["dataset"]) == (200, 250, "steps", None)
    assert float(rows(folder / "metrics.csv")[-1]["episode_return"]) < 0
    assert len(list(folder.glob("replay-*.pt"))) == 1

    if name != "xql":
        return
    half = here / f"half-{name}"
    assert fit("--config", folder / "config.yaml", "--steps", 125, "--out", half) == 0
    assert fit("--resume", half, "--steps", 250) == 0
    assert not differing(half, folder)


TRANSITIONS, ROLLOUTS, EPISODES = ({kind} for kind in ("transitions", "rollouts", "episodes"))


@pytest.mark.parametrize(
    "kinds, dataset, env, source",
    [
        (TRANSITIONS, "kitchen", None, "transitions"),
        (TRANSITIONS, "kitchen", "Pendulum-v1", "transitions"),
        (TRANSITIONS, None, "Pendulum-v1", "replay"),
        (ROLLOUTS, None, "Pendulum-v1", "rollouts"),
        (EPISODES, "kitchen", None, "episodes"),
        (TRANSITIONS | ROLLOUTS, "kitchen", None, "transitions"),
        (TRANSITIONS | ROLLOUTS, None, "Pendulum-v1", "rollouts"),
    ],
)
def test_flags_choose_the_source(kinds, dataset, env, source):
    assert source_of("a", kinds, dataset, env) == source


@pytest.mark.parametrize(
    "kinds, dataset, env, says",
    [
        (ROLLOUTS, "kitchen", None, "a learns from rollouts of its own: give --env instead of --dataset"),
        (EPISODES, None, "Pendulum-v1", "a learns from whole episodes of a dataset: give --dataset"),
        (TRANSITIONS, None, None, "a learns from transitions: give --dataset, .*, or --env"),
        (ROLLOUTS, None, None, "a learns from rollouts of its own: give --env"),
    ],
)
def test_agents_refuse_data_that_they_cannot_learn_from(kinds, dataset, env, says):
    with pytest.raises(UserError, match=says):
        source_of("a", kinds, dataset, env)


# Old data and new


class Mixed:
    """A replay buffer mixed with a dataset whose rewards are all 1000."""

    def __init__(self, old_share=None):
        collector = Collector({"id": "Pendulum-v1"}, (0, 1))
        self.agent = TD3(collector.spec, (0, 1), hidden=(8,))
        data = dataclasses.replace(random_table(60, collector.spec), reward=np.full(60, 1000, np.float32))
        table = Table(data, collector.spec, self.agent.gamma)
        replay = Replay(collector.spec, (0, 1), 200)
        self.source = ReplayData(
            self.agent, collector, replay, 10, updates=10, warm_up=0, table=table, old_share=old_share
        )

    def shares(self, steps):
        """The share of old rows in the batches of every block, ``[K, S]``."""
        return [(block.reward == 1000).float().mean(-1) for piece in self.source.epoch(steps) for block in piece]


def test_the_share_of_old_data_is_as_set():
    for start, end, expected in ((0.5, 0.5, [0.5] * 4), (0.8, 0.0, [0.6, 0.4, 0.2, 0.0]), (0.0, 1.0, None)):
        shares = Mixed(partial(linear, start, end, 40)).shares(40)
        found = [share.unique().tolist() for share in shares]
        assert all(len(share) == 1 for share in found), "the same in every batch of every seed"
        wanted = expected or [round(10 * (i + 1) / 4) / 10 for i in range(4)]
        assert [share for (share,) in found] == pytest.approx(wanted)


def test_without_a_share_every_row_is_equally_likely():
    shares = torch.stack(Mixed().shares(120))  # [blocks, K, S]
    assert len(shares[-1].unique()) > 1
    assert shares[0].mean() == pytest.approx(60 / 70, abs=0.08) and shares[-1].mean() == pytest.approx(
        60 / 180, abs=0.1
    )


def test_the_share_of_old_data_is_annealed_in_fine_tuning(here):
    (here / "share.yaml").write_text("train: {old_share: 0.5, final_old_share: 0, online_eval_every: 20}\n")
    folder = here / "annealed"
    argv = ("sac", "--dataset", pendulum.ID, "--updates", 20, "--online-steps", 40, "--eval-every", 20, *TINY)
    assert fit(*argv, "--config", here / "share.yaml", "--out", folder) == 0
    found = summary(folder)
    assert (found["updates"], found["steps"]) == (60, 40) and found["offline"]["episodes"] == 2
    assert [row["update"] for row in rows(folder / "evaluations.csv")] == ["20", "20", "40", "60", "60"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["old_share"] == 0.5
    assert fit("--resume", folder, "--online-steps", 60) == 0, "a longer run stays at the share that was reached"
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["old_share_steps"] == 40


def test_the_share_reaches_its_final_value_at_the_given_step(here, monkeypatch):
    counts = []
    sample = ReplayData.sample

    def sampled(self, updates):
        counts.append((self.steps, self.old_share(self.steps)))
        return sample(self, updates)

    monkeypatch.setattr(ReplayData, "sample", sampled)
    (here / "steps.yaml").write_text("train: {old_share: 0.5, final_old_share: 0, old_share_steps: 10, block: 1}\n")
    argv = ("sac", "--dataset", pendulum.ID, "--updates", 20, "--online-steps", 20, "--eval-every", 20, *TINY)
    assert fit(*argv, "--config", here / "steps.yaml", "--out", here / "steps") == 0
    assert dict(counts)[5] == 0.25 and not dict(counts)[10] and not dict(counts)[20]


def test_evaluations_of_fine_tuning_come_after_whole_steps_of_all_environments(here, refused):
    argv = ("iql", "--dataset", pendulum.ID, "--updates", 4, "--online-steps", 12, "--train.envs", 3, *TINY)
    said = refused("fit", *argv, "--train.online_eval_every", 4)
    assert "online_eval_every must be a multiple of 3, for 3 environments and 1 steps per update, not 4" in said
    assert fit(*argv, "--train.online_eval_every", 6, "--out", here / "three") == 0
    acts = ("dqn", "--env", "CartPole-v1", "--steps", 121, "--train.envs", 2, "--train.replay", "disk")
    assert "steps must be a multiple of 2" in refused("fit", *acts, "--out", here / "odd")
    assert not (here / "odd").exists(), "not even the files of the replay"
    assert (summary(here / "three")["updates"], summary(here / "three")["steps"]) == (16, 12)


def test_several_updates_per_step(here, refused):
    """Acting, then resumed; and in fine-tuning, whose stage is counted in updates."""
    folder, argv = here / "acts", ("sac", "--env", "Pendulum-v1", *TINY, "--train.updates_per_step", 3)
    assert fit(*argv, "--steps", 80, "--train.warm_up", 20, "--eval-every", 40, "--out", folder) == 0
    assert (summary(folder)["updates"], summary(folder)["steps"]) == (180, 80)
    assert fit("--resume", folder, "--steps", 100) == 0 and summary(folder)["updates"] == 240
    whole = here / "whole"
    assert fit(*argv, "--steps", 100, "--train.warm_up", 20, "--eval-every", 40, "--out", whole) == 0
    assert not differing(folder, whole)

    tuned, argv = here / "tuned", ("iql", "--dataset", pendulum.ID, "--updates", 4, "--online-steps", 12, *TINY)
    argv = (*argv, "--train.updates_per_step", 5)
    assert "online_eval_every must be a multiple of 5, for 1 environments and 5 updates per step, not 24" in refused(
        "fit", *argv, "--train.online_eval_every", 24
    )
    assert fit(*argv, "--train.online_eval_every", 25, "--out", tuned) == 0
    assert (summary(tuned)["updates"], summary(tuned)["steps"]) == (64, 12)
    assert list(dict.fromkeys(row["update"] for row in rows(tuned / "evaluations.csv"))) == ["4", "29", "54", "64"]
    both = ("--train.steps_per_update", 2)
    assert "contradict each other" in refused("fit", *argv, *both)


def test_settings_of_fine_tuning_need_it(here, refused):
    argv = ("calql", "--dataset", pendulum.ID, "--updates", 4, *TINY, "--agent.samples", 2)
    for name, value in (("updates_per_step", 4), ("envs", 2), ("old_share", 0.25), ("capacity", 10)):
        says = f"{name} is for fine-tuning in the environment: leave it out, or give --online-steps"
        assert says in refused("fit", *argv, f"--train.{name}", value)
    assert fit(*argv, "--train.envs", 1, "--out", here / "calql") == 0, "the value that it has anyway"
    assert fit(*argv, "--config", here / "calql/config.yaml", "--out", here / "again") == 0


def test_an_invalid_share_is_refused(here, refused):
    for text, says in (
        ("{old_share: 1.5}", "old_share must be from 0 to 1 or null"),
        ("{final_old_share: 0.5}", "give old_share too"),
        ("{old_share: 0.5, old_share_steps: 9}", "old_share_steps needs final_old_share"),
    ):
        (here / "wrong.yaml").write_text(f"train: {text}\n")
        argv = ("sac", "--dataset", pendulum.ID, "--online-steps", 10)
        assert says in refused("fit", *argv, "--config", here / "wrong.yaml")


# Schedules


def test_a_schedule_counts_from_the_beginning_of_each_stage():
    class Counted:
        def epoch(self, count):
            return count

    stages = [
        Stage("offline", Counted(), 50, 20, "--updates"),
        Stage("online", Counted(), 100, 30, "--online-steps", Fraction(2)),
    ]
    schedule, now, ends = Schedule("update", stages), 0, []
    while now < schedule.end:
        now += schedule.epoch(now) // schedule.stage(now).scale
        ends.append((now, schedule.due(now)))
    assert ends == [(20, True), (40, True), (50, True), (80, True), (100, False)]
    assert schedule.epoch(45) == 5 and schedule.epoch(60) == 40, "after an interruption it goes as far as it would have"
    assert schedule.switches == [50] and schedule.stage(49).name == "offline" and schedule.stage(50).name == "online"


# The start of a run


def test_a_run_can_start_with_the_weights_of_another(here, refused):
    first, second = here / "first", here / "second"
    assert fit("td3", "--dataset", pendulum.ID, "--updates", 20, "--seeds", "0,1", *TINY, "--out", first) == 0
    (here / "still.yaml").write_text("train: {warm_up: 60}\n")
    argv = ("xtd3", "--env", "Pendulum-v1", "--steps", 50, "--seeds", "0,1", *TINY, "--config", here / "still.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert fit(*argv, "--init", "first", "--out", second) == 0
    begun = weights(second)
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, begun[name]), "there was no update yet"
    assert read(second / "last.ckpt")["offlinerl"]["updates"] == 0 and summary(second)["steps"] == 50
    assert yaml.safe_load((second / "config.yaml").read_text())["fit"]["init"] == str((first / "last.ckpt").resolve())

    (first / "last.ckpt").rename(here / "moved.ckpt")
    assert fit("--resume", second, "--steps", 100) == 0, "it has weights of its own by now"

    line = refused("fit", *argv, "--init", here / "moved.ckpt", "--seeds", "0", "--out", here / "third")
    assert "moved.ckpt has other networks" in line and "the seeds" in line
    line = refused("fit", "sac", *argv[1:], "--init", here / "moved.ckpt", "--out", here / "third")
    assert "moved.ckpt has other networks" in line
    assert "there is no checkpoint" in refused("fit", *argv, "--init", here / "none.ckpt")
    assert "--init" in refused("fit", "--resume", second, "--init", here / "moved.ckpt", status=2)
    assert not (here / "third").exists()


# The files of a run


@pytest.fixture(scope="module")
def logged(here):
    folder = here / "logged"
    argv = ("bc", "--dataset", pendulum.ID, "--updates", 100, "--eval-every", 50, "--seeds", "0,1", *TINY)
    (here / "block.yaml").write_text("train: {block: 10}\n")
    assert fit(*argv, "--log-every", 20, "--config", here / "block.yaml", "--out", folder) == 0
    return folder


def test_metrics_are_logged_as_often_as_asked(logged):
    assert [row["update"] for row in rows(logged / "metrics.csv") if row["seed"] == "1"] == [
        "20",
        "40",
        "60",
        "80",
        "100",
    ]


def test_tensorboard_has_a_series_for_every_seed(logged):
    found = EventAccumulator(str(logged)).Reload()
    assert {f"{name}/seed_{seed}" for name in ("train/actor_loss", "evaluation/score") for seed in (0, 1)} == set(
        found.Tags()["scalars"]
    )
    table = [float(row["actor_loss"]) for row in rows(logged / "metrics.csv") if row["seed"] == "1"]
    series = found.Scalars("train/actor_loss/seed_1")
    assert [event.step for event in series] == [20, 40, 60, 80, 100]
    assert [event.value for event in series] == pytest.approx(table, rel=1e-5)


def test_any_yaml_reader_can_read_the_settings(logged):
    settings = yaml.safe_load((logged / "hparams.yaml").read_text())
    config = yaml.safe_load((logged / "config.yaml").read_text())
    assert settings == {section: config[section] for section in ("fit", "agent", "train")}


def test_loggers_are_chosen(here, refused, monkeypatch):
    folder, argv = here / "quiet", ("bc", "--dataset", pendulum.ID, "--updates", 20, *TINY)
    assert fit(*argv, "--logger", "csv", "--out", folder) == 0
    assert (folder / "metrics.csv").exists() and not list(folder.glob("events.*"))
    assert fit("--resume", folder, "--updates", 40, "--logger", "tensorboard") == 0
    assert {row["update"] for row in rows(folder / "metrics.csv")} == {"20"} and list(folder.glob("events.*"))
    assert "csv, tensorboard, wandb, mlflow" in refused("fit", *argv, "--logger", "csv,visdom")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        assert f"pip install 'offlinerl[{name}]'" in refused("fit", *argv, "--logger", f"csv,{name}")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_extra_loggers_get_the_metrics_and_continue_on_resuming(name, here, monkeypatch):
    module = pytest.importorskip(name, reason=f"the extra `{name}` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = here / f"with-{name}"
    argv = ("bc", "--dataset", pendulum.ID, "--updates", 20, "--eval-every", 20, *TINY, "--logger", name)
    assert fit(*argv, "--out", folder) == 0
    known = read(folder / "last.ckpt")["callbacks"]["Run"]["loggers"][name]
    assert fit("--resume", folder, "--updates", 40) == 0
    assert read(folder / "last.ckpt")["callbacks"]["Run"]["loggers"][name] == known
    assert not (folder / "metrics.csv").exists()
    if name == "mlflow":
        client = module.MlflowClient("sqlite:///mlflow.db")
        history = client.get_metric_history(known, "train/actor_loss/seed_0")
        assert [entry.step for entry in history] == [20, 40] and client.get_run(known).info.run_name == folder.name
    else:
        assert list(folder.glob("wandb/offline-run-*"))


def test_the_progress_bar_shows_in_a_notebook_with_widgets(monkeypatch):
    from offlinerl.util import display

    for widgets in (True, False):
        monkeypatch.setattr(display, "find_spec", lambda name, widgets=widgets: widgets or None)
        shown = display.Display()
        shown.console.is_jupyter = True
        monkeypatch.setattr(display.Progress, "start", lambda self: None)
        with shown.bar("training", 10):
            assert shown.progress.disable is not widgets
