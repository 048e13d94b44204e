"""Comparing runs, from what they left behind."""

import csv
import json
import zlib

import imageio.v3 as imageio
import numpy as np
import pytest

from offlinerl.cli import main
from offlinerl.evaluation import plots
from offlinerl.evaluation.report import probability_of_improvement, read


@pytest.fixture(scope="module")
def coarse_pictures():
    """Pictures are drawn here as users see them."""


def finished(
    folder, agent="xql", dataset="kitchen", level=70.0, seeds=3, evaluations=6, losses=6, kind="normalized", **more
):
    """A run's folder as a training leaves it, with scores that rise to a level."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(zlib.crc32(f"{agent} {level}".encode()))
    rows, last = [], None
    for number in range(1, evaluations + 1):
        episodes = 50 if number == evaluations else 10
        centre = level * (1 - np.exp(-number / 1.5)) + rng.normal(0, 4, seeds)
        last = np.clip(25 * np.round((centre[:, None] + rng.normal(0, 15, (seeds, episodes))) / 25), 0, 100)
        rows += [
            {"update": 2500 * number, "seed": s, "episode": i, "return": score / 25, "score": score, "length": 280,
             "success": 0}
            for s in range(seeds)
            for i, score in enumerate(last[s])
        ]  # fmt: skip
    write(folder / "evaluations.csv", rows)
    names = ["actor_loss"] if agent == "bc" else ["value_loss", "actor_loss", "critic_loss"]
    points = np.linspace(500, 2500 * evaluations, losses) if losses > 1 else [500]
    write(
        folder / "metrics.csv",
        [dict(update=int(u), seed=s, **{name: 1 / (1 + u / 5000) + rng.normal(0, 0.02) for name in names})
         for u in points for s in range(seeds)],
    )  # fmt: skip
    mean = float(last.mean())
    summary = dict(
        agent=agent, dataset=dataset, env=more.pop("env", "Kitchen"), seeds=list(range(seeds)),
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


def test_probability_of_improvement_by_hand():
    assert probability_of_improvement(np.array([1.0, 3.0]), np.array([2.0, 0.0])) == 0.75
    assert probability_of_improvement(np.array([1.0]), np.array([1.0])) == 0.5
    assert probability_of_improvement(np.array([2.0, 3.0]), np.array([1.0])) == 1


def test_the_last_policy_alone_is_the_result(tmp_path):
    run = finished(tmp_path / "a")
    found = read(run)
    assert found.scores.shape == (3, 50)
    summary = json.loads((run / "summary.json").read_text())
    assert found.scores.mean() == pytest.approx(summary["last"]["mean"])
    assert found.scores.mean(-1).tolist() == pytest.approx(summary["last"]["per_seed"])


def test_runs_are_grouped_by_dataset(tmp_path, capsys):
    runs = [
        finished(tmp_path / "xql-kitchen"),
        finished(tmp_path / "bc-kitchen", "bc", level=40),
        finished(tmp_path / "pendulum", dataset="test/pendulum-v0", seeds=1, kind="return"),
    ]
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    kitchen, pendulum = out.split("test/pendulum-v0: return")
    assert "kitchen: normalised score" in kitchen and "xql scores higher than bc in 100% of the pairs" in kitchen
    assert "The average episode of the dataset scores 51.9." in kitchen and "average" not in pendulum
    scores = read(runs[0]).scores
    (line,) = [line for line in kitchen.splitlines() if line.startswith("xql-kitchen")]
    assert f"{scores.mean():.1f}" in line and " ".join(f"{s:.1f}" for s in scores.mean(-1)) in line and "2,500" in line

    files = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"curves-kitchen-normalized.png", "curves-test-pendulum-v0-return.png"}
    assert files == {"report.md"} | pictures
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(f"]({name})" in text for name in pictures)
    (row,) = [line for line in text.splitlines() if line.startswith("| bc-kitchen")]
    assert row.count("|") == 9 and f"| {read(runs[1]).scores.mean():.1f} |" in row


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
def test_runs_on_one_name_are_told_apart_by_what_it_stands_for(one, other, says, tmp_path, capsys):
    """Of two files called kitchen.hdf5, or one in two environments, the scores are not comparable."""
    runs = [finished(tmp_path / "a", **one), finished(tmp_path / "b", "bc", **other)]
    runs += [finished(tmp_path / "c", "iql", **one)]
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if line.endswith("normalised score")]
    assert len(titles) == len(set(titles)) == 2 and says in titles[1]
    assert "xql scores higher than iql" in out and "bc in" not in out and "than bc" not in out
    pictures = {path.name for path in (tmp_path / "out").iterdir()} - {"report.md"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert len(pictures) == 2 and all(f"]({name})" in text for name in pictures)


def test_the_same_data_by_another_name_share_a_table(tmp_path, capsys):
    runs = [finished(tmp_path / name, dataset=name, data=data(), task=task()) for name in ("moved", "copied")]
    assert main(["report", *map(str, runs)]) == 0
    assert capsys.readouterr().out.count("normalised score") == 1


@pytest.mark.parametrize("seeds", [(1, 1), (1, 3), (2, 2)])
def test_nothing_is_said_of_one_pair(seeds, tmp_path, capsys):
    runs = [
        finished(tmp_path / str(i), agent, seeds=s)
        for i, (agent, s) in enumerate(zip(("xql", "bc"), seeds, strict=True))
    ]
    assert main(["report", *map(str, runs)]) == 0
    assert ("pairs" in capsys.readouterr().out) == (seeds != (1, 1))


def test_one_dataset_has_one_picture(tmp_path):
    runs = [finished(tmp_path / "a"), finished(tmp_path / "b", level=50)]
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.md", "curves.png"}
    assert "a scores higher than b in" in (tmp_path / "out" / "report.md").read_text(), "one agent: named by folder"


@pytest.mark.parametrize("missing", ["summary.json", "evaluations.csv"])
def test_unfinished_runs_are_named(missing, tmp_path, capsys):
    run = finished(tmp_path / "a")
    (run / missing).unlink()
    assert main(["report", str(run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(run) in line


def test_an_interrupted_last_evaluation_is_refused(tmp_path, capsys):
    run = finished(tmp_path / "a")
    lines = (run / "evaluations.csv").read_text().splitlines(keepends=True)
    (run / "evaluations.csv").write_text("".join(lines[:-1]))
    assert main(["report", str(run)]) == 1
    assert "lacks evaluations of the last policy" in capsys.readouterr().err


@pytest.mark.parametrize("case", [dict(seeds=1, evaluations=1, losses=1), dict(seeds=5), dict(agent="bc")])
def test_curves_of_one_run(case, tmp_path):
    image = plots.curves([finished(tmp_path / "run", **case)], tmp_path / "curves.png")
    assert image.read_bytes().startswith(b"\x89PNG")


def test_intervals_of_runs_do_not_hide_each_other(tmp_path):
    runs = [finished(tmp_path / "first" / "run"), finished(tmp_path / "second" / "run")]  # the same to the last digit
    image = imageio.imread(plots.curves(runs, tmp_path / "curves.png"))
    axes = image[: len(image) * 7 // 10, :, :3]  # above the legend
    first = np.array([31, 119, 180])  # matplotlib's C0, whose curve lies wholly below the second one's
    assert (axes == first).all(-1).sum() > 50
