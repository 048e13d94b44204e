"""Runs stopped by Ctrl-C, a scheduler or a crash: little is lost, and a resumed run equals one that never stopped."""

import errno
import json
import math
import os
import random
import shlex
import shutil
import signal
import time
from types import SimpleNamespace

import h5py
import numpy as np
import pendulum
import pytest
import torch
import yaml
from torch.utils._pytree import tree_leaves

import offlinerl
from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.cli import main
from offlinerl.envs.pool import Pool
from offlinerl.training.loop import Run
from offlinerl.training.recorder import Recorder
from offlinerl.util.atomic import write_json
from offlinerl.util.errors import UserError
from offlinerl.util.interrupt import on_interrupt

FEW = ("--compile", "false", "--batch", 8, "--agent.hidden", "[8]", "--eval-episodes", 1, "--final-episodes", 2)
KINDS = {
    "offline": ("bc", "--dataset", pendulum.ID, "--agent.decay_steps", "updates", *FEW),
    "online": ("td3", "--env", "Pendulum-v1", "--config", "warm.yaml", *FEW),
}


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    with pendulum.workplace(tmp_path_factory.mktemp("stopping")) as folder:
        (folder / "warm.yaml").write_text("train: {warm_up: 100}\n")
        yield folder


def fit(*argv):
    return main(["fit", *map(str, argv)])


def length(kind, count):
    return ("--updates" if kind == "offline" else "--steps", count, "--eval-every", count // 4)


def same(a, b):
    """Whether two runs ended with the same weights, moments and random numbers, and were evaluated the same."""
    first, second = (checkpoint.read(folder / "last.ckpt") for folder in (a, b))
    for section in ("state_dict", "optimizer_states"):
        pairs = zip(tree_leaves(first[section]), tree_leaves(second[section]), strict=True)
        assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs), section
    states = (tree_leaves(found["offlinerl"]["rng"]["states"]) for found in (first, second))
    assert all(torch.equal(x, y) for x, y in zip(*states, strict=True))
    assert (a / "evaluations.csv").read_text() == (b / "evaluations.csv").read_text()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (a, b)]
    assert summaries[0]["losses"] == summaries[1]["losses"]
    return True


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_at_any_moment_ends_as_if_never_stopped(kind, number, kills, here):
    """The run is saved every second, and resumed until its end. ``whole`` is the same run, never stopped."""
    folder, whole = here / f"{kind}-{number}-{kills}", here / f"{kind}-{kills}"
    argv = (*KINDS[kind], *length(kind, 1_500 * kills if kind == "offline" else 300 * (kills + 1)))
    if not whole.exists():
        assert fit(*argv, "--out", whole) == 0
    rng, command = random.Random(kills), ("fit", *argv, "--save-every", 1 / 60, "--out", folder)
    for _ in range(kills):
        process = pendulum.start(*command, cwd=here)
        while "into" not in process.stdout.readline():
            assert process.poll() is None, process.stderr.read()
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, "it ended too early to be stopped"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        if number == signal.SIGTERM:
            assert process.returncode == 143 and err.count("\n") == 1, err
            assert f"offlinerl fit --resume {folder}" in err
        command = ("fit", "--resume", folder)
    assert fit("--resume", folder) == 0
    assert same(folder, whole)


@pytest.mark.parametrize("minutes, expected", [(5, [200]), (1e-6, [50, 100, 150, 200])])
def test_a_run_is_saved_between_evaluations(minutes, expected, here, monkeypatch):
    saved, save = [], checkpoint.save

    def noted(trainer, path):
        saved.append(trainer.lightning_module.updates)
        save(trainer, path)

    monkeypatch.setattr(checkpoint, "save", noted)
    argv = ("bc", "--dataset", pendulum.ID, *FEW, "--updates", 200, "--eval-every", 200, "--save-every", minutes)
    assert fit(*argv, "--out", here / f"saved-{minutes}") == 0
    assert sorted(set(saved)) == expected


def once(monkeypatch, owner, name, when=lambda: True):
    """Let a method of a class receive SIGTERM the first time it is called."""
    method, sent = getattr(owner, name), []

    def called(self, *args, **kwargs):
        if not sent and when():
            sent.append(True)
            signal.raise_signal(signal.SIGTERM)
        return method(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", ["before the first update", "in an evaluation", "in the last evaluation"])
def test_sigterm_at_critical_moments(kind, moment, here, capsys, monkeypatch):
    folder, whole = here / f"{kind}-{moment}", here / f"{kind}-whole"
    argv = (*KINDS[kind], *length(kind, 200))
    if not whole.exists():
        assert fit(*argv, "--out", whole) == 0
    end = checkpoint.read(whole / "last.ckpt")["offlinerl"]["updates"]

    def evaluating():
        saved = folder / "last.ckpt"
        done = checkpoint.read(saved)["offlinerl"]["updates"] if saved.is_file() else 0
        return done == end if "last" in moment else done > 0

    with monkeypatch.context() as patch:
        if moment == "before the first update":
            once(patch, Agent, "learn")
        else:
            once(patch, Pool, "reset", evaluating)
        capsys.readouterr()
        assert fit(*argv, "--out", folder) == 143
    (line,) = capsys.readouterr().err.splitlines()
    assert "interrupted" in line and f"offlinerl fit --resume {shlex.quote(str(folder))}" in line
    assert fit("--resume", folder) == 0
    assert same(folder, whole)


def test_the_best_policy_is_kept_if_a_run_is_killed_before_copying_it(here, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    folder = here / "not copied"
    with monkeypatch.context() as patch:
        patch.setattr("offlinerl.training.checkpointer.copy_whole", killed)
        patch.setattr(Recorder, "is_best", lambda *_: True)
        with pytest.raises(Killed):
            fit(*KINDS["offline"], *length("offline", 40), "--out", folder)
    assert checkpoint.read(folder / "best.ckpt")["offlinerl"]["updates"] == 30
    assert fit("--resume", folder) == 0
    assert json.loads((folder / "summary.json").read_text())["best"]["update"] == 40
    assert checkpoint.read(folder / "best.ckpt")["offlinerl"]["updates"] == 40


def test_time_of_evaluations_made_up_on_resuming_does_not_count_as_training(here, monkeypatch):
    folder, play, pause = here / "made up for", Run.rollouts, 3.0
    with monkeypatch.context() as patch:
        once(patch, Pool, "reset")
        assert fit(*KINDS["offline"], *length("offline", 40), "--out", folder) == 143

    def slow(self, episodes):
        time.sleep(pause)
        return play(self, episodes)

    monkeypatch.setattr(Run, "rollouts", slow)
    assert fit("--resume", folder) == 0
    found = json.loads((folder / "summary.json").read_text())
    assert found["updates"] / found["updates_per_second"] < pause < found["seconds"]


def test_sigterm_does_not_wait_for_a_compiler(here, capsys, monkeypatch):
    """While compiling the first or the second graph; the run resumes from its last save."""
    folder, whole, compiled = here / "compiler", here / "compiler whole", []

    def slow(steps, *_):
        compiled.append(True)
        if len(compiled) in stops:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("nobody waits for this")
        return steps

    monkeypatch.setattr("offlinerl.agents.base.capture", slow)
    argv = [*KINDS["online"], *length("online", 200), "--compile", "true", "--train.save_every", "1e-9"]
    stops = []
    assert fit(*argv, "--out", whole) == 0 and len(compiled) == 2, "critics alone, and with the actor"
    for third_or_fifth in (3, 5):
        stops.append(third_or_fifth)
        assert fit(*(["--resume", folder] if folder.exists() else [*argv, "--out", folder])) == 143
        assert "interrupted" in capsys.readouterr().err.splitlines()[-1]
    assert fit("--resume", folder) == 0 and same(folder, whole)


def test_sigterm_before_a_run_handles_signals(here, capsys, monkeypatch):
    """The command line handles the signal, after it has printed the run's folder."""

    def late(heard):
        signal.raise_signal(signal.SIGTERM)
        return on_interrupt(heard)

    monkeypatch.setattr("offlinerl.training.loop.on_interrupt", late)
    assert fit(*KINDS["offline"], *length("offline", 200), "--out", here / "early") == 143
    (line,) = capsys.readouterr().err.splitlines()
    assert "interrupted" in line


def test_sigterm_ends_a_collection_that_can_be_resumed(here, capsys, monkeypatch):
    argv = ("collect", "random", "--env", "Pendulum-v1", "--dataset", "pendulum/term-v0", "--episodes", "3")
    with monkeypatch.context() as patch:
        once(patch, Pool, "step")
        assert main(argv) == 143
    (line,) = capsys.readouterr().err.splitlines()
    assert "--resume" in line
    assert main([*argv, "--resume"]) == 0


def test_sigterm_in_other_commands_is_one_sentence_too(here, capsys, monkeypatch):
    once(monkeypatch, Pool, "step")
    assert main(["evaluate", str(here / "offline-whole/last.ckpt"), "--episodes", "1"]) == 143
    assert capsys.readouterr().err.splitlines() == ["offlinerl evaluate: stopped by SIGTERM"]


# Runs that are made longer


def config(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_a_schedule_is_kept_unless_stretching_is_requested(here, capsys):
    folder = here / "decay"
    argv = ("bc", "--dataset", pendulum.ID, "--agent.decay_steps", "updates", *FEW, "--eval-every", 10)
    assert fit(*argv, "--updates", 10, "--out", folder) == 0
    before = checkpoint.read(folder / "last.ckpt")["state_dict"]

    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | dict(settings_tried=12)))  # as a sweep does
    assert fit("--resume", folder, "--updates", 20) == 0
    assert "the learning rates that decay reach 0 after 10 updates as before" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["updates"], summary["settings_tried"]) == (20, 12)
    after = checkpoint.read(folder / "last.ckpt")
    assert after["hyper_parameters"]["decay_steps"] == config(folder)["agent"]["decay_steps"] == 10
    assert all(torch.equal(before[name], after["state_dict"][name]) for name in before), "the rate was at its end"

    assert fit("--resume", folder, "--updates", 30, "--agent.decay_steps", "updates") == 0
    found = checkpoint.read(folder / "last.ckpt")
    assert found["hyper_parameters"]["decay_steps"] == 30
    assert not all(torch.equal(before[name], found["state_dict"][name]) for name in before)
    assert config(folder)["fit"]["extended"] == [
        {"update": 10, "updates": 20}, {"update": 20, "updates": 30, "decay_steps": "updates"},
    ]  # fmt: skip
    assert fit("--config", folder / "config.yaml", "--out", here / "decay again") == 0
    assert "extended" not in config(here / "decay again")["fit"]


def test_each_phase_is_extended_by_its_own_flag(here, capsys):
    folder = here / "phases"
    argv = ("iql", "--dataset", pendulum.ID, *FEW, "--updates", 40, "--eval-every", 20, "--online-steps", 40)
    assert fit(*argv, "--agent.decay_steps", "updates", "--out", folder) == 0
    capsys.readouterr()
    before = (folder / "last.ckpt").read_bytes()
    assert fit("--resume", folder, "--updates", 60) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "past its 40 updates" in line and "--online-steps" in line
    assert (folder / "last.ckpt").read_bytes() == before and config(folder)["train"]["updates"] == 40

    assert fit("--resume", folder, "--online-steps", 60) == 0
    found = json.loads((folder / "summary.json").read_text())
    assert (found["updates"], found["steps"]) == (100, 60)
    assert config(folder)["fit"]["extended"] == [{"update": 80, "online_steps": 60}]
    assert fit("--resume", folder, "--online-steps", 20) == 1
    assert "--online-steps a larger number" in capsys.readouterr().err
    assert fit("--resume", folder, "--steps", 500) == 1
    assert "--updates or --online-steps may be increased" in capsys.readouterr().err
    with pytest.raises(UserError, match="has 60 online steps: give --online-steps a larger number"):
        offlinerl.fit(resume=folder, over=dict(train=dict(online_steps=0)))


def test_a_first_phase_is_not_made_shorter_than_it_is(here, capsys, monkeypatch):
    """Otherwise updates of the first phase would be missing from the second one."""
    folder = here / "shorter"
    argv = ("iql", "--dataset", pendulum.ID, *FEW, "--updates", 40, "--eval-every", 20, "--online-steps", 40)
    with monkeypatch.context() as patch:
        once(patch, Pool, "reset")
        assert fit(*argv, "--out", folder) == 143
    capsys.readouterr()
    assert fit("--resume", folder, "--updates", 10) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "has 20 updates on its dataset already; give --updates a larger number" in line
    assert fit("--resume", folder, "--updates", 20) == 0
    found = json.loads((folder / "summary.json").read_text())
    assert (found["updates"], found["steps"]) == (60, 40)


# Runs that are resumed elsewhere


def test_a_run_finds_its_data_file_from_any_folder_and_after_a_move(here, capsys, monkeypatch):
    file, folder = here / "mine.hdf5", here / "moved"
    assert main(["datasets", "export", pendulum.ID, str(file)]) == 0
    argv = ("bc", "--env", "Pendulum-v1", *FEW, "--updates", 20, "--eval-every", 20)
    assert fit(*argv, "--dataset", "mine.hdf5", "--out", folder) == 0
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert fit("--resume", folder, "--updates", 30) == 0

    file.rename(elsewhere / "renamed.hdf5")
    capsys.readouterr()
    assert fit("--resume", folder, "--updates", 40) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line and "--dataset" in line
    assert fit("--resume", folder, "--updates", 40, "--dataset", "renamed.hdf5") == 0
    assert config(folder)["fit"]["dataset"] == str(elsewhere / "renamed.hdf5")
    assert fit("--resume", folder, "--updates", 50) == 0

    assert fit("--resume", folder, "--updates", 60, "--dataset", pendulum.ID) == 0, "the same rows in another format"
    with h5py.File("renamed.hdf5", "a") as other:
        other["rewards"][3] += 1
    before = (folder / "last.ckpt").read_bytes()
    assert fit("--resume", folder, "--updates", 70, "--dataset", "renamed.hdf5") == 1
    assert "contents differ" in capsys.readouterr().err
    assert (folder / "last.ckpt").read_bytes() == before


def test_resuming_a_finished_run_says_that_nothing_is_left_to_train(here, capsys):
    folder = here / "finished"
    assert fit("bc", "--dataset", pendulum.ID, *FEW, "--eval-every", 10, "--updates", 10, "--out", folder) == 0
    first = json.loads((folder / "summary.json").read_text())["last"]
    assert fit("--resume", folder) == 0
    assert "all 10 updates are done already, and the last policy is evaluated again" in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text())["last"] == first


# Scores of NaN and infinity


@pytest.mark.parametrize(
    "best, now, better",
    [(None, [math.nan], True), ([math.nan], [-5.0], True), ([-5.0], [math.nan], False),
     ([math.nan], [math.nan], False), ([1.0], [2.0], True), ([2.0], [1.0], False),
     # with several seeds, a diverged one hides neither the gain of the others nor its earlier score
     ([1.0, math.nan], [2.0, math.nan], True), ([2.0, math.nan], [1.0, math.nan], False),
     ([1.0, -9.0], [2.0, math.nan], False), ([2.0, math.nan], [1.0, -9.0], True), ([1.0, 3.0], [2.5, 1.0], False)],
)  # fmt: skip
def test_a_score_of_nan_is_the_worst(best, now, better):
    run = SimpleNamespace(best=None if best is None else {"per_seed": best})
    assert Recorder.is_best(run, SimpleNamespace(per_seed=np.array(now))) is better


def test_json_files_have_null_for_nan_and_infinity(tmp_path):
    write_json(tmp_path / "a.json", {"a": [math.nan, 1.5, (-math.inf,)], "b": {"c": np.float64("nan")}, "d": "nan"})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, 1.5, [None]], "b": {"c": None}, "d": "nan"}


@pytest.mark.parametrize("lost", ["renamed", "deleted"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_whose_folder_is_deleted_continues_in_another(kind, lost, here, capsys, monkeypatch):
    folder, away = here / f"{kind} to be {lost}", here / f"{kind} {lost}"
    save, saves = Run.save, []

    def losing(self, *args, **how):
        saves.append(True)
        if len(saves) == 3:
            folder.rename(away)
            if lost == "deleted":
                shutil.rmtree(away, ignore_errors=True)  # a logger may be writing at the same time
        save(self, *args, **how)

    monkeypatch.setattr(Run, "save", losing)
    assert fit(*KINDS[kind], *length(kind, 200), "--out", folder) == 0
    assert f"{folder} was renamed or deleted: the run continues in a new folder" in capsys.readouterr().out
    flag = "--updates" if kind == "offline" else "--steps"
    assert fit("--resume", folder, flag, 250) == 0
    assert json.loads((folder / "summary.json").read_text())["updates" if kind == "offline" else "steps"] == 250


def test_a_start_without_room_for_the_replay_leaves_its_folder_free(here, refused, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    start = ("fit", *KINDS["online"], *length("online", 40), "--train.replay", "disk", "--out", here / "no room")
    with monkeypatch.context() as context:
        context.setattr(os, "posix_fallocate", full)
        assert "give a smaller --train.capacity" in refused(*start)
    assert fit(*start[1:]) == 0


def test_a_deleted_folder_with_the_replay_on_the_disk_ends_the_run(here, refused, monkeypatch):
    folder, away, save, saves = here / "on the disk", here / "on the disk, away", Run.save, []

    def losing(self, *args, **how):
        saves.append(True)
        if len(saves) == 3:
            folder.rename(away)
        save(self, *args, **how)

    monkeypatch.setattr(Run, "save", losing)
    line = refused("fit", *KINDS["online"], *length("online", 200), "--train.replay", "disk", "--out", folder)
    assert f"{folder} was renamed or deleted" in line and line.endswith(f"fit --resume '{folder}'")
    shutil.rmtree(folder, ignore_errors=True)
    away.rename(folder)
    assert fit("--resume", folder) == 0
