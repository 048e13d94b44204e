"""With broken files, checkpoints, run folders, settings or flags, a command works or prints one sentence.

Every case is made from its seed. ``FUZZ_CASES=1000 pytest -n 0 tests/test_fuzz.py`` tries more of them.
"""

import contextlib
import io
import json
import os
import shutil
import signal
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pendulum
import pytest
import torch
import yaml

from offlinerl.cli import main
from offlinerl.data.episode_log import write_collection
from offlinerl.data.journal import EPISODES, Journal

CASES = int(os.environ.get("FUZZ_CASES", 120))
SECONDS = 60
"""The time limit of a command."""

EVALUATIONS = ("--eval-episodes", 1, "--final-episodes", 1, "--batch", 4, "--compile", "false")
FEW = ("--updates", 4, "--eval-every", 2, *EVALUATIONS)
TINY = ("--agent.hidden", "[4]")

ODD = (None, "word", "", -1, 0, 1.5, 7, float("nan"), float("inf"), True, [], {}, [1, "a"], {"a": 1}, [[]])
"""Values of all types, few of which are valid anywhere."""

TEXTS = (
    "",
    "\n",
    "word",
    "[1",
    "{}",
    "[]",
    "null",
    '{"a": 1}',
    "a: [1\n",
    "- 1\n",
    "\x00\x01",
    "ä: ö\n",
    "1",
    "a,b\n1,2\n",
)
"""Possible contents of a replaced file."""


class Hang(BaseException):
    """A command took too long."""


@contextlib.contextmanager
def at_most(seconds: int):
    def stop(*_):
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with unbroken inputs: ``minari``, ``file.hdf5``, ``journal``, ``offline`` and ``online``."""
    with pendulum.workplace(tmp_path_factory.mktemp("sound")) as folder, contextlib.redirect_stderr(io.StringIO()):
        env = gym.make("Pendulum-v1", max_episode_steps=pendulum.STEPS)
        about = dict(observation_space=env.observation_space, action_space=env.action_space)
        write_collection(folder / "journal", dataset_id="test/journal-v0", env_spec=env.spec, **about)
        with Journal(folder / "journal" / EPISODES) as journal:
            for episode in pendulum.episodes(env, 3):
                journal.append(episode)
        offline = ("fit", "bc", "--dataset", pendulum.ID, "--out", "offline", *FEW, *TINY)
        online = ("fit", "td3", "--env", "Pendulum-v1", "--steps", 40, "--eval-every", 20, *EVALUATIONS, *TINY,
                  "--out", "online", "--config", "few.yaml")  # fmt: skip
        (folder / "few.yaml").write_text("train: {warm_up: 10, capacity: 100}\n")
        export = ("datasets", "export", pendulum.ID, "file.hdf5")
        for argv in (offline, online, export):
            assert main(list(map(str, argv))) == 0
        yield folder


# ------------------------------------------------------------------------------------------------ mutations


def pick(rng, choices):
    return choices[rng.integers(len(choices))]


def mutate_bytes(rng, path: Path) -> None:
    """Cut a file short, flip bytes of it, or replace it by something else."""
    data = bytearray(path.read_bytes())
    way = pick(rng, ("cut", "cut", "flip", "flip", "text", "random", "doubled", "zeros"))
    if way == "cut":
        data = data[: rng.integers(len(data) + 1)]
    elif way == "flip":
        for _ in range(pick(rng, (1, 3, 30))):
            if data:
                data[rng.integers(len(data))] = rng.integers(256)
    elif way == "text":
        data = pick(rng, TEXTS).encode()
    elif way == "random":
        data = rng.bytes(int(rng.integers(2000)))
    elif way == "doubled":
        data = data + data
    else:
        begin = rng.integers(len(data) + 1)
        data[begin : begin + 200] = bytes(len(data[begin : begin + 200]))
    path.write_bytes(data)


def mutate_tree(rng, tree, odd=ODD):
    """Remove, rename or replace one entry of nested mappings and lists, and return the resulting tree."""
    holder, key = None, None
    node = tree
    while isinstance(node, (dict, list)) and node and (holder is None or rng.random() < 0.85):
        holder, key = node, pick(rng, list(node)) if isinstance(node, dict) else int(rng.integers(len(node)))
        node = holder[key]
    if holder is None or rng.random() < 0.03:
        return pick(rng, odd)
    if key == "max_episode_steps":  # without this entry, commands never end, as they announce
        return tree
    way = pick(rng, ("drop", "rename", "replace", "replace", "replace"))
    if way == "drop" or (way == "rename" and isinstance(holder, list)):
        del holder[key]
    elif way == "rename":
        holder[f"{key}_"] = holder.pop(key)
    elif isinstance(node, torch.Tensor):
        holder[key] = pick(
            rng, (node.reshape(-1)[:0], node.reshape(-1), node[None], node.long(), node.float() * np.nan, None, "word")
        )
    elif isinstance(node, str) and node[:1] == "{":  # JSON in JSON, such as an environment's specification
        holder[key] = json.dumps(mutate_tree(rng, json.loads(node), odd))
    else:
        holder[key] = pick(rng, odd)
    return tree


def mutate_json(rng, path: Path) -> None:
    path.write_text(json.dumps(mutate_tree(rng, json.loads(path.read_text()))))


def mutate_yaml(rng, path: Path) -> None:
    path.write_text(yaml.safe_dump(mutate_tree(rng, yaml.safe_load(path.read_text()))))


def mutate_checkpoint(rng, path: Path) -> None:
    content = torch.load(path, weights_only=True)
    for _ in range(pick(rng, (1, 1, 3))):
        content = mutate_tree(rng, content) if isinstance(content, dict) else content
    torch.save(content, path)


def mutate_table(rng, path: Path) -> None:
    """Change a CSV file by its cells and columns."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    way = pick(rng, ("cell", "column", "header", "rows", "short"))
    row = pick(rng, rows)
    column = int(rng.integers(len(row)))
    if way == "cell":
        row[column] = pick(rng, ("", "word", "nan", "-1", "1e999"))
    elif way == "column":
        rows = [cells[:column] + cells[column + 1 :] for cells in rows]
    elif way == "header":
        rows = rows[1:]
    elif way == "rows":
        rows = rows[: rng.integers(len(rows))]
    else:
        del row[column:]
    path.write_text("".join(",".join(cells) + "\r\n" for cells in rows))


def mutate_hdf5(rng, path: Path) -> None:
    """Change a column or an attribute of an HDF5 file."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        name = pick(rng, names)
        column = file[name][()]
        if rng.random() < 0.12:
            for key in list(file.attrs):
                file.attrs[key] = pick(
                    rng, ("word", "{}", "[]", '{"env": 5}', '{"env": {"id": 3}}', '{"obs_keys": 7}', 5)
                )
            return
        floats = column.astype(np.float32)
        where = int(rng.integers(max(len(column), 1)))
        changed = {
            "nan": _with(floats, where, np.nan), "infinite": _with(floats, where, np.inf),
            "large": _with(floats, where, 1e30), "negative": _with(floats, where, -1),
            "half": _with(floats, where, 0.5),
            "shorter": column[:-1], "longer": np.concatenate([column, column[:1]]), "none": column[:0],
            "wider": np.stack([floats] * 2, -1), "flat": column.reshape(-1), "row": column[None],
            "number": np.float32(3), "text": np.full(len(column), b"a"), "complex": column.astype(complex),
            "whole": column.astype(np.int8), "yes": column.astype(bool), "double": column.astype(np.float64),
            "column": column.reshape(len(column), -1)[:, :1], "constant": floats * 0,
        }  # fmt: skip
        way = pick(rng, ("drop", "rename", "group", *changed))
        del file[name]
        if way == "rename":
            other = pick(rng, (f"{name}_", f"{name}/inner", "other", "timeouts", "truncations"))
            if other not in file:
                file[other] = column
        elif way == "group":
            file.create_group(name)
        elif way != "drop":
            file[name] = changed[way]


def _with(column, where, value):
    column = column.copy()
    column.reshape(len(column), -1)[where : where + 1] = value
    return column


# ---------------------------------------------------------------------------------------------- command lines


def reading(rng, name, env=True):
    """A command that reads a dataset."""
    known = ("--env", "Pendulum-v1") if env and rng.random() < 0.5 else ()
    return pick(
        rng,
        (
            ("fit", pick(rng, ("bc", "iql")), "--dataset", name, "--out", "new", *FEW, *TINY, *known),
            ("datasets", "show", name),
            ("datasets", "validate", name),
            ("datasets", "export", name, "exported.hdf5"),
            ("datasets", "import", name, "test/imported-v0", *known),
        ),
    )


def of_file(rng):
    """A file in D4RL's format."""
    path = Path("file.hdf5")
    (mutate_bytes if rng.random() < 0.3 else mutate_hdf5)(rng, path)
    return reading(rng, path)


def of_dataset(rng):
    """An installed Minari dataset."""
    data = Path("minari") / pendulum.ID / "data"
    way = pick(rng, ("bytes", "metadata", "metadata", "columns"))
    if way == "bytes":
        mutate_bytes(rng, pick(rng, sorted(data.iterdir())))
    elif way == "metadata":
        mutate_json(rng, data / "metadata.json")
    else:
        mutate_hdf5(rng, data / "main_data.hdf5")
    return reading(rng, pendulum.ID, env=False)


def of_journal(rng):
    """An unfinished collection."""
    if rng.random() < 0.5:
        mutate_bytes(rng, pick(rng, sorted(Path("journal").iterdir())))
    else:
        mutate_json(rng, Path("journal/collection.json"))
    going_on = ("collect", "random", "--env", "Pendulum-v1", "--dataset", "test/journal-v0", "--episodes", 3,
                "--out", "journal", "--resume")  # fmt: skip
    return going_on if rng.random() < 0.3 else reading(rng, "journal", env=False)


def longer(run):
    return ("--updates", 6) if run == "offline" else ("--steps", 50)


def using(rng, run):
    """A command that reads a run's checkpoint."""
    return pick(
        rng,
        (
            ("evaluate", f"{run}/last.ckpt", "--episodes", 1),
            ("evaluate", run, "--episodes", 1, "--env", "Pendulum-v1"),
            ("fit", "--resume", run, *longer(run)),
            ("collect", f"{run}/last.ckpt", "--env", "Pendulum-v1", "--dataset", "test/new-v0", "--episodes", 1),
        ),
    )


def of_checkpoint(rng):
    """A checkpoint of a training on a dataset or by acting."""
    run = pick(rng, ("offline", "online"))
    (mutate_bytes if rng.random() < 0.25 else mutate_checkpoint)(rng, Path(run) / "last.ckpt")
    return using(rng, run)


def of_run(rng):
    """A run's folder."""
    run = pick(rng, ("offline", "online"))
    files = [path for path in sorted(Path(run).iterdir()) if path.is_file() and path.name != "hparams.yaml"]
    known = {".yaml": mutate_yaml, ".json": mutate_json, ".csv": mutate_table}
    path = pick(rng, [path for path in files if path.suffix in known] if rng.random() < 0.7 else files)
    way = pick(rng, ("gone", "bytes", "content", "content", "content"))
    if way == "gone":
        path.unlink()
    elif way == "bytes" or path.suffix not in known:
        mutate_bytes(rng, path)
    else:
        known[path.suffix](rng, path)
    if rng.random() < 0.5:
        return ("report", *pick(rng, (("offline",), ("online", "offline"), ("online", "--out", "compared"))))
    return ("fit", "--resume", run, *longer(run))


def of_config(rng):
    """A file of settings."""
    run, path = pick(rng, ("offline", "online")), Path("my.yaml")
    shutil.copy(Path(run) / "config.yaml", path)
    (mutate_bytes if rng.random() < 0.2 else mutate_yaml)(rng, path)
    return ("fit", "--config", path, "--out", "new", *(("--updates", 4) if run == "offline" else ("--steps", 20)))


EVERYWHERE = ("--env", "--device", "--obs-keys", "--max-episode-steps", "--action-range", "--out", "--nothing")
FLAGS = dict(
    fit=(
        *EVERYWHERE, "--dataset", "--seeds", "--updates", "--steps", "--online-steps", "--config", "--batch",
        "--eval-every", "--eval-episodes", "--save-every", "--threads", "--compile", "--resume", "--agent.lr",
        "--agent.hidden", "--agent.gamma", "--agent.decay_steps", "--agent.n_step", "--agent.nothing",
    ),
    evaluate=(*EVERYWHERE, "--episodes", "--seed", "--json", "--video"),
    collect=(
        *EVERYWHERE, "--steps", "--episodes", "--noise", "--seed", "--envs", "--workers", "--ray-address", "--append",
        "--resume", "--config", "--batch",
    ),
    report=("--out", "--nothing"),
)  # fmt: skip

WORDS = (
    "0", "-1", "1", "2", "1.5", "nan", "inf", "word", "", "[1]", "[4, 4]", "null", "true", "0,1", "0,0", "-1,1", "2,-2",
    "file.hdf5", "offline", "offline/last.ckpt", "absent", ".", "/", "/dev/null", "Pendulum-v1", "CartPole-v1",
    pendulum.ID, "kitchen", "bc", "ü", "[x]", "cpu", "a\nb", "x" * 300,
)  # fmt: skip

PLACES = (
    ("fit", "bc", "--dataset", pendulum.ID, "--out", "new", *FEW, *TINY),
    ("fit", "iql", "--dataset", "file.hdf5", "--out", "new", *FEW, *TINY),
    (
        "fit",
        "td3",
        "--env",
        "Pendulum-v1",
        "--steps",
        20,
        "--eval-every",
        10,
        "--final-episodes",
        1,
        "--out",
        "new",
        *TINY,
    ),
    ("fit", "bc", "--env", "Pendulum-v1"),
    ("fit", "td3", "--dataset", pendulum.ID),
    ("fit", "--resume", "offline"),
    ("evaluate", "offline/last.ckpt", "--episodes", 1),
    ("collect", "random", "--env", "Pendulum-v1", "--dataset", "test/new-v0", "--episodes", 1),
    ("collect", "offline", "--env", "Pendulum-v1", "--dataset", "test/new-v0", "--steps", 10),
    ("report", "offline", "online"),
)


def of_flags(rng):
    """A command line with flags and values that may not go together."""
    argv = list(map(str, pick(rng, PLACES)))
    if rng.random() < 0.3:
        argv[rng.integers(1, len(argv))] = pick(rng, WORDS)
    for _ in range(rng.integers(1, 4)):
        flag = pick(rng, FLAGS.get(argv[0], FLAGS["fit"]))
        argv += [flag] if rng.random() < 0.1 or flag in ("--append", "--resume") else [f"{flag}={pick(rng, WORDS)}"]
    return argv


KINDS = {make.__name__: make for make in (of_file, of_dataset, of_journal, of_checkpoint, of_run, of_config, of_flags)}


@pytest.fixture
def own(sound, tmp_path, monkeypatch):
    """A copy of the folder with the unbroken inputs, to work in."""
    for path in sound.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("OFFLINERL_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def status_of(argv) -> int:
    try:
        with at_most(SECONDS):
            return main([str(word) for word in argv])
    except SystemExit as leaving:  # argparse's way
        return leaving.code


@pytest.mark.parametrize(
    "argv",
    [
        ("fit", "bc", "--dataset", "file.hdf5", "--out", "new", *FEW, *TINY),
        ("datasets", "validate", "file.hdf5"),
        ("datasets", "import", "file.hdf5", "test/imported-v0"),
        ("datasets", "show", pendulum.ID),
        ("datasets", "export", "journal", "exported.hdf5"),
        ("evaluate", "offline", "--episodes", 1),
        ("evaluate", "online/best.ckpt", "--episodes", 1),
        ("fit", "--resume", "offline", "--updates", 6),
        ("fit", "--resume", "online", "--steps", 50),
        ("fit", "--config", "offline/config.yaml", "--out", "new"),
        ("collect", "online", "--env", "Pendulum-v1", "--dataset", "test/new-v0", "--episodes", 1),
        ("report", "offline", "online"),
    ],
)
def test_unbroken_inputs_work(argv, own):
    assert status_of(argv) == 0


@pytest.mark.parametrize("kind, seed", [(list(KINDS)[seed % len(KINDS)], seed) for seed in range(CASES)])
def test_broken_inputs_lead_to_one_sentence(kind, seed, own, capsys):
    argv = KINDS[kind](np.random.default_rng(seed))
    print(*argv)
    before = {path for path in own.rglob("*") if path.is_file()}
    capsys.readouterr()
    status = status_of(argv)
    lines = capsys.readouterr().err.splitlines()
    assert status in (0, 1, 2), argv
    if status:
        assert len(lines) <= 1, (argv, lines)
        assert all(line.startswith("offlinerl") for line in lines), (argv, lines)
        gone = {path for path in before if not path.exists()}
        assert not gone, (argv, lines, gone)
