"""Comparing finished runs by their files."""

import csv
import html
import itertools
import json
import re
import shutil
import subprocess
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as imageio
import numpy as np
import pytest
import yaml
from pendulum import empty_workplace
from scipy.stats import trim_mean

import offlinerl
from offlinerl.cli import main
from offlinerl.evaluation import comparison, comparison_plots, plots, tables
from offlinerl.evaluation.comparison import Finished, Group, Row, by_value, find, groups_of, overall_of, read
from offlinerl.evaluation.findings import CHANCE, of_group, of_overall
from offlinerl.evaluation.report import outcome
from offlinerl.evaluation.statistics import (
    chance_of_improvement,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)
from offlinerl.training import sweep
from offlinerl.util.figures import line_of


def finished(
    folder, agent="xql", dataset="kitchen", level=70.0, seeds=3, evaluations=6, losses=6, kind="normalized",
    settings=None, first_seed=0, **more
):  # fmt: skip
    """A run's folder as after a training, with scores that rise to a level."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(zlib.crc32(f"{agent} {level} {first_seed}".encode()))
    if settings is not None:
        about = dict(agent=agent, dataset=dataset, env=None, seeds=list(range(first_seed, first_seed + seeds)))
        train = dict(updates=2500 * evaluations, logger="csv", save_every=float(first_seed))
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(fit=about, agent=settings, train=train)))
    rows, last = [], None
    for number in range(1, evaluations + 1):
        episodes = 50 if number == evaluations else 10
        centre = level * (1 - np.exp(-number / 1.5)) + rng.normal(0, 4, seeds)
        last = np.clip(25 * np.round((centre[:, None] + rng.normal(0, 15, (seeds, episodes))) / 25), 0, 100)
        rows += [
            {"update": 2500 * number, "seed": first_seed + s, "episode": i, "return": score / 25, "score": score,
             "length": 280, "success": 0}
            for s in range(seeds)
            for i, score in enumerate(last[s])
        ]  # fmt: skip
    write(folder / "evaluations.csv", rows)
    names = ["actor_loss"] if agent == "bc" else ["value_loss", "actor_loss", "critic_loss"]
    points = np.linspace(500, 2500 * evaluations, losses) if losses > 1 else [500]
    write(
        folder / "metrics.csv",
        [dict(update=int(u), seed=first_seed + s, **{name: 1 / (1 + u / 5000) + rng.normal(0, 0.02) for name in names})
         for u in points for s in range(seeds)],
    )  # fmt: skip
    mean = float(last.mean())
    summary = dict(
        agent=agent, dataset=dataset, env=more.pop("env", "Kitchen"), seeds=list(range(first_seed, first_seed + seeds)),
        updates=2500 * evaluations,
        score_kind=kind, dataset_score=more.pop("dataset_score", 51.9 if kind == "normalized" else None),
        last=dict(mean=mean, ci95=[mean - 4, mean + 4], per_seed=last.mean(-1).tolist(), episodes=50),
        best=dict(mean=mean + 3, per_seed=last.mean(-1).tolist(), update=2500), **more,
    )  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_only_the_last_policy_is_the_result(tmp_path):
    run = finished(tmp_path / "a")
    found = read(run)
    assert found.scores.shape == (3, 50)
    summary = json.loads((run / "summary.json").read_text())
    assert found.scores.mean() == pytest.approx(summary["last"]["mean"])
    assert found.scores.mean(-1).tolist() == pytest.approx(summary["last"]["per_seed"])


def test_runs_are_grouped_by_dataset(tmp_path, capsys, fine_pictures):
    runs = [
        finished(tmp_path / "xql-kitchen"),
        finished(tmp_path / "bc-kitchen", "bc", level=40),
        finished(tmp_path / "pendulum", dataset="test/pendulum-v0", seeds=1, kind="return"),
    ]
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    kitchen, pendulum = out.split("test/pendulum-v0: return")
    assert "kitchen: normalised score" in kitchen and "xql comes first with a mean of" in kitchen
    assert "The average episode of the dataset scores 51.9." in kitchen and "average" not in pendulum
    scores = read(runs[0]).scores
    (line,) = [line for line in kitchen.splitlines() if line.startswith("xql-kitchen")]
    assert f"{scores.mean():.1f}" in line and " ".join(f"{s:.1f}" for s in scores.mean(-1)) in line and "2,500" in line

    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    stems = "kitchen-normalized", "test-pendulum-v0-return"
    pictures = {f"pictures/{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf", "svg")}
    latex = {"tables/kitchen-normalized-improvement.tex"} | {f"tables/{stem}.tex" for stem in stems}
    numbers = {f"tables/{name}.csv" for name in ("scores", "improvement", "curves")}
    assert files == {"report.md", "report.html"} | pictures | latex | numbers
    for name in pictures:
        begins = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[name[-3:]]
        assert (tmp_path / "out" / name).read_bytes().startswith(begins)
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(f"](pictures/{stem}.png)" in text for stem in stems)
    (row,) = [line for line in text.splitlines() if line.startswith("| bc-kitchen")]
    assert row.count("|") == 11 and f"| {read(runs[1]).scores.mean():.1f} |" in row


def task(env="Kitchen", limit=280, **kwargs):
    return dict(env=dict(id=env, kwargs=kwargs, max_episode_steps=limit, wrappers=[]), obs_keys=None, score=None)


def data(sha256="ab" * 32, rows=400):
    return dict(rows=rows, episodes=2, sha256=sha256)


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (dict(env="Pendulum-v1"), dict(env="Hopper-v4"), "in Hopper-v4"),
        (dict(task=task()), dict(task=task(tasks=["kettle"])), 'tasks ["kettle"]'),
        (dict(task=task()), dict(task=task(limit=50)), "max_episode_steps 50"),
        (dict(data=data()), dict(data=data("cd" * 32)), "checksum cdcdcdcd"),
        (dict(data=data()), dict(data=data("cd" * 32, rows=800)), "800 rows"),
        (dict(data=data()), {}, "data that scores 51.9"),
        (dict(data=data()), dict(dataset_score=None), "data without a checksum"),
        (dict(dataset_score=3.0), dict(dataset_score=4.0), "data that scores 4"),
    ],
)
def test_datasets_of_the_same_name_are_distinguished(one, other, says, tmp_path, capsys):
    """The scores on two files called kitchen.hdf5, or on one file in two environments, are not comparable."""
    runs = [finished(tmp_path / "a", **one), finished(tmp_path / "b", "bc", **other)]
    runs += [finished(tmp_path / "c", "iql", **one)]
    assert main(["report", *map(str, runs)]) == 0
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if line.endswith("normalised score")]
    assert len(titles) == len(set(titles)) == 2 and says in titles[1]
    verdicts = [line for line in out.splitlines() if "comes first" in line]
    assert len(verdicts) == 1 and "xql" in verdicts[0] and "iql" in verdicts[0] and "bc" not in verdicts[0]


def test_two_tasks_with_the_same_name_have_two_pictures(tmp_path):
    runs = [finished(tmp_path / "a", data=data()), finished(tmp_path / "b", data=data("cd" * 32))]
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    pictures = {path.name for path in (tmp_path / "out" / "pictures").glob("*.png")}
    text = (tmp_path / "out" / "report.md").read_text()
    assert pictures == {"kitchen-normalized.png", "kitchen-normalized-2.png"}
    assert all(f"](pictures/{name})" in text for name in pictures)


def test_the_same_data_under_another_name_shares_a_table(tmp_path, capsys):
    runs = [finished(tmp_path / name, dataset=name, data=data(), task=task()) for name in ("moved", "copied")]
    assert main(["report", *map(str, runs)]) == 0
    assert capsys.readouterr().out.count("normalised score") == 1


def test_a_setting_of_null_equals_a_missing_setting(tmp_path):
    """Runs of an earlier version lack settings that were added later."""
    for i, settings in enumerate((dict(beta=2), dict(beta=2, share=None), dict(beta=2, share=0.5))):
        finished(tmp_path / str(i), seeds=2, first_seed=2 * i, settings=settings)
    (group,) = groups_of([read(folder) for folder in find([tmp_path])])
    assert {row.name: len(row.seeds) for row in group.rows} == {"xql": 4, "xql share=0.5": 2}
    assert [row.tried for row in group.rows] == [2, 2]


@pytest.mark.parametrize("seeds", [(1, 1), (1, 3), (2, 2)])
def test_few_seeds_give_no_certain_result(seeds, tmp_path, capsys):
    runs = [
        finished(tmp_path / str(i), agent, seeds=s)
        for i, (agent, s) in enumerate(zip(("xql", "bc"), seeds, strict=True))
    ]
    assert main(["report", *map(str, runs)]) == 0
    out = capsys.readouterr().out
    assert "it is not certain" in out and f"as {min(seeds)}, luck" in out, "of few seeds nothing is sure"
    assert ("to 100% of the pairs" in out) == (seeds == (2, 2)), "an interval needs two of both"


def test_a_run_of_two_values_beside_one_of_them_is_named_by_its_folder(tmp_path):
    """Its two values have one folder, which tells them from the other run and not from each other."""
    folders = [tmp_path / "both", tmp_path / "both", tmp_path / "one"]
    rows = [(SimpleNamespace(folder=folder),) for folder in folders]
    assert [comparison._place(row[0], rows) for row in rows] == ["both", "both", "one"]


def test_runs_of_one_agent_that_left_no_settings_are_named_by_their_folders(tmp_path):
    finished(tmp_path / "a" / "run")
    finished(tmp_path / "b" / "run", level=50)
    finished(tmp_path / "b" / "other", "bc", level=40)
    (group,) = groups_of([read(folder) for folder in find([tmp_path])])
    assert [row.name for row in group.rows] == ["xql (a/run)", "xql (b/run)", "bc"]
    assert [row.tried for row in group.rows] == [1, 1, 1], "no more are known"


def test_an_agent_with_one_seed_does_not_affect_the_others(tmp_path):
    for agent, seeds in (("xql", 5), ("iql", 5), ("bc", 1)):
        finished(tmp_path / agent, agent, level=dict(xql=95, iql=50, bc=20)[agent], seeds=seeds)
    (group,) = groups_of([read(folder) for folder in find([tmp_path])])
    found = of_group(group)
    assert found.names == ("xql", "iql", "bc") and found.rivals == ["bc"]
    assert found.beats("iql", "xql").high == 1 - found.beats("xql", "iql").low < 0.5


@pytest.mark.parametrize("missing", ["summary.json", "evaluations.csv"])
def test_unfinished_runs_are_named(missing, tmp_path, capsys):
    run = finished(tmp_path / "a")
    (run / missing).unlink()
    assert main(["report", str(run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(run) in line


def test_missing_and_unfinished_runs_have_different_messages(tmp_path, capsys):
    begun, empty = tmp_path / "a run", tmp_path / "empty"
    for folder in (begun, empty):
        folder.mkdir()
    for name in ("config.yaml", "last.ckpt"):
        (begun / name).touch()
    for folder, says in (
        (empty, "name a run's folder"),
        (tmp_path / "nowhere", "there is no folder"),
        (begun, f"finish it with: offlinerl fit --resume '{begun}'"),
    ):
        assert main(["report", str(folder)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line and str(folder) in line and (folder is begun or "--resume" not in line)
    (collected := tmp_path / "collected").mkdir()
    (collected / "collection.json").touch()
    assert main(["report", str(collected)]) == 1
    assert "resume it with the same `offlinerl collect` command and --resume" in capsys.readouterr().err
    finished(tmp_path / "b")
    assert main(["report", str(tmp_path)]) == 0
    assert f"Left out because they are not finished: {begun}." in capsys.readouterr().out
    assert main(["report", str(tmp_path / "b")]) == 0
    assert "Left out" not in capsys.readouterr().out


def test_an_interrupted_last_evaluation_is_refused(tmp_path, capsys):
    run = finished(tmp_path / "a")
    lines = (run / "evaluations.csv").read_text().splitlines(keepends=True)
    (run / "evaluations.csv").write_text("".join(lines[:-1]))
    assert main(["report", str(run)]) == 1
    said = capsys.readouterr().err
    assert "has no evaluations of the last policy" in said and f"repair it with: offlinerl fit --resume {run}" in said


@pytest.mark.parametrize("case", [dict(seeds=1, evaluations=1, losses=1), dict(seeds=5), dict(agent="bc")])
def test_curves_of_one_run(case, tmp_path, fine_pictures):
    image = plots.curves(finished(tmp_path / "run", **case), tmp_path / "curves.png")
    assert image.read_bytes().startswith(b"\x89PNG")


def test_the_curves_of_many_values_keep_their_height_above_the_legend(tmp_path, monkeypatch, fine_pictures):
    run, values = finished(tmp_path / "run", seeds=1), range(30)
    rows = [{"update": at, "seed": 0, "agent.beta": beta, "score": beta + at} for beta in values for at in (1, 15_000)]
    write(run / "evaluations.csv", rows)
    summary = json.loads((run / "summary.json").read_text())
    summary["values"] = [dict(settings=dict(beta=beta), last=summary["last"]) for beta in values]
    (run / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr(plots, "save", lambda figure, path: figure)
    figure = plots.curves(run, tmp_path / "curves.png")
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().height > 250


# Settings


def test_runs_are_merged_by_settings_and_named_by_those_that_differ(tmp_path):
    def run(name, beta, first_seed=0, dataset="hopper", **more):
        settings = dict(lr=0.1, beta=beta)
        finished(tmp_path / name, dataset=dataset, settings=settings, first_seed=first_seed, env=dataset, **more)

    run("a", 1, level=50)
    run("b", 1, first_seed=3, seeds=2, level=50)  # other seeds, saved at other intervals
    run("c", 2, level=70)
    run("d", 1, first_seed=4, level=50)  # seed 4 again
    run("e", 5, dataset="walker", level=60)
    hopper, walker = groups_of([read(folder) for folder in find([tmp_path])])
    named = {row.name: row for row in hopper.rows}
    assert set(named) == {"xql beta=1 (a)", "xql beta=2", "xql beta=1 (d)"}
    merged = named["xql beta=1 (a)"]
    assert merged.folders == "a, b" and merged.seeds == [0, 1, 2, 3, 4]
    assert merged.per_seed.tolist() == [*read(tmp_path / "a").scores.mean(-1), *read(tmp_path / "b").scores.mean(-1)]
    times, curve = merged.curve()
    assert times.tolist() == [2500 * n for n in range(1, 7)] and curve.shape == (6, 5)
    assert curve[-1].tolist() == pytest.approx(merged.per_seed.tolist())
    assert {row.tried for row in hopper.rows} == {2}
    assert [(row.name, row.tried) for row in walker.rows] == [("xql", 1)], "nothing varies on this task"


def test_runs_are_named_by_settings_that_differ_on_their_own_task(tmp_path):
    """Over the tasks, a name has all settings that differ on one of them, and so is the same on every task."""
    for dataset, settings in itertools.product(("hopper", "walker"), ((1, 0.1), (2, 0.1), (1, 0.2))):
        beta, lr = settings
        if settings == (1, 0.1) or (dataset == "hopper") == (beta == 2):
            run = tmp_path / f"{dataset}-{beta}-{lr}"
            finished(run, dataset=dataset, settings=dict(beta=beta, lr=lr), level=50 + 10 * beta)
    for dataset in ("hopper", "walker"):
        finished(tmp_path / f"bc-{dataset}", "bc", dataset, settings=dict(lr=0.3 if dataset == "hopper" else 0.4))
    groups = groups_of([read(folder) for folder in find([tmp_path])])
    hopper, walker = ({row.name for row in group.rows} for group in groups)
    assert hopper == {"xql beta=1", "xql beta=2", "bc"} and walker == {"xql lr=0.1", "xql lr=0.2", "bc"}
    (overall,) = overall_of(groups)
    assert set(overall.names) == {"xql beta=1 lr=0.1", "bc"} and set(overall.others) == {
        "xql beta=2 lr=0.1", "xql beta=1 lr=0.2"
    }  # fmt: skip
    offlinerl.report([tmp_path], tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    parts = [json.loads(html.unescape(found)) for found in re.findall(r'data-charts="(.*?)"', page)]
    colours = [{row["name"]: row["colour"] for row in part[0]["rows"]} for part in parts]
    assert colours[0]["xql beta=1 lr=0.1"] == colours[1]["xql beta=1"] == colours[2]["xql lr=0.1"]
    assert len({*colours[1].values()}) == len({*colours[2].values()}) == 3


def test_a_run_that_repeats_another_counts_once(tmp_path, capsys):
    for agent, level in (("xql", 50), ("bc", 70)):
        finished(tmp_path / "one" / agent, agent, level=level, settings=dict(lr=0.1))
    finished(tmp_path / "two" / "bc", "bc", level=70, settings=dict(lr=0.1))
    finished(tmp_path / "two" / "other", "bc", level=70, first_seed=3, settings=dict(lr=0.1))
    rows = offlinerl.report([tmp_path / "one", tmp_path / "two"])["scores"]
    assert f"{tmp_path / 'two' / 'bc'} repeats {tmp_path / 'one' / 'bc'}" in " ".join(capsys.readouterr().out.split())
    assert [row["agent"] for row in rows] == ["bc", "xql"]
    assert len(comparison.distinct([read(folder) for folder in find([tmp_path])])[0]) == 3


@pytest.mark.parametrize("longer_first", [False, True])
def test_seeds_that_are_in_two_runs_count_once(longer_first, tmp_path, capsys):
    """Another run of the same settings that has these seeds and others; and one whose scores differ is another row."""
    names = ("few", "many") if not longer_first else ("many", "few")
    for name in names:
        finished(tmp_path / name, "bc", seeds=3, level=60, settings=dict(lr=0.1))
    more = finished(tmp_path / "rest", "bc", seeds=2, first_seed=3, level=60, settings=dict(lr=0.1))
    first, rest = read(tmp_path / "many"), read(more)
    for file in ("evaluations.csv", "metrics.csv"):
        lines = (more / file).read_text().splitlines(keepends=True)[1:]
        (tmp_path / "many" / file).write_text((tmp_path / "many" / file).read_text() + "".join(lines))
    summary = json.loads((tmp_path / "many/summary.json").read_text())
    summary["seeds"] += [3, 4]
    (tmp_path / "many/summary.json").write_text(json.dumps(summary))
    runs = [read(tmp_path / name) for name in names]
    (group,) = comparison.groups_of(comparison.distinct(runs)[0])
    (row,) = group.rows
    assert sorted(row.seeds) == [0, 1, 2, 3, 4]
    assert sorted(row.per_seed) == pytest.approx(sorted([*first.scores.mean(-1), *rest.scores.mean(-1)]))
    assert row.curve()[1].shape[1] == 5
    if not longer_first:  # of two runs
        times, curve = row.curve()
        assert row.best["mean"] == pytest.approx(curve.mean(1).max()) and len(row.best["per_seed"]) == 5
        assert row.best["update"] == times[curve.mean(1).argmax()]
    offlinerl.report([tmp_path / name for name in names])
    said = " ".join(capsys.readouterr().out.split())
    if longer_first:
        assert f"{tmp_path / 'few'} repeats {tmp_path / 'many'}, with the same settings, seeds and scores" in said
    else:
        assert f"{tmp_path / 'many'} repeats {tmp_path / 'few'} in the seeds 0, 1, 2, with the same settings" in said
    finished(tmp_path / "other", "bc", seeds=3, level=61, settings=dict(lr=0.1))
    (group,) = comparison.groups_of(comparison.distinct([*runs, read(tmp_path / "other")])[0])
    assert [len(row.seeds) for row in group.rows] in ([5, 3], [3, 5])


def test_settings_of_evaluation_and_storage_make_no_other_agent(tmp_path):
    for number, (key, value) in enumerate(dict(eval_every=5, eval_episodes=3, table="disk").items()):
        finished(tmp_path / key, settings=dict(lr=0.1), first_seed=3 * number)
        told = yaml.safe_load((tmp_path / key / "config.yaml").read_text())
        told["train"] |= dict(eval_every=1, eval_episodes=1, table="memory") | {key: value}
        (tmp_path / key / "config.yaml").write_text(yaml.safe_dump(told))
    (group,) = groups_of([read(folder) for folder in find([tmp_path])])
    assert [(row.name, row.tried, len(row.seeds)) for row in group.rows] == [("xql", 1, 9)]


def test_settings_that_differ_only_between_tasks_make_no_other_agent(tmp_path):
    for agent, dataset, beta in itertools.product(("xql", "bc"), ("hopper", "walker"), (1, 2)):
        if (dataset == "hopper") == (beta == 1):
            finished(tmp_path / f"{agent}-{dataset}", agent, dataset, settings=dict(beta=beta))
    groups = groups_of([read(folder) for folder in find([tmp_path])])
    assert {row.name for group in groups for row in group.rows} == {"xql", "bc"}
    assert [overall.names for overall in overall_of(groups)] == [("bc", "xql")]


def test_a_rewritten_report_has_no_files_of_the_previous_one(tmp_path):
    for name, agent in (("one", "xql"), ("two", "bc")):
        finished(tmp_path / name, agent, dataset=name)
    out = tmp_path / "out"
    report = ["report", "--out", str(out)]
    assert main([*report, str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    before = {path.name for path in out.rglob("*.*")}
    (out / "pictures" / "mine.txt").write_text("mine")
    assert main([*report, str(tmp_path / "one")]) == 0
    after = {path.name for path in out.rglob("*.*")}
    assert "two-normalized.png" in before - after and "one-normalized.png" in after and "mine.txt" in after


def test_every_value_has_its_own_best_evaluation():
    scores = {1.0: (10, 90, 20), 2.0: (60, 5, 55)}
    rows = [(at, seed, beta, of[i] + seed) for beta, of in scores.items() for seed in (4, 5)
            for i, at in enumerate((100, 200, 300))]  # fmt: skip
    table = dict(zip(("update", "seed", "agent.beta", "score"), np.array(rows, float).T, strict=True))
    summary = dict(
        seeds=[4, 5, 4, 5], clock="updates", updates=300, best=dict(mean=52.0, per_seed=[94, 95, 9, 10], update=200),
        values=[dict(settings=dict(beta=beta)) for beta in scores],
    )  # fmt: skip
    one, two = by_value(Finished(Path("run"), summary, np.zeros((4, 3)), table, {}))
    assert one.summary["best"] == dict(mean=94.5, per_seed=[94, 95], update=200)
    assert two.summary["best"] == dict(mean=64.5, per_seed=[64, 65], update=100)


def test_the_number_of_tried_settings_counts_a_whole_sweep(tmp_path, capsys):
    folder = finished(tmp_path / "run")
    finished(tmp_path / "bc", "bc")
    sweep._write_tried(sweep.Planned(folder, (), (), tried=12))
    sweep._write_tried(sweep.Planned(folder, (), (), tried=1))  # its file now names only the winner
    assert json.loads((folder / "summary.json").read_text())["settings_tried"] == 12
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "The numbers of settings tried differ: " in out and "12 of xql" in out and "1 of bc" in out
    for path in (tmp_path / "out" / "tables").glob("*.csv"):
        for row in csv.DictReader(path.open()):
            for side in ("", "x_", "y_"):
                agent = row.get({"": "agent", "x_": "x", "y_": "y"}[side])
                assert agent is None or row[f"{side}settings_tried"] == {"xql": "12", "bc": "1"}[agent], path
    for path in (tmp_path / "out" / "tables").glob("*.tex"):
        assert "settings tried" in path.read_text() and " & 12 & " in path.read_text()


def test_a_plan_counts_the_settings_of_every_agent(tmp_path):
    plan = dict(agents=["xql", "bc"], datasets=["kitchen"], each={"agent.beta": [1, 2], "agent.lr": [0.1, 0.2, 0.3]})
    runs = sweep.planned(sweep.KEYS | plan | dict(out=str(tmp_path), environments=[]))
    assert {run.folder.name.partition("-")[0]: run.tried for run in runs} == {"xql": 6, "bc": 3}


# Over tasks

AGENTS = dict(bc=45, iql=60, xql=66, td3bc=58, rebrac=82)
TASKS = ("hopper", "walker", "cheetah")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Five agents on three tasks, of five seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for (agent, level), (t, task) in itertools.product(AGENTS.items(), enumerate(TASKS)):
        finished(folder / f"{agent}-{task}", agent, task, level + 4 * t, seeds=5, env=task)
    return folder


@pytest.fixture(scope="module")
def written(runs):
    assert main(["report", str(runs), "--out", str(runs.parent / "out")]) == 0
    return runs.parent / "out"


@pytest.fixture(scope="module")
def scores(runs):
    """Read separately: ``[tasks, seeds]`` of every agent."""
    found = {agent: np.zeros((3, 5)) for agent in AGENTS}
    for agent, (t, task), seed in itertools.product(AGENTS, enumerate(TASKS), range(5)):
        rows = csv.DictReader((runs / f"{agent}-{task}" / "evaluations.csv").open())
        of_seed = [float(row["score"]) for row in rows if row["update"] == "15000" and row["seed"] == str(seed)]
        assert len(of_seed) == 50
        found[agent][t, seed] = sum(of_seed) / 50
    return found


def rows_of(path, **which):
    rows = csv.DictReader(path.open())
    return [row for row in rows if all(row[key] == value for key, value in which.items())]


def resampled(of, statistic, *scores, draws=1_000):
    """An interval by its definition: every resample in a loop, with seeds resampled within every task."""
    rng = np.random.default_rng(1)
    found = [
        statistic(*([task[rng.integers(0, len(task), len(task))] for task in agent] for agent in scores))
        for _ in range(draws)
    ]
    return np.percentile(found, [2.5, 97.5])


def pairs(x, y):
    """The probability of improvement by a double loop."""
    each = [
        sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in of_x for b in of_y) / (len(of_x) * len(of_y))
        for of_x, of_y in zip(x, y, strict=True)
    ]
    return sum(each) / len(each)


AGGREGATES = dict(
    iqm=lambda scores: trim_mean(np.concatenate(scores), 0.25),
    mean=lambda scores: np.mean([np.mean(task) for task in scores]),
    median=lambda scores: np.median([np.mean(task) for task in scores]),
)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("kind", AGGREGATES)
def test_estimates_over_tasks_are_those_of_the_paper(written, scores, agent, kind):
    (row,) = rows_of(written / "tables" / "overall.csv", agent=agent)
    assert float(row[kind]) == pytest.approx(AGGREGATES[kind](list(scores[agent])))
    low, high = resampled("seeds", AGGREGATES[kind], scores[agent])
    assert [float(row[f"{kind}_low"]), float(row[f"{kind}_high"])] == pytest.approx([low, high], abs=0.7)
    assert row["tasks"] == "3" and row["trainings"] == "15"


def test_unfinished_runs_are_reported_in_python(tmp_path, capsys):
    finished(tmp_path / "xql", "xql", "kitchen", 50.0)
    (tmp_path / "bc").mkdir()
    (tmp_path / "bc" / "last.ckpt").touch()
    offlinerl.report(tmp_path)
    assert f"Left out because they are not finished: {tmp_path / 'bc'}" in capsys.readouterr().out.replace("\n", "")


def test_python_gets_the_numbers_of_the_files(written, runs):
    tables = offlinerl.report(str(runs))
    assert {f"{name}.csv" for name in tables} == {path.name for path in (written / "tables").glob("*.csv")}
    for name, rows in tables.items():
        of_file = rows_of(written / "tables" / f"{name}.csv")
        assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows] == of_file


@pytest.mark.parametrize(
    "tasks, count, chance", [(1, 3, 1 / 20), (1, 4, 1 / 70), (2, 2, 1 / 36), (1, 1, 1 / 2)], ids=str
)
def test_a_complete_separation_has_the_p_value_of_one_permutation(tasks, count, chance):
    x, y = ([level + np.arange(float(count)) for _ in range(tasks)] for level in (10, 0))
    assert chance_of_improvement(x, y) == pytest.approx(chance, abs=0.006)
    assert chance_of_improvement(y, x) == 1
    assert chance_of_improvement([np.array([1.0, np.nan])], [np.array([1.0, np.nan])]) > 0.5


@pytest.mark.parametrize("tasks, count", [(1, 4), (3, 2)])
def test_equal_agents_are_rarely_called_different(tasks, count):
    rng, sure = np.random.default_rng(0), 0
    for _ in range(200):
        x, y = ([rng.normal(size=count) for _ in range(tasks)] for _ in range(2))
        clear = stratified_bootstrap(probability_of_improvement, x, y, draws=200)[0] > 0.5
        sure += clear and chance_of_improvement(x, y, draws=500) <= CHANCE
    assert sure <= 10, "one side alone has 2.5%"


def test_the_probability_of_improvement_is_that_of_all_pairs(written, scores):
    rows = rows_of(written / "tables" / "improvement.csv", tasks="Over 3 tasks")
    assert len(rows) == 10
    for row in rows:
        x, y = scores[row["x"]], scores[row["y"]]
        assert float(row["probability"]) == pytest.approx(pairs(x, y))
    row = next(row for row in rows if 0.6 < float(row["probability"]) < 0.95)
    low, high = resampled("seeds", pairs, scores[row["x"]], scores[row["y"]], draws=500)
    assert [float(row["low"]), float(row["high"])] == pytest.approx([low, high], abs=0.05)
    for task, row in itertools.product(enumerate(TASKS), rows):
        alone = rows_of(written / "tables" / "improvement.csv", tasks=task[1])
        (same,) = [other for other in alone if {other["x"], other["y"]} == {row["x"], row["y"]}]
        of_task = pairs([scores[same["x"]][task[0]]], [scores[same["y"]][task[0]]])
        assert float(same["probability"]) == pytest.approx(of_task)


def test_profiles_count_the_trainings_above(written, scores):
    for agent in AGENTS:
        rows = rows_of(written / "tables" / "profiles.csv", agent=agent)
        assert len(rows) > 50
        for row in rows:
            above = sum(score > float(row["score"]) for score in scores[agent].ravel())
            assert float(row["value"]) == pytest.approx(above / 15)
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])


def test_sample_efficiency_is_the_interquartile_mean_at_every_evaluation(written, runs):
    for agent in AGENTS:
        rows = rows_of(written / "tables" / "curves.csv", agent=agent, tasks="Over 3 tasks")
        assert [float(row["time"]) for row in rows] == [2500 * n for n in range(1, 7)]
        for row in rows:
            at = str(int(float(row["time"])))
            each = [
                np.mean([float(line["score"]) for line in rows_of(runs / f"{agent}-{task}" / "evaluations.csv",
                                                                   update=at, seed=str(seed))])
                for task in TASKS for seed in range(5)
            ]  # fmt: skip
            assert float(row["value"]) == pytest.approx(trim_mean(each, 0.25))
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])


def test_the_best_agent_comes_first_and_is_called_best(written, scores):
    text = (written / "report.md").read_text()
    overall = text.split("\n## ")[1]
    order = [
        line.split(" | ")[0].removeprefix("| ") for line in overall.splitlines() if re.match(r"\| \w+ \| 1 \|", line)
    ]
    by_iqm = sorted(AGENTS, key=lambda agent: -AGGREGATES["iqm"](list(scores[agent])))
    assert order == [*by_iqm, *by_iqm], "in the table of estimates and in that of pairs"
    assert by_iqm[0] == "rebrac" and "rebrac is the best with an interquartile mean of" in overall
    assert all(pairs(scores["rebrac"], scores[other]) > 0.8 for other in AGENTS if other != "rebrac")


def test_statistics_by_hand():
    one = [np.array([0.0, 1, 2, 3, 100])]
    assert interquartile_mean(one) == 2, "of five the first and the last are left out"
    assert interquartile_mean([np.array([1.0, 2, 9])]) == 4, "of three none"
    assert np.isnan(interquartile_mean([np.array([1.0, 2, 3, 4, np.nan])])), "a seed that diverged is not cut away"
    assert probability_of_improvement([np.array([1.0, 3.0])], [np.array([2.0, 0.0])]) == 0.75
    assert probability_of_improvement([np.array([1.0])], [np.array([1.0])]) == 0.5
    tasks = [np.array([2.0, 3.0]), np.array([0.0])], [np.array([1.0]), np.array([1.0, 2.0])]
    assert probability_of_improvement(*tasks) == 0.5, "every task counts the same"
    profile = performance_profile([np.array([1.0, 3.0]), np.array([2.0])], np.array([0.0, 1.0, 2.0, 3.0]))
    assert profile.tolist() == [1, 0.75, 0.25, 0]
    assert np.isnan(stratified_bootstrap(interquartile_mean, [np.array([1.0, 2.0]), np.array([1.0])])).all()


def test_a_training_that_diverged_scores_lower_than_any_other():
    diverged, sound = [np.array([1.0, np.nan, 3.0, -4.0])], [np.array([0.0, 2.0])]
    # of the pairs with 0 and 2: 1 wins one, NaN none, 3 both, -4 none
    assert probability_of_improvement(diverged, sound) == 3 / 8
    assert probability_of_improvement(sound, diverged) == 5 / 8
    assert probability_of_improvement([np.array([np.nan])], [np.array([np.nan])]) == 0.5
    low, high = stratified_bootstrap(probability_of_improvement, diverged, sound)
    assert 0 <= low < 3 / 8 < high <= 1


@pytest.mark.parametrize("kind", ["return", "ours"])
def test_returns_of_several_tasks_are_never_averaged(kind, tmp_path, capsys):
    for agent, task in itertools.product(("xql", "bc"), ("hopper", "walker")):
        finished(tmp_path / f"{agent}-{task}", agent, task, AGENTS[agent], kind=kind, dataset_score=None, env=task)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    overall = capsys.readouterr().out.split("Over 2 tasks")[1]
    assert ("IQM" in overall) == (tmp_path / "out" / "tables" / "overall.csv").exists() == (kind == "ours")
    assert rows_of(tmp_path / "out" / "tables" / "improvement.csv", tasks="Over 2 tasks", x="xql", y="bc")


def test_the_best_of_those_with_all_tasks_is_not_called_the_best_of_all(tmp_path, capsys):
    levels = dict(xql=95, iql=40, bc=20)
    for agent, task in itertools.product(levels, TASKS):
        if (agent, task) != ("xql", TASKS[0]):
            finished(tmp_path / f"{agent}-{task}", agent, task, env=task, level=levels[agent])
    assert main(["report", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"iql is the best of those that have all {len(TASKS)} tasks with an interquartile mean" in said
    assert f"xql, which is left out, comes first on {', '.join(sorted(TASKS[1:]))}." in said


def test_agents_with_the_same_scores_have_no_first(tmp_path, capsys):
    runs = [finished(tmp_path / agent, agent, level=-1000) for agent in ("xql", "bc")]
    assert main(["report", *map(str, runs)]) == 0
    assert "All agents have the same scores with a mean of 0.0" in " ".join(capsys.readouterr().out.split())


def test_a_lead_that_may_be_luck_says_how_likely_that_is(tmp_path, capsys):
    runs = [finished(tmp_path / agent, agent, level=level, seeds=3) for agent, level in (("xql", 95), ("bc", 20))]
    assert main(["report", *map(str, runs)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "it is not certain that it is better than bc (100%, 100 to 100% of the pairs)" in said
    assert "Two equally good agents would differ as much with probability 0.05." in said, "one of 20 permutations"


@pytest.mark.parametrize("unlike", ["length", "fine-tuning", None])
def test_trainings_that_are_unlike_are_named(unlike, tmp_path, capsys):
    for agent, task in itertools.product(("xql", "bc"), ("hopper", "walker")):
        more = {}
        if (agent, task) == ("xql", "hopper"):
            more = {"length": dict(evaluations=4), "fine-tuning": dict(clock="updates", steps=500)}.get(unlike, {})
        finished(tmp_path / f"{agent}-{task}", agent, task, env=task, **more)
    offlinerl.report([tmp_path], tmp_path / "out")
    said = " ".join(capsys.readouterr().out.split())
    length = (
        "The trainings have unequal lengths, from 10,000 to 15,000 updates: a lead may be one of the longer training."
    )
    tuned = "Fine-tuned by acting after the dataset (--online-steps): xql; the others learned from the dataset alone"
    assert (said.count(length), said.count(tuned)) == (unlike == "length", unlike == "fine-tuning")
    assert ("The trainings are unlike in length or fine-tuning on hopper: see there." in said) == (unlike is not None)
    page = (tmp_path / "out/report.html").read_text()
    assert ("unequal lengths" in page, "Fine-tuned" in page) == (unlike == "length", unlike == "fine-tuning")


def test_kinds_of_scores_are_not_mixed_and_agents_that_lack_a_task_are_named(tmp_path):
    for agent, task in itertools.product(AGENTS, TASKS):
        if (agent, task) != ("bc", "cheetah"):
            finished(tmp_path / f"{agent}-{task}", agent, task, env=task)
        finished(tmp_path / f"{agent}-maze", agent, "maze", kind="ours", env="maze") if task == "hopper" else None
    groups = groups_of([read(folder) for folder in find([tmp_path])])
    (overall,) = overall_of(groups)
    assert {task.title for task in overall.tasks} == set(TASKS)
    assert set(overall.names) == set(AGENTS) - {"bc"} and overall.left_out == ("bc",)


def test_agents_are_compared_on_the_tasks_that_they_share(tmp_path):
    of_agents = dict(bc=TASKS, iql=(*TASKS[1:], "ant"), xql=("hopper", "ant"))
    for agent, tasks in of_agents.items():
        for task in tasks:
            finished(tmp_path / f"{agent}-{task}", agent, task, env=task)
    (overall,) = overall_of(groups_of([read(folder) for folder in find([tmp_path])]))
    assert {task.title for task in overall.tasks} == set(TASKS[1:]) and set(overall.names) == {"bc", "iql"}
    assert set(overall.left_out) == {"xql", "hopper", "ant"}


def test_common_tasks_of_many_agents_are_found_quickly():
    """Forty agents, each on ten random tasks of twenty; three of the agents share eight tasks."""
    rng, wanted = np.random.default_rng(0), set(range(8))
    has = [set(rng.choice(20, 10, replace=False)) for _ in range(37)] + [wanted | {t, t + 1} for t in (8, 11, 14)]
    tasks = [
        Group(f"task {t}", "normalized", "updates", tuple(Row(f"a{a}", (), 1) for a in range(40) if t in has[a]))
        for t in range(20)
    ]
    (overall,) = overall_of(tasks)
    assert len(overall.tasks) * len(overall.names) >= 24
    assert all(
        f"task {t}" in [task.title for task in overall.tasks] or f"task {t}" in overall.left_out for t in range(20)
    )


# Without an environment


def test_runs_without_a_score_are_reported_as_such(tmp_path, capsys):
    rng = np.random.default_rng(0)
    data = dict(
        obs=rng.normal(size=(60, 3)), action=rng.uniform(-1, 1, (60, 1)), reward=rng.normal(size=60),
        terminated=np.zeros(60, bool), truncated=np.arange(60) % 10 == 9,
    )  # fmt: skip
    few = dict(updates=4, eval_every=2, batch=4, log_every=2, compile=False)
    with empty_workplace(tmp_path):
        run = offlinerl.fit("bc", data, seeds=[0, 1], over=dict(train=few), out="runs/bc")
        run.folder.joinpath("film").mkdir()
        run.folder.joinpath("film", "seed-0.mp4").write_bytes(b"a film")
        capsys.readouterr()
        assert outcome(run.folder).startswith("no score, because there was no environment; actor loss ")
        assert sweep._outcome(sweep.Planned(run.folder, (), ()), 0) == outcome(run.folder)
        finished(tmp_path / "runs" / "xql")
        assert main(["report", "runs", "--out", "out"]) == 0
    out = capsys.readouterr().out
    losses, held_out = (run.summary[name]["actor_loss"] for name in ("losses", "held_out"))
    (line,) = [line for line in out.splitlines() if "actor loss" in line]
    assert line.split()[-2:] == [f"{np.mean(losses):.4g}", f"{np.mean(held_out):.4g}"] and " 2  4 updates" in line
    assert "had no environment" in out and "kitchen: normalised score" in out
    (row,) = rows_of(tmp_path / "out" / "tables" / "losses.csv")
    assert float(row["training"]) == np.mean(losses) and row["settings_tried"] == "1"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no score" in page and 'src="data:video/mp4;base64,YSBmaWxt"' in page


# The page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def browsed(page, tmp_path):
    """The page as rendered by a browser without a network, and the messages of its console."""
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
             "--proxy-server=127.0.0.1:9", "--virtual-time-budget=2000",
             f"--user-data-dir={tmp_path / 'profile'}")  # fmt: skip
    done = subprocess.run([BROWSER, *flags, page.as_uri()], capture_output=True, text=True, timeout=300)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def test_the_page_needs_no_other_files(written):
    text = (written / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(|fetch\(""", text)
    addresses = set(re.findall(r"https?://[^\s\"'<)]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of a format, which nothing is fetched from"
    verdicts = re.findall(r'<div class="verdict(.*?)">.*?</b>(.*?)</div>', text)
    assert len(verdicts) == 4 and verdicts[0][0] == " sure" and verdicts[0][1].startswith("rebrac is the best")
    charts = [json.loads(html.unescape(found)) for found in re.findall(r'data-charts="(.*?)"', text)]
    assert [[chart["kind"] for chart in part] for part in charts] == [
        ["intervals"] * 3 + ["lines"] * 2, *[["intervals"] * 2 + ["lines"]] * 3
    ]  # fmt: skip


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_draws_the_page_and_shows_values_under_the_pointer(written, tmp_path):
    script = """<script>for (const chart of document.querySelectorAll(".chart")) {
      const lines = chart.classList.contains("wide"), target = chart.querySelector(lines ? "svg" : "svg g");
      const frame = target.getBoundingClientRect(), at = {clientX: frame.right - 5, clientY: frame.top + 9};
      target.dispatchEvent(new PointerEvent("pointermove", {...at, bubbles: true}));
    } document.querySelector(".legend button").click(); </script>"""
    page = tmp_path / "page.html"
    page.write_text((written / "report.html").read_text().replace("</body>", script + "</body>"))
    dom, console = browsed(page, tmp_path)
    assert console == []
    assert dom.count("<svg") == 5 + 3 * 3 and len(re.findall(r'<path d="M[^"]*Z"', dom)) == 5 * 5
    assert "NaN" not in re.sub(r'data-charts=".*?"', "", dom)
    tips = re.findall(r'<div class="tip"[^>]*?(hidden)?[^>]*?>(.*?)</div></div>', dom)
    assert len(tips) == 14 and not any(hidden for hidden, _ in tips)
    (row,) = rows_of(written / "tables" / "overall.csv", agent="rebrac")
    assert any(f"{float(row['iqm']):.1f} ({float(row['iqm_low']):.1f} to" in text for _, text in tips)
    assert any("updates 15k" in text and "rebrac" in text for _, text in tips)
    assert dom.count('aria-pressed="false"') == 1

    page.write_text(page.read_text().replace("</body>", "<script>nothing.here</script></body>"))
    assert browsed(page, tmp_path)[1], "an error in the console is seen"


def test_a_narrow_screen_leaves_out_the_least_important_columns(tmp_path):
    finished(tmp_path / "a-long-name-of-a-folder", seeds=5)
    (group,) = groups_of([read(folder) for folder in find([tmp_path])])
    table = tables.scores(group, of_group(group))
    assert tables.fitting(table, 300) == ([*table[0]], [[*row] for row in table[1]])
    columns, ((*cells,),) = tables.fitting(table, 80)
    assert columns == ["agent", "settings tried", "seeds", "length", "mean", "95% interval", "IQM"]
    assert sum(max(len(a), len(b)) + 3 for a, b in zip(columns, cells, strict=True)) < 80


def test_file_names_of_latex_tables_have_no_special_characters(tmp_path, capsys):
    finished(tmp_path / "a", dataset="50% of #1")
    assert main(["report", str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out" / "tables").glob("*.tex")] == ["50-of-1-normalized.tex"]


def test_tables_for_latex():
    text = tables.latex((("a_b", "c"), [("x & y", "50%")]), "of $1")
    assert r"a\_b & c \\" in text and r"x \& y & 50\% \\" in text and r"\caption{of \$1}" in text
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


def test_pictures_show_every_agents_colour(tmp_path, fine_pictures):
    """Every agent's colour is in the picture of its task."""
    for agent in AGENTS:
        finished(tmp_path / "runs" / agent, agent, level=AGENTS[agent])
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    image = imageio.imread(tmp_path / "out" / "pictures" / "kitchen-normalized.png")[..., :3]
    for colour in plots.COLOURS[:5]:
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert (image == rgb).all(-1).sum() > 50, colour


@pytest.mark.parametrize("count", [3, 12, 30])
@pytest.mark.parametrize("long", [False, True])
def test_pictures_of_many_runs_and_long_names_are_readable(count, long, tmp_path, monkeypatch, fine_pictures):
    """All text is within its picture, and no name lies on another one."""
    for number, task in itertools.product(range(count), TASKS[:2]):
        settings = dict(beta=number)
        if long:
            settings |= dict(
                hidden=[256] * (number % 4), encoder=f"/home/me/projects/offline/runs/vae-{number}/best.ckpt"
            )
        finished(tmp_path / f"{task}-{number}", "xql", task, 50 + number, seeds=2, env=task, settings=settings)
    groups = groups_of([read(folder) for folder in find([tmp_path])])
    drawn = {}
    monkeypatch.setattr(comparison_plots, "_save", lambda figure, stem: drawn.update({stem: figure}))
    colours = {row.name: number for number, row in enumerate(groups[0].rows)}
    assert len({str(line_of(number)) for number in colours.values()}) == count
    one, (overall,) = of_group(groups[0]), overall_of(groups)
    comparison_plots.task(one, colours, 50.0, "task")
    several = of_overall(overall)
    for draw in (comparison_plots.aggregates, comparison_plots.curves, comparison_plots.profiles):
        draw(several, colours, draw.__name__)
    comparison_plots.improvement(several, "improvement")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "constrained_layout not applied" is one
        for name, figure in drawn.items():
            figure.draw_without_rendering()
            for axis in figure.axes:
                assert min(axis.get_window_extent().size) > 150, name
            labels = [text.get_window_extent() for text in figure.axes[-1].get_yticklabels()]
            for upper, lower in itertools.pairwise(sorted(labels, key=lambda box: -box.y0)):
                assert upper.y0 > lower.y1 - 1, name
            inches = figure.get_tightbbox()
            assert (inches.min > -0.05).all() and (inches.max < figure.get_size_inches() + 0.05).all(), name
