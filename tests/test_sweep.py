"""Sweeps: their plans, and what happens to killed runs."""

import json
import math
import sys

import numpy as np
import pendulum
import pytest
import yaml
from pendulum import ID

from offlinerl.cli import main, take_settings
from offlinerl.data import mapping
from offlinerl.evaluation import comparison
from offlinerl.training import sweep
from offlinerl.util.errors import UserError

TRAIN = dict(updates=30, batch=16, eval_every=10, eval_episodes=1, final_episodes=2, compile=False)


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    with pendulum.workplace(tmp_path_factory.mktemp("sweep")) as folder:
        yield folder


@pytest.fixture
def written(tmp_path):
    def write(**plan):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(dict(out=str(tmp_path / "runs")) | plan))
        return path

    return write


def test_every_combination_is_a_run_of_the_agents_that_have_the_setting(written):
    plan = sweep.read(written(
        agents=["xql", "bc"], datasets="kitchen", seeds=[3, 4], each={"agent.beta": [1, 2.5], "agent.lr": [0.1, 0.2]},
        train=TRAIN, agent={"hidden": [8, 8]},
    ))  # fmt: skip
    runs = sweep.planned(plan)
    assert [run.folder.name for run in runs] == [
        *(f"xql-kitchen-beta={beta}-lr={lr}" for beta in (1, 2.5) for lr in (0.1, 0.2)),
        "bc-kitchen-lr=0.1", "bc-kitchen-lr=0.2",
    ]  # fmt: skip
    words = " ".join(runs[1].command()[3:])
    assert words.startswith("fit xql --dataset kitchen --seeds 3,4 --out ")
    for setting in ("--agent.hidden [8, 8]", "--agent.beta 1 ", "--agent.lr 0.2", "--train.updates 30"):
        assert setting in words
    assert words.endswith("--device cpu --threads 1")
    runs[1].folder.mkdir(parents=True)
    (runs[1].folder / "config.yaml").touch()
    resumed = ["fit", "--resume", str(runs[1].folder), "--device", "cpu", "--threads", "1"]
    assert runs[1].command()[3:] == resumed


def test_runs_that_would_share_a_folder_are_refused(written, here, monkeypatch):
    monkeypatch.chdir(here)
    (here / "of").mkdir()
    for name in ("of/log.csv", "of-log.csv"):
        (here / name).write_text("obs,action,reward\n" + "0,0.5,1\n" * 9)
    for datasets in (["of/log.csv", "of-log.csv"], ["kitchen", "kitchen"]):
        plan = sweep.read(written(agents=["bc"], datasets=datasets, train=TRAIN))
        with pytest.raises(UserError, match="two runs would have the folder bc-"):
            sweep.planned(plan)


def test_a_run_with_other_settings_is_not_taken_for_the_planned_one(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dict(agent=dict(lr=0.1), train=dict(TRAIN, table="disk"))))
    sweep.require_same(tmp_path, dict(agent=dict(lr=0.1), train=dict(TRAIN, table="memory", log_every=3)))
    for section, key, value in (("agent", "lr", 0.2), ("train", "final_episodes", 9), ("train", "eval_every", 5)):
        with pytest.raises(UserError, match=f"was started with {key} .*, but {value} is planned"):
            sweep.require_same(tmp_path, {section: {key: value}})


def test_values_are_trained_together_where_possible(written):
    plan = dict(
        agents=["xql", "bc"], datasets="kitchen", together=True, train=TRAIN,
        each={"agent.beta": [1, 2.5], "agent.lr": [0.1, 0.2], "agent.dropout": [0, 0.1]},
    )  # fmt: skip
    runs = sweep.planned(sweep.read(written(**plan)))
    assert [(run.folder.name, run.tried) for run in runs] == [
        *((f"xql-kitchen-dropout={rate}", 8) for rate in (0, 0.1)),
        *((f"bc-kitchen-dropout={rate}", 4) for rate in (0, 0.1)),
    ]  # fmt: skip
    words = " ".join(runs[1].what)
    assert "--agent.dropout 0.1 --agent.beta [1, 2.5] --agent.lr [0.1, 0.2]" in words
    assert "beta" not in " ".join(runs[2].what)


def test_long_values_are_passed_completely(written):
    betas = [round(0.5 + 0.1 * n, 1) for n in range(30)]
    settings = {"beta": betas, "hidden": [16] * 40, "lr": "3e-4", "decay_steps": None}
    each = dict(each={"agent.beta": settings.pop("beta")}, together=True)
    [run] = sweep.planned(sweep.read(written(agents=["xql"], datasets="kitchen", agent=settings, **each)))
    told = take_settings(run.what)[1]["agent"]
    assert told == settings | {"beta": betas}


@pytest.mark.slow
def test_values_trained_together_end_as_if_trained_separately(written, tmp_path):
    plan = dict(
        agents=["xql"], datasets=ID, seeds=[0, 3], each={"agent.beta": [1, 2]}, agent={"hidden": [8, 8]}, train=TRAIN
    )
    found = {}
    for together in (True, False):
        of_plan = sweep.read(written(**plan, together=together))
        of_plan["out"] = str(tmp_path / f"together-{together}")
        for run in sweep.planned(of_plan):
            assert sweep.finish(run) == 0, run.log.read_text()
            for part in comparison.by_value(comparison.read(run.folder)):
                found.setdefault(part.settings["agent.beta"], []).append(part)
    assert sorted(found) == [1.0, 2.0]
    for one, other in found.values():
        assert one.folder != other.folder and one.settings == other.settings
        assert one.summary["seeds"] == other.summary["seeds"] == [0, 3]
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (dict(agents=["bc"], datasets="kitchen", together="yes"), "together must be true or false, not 'yes'"),
        (dict(agents=["bc"]), "datasets, or environments"),
        (
            dict(agents=["sac"], environments=[ID], env=ID),
            "env must name the environment in which policies of datasets",
        ),
        (dict(agents=["bc"], datasets="kitchen", env=[ID]), "evaluated, or none, not ['"),
        (dict(agents="bc", datasets="kitchen", agemt={}), "'agemt'; did you mean agent"),
        (dict(agents=["bcc"], datasets="kitchen"), "did you mean bc"),
        (dict(agents=["bc"], datasets="kitchen", each={"agent.beta": [1]}), "none of the agents has"),
        (dict(agents=["bc"], datasets="kitchen", each={"agent.lr": 1}), "as in agent.beta: [1, 2]"),
        (dict(agents=["bc"], datasets="kitchen", each={"agent.lr": [-1]}), "lr"),
        (dict(agents=["bc"], datasets="kitchen", seeds="2-0"), "as in seeds: 0-2 or seeds: [0, 1, 2], not '2-0'"),
        (dict(agents=["bc"], datasets="kitchen", seeds="0,0"), "must be different whole numbers"),
        (dict(agents=["bc", "xql"], datasets="kitchen", each={"agent.hiden": [[8]]}), "did you mean hidden"),
        (dict(agents=["bc"], datasets="kitchen", each={"train.batsh": [8]}), "train.batsh; did you mean batch"),
        (
            dict(agents=["bc"], datasets="kitchen", each={"lr": [1]}),
            "setting of agent or train, as in agent.beta: [1, ",
        ),
        (dict(agents=["bc"], datasets="kitchen", each={"agent": {"lr": [1]}}), "1, 2], not agent: {'lr': [1]}"),
        (dict(agents=["bc"], datasets="kitchen", each=[{"agent.lr": [1]}]), "1, 2], not each: [{'agent.lr': [1]}]"),
        (dict(agents=["bc"], datasets=[ID, "test/none-v0"]), "dataset test/none-v0 is not installed"),
        (dict(agents=["bc"], datasets=[ID, "hopper-medium"]), "generate it with `offlinerl datasets generate hopper-m"),
        (dict(agents=["bc"], datasets="kitchen", cpus=0), "cpus must be a number of at least 1"),
        (dict(agents=["bc"], datasets="kitchen", cpus=math.inf), "cpus must be a number of at least 1"),
        (dict(agents=["bc"], datasets="kitchen", agent=None), "agent must hold settings"),
        (dict(agents=["bc"], datasets="kitchen", train=5), "as in train: {updates: 20000}, not 5"),
        (dict(agents=["bc"], datasets="kitchen", out=__file__), f"out must name a folder, and {__file__} is a file"),
        (dict(agents=["bc"], datasets="kitchen", out=f"{__file__}/of/it"), f"{__file__} is a file"),
        (dict(agents=["bc"], datasets="kitchen", out=None), "out must name a folder, as in out: runs/sweep, not None"),
    ],
)
def test_mistakes_in_a_file_are_named(written, plan, words):
    with pytest.raises(UserError) as error:
        sweep.planned(sweep.read(written(**plan)))
    assert words in str(error.value)


def test_tables_without_columns_are_named_before_the_first_run(written, tmp_path):
    """Alone and in a folder; with their columns beside them they are planned."""
    (tmp_path / "logs").mkdir()
    for name in ("log.csv", "logs/log.csv"):
        (tmp_path / name).write_text("x,u,r\n" + "0,0.5,1\n" * 9)
    for log in ("log.csv", "logs"):
        plan = sweep.read(written(agents=["bc"], datasets=[ID, str(tmp_path / log)], train=TRAIN))
        with pytest.raises(UserError, match="log.csv: no column is known to hold the observations"):
            sweep.planned(plan)
        mapping.remember(tmp_path / log, dict(obs=["x"], action=["u"], reward=["r"]))
        assert len(sweep.planned(plan)) == 2


@pytest.mark.parametrize(("seeds", "meant"), [("0-2", [0, 1, 2]), ("3,5-6", [3, 5, 6]), (4, [4])])
def test_seeds_are_written_as_for_the_flag(written, seeds, meant):
    assert sweep.read(written(agents=["bc"], datasets=ID, seeds=seeds))["seeds"] == meant


def test_a_file_that_is_not_yaml_is_named_with_the_line(tmp_path):
    (tmp_path / "sweep.yaml").write_text("agents: [bc]\ndatasets: [kitchen\nseeds: 0\n")
    with pytest.raises(UserError, match=r"sweep.yaml is damaged .*it is not YAML, in line 3"):
        sweep.read(tmp_path / "sweep.yaml")


def test_a_changed_plan_does_not_reuse_other_results(written):
    plan = dict(agents=["bc"], datasets=ID, agent={"hidden": [8, 8]}, train=TRAIN)

    def planned(**change):
        return sweep.planned(sweep.read(written(**plan | change)))

    [run] = planned()
    assert main(run.command()[3:]) == 0
    assert [run] == planned() and len(planned(train=TRAIN | dict(save_every=1.0))) == 1
    for change, words in (
        (dict(seeds=[0, 1]), r"seeds \[0\], but \[0, 1\] is planned"),
        (dict(agent={"hidden": [8, 16]}), r"hidden \[8, 8\], but \[8, 16\]"),
        (dict(agent={}), r"hidden \[8, 8\], but \[256, 256\]"),
        (dict(train=TRAIN | dict(updates=40)), "updates 30, but 40 is planned: set another `out`"),
    ):
        with pytest.raises(UserError, match=words):
            planned(**change)


@pytest.mark.parametrize("env", ["none", "Pendulum-v1"])
def test_policies_of_datasets_are_evaluated_where_the_plan_says(written, tmp_path, env):
    [run] = sweep.planned(sweep.read(written(agents="bc", datasets=ID, env=env, train=TRAIN, agent={"hidden": [8]})))
    assert sweep.finish(run) == 0, run.log.read_text()
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["env"] == (None if env == "none" else env)
    assert (summary["last"] is None) == (env == "none")


def test_a_killed_run_is_resumed(tmp_path, monkeypatch):
    """A process that kills itself twice then finishes; one that always kills itself counts as failed."""
    folder, count = tmp_path / "run", tmp_path / "count"
    script = (
        "import os, pathlib; count = pathlib.Path({count!r}); n = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (n + 1)); n < {deaths} and os.kill(os.getpid(), 9)\n"
        "folder = pathlib.Path({folder!r}); folder.mkdir(); (folder / 'summary.json').touch(); print('done')"
    )
    for deaths, status, starts in ((2, 0, 3), (99, -9, 1 + sweep.DEATHS)):
        count.unlink(missing_ok=True)
        code = script.format(count=str(count), deaths=deaths, folder=str(folder))
        monkeypatch.setattr(sweep.Planned, "command", lambda _, code=code: [sys.executable, "-c", code])
        run = sweep.Planned(folder, (), ())
        assert sweep.finish(run) == status
        assert len(count.read_text()) == starts
        if run.finished:
            assert run.log.read_text() == "done\n"
            (folder / "summary.json").unlink()
            folder.rmdir()


def test_a_run_that_ends_with_a_user_error_is_not_tried_again(tmp_path, monkeypatch):
    code = f"open({str(tmp_path / 'n')!r}, 'a').write('x'); print('offlinerl fit: no'); raise SystemExit(1)"
    monkeypatch.setattr(sweep.Planned, "command", lambda _: [sys.executable, "-c", code])
    run = sweep.Planned(tmp_path / "run", (), ())
    assert sweep.finish(run) == 1
    assert (tmp_path / "n").read_text() == "x"
    assert sweep._outcome(run, 1) == "failed: offlinerl fit: no"
