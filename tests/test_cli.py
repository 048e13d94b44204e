"""The command line as a user meets it, on a small task."""

import json
import logging
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pendulum
import pytest
import yaml
from pendulum import rows, summary

import offlinerl
from offlinerl.agents.checkpoint import read
from offlinerl.cli import main
from offlinerl.data.load import load
from offlinerl.training import build as building

TINY = ("--compile", "false", "--updates", 30, "--batch", 16, "--eval-every", 10, "--eval-episodes", 2,
        "--final-episodes", 3, "--agent.hidden", "[16,16]")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """A fresh working directory with the dataset installed, for all tests of the file."""
    with pendulum.workplace(tmp_path_factory.mktemp("cli")) as folder:
        yield folder


@pytest.fixture(scope="module")
def run(here):
    """The folder of a finished run of two seeds."""
    assert offlinerl_(("fit", "xql", "--dataset", pendulum.ID, "--seeds", "0,1", "--out", here / "run", *TINY)) == 0
    return here / "run"


def offlinerl_(argv):
    return main([str(word) for word in argv])


# Training


@pytest.mark.parametrize(
    "words, says",
    [
        ("fit bc kitchen", "offlinerl fit: unexpected argument 'kitchen'; name a dataset with --dataset"),
        ("fit bc --update-s 3", "offlinerl fit: there is no --update-s, but there is --updates;"),
        ("datasets show a b", "offlinerl datasets show: unexpected argument 'b'"),
        ("evaluate runs --dataset a", "offlinerl evaluate: there is no --dataset; see `offlinerl evaluate --help`"),
    ],
)
def test_unknown_arguments_are_reported_by_their_command(words, says, capsys):
    with pytest.raises(SystemExit) as left:
        offlinerl_(words.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and line.startswith(says)


def test_a_run_folder_holds_the_promised_files(run):
    names = {path.name for path in run.iterdir()}
    promised = {"config.yaml", "metrics.csv", "evaluations.csv", "curves.png", "last.ckpt", "best.ckpt", "summary.json"}
    assert promised <= names and any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.startswith(".") for name in names), "something temporary was left"
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")

    of_seed = [row for row in rows(run / "metrics.csv") if row["seed"] == "1"]
    assert [row["update"] for row in of_seed] == ["10", "20", "30"], "the run is shorter than log_every"
    last = of_seed[-1]
    assert {"value_loss", "critic_loss", "actor_loss", "updates_per_second"} <= set(last)


def test_the_summary_of_a_run(run):
    found = summary(run)
    assert {key: found[key] for key in ("agent", "dataset", "env", "seeds", "updates", "steps", "score_kind")} == dict(
        agent="xql", dataset=pendulum.ID, env="Pendulum-v1", seeds=[0, 1], updates=30, steps=0, score_kind="return"
    )
    assert found["updates_per_second"] > 0 and found["seconds"] > 0
    assert found["versions"]["offlinerl"] == offlinerl.__version__ and "torch" in found["versions"]

    table = rows(run / "evaluations.csv")
    assert list(table[0]) == ["update", "seed", "episode", "return", "score", "length", "success"]
    assert [sum(row["update"] == update for row in table) for update in ("10", "20", "30")] == [4, 4, 6]
    assert all(row["length"] == str(pendulum.STEPS) and row["score"] == row["return"] for row in table)

    means = {}  # of every update and seed, from the table
    for row in table:
        means.setdefault(int(row["update"]), {}).setdefault(int(row["seed"]), []).append(float(row["score"]))
    means = {update: [np.mean(scores) for scores in of.values()] for update, of in means.items()}
    assert found["last"]["per_seed"] == pytest.approx(means[30])
    assert found["last"]["mean"] == pytest.approx(np.mean(means[30]))
    assert found["last"]["ci95"][0] < found["last"]["mean"] < found["last"]["ci95"][1]
    best = max(means, key=lambda update: np.mean(means[update]))
    assert found["best"]["update"] == best and found["best"]["per_seed"] == pytest.approx(means[best])
    assert read(run / "best.ckpt")["offlinerl"]["updates"] == best
    assert read(run / "last.ckpt")["offlinerl"]["updates"] == 30


def test_a_run_can_be_run_again_from_its_configuration(run, here):
    assert offlinerl_(("fit", "--config", run / "config.yaml", "--out", here / "again")) == 0
    assert summary(here / "again")["last"] == summary(run)["last"]
    assert (here / "again/evaluations.csv").read_text() == (run / "evaluations.csv").read_text()


def test_a_finished_run_can_be_continued(run, here):
    longer = ("fit", "xql", "--dataset", pendulum.ID, "--seeds", "0,1", *TINY, "--updates", 40)
    assert offlinerl_((*longer, "--out", here / "whole")) == 0

    folder = here / "first"
    assert offlinerl_(("fit", "--config", run / "config.yaml", "--out", folder)) == 0
    assert offlinerl_(("fit", "--resume", folder)) == 0
    assert len(rows(folder / "evaluations.csv")) == 14, "a second final evaluation replaces the first"
    assert offlinerl_(("fit", "--resume", folder, "--updates", 40)) == 0
    assert summary(folder)["last"] == summary(here / "whole")["last"]
    assert summary(folder)["updates"] == 40
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["updates"] == 40
    updates = [row["update"] for row in rows(folder / "evaluations.csv")]
    assert [updates.count(update) for update in ("10", "20", "30", "40")] == [4, 4, 6, 6]
    best = summary(folder)["best"]["update"]
    assert read(folder / "best.ckpt")["offlinerl"]["updates"] == best


@pytest.mark.parametrize(
    "flags, expected",
    [
        (("--agent.beta", "5", "--agent.value-layer-norm=false"), dict(beta=5.0, value_layer_norm=False)),
        (("--agent.lr", "1e-4", "--config", "mine.yaml"), dict(lr=1e-4, clip=5.0, hidden=[32])),
        (("--config", "mine.yaml"), dict(lr=3e-3, clip=5.0, hidden=[32], beta=2.0)),
    ],
)
def test_flags_override_settings_of_files(flags, expected, here, request):
    (here / "mine.yaml").write_text("agent: {lr: 3e-3, clip: 5, hidden: [32]}\ntrain: {eval_every: 3}\n")
    out = here / request.node.name
    fit = ("fit", *flags, "xql", "--dataset", pendulum.ID, "--out", out, "--compile", "false")
    assert offlinerl_((*fit, "--updates", 7, "--final-episodes", 1)) == 0
    used = read(out / "last.ckpt")["hyper_parameters"]
    stated = yaml.safe_load((out / "config.yaml").read_text())
    for key, value in expected.items():
        assert used[key] == value and stated["agent"][key] == value, key
    assert stated["train"]["updates"] == 7 and stated["train"]["eval_every"] == (3 if "mine.yaml" in flags else 10_000)


@pytest.mark.parametrize("agent", ["iql", "bc"])
def test_other_agents_run_too(agent, capsys, here):
    assert offlinerl_(("fit", agent, "--dataset", pendulum.ID, "--out", here / agent, *TINY)) == 0
    assert summary(here / agent)["agent"] == agent
    out, err = capsys.readouterr()
    assert "last, the result" in out and err == ""


def test_a_file_with_its_environment(here):
    assert offlinerl_(("datasets", "export", pendulum.ID, here / "mine.hdf5")) == 0
    fit = ("fit", "bc", "--dataset", here / "mine.hdf5", "--env", "Pendulum-v1", "--out", here / "file", *TINY)
    assert offlinerl_((*fit, "--eval-every", 30, "--final-episodes", 1)) == 0
    assert summary(here / "file")["env"] == "Pendulum-v1" and summary(here / "file")["dataset"] == "mine"


def test_without_out_runs_get_different_folders(here):
    fit = ("fit", "bc", "--dataset", pendulum.ID, *TINY, "--updates", 2, "--final-episodes", 1)
    assert offlinerl_(fit) == offlinerl_(fit) == 0
    assert {path.name for path in (here / "runs").iterdir()} == {"bc-test-pendulum-v0", "bc-test-pendulum-v0-2"}


def meanwhile(monkeypatch, job):
    """Let something happen after the next run has chosen its folder and while it is being built."""
    build = building.build

    def slow(*args):
        monkeypatch.setattr(building, "build", build)
        job()
        return build(*args)

    monkeypatch.setattr(building, "build", slow)


SHORT = ("fit", "bc", "--dataset", pendulum.ID, *TINY, "--updates", 2, "--final-episodes", 1)


def test_runs_that_begin_at_the_same_time_get_different_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    statuses = []
    meanwhile(monkeypatch, lambda: statuses.append(offlinerl_((*SHORT, "--seeds", 1))))
    assert offlinerl_(SHORT) == 0 and statuses == [0]
    seeds = {run.name: summary(run)["seeds"] for run in (tmp_path / "runs").iterdir()}
    assert seeds == {"bc-test-pendulum-v0": [0], "bc-test-pendulum-v0-2": [1]}


def test_a_folder_is_written_by_one_run_at_a_time(tmp_path, monkeypatch, refused):
    mine = tmp_path / "mine"
    mine.mkdir()
    said = []
    meanwhile(monkeypatch, lambda: said.append(refused(*SHORT, "--out", mine)))
    assert offlinerl_((*SHORT, "--out", mine)) == 0
    meanwhile(monkeypatch, lambda: said.append(refused("fit", "--resume", mine)))
    assert offlinerl_(("fit", "--resume", mine, "--updates", 4)) == 0
    assert len(said) == 2 and all(f"{mine} is being written by another run" in line for line in said)
    assert offlinerl_(("fit", "--resume", mine)) == 0 and summary(mine)["updates"] == 4


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for out in ((), ("--out", "new"), ("--out", "mine")):
        with monkeypatch.context() as patch:
            meanwhile(patch, lambda: sys.exit(7))
            with pytest.raises(SystemExit):
                offlinerl_((*SHORT, *out))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "runs"], "an empty one that was there stays"


# Evaluation


def test_a_checkpoint_is_evaluated_without_its_run_or_dataset(run, tmp_path, monkeypatch):
    """In another folder, without the run, the dataset or the working directory."""
    (tmp_path / "alone.ckpt").write_bytes((run / "last.ckpt").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "none"))
    evaluate = ("evaluate", "alone.ckpt", "--episodes", 3)
    for file in ("a.json", "b.json"):
        assert offlinerl_((*evaluate, "--json", file)) == 0
    assert offlinerl_((*evaluate, "--json", "c.json", "--seed", 5)) == 0
    a, b, c = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "abc")
    assert a == b and a["per_seed"] != c["per_seed"]
    assert a["seeds"] == [0, 1] and a["episodes"] == 3 and a["env"] == "Pendulum-v1" and a["updates"] == 30
    assert a["mean"] == pytest.approx(np.mean(a["per_seed"])) == a["mean_return"]
    assert a["mean_length"] == pendulum.STEPS


def test_success_is_left_out_if_the_task_does_not_report_it(run, tmp_path, capsys):
    assert offlinerl_(("evaluate", run / "last.ckpt", "--episodes", 2, "--json", tmp_path / "a.json")) == 0
    assert "mean return" in (said := capsys.readouterr().out) and "success" not in said
    assert json.loads((tmp_path / "a.json").read_text())["success"] is None
    assert {row["success"] for row in rows(run / "evaluations.csv")} == {"nan"}


def test_the_last_evaluation_of_a_run_can_be_repeated(run, tmp_path):
    evaluate = ("evaluate", run / "last.ckpt", "--episodes", 3, "--seed", 1_000_000, "--json", tmp_path / "a.json")
    assert offlinerl_(evaluate) == 0
    assert json.loads((tmp_path / "a.json").read_text())["per_seed"] == summary(run)["last"]["per_seed"]


# Datasets


def test_datasets(here, capsys):
    assert offlinerl_(("datasets", "list")) == 0
    listed = {line.split("\t")[0]: line.split("\t")[1:3] for line in capsys.readouterr().out.splitlines()}
    assert listed[pendulum.ID] == ["minari", "yes"] and listed["hopper-medium-v2"] == ["d4rl", ""]

    assert offlinerl_(("datasets", "show", pendulum.ID, "--png", here / "a.png")) == 0
    out = capsys.readouterr().out
    assert "steps\t200" in out and (here / "a.png").read_bytes().startswith(b"\x89PNG")

    assert offlinerl_(("datasets", "validate", pendulum.ID)) == 0
    assert "nothing wrong" in capsys.readouterr().out

    assert offlinerl_(("datasets", "export", pendulum.ID, here / "out.hdf5")) == 0
    assert offlinerl_(("datasets", "import", here / "out.hdf5", "test/back-v0")) == 0
    first, back = load(pendulum.ID), load("test/back-v0")
    for column in ("obs", "action", "reward", "terminated", "last", "next_obs"):
        assert np.array_equal(getattr(first, column), getattr(back, column)), column

    with h5py.File(here / "out.hdf5", "a") as file:
        file["rewards"][3] = np.nan
    assert offlinerl_(("datasets", "validate", here / "out.hdf5")) == 1
    assert "not finite" in capsys.readouterr().out


# Processes


def test_a_run_prints_plain_lines_and_no_warnings(here):
    fit = ("fit", "xql", "--dataset", pendulum.ID, "--out", here / "process", *TINY)
    process = pendulum.start_afresh(*fit, cwd=here)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and err == ""
    assert "\x1b" not in out and "\r" not in out and "┃" not in out
    assert sum(line.startswith("update ") for line in out.splitlines()) == 3


def test_ctrl_c_saves_and_says_how_to_resume(here):
    out = here / "stopped"
    fit = ("fit", "xql", "--dataset", pendulum.ID, "--out", out, *TINY, "--agent.hidden", "[16]")
    process = pendulum.start(*fit, "--updates", 50_000, "--eval-every", 50_000, cwd=here)
    deadline = time.monotonic() + 100
    while not (out / "metrics.csv").exists():  # the first row is written in mid-training
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    (line,) = err.splitlines()
    assert process.returncode == 1
    assert f"offlinerl fit --resume {out}" in line and "interrupted after" in line

    done = read(out / "last.ckpt")["offlinerl"]["updates"]
    assert 500 <= done < 50_000 and not (out / "summary.json").exists()
    assert offlinerl_(("fit", "--resume", out, "--updates", done + 50)) == 0
    assert summary(out)["updates"] == done + 50


def test_a_second_ctrl_c_stops_at_once(here, capsys, monkeypatch):
    def press(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("offlinerl.training.loop.Run.on_train_batch_end", press)
    level = logging.getLogger("lightning.pytorch").level
    assert offlinerl_(("fit", "bc", "--dataset", pendulum.ID, "--out", here / "twice", *TINY)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "interrupted at once" in line and f"resume with: offlinerl fit --resume {here / 'twice'}" in line
    assert not (here / "twice" / "last.ckpt").exists()
    assert logging.getLogger("lightning.pytorch").level == level  # it speaks again, in a notebook say


def test_help_imports_neither_torch_nor_numpy():
    code = "import sys; from offlinerl import cli; cli.parser(); print({'torch', 'numpy'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
