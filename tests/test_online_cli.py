"""``offlinerl fit`` of agents that learn by acting, and fine-tuning, as a user meets them."""

import json
import shutil
import signal
import time

import numpy as np
import pendulum
import pytest
from pendulum import differing, fit, rows, summary

from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.agents.checkpoint import read
from offlinerl.cli import main
from offlinerl.data import load, registry, rewards

TINY = ("--compile", "false", "--batch", 16, "--eval-every", 250, "--eval-episodes", 1, "--final-episodes", 2,
        "--agent.hidden", "[16,16]")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    with pendulum.workplace(tmp_path_factory.mktemp("online")) as folder:
        (folder / "warm.yaml").write_text("train: {warm_up: 100, envs: 2}\n")
        (folder / "few.yaml").write_text("train: {eval_episodes: 1, final_episodes: 2}\n")
        (folder / "envs.yaml").write_text("train: {envs: 2}\n")
        yield folder


def kill_once_saved(like, folder):
    """Start a run with the configuration of another, and kill it after its first save."""
    process = pendulum.start("fit", "--config", like / "config.yaml", "--out", folder, cwd=folder.parent)
    began = time.monotonic()
    while not (folder / "last.ckpt").exists() and process.poll() is None and time.monotonic() - began < 120:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def run(here):
    folder = here / "run"
    argv = ("td3", "--env", "Pendulum-v1", "--seeds", "0,1", "--steps", 750, "--config", here / "warm.yaml", *TINY)
    assert fit(*argv, "--agent.exploration", "ou", "--out", folder) == 0
    return folder


def test_an_online_run_counts_steps(run):
    found = summary(run)
    assert (found["steps"], found["updates"], found["dataset"], found["env"]) == (750, 650, None, "Pendulum-v1")
    assert found["steps_per_second"] > 0 and found["score_kind"] == "return"
    table = rows(run / "evaluations.csv")
    assert [sum(row["step"] == step for row in table) for step in ("250", "500", "750")] == [2, 2, 4]
    last = rows(run / "metrics.csv")[-1]
    assert (
        last["step"] == "750"
        and last["update"] == "650"
        and {"critic_loss", "actor_loss", "episode_return"} <= set(last)
    )
    assert -2000 < float(last["episode_return"]) < 0 and float(last["episode_length"]) == 200
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_is_the_one_that_never_stopped(run, here):
    """Resumed in the middle of an episode of both environments of both seeds: 500 steps are 250 of each."""
    folder = here / "half"
    assert fit("--config", run / "config.yaml", "--steps", 500, "--out", folder) == 0
    assert len(list(folder.glob("replay-*.pt"))) == 1
    assert fit("--resume", folder, "--steps", 750) == 0
    assert not differing(folder, run)
    assert summary(folder)["last"] == summary(run)["last"]


def test_a_replay_is_written_once_for_an_evaluation(here, monkeypatch):
    """Before it, because an evaluation may be interrupted, and not again after it."""
    written, write = [], checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda state, path: written.append(path.name) or write(state, path))
    argv = ("td3", "--env", "Pendulum-v1", "--steps", 500, "--config", here / "warm.yaml", *TINY)
    assert fit(*argv, "--out", here / "written") == 0
    assert [name for name in written if name.startswith("replay")] == ["replay-250.pt", "replay-500.pt"]
    assert [path.name for path in (here / "written").glob("replay-*.pt")] == ["replay-500.pt"]


def test_a_killed_run_resumes_from_its_last_save(run, here):
    folder = here / "killed"
    kill_once_saved(run, folder)
    assert fit("--resume", folder) == 0
    assert not differing(folder, run)


def test_an_empty_table_is_started_again(run, here):
    """A run leaves such a table if it is killed between creating the file and writing to it."""
    folder = here / "empty"
    shutil.copytree(run, folder)
    (folder / "evaluations.csv").write_text("")
    assert fit("--resume", folder) == 0
    assert [row["step"] for row in rows(folder / "evaluations.csv")] == ["750"] * 4


def test_a_schedule_over_the_whole_run_counts_updates(here):
    folder = here / "decay"
    argv = ("dqn", "--env", "CartPole-v1", "--steps", 500, "--config", here / "warm.yaml", *TINY)
    assert fit(*argv, "--agent.decay_steps", "updates", "--out", folder) == 0
    saved = read(folder / "last.ckpt")
    assert saved["hyper_parameters"]["decay_steps"] == saved["offlinerl"]["updates"]  # there are none in the warm-up


def test_an_agent_that_gives_no_priorities_is_named(here, capsys):
    argv = ("iql", "--env", "Pendulum-v1", "--steps", 20, "--train.warm_up", 5, *TINY, "--train.prioritized", "true")
    assert fit(*argv, "--out", here / "unweighted") == 1
    assert "IQL returns no priorities: leave out --train.prioritized" in capsys.readouterr().err


def test_a_lost_replay_is_named(run, here, capsys):
    folder = here / "lost"
    shutil.copytree(run, folder)
    (replay,) = folder.glob("replay-*.pt")
    replay.write_bytes(replay.read_bytes()[:1000])
    assert fit("--resume", folder, "--steps", 1000) == 1
    error = capsys.readouterr().err
    assert replay.name in error and error.count("\n") == 1


def test_the_policy_needs_only_its_checkpoint(run, here):
    found = here / "evaluation.json"
    assert main(["evaluate", str(run / "last.ckpt"), "--episodes", "2", "--json", str(found)]) == 0
    assert json.loads(found.read_text())["env"] == "Pendulum-v1"


def test_runs_of_one_environment_are_compared(run, here, capsys):
    other = here / "sac"
    argv = ("sac", "--env", "Pendulum-v1", "--steps", 500, "--config", here / "warm.yaml", *TINY, "--out", other)
    assert fit(*argv) == 0
    capsys.readouterr()
    assert main(["report", str(run), str(other), "--out", str(here / "report")]) == 0
    text = (here / "report/report.md").read_text()
    assert "Pendulum-v1" in text and "750 steps" in text and "500 steps" in text
    picture = "pictures/Pendulum-v1-return-steps.png"
    assert f"![return over steps]({picture})" in text and (here / "report" / picture).exists()


def test_wrong_commands_say_what_to_do(here, capsys):
    for argv, says in (
        (("is_reinforce", "--env", "Pendulum-v1"), "learns from whole episodes of a dataset: give --dataset"),
        (("ppo", "--env", "CartPole-v1", "--train.precision", "bf16"), "in ppo would start from rounding errors"),
        (("td3", "--env", "Pendulum-v2"), "Pendulum-v1"),
        (("td3", "--env", "CartPole-v1"), "dqn"),
        (("td3", "--env", "Pendulum-v1", "--agent.exploration", "white"), "gaussian"),
        (("td3", "--env", "Pendulum-v1", "--steps", 501, "--config", here / "warm.yaml"), "multiple of 2"),
        (("ppo", "--dataset", pendulum.ID), "ppo learns from rollouts of its own: give --env instead of --dataset"),
        (("is_reinforce", "--dataset", pendulum.ID, "--online-steps", 5), "no setting 'online_steps'"),
        (("ppo", "--env", "Pendulum-v1", "--batch", 25, "--config", here / "envs.yaml"), "multiple of envs"),
        (("reinforce", "--env", "CartPole-v1", "--agent.baseline", "mean"), "average"),
        (("trpo", "--env", "CartPole-v1", "--config", here / "warm.yaml"), "warm_up"),
    ):
        assert fit(*argv, "--out", here / "wrong") == 1, argv
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
    assert not (here / "wrong").exists()


# On-policy


@pytest.fixture(scope="module")
def rolled(here):
    folder = here / "rolled"
    argv = ("ppo", "--env", "Pendulum-v1", "--seeds", "0,1", "--steps", 700, *TINY, "--batch", 150)
    more = ("--agent.normalize_obs", "true", "--agent.normalize_reward", "true", "--agent.decay_steps", "null")
    assert fit(*argv, *more, "--config", here / "envs.yaml", "--out", folder) == 0
    return folder


def test_an_on_policy_run_counts_steps_in_whole_rollouts(rolled):
    found = summary(rolled)
    assert (found["steps"], found["clock"]) == (750, "steps")
    assert found["updates"] == 5 * 10 * 2, "ten passes in two minibatches of 64 for each rollout"
    table = rows(rolled / "evaluations.csv")
    assert [sum(row["step"] == step for row in table) for step in ("300", "600", "750")] == [2, 2, 4]
    assert {"policy_loss", "value_loss", "kl", "entropy", "explained_variance"} <= set(rows(rolled / "metrics.csv")[-1])
    assert not list(rolled.glob("replay-*.pt"))


def test_a_resumed_on_policy_run_is_the_one_that_never_stopped(rolled, here):
    """Resumed in the middle of an episode of both environments of both seeds, with running moments and returns."""
    folder = here / "rolled-half"
    assert fit("--config", rolled / "config.yaml", "--steps", 450, "--out", folder) == 0
    assert fit("--resume", folder, "--steps", 700) == 0
    assert not differing(folder, rolled)
    assert summary(folder)["last"] == summary(rolled)["last"]


def test_a_killed_on_policy_run_resumes_from_its_last_save(rolled, here):
    folder = here / "rolled-killed"
    kill_once_saved(rolled, folder)
    assert fit("--resume", folder) == 0
    assert not differing(folder, rolled)


def test_an_on_policy_agent_collects(here):
    argv = ("collect", "a2c", "--env", "CartPole-v1", "--dataset", "cartpole/a2c-v0", "--steps", 400, "--batch", 80)
    few = ("--eval-every", 200, "--compile", "false", "--config", here / "few.yaml")
    assert main([*map(str, (*argv, *few)), "--out", str(here / "collecting")]) == 0
    data = load.load("cartpole/a2c-v0")
    assert len(data) == 400 and set(np.unique(data.action)) == {0.0, 1.0}
    argv = ("is_reinforce", "--dataset", "cartpole/a2c-v0", "--updates", 20, *TINY, "--agent.behavior_updates", 10)
    assert fit(*argv, "--eval-every", 20, "--out", here / "off-policy") == 0
    last = rows(here / "off-policy/metrics.csv")[-1]
    assert 1 <= float(last["effective_episodes"]) <= 16


# Fine-tuning


@pytest.fixture(scope="module")
def tuned(here):
    folder = here / "tuned"
    argv = ("xql", "--dataset", pendulum.ID, "--updates", 60, "--online-steps", 90, *TINY)
    assert fit(*argv, "--eval-every", 40, "--out", folder) == 0
    return folder


def test_fine_tuning_continues_in_the_environment(tuned):
    found = summary(tuned)
    assert (found["updates"], found["steps"]) == (150, 90)
    table = rows(tuned / "evaluations.csv")
    assert [(row["update"], row["step"]) for row in table] == [("40", "0"), *[("60", "0")] * 2, *[("150", "90")] * 2]
    at_switch = [float(row["score"]) for row in table if row["update"] == "60"]
    assert found["offline"]["mean"] == pytest.approx(np.mean(at_switch))


def test_fine_tuning_resumes_to_the_bit(tuned, here):
    folder = here / "tuned-again"
    kill_once_saved(tuned, folder)
    assert fit("--resume", folder) == 0
    assert not differing(folder, tuned)
    assert summary(folder)["offline"] == summary(tuned)["offline"]


def test_returns_to_go_resume_in_the_middle_of_fine_tuning(here, monkeypatch):
    argv = ("calql", "--dataset", pendulum.ID, "--updates", 20, "--online-steps", 60, *TINY, "--agent.samples", 2)
    argv += ("--train.old_share", 0.5)
    assert fit(*argv, "--out", here / "calibrated") == 0
    known = []
    learn = Agent.learn

    def learning(self, block):
        known.append(block.to_go.isfinite())
        if self.updates == 70:
            signal.raise_signal(signal.SIGTERM)
        return learn(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(Agent, "learn", learning)
        assert fit(*argv, "--out", here / "calibrated-again") == 143
    early, late = known[1], known[-1]  # of a dataset's rows first, and then those of an episode that has not ended
    assert early[..., :8].all() and not early[..., 8:].any()
    assert 0.3 < late[..., 8:].float().mean() < 1 and late[..., :8].all()
    assert fit("--resume", here / "calibrated-again") == 0
    assert not differing(here / "calibrated-again", here / "calibrated")
    assert all(np.isfinite(float(row["to_go"])) for row in rows(here / "calibrated" / "metrics.csv"))


def test_the_offline_part_equals_a_training_on_the_dataset(tuned, here):
    folder = here / "offline"
    argv = ("xql", "--dataset", pendulum.ID, "--updates", 60, "--agent.decay_steps", "null", *TINY)
    assert fit(*argv, "--eval-every", 40, "--out", folder) == 0
    assert summary(folder)["last"]["per_seed"] == summary(tuned)["offline"]["per_seed"]


def test_the_datasets_reward_rule_applies_online_too():
    paid, total = np.float32([1, 0, 2]), np.float32([3, 2, 5])
    raw = load.load(pendulum.ID, reward="none")
    entry = registry.resolve(pendulum.ID)
    from dataclasses import replace

    def online(**fields):
        return rewards.online_reward(replace(entry, **fields), raw)(paid, total).tolist()

    assert online(reward="none") == [1, 0, 2]
    assert online(reward="minus_one") == [0, -1, 1]
    assert online(reward="hundredfold") == [100, 0, 200]
    assert online(reward="count") == [3, 2, 5]
    assert online(reward="none", score=dict(min=0, max=4, data="counts")) == [3, 2, 5]
    assert online(reward="hundredfold", score=dict(min=0, max=4, data="counts")) == [300, 200, 500]
    factor = 1000 / np.ptp(raw.episode_returns)
    assert online(reward="scale_by_return_range") == pytest.approx([factor, 0, 2 * factor])
    scaled = rewards.with_reward(raw, "scale_by_return_range")
    assert scaled.reward[0] == pytest.approx(raw.reward[0] * factor)
