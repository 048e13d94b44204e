"""Unusual names and numbers, and unusual terminals and machines."""

import json
import math
import os
import subprocess
import sys

import h5py
import numpy as np
import pendulum
import pytest
from pendulum import empty_workplace
from rich.console import Console

from offlinerl import agents
from offlinerl.cli import main
from offlinerl.evaluation import plots
from offlinerl.util.display import PLAIN, Display, between, listed, places, shown, table
from offlinerl.util.settings import described, settings_of

FEW = ("--updates", 20, "--eval-every", 20, "--eval-episodes", 1, "--final-episodes", 1, "--compile", "false")
NAMES = [
    "data[bold]x[red]",
    "data[",
    "[",
    ":smile:",
    "käse",
    "データ",
    "a$_$b",
    "$",
    "_hidden",
    "100%",
    "a b'c\"d",
    "é" * 60,
]


@pytest.fixture(autouse=True)
def here(tmp_path):
    with empty_workplace(tmp_path):
        yield tmp_path


def dataset(path, rows=40):
    rng = np.random.default_rng(0)
    with h5py.File(os.fsencode(path), "w") as file:
        file["observations"] = rng.normal(size=(rows, 3)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
        file["rewards"] = rng.normal(size=rows).astype(np.float32)
        file["terminals"] = np.zeros(rows, bool)
        file["timeouts"] = np.arange(rows) % 20 == 19
    return path


def run(*argv):
    return main([str(word) for word in argv])


# Names


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name, here, capsys):
    file = dataset(here / f"{name}.hdf5")
    assert run("fit", "bc", "--dataset", file, "--env", "Pendulum-v1", *FEW, "--out", here / name) == 0
    out = capsys.readouterr().out
    assert f"{name}: " in out and f"into {here / name}" in out and f"bc on {name}: return" in out
    for argv in (
        ("datasets", "show", file, "--png", here / f"{name}.png"),
        ("datasets", "validate", file),
        ("report", here / name, "--out", here / f"{name} out"),
        ("evaluate", here / name, "--episodes", 1),
    ):
        assert run(*argv) in (0, 1), argv
        out, err = capsys.readouterr()
        assert err == "" and (argv[0] == "evaluate" or name in out), argv
    assert run("datasets", "show", here / name / "absent.hdf5") == 1
    assert str(here / name / "absent.hdf5") in capsys.readouterr().err


def ascii_alone(lines, **settings):
    """Runs command lines one after another on a terminal that supports no other letters."""
    code = "import sys; from offlinerl.cli import main; sys.exit(max(main(a.split()) for a in sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *lines], capture_output=True, env={**os.environ, "LC_ALL": "C", **settings}
    )
    assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    assert done.stdout.isascii() and done.stderr.isascii()


LOOKS = ["datasets show käse.hdf5", "datasets show nö.hdf5", "fit bc --dataset nö"]


@pytest.mark.slow
def test_a_terminal_that_supports_only_ascii(here):
    dataset(here / "käse.hdf5")
    dataset(os.fsdecode(b"bad\xff.hdf5"))
    few = " ".join(map(str, FEW))
    lines = [f"fit bc --dataset {file} --env Pendulum-v1 --out {out} {few}"
             for file, out in (("käse.hdf5", "a"), (os.fsdecode(b"bad\xff.hdf5"), "b"))]  # fmt: skip
    ascii_alone([*lines, "report a b --out out", *LOOKS], PYTHONIOENCODING="ascii")
    assert (here / "b" / "summary.json").is_file() and (here / "out" / "report.md").is_file()


def test_a_machine_that_supports_only_ascii(here):
    dataset(here / "käse.hdf5")
    ascii_alone(LOOKS, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")


def test_a_folder_name_that_is_not_utf_8_is_refused(here, capsys):
    file = dataset(here / "a.hdf5")
    out = os.fsdecode(b"bad\xff")
    assert run("fit", "bc", "--dataset", file, "--env", "Pendulum-v1", *FEW, "--out", out) == 1
    assert "not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [("datasets", "list"), ("fit", "bc", "--dataset", "some"), ("datasets", "show", "a/b-v0")]
)
def test_a_machine_without_a_home_folder(argv, capsys, monkeypatch):
    monkeypatch.delenv("OFFLINERL_HOME")
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert run(*argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no home folder" in line and "OFFLINERL_HOME" in line or "MINARI_DATASETS_PATH" in line


def test_a_file_is_read_without_a_home_folder(here, capsys, monkeypatch):
    monkeypatch.delenv("OFFLINERL_HOME")
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    file = dataset(here / "a.hdf5")
    assert run("fit", "bc", "--dataset", file, "--env", "Pendulum-v1", *FEW, "--out", "run") == 0


def test_a_terminal_shows_names_in_tables_as_they_are(capsys):
    framed = Console(file=sys.stdout, force_terminal=True, width=100, color_system=None, **PLAIN)
    table(framed, "a[bold]b[red]", ("run", "agent"), [("[x] :smile:", "y[0]")])
    out = capsys.readouterr().out
    assert "a[bold]b[red]" in out and "[x] :smile:" in out and "y[0]" in out


# Numbers


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.4, 0.6), "0.50 0.40 to 0.60"),
        ((0.46, 0.54), "0.500 0.460 to 0.540"),
        ((0.4996, 0.5004), "0.50000 0.49960 to 0.50040"),
        ((45.0, 55.0), "50.0 45.0 to 55.0"),
        ((49.6, 50.4), "50.00 49.60 to 50.40"),
        ((-1200.0, -900.0), "-1050.0 -1200.0 to -900.0"),
        ((0.5, 0.5), "0.50 0.50 to 0.50"),
        ((0.0, 0.0), "0.0 0.0 to 0.0"),
        ((3.0, 3.0), "3.0 3.0 to 3.0"),
        ((1e-30, 2e-30), "0.000000000 0.000000000 to 0.000000000"),
    ],
)
def test_scores_have_as_many_digits_as_their_interval_needs(interval, expected):
    decimals = places(*interval)
    assert f"{shown(sum(interval) / 2, decimals)} {between(interval, decimals)}" == expected


def test_missing_and_infinite_scores_are_shown():
    assert places(math.nan, math.nan) == places(None, None) == places(math.inf) == 1
    assert shown(None) == shown(math.nan) == "nan" and listed([0.5, None], 2) == "0.50 nan"


def small_scores(folder, scores):
    """A finished run with scores near 0.5."""
    folder.mkdir()
    rows = [f"20,{s},{i},{x},{x},10,0" for s, seed in enumerate(scores) for i, x in enumerate(seed)]
    (folder / "evaluations.csv").write_text("\n".join(["update,seed,episode,return,score,length,success", *rows, ""]))
    mean, per_seed = float(np.mean(scores)), np.mean(scores, 1).tolist()
    last = dict(mean=mean, ci95=[mean - 0.03, mean + 0.03], per_seed=per_seed, episodes=len(scores[0]))
    summary = dict(
        agent="bc", dataset="d", env="E", seeds=[0, 1], updates=20, clock="updates", score_kind="return", last=last,
        best=dict(mean=mean, per_seed=per_seed, update=20), dataset_score=0.47, updates_per_second=1.0, seconds=1.0,
    )  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


def test_small_scores_have_enough_digits_everywhere(here, capsys, monkeypatch):
    scores = 0.5 + 0.05 * np.random.default_rng(0).normal(size=(2, 20))
    mean = scores.mean()
    summary = small_scores(here / "small", scores)
    Display().summary(summary, here / "small")
    results = dict(summary, **summary["last"], mean_return=mean, mean_length=10, success=None)
    Display().evaluation(results)
    assert run("report", here / "small") == 0
    lines = capsys.readouterr().out.splitlines()
    for begin in ("last, the result", "best, at 20", "all", "small "):
        (line,) = [line for line in lines if line.startswith(begin)]
        assert f"{mean:.3f}" in line, line
    for seed in scores.mean(1):
        assert sum(f"{seed:.3f}" in line for line in lines) == 4
    assert sum("0.470" in line for line in lines) == 2, "the data's average, in the table and in the note"
    labels = []
    monkeypatch.setattr("matplotlib.figure.Figure.legend", lambda self, handles, names, **more: labels.extend(names))
    plots.curves(here / "small", here / "curves.png")
    assert any(f"last {mean:.3f} [{mean - 0.03:.3f}, {mean + 0.03:.3f}]" in label for label in labels)


# Before anything heavy is loaded


WITHOUT_TORCH = """
import sys, time
class Never:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "lightning", "matplotlib"):
            raise RuntimeError(f"{name} was imported")
sys.meta_path.insert(0, Never())
from offlinerl.cli import main
for argv in sys.argv[1:]:
    try:
        print(main(argv.split()))
    except SystemExit as leaving:
        print(leaving.code)
"""


def without_torch(*lines):
    """The exit statuses and messages of command lines that must end before torch is imported."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *lines], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_mistakes_are_reported_before_torch_is_imported(here):
    dataset(here / "a.hdf5")
    (here / "junk").mkdir()
    (here / "bad.yaml").write_text("agent: {learning_rate: 1}")
    wrong = {
        "fit": 2,
        "fit xql": 2,
        "fit xql --dataset kitchen --updates 0": 2,
        "fit xql --dataset kitchen --updates many": 2,
        "fit xql --dataset kitchen --epochs 3": 2,
        "fit xqll --dataset kitchen": 1,
        "fit xql --dataset ktchen": 1,
        "fit xql --dataset absent.hdf5": 1,
        "fit xql --dataset a.hdf5 --env Pendulum-v9": 1,
        "fit xql --dataset kitchen --agent.lrr 1": 1,
        "fit xql --dataset kitchen --agent.lr -1": 1,
        "fit xql --dataset kitchen --agent.hidden big": 1,
        "fit xql --dataset kitchen --config bad.yaml": 1,
        "fit xql --dataset kitchen --config absent.yaml": 1,
        "fit is_reinforce --env Pendulum-v1": 1,
        "fit ppo --dataset kitchen": 1,
        "fit td3 --env Pendulum-v9": 1,
        "fit td3 --env Pendulum-v1 --agent.normalize true": 1,
        "fit ppo --env Pendulum-v1 --agent.clipp 0.1": 1,
        "fit ddpg --env Pendulum-v1 --agent.policy_delay 2": 1,
        "fit xql --dataset kitchen --out junk/../a.hdf5": 1,
        "fit --resume junk": 1,
        "collect random --env Pendulum-v1 --dataset a/b-v0": 2,
        "collect randm --env Pendulum-v1 --dataset a/b-v0 --steps 1": 1,
        "collect td3 --env Pendulum-v1 --dataset a/b-v0 --episodes 1": 2,
        "collect td3 --env Pendulum-v1 --dataset a/b-v0 --steps 1 --agent.lrr 1": 1,
        "collect random --env Pendulum-v9 --dataset a/b-v0 --steps 1": 1,
        "collect junk --env Pendulum-v1 --dataset a/b-v0 --steps 1": 1,
        "evaluate absent.ckpt": 1,
        "evaluate junk": 1,
        "evaluate a.hdf5 --env Pendulum-v9": 1,
        "datasets show ktchen": 1,
        "datasets export ktchen a.hdf5": 1,
        "benchmark xqll": 1,
    }
    statuses, said = without_torch(*wrong)
    assert dict(zip(wrong, map(int, statuses), strict=True)) == wrong
    assert len(said) == len(wrong), "each is one sentence"


def test_listing_datasets_does_not_import_torch():
    statuses, said = without_torch("datasets list", "--version")
    assert statuses[-1] == "0" and not said and any(line.startswith("kitchen\t") for line in statuses)


@pytest.mark.parametrize("name", agents.names())
def test_the_outline_of_an_agent_equals_its_class(name):
    stated, found = agents.outline(name), agents.get(name)
    assert list(described(stated.config_class)) == list(described(found.config_class))
    for name, setting in settings_of(found.config_class).items():
        known = settings_of(stated.config_class)[name]
        assert (setting.default, dict(setting.metadata)) == (known.default, dict(known.metadata))
        assert setting.metadata["help"], name
    for attribute in ("kinds", "discrete"):
        assert getattr(stated, attribute) == getattr(found, attribute)


AS_SCRIPT = """
import os, runpy, sys
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_script_finds_a_module_in_the_current_folder(here):
    """Like ``python -m offlinerl``, although the installed script has another first folder on its path."""
    (here / "mine.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=5)\n"
    )
    script = here / "bin" / "offlinerl"
    script.parent.mkdir()
    script.write_text("import sys\nfrom offlinerl.cli import main\nsys.exit(main())\n")
    argv = ("collect", "random", "--env", "mine:Mine-v0", "--dataset", "mine/random-v0", "--episodes", "2")
    process = pendulum.start_python(AS_SCRIPT, script, *argv)
    err = process.communicate(timeout=100)[1]
    assert process.returncode == 0, err
