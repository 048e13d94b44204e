"""Each fault is found in a file that has it, at the right rows, and none in a sound file."""

import io
import json
import re

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import pendulum
import pytest
from rich.console import Console

from offlinerl import dataset_commands
from offlinerl.data import listing, registry
from offlinerl.data.describe import describe, plot
from offlinerl.data.episode import Episode
from offlinerl.data.load import load
from offlinerl.data.minari_writer import write_minari
from offlinerl.data.registry import Entry
from offlinerl.data.validate import validate
from offlinerl.envs.make import make
from offlinerl.envs.mazes import walls_of
from offlinerl.util.display import PLAIN
from offlinerl.util.errors import UserError

LENGTH, EPISODES = 50, 60
ROWS = LENGTH * EPISODES


def sound():
    """Random walks of 50 steps from far apart starts."""
    random = np.random.default_rng(0)
    starts = random.normal(0, 50, (EPISODES, 1, 3))
    walks = starts + np.cumsum(random.uniform(-1, 1, (EPISODES, LENGTH + 1, 3)), axis=1)
    last = np.arange(ROWS) % LENGTH == LENGTH - 1
    even = np.arange(ROWS) // LENGTH % 2 == 0
    return dict(
        observations=walks[:, :-1].reshape(ROWS, 3).astype(np.float32),
        next_observations=walks[:, 1:].reshape(ROWS, 3).astype(np.float32),
        actions=random.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
        rewards=random.normal(size=ROWS).astype(np.float32),
        terminals=last & even,
        timeouts=last & ~even,
    )


def findings(tmp_path, columns, max_episode_steps=LENGTH):
    path = tmp_path / "some.hdf5"
    with h5py.File(path, "w") as file:
        for key, column in columns.items():
            file[key] = column
    entry = Entry("some", {"file": str(path)}, max_episode_steps=max_episode_steps)
    return {finding.kind: finding.rows.tolist() for finding in validate(entry)}


@pytest.mark.parametrize("with_next", [True, False])
def test_a_sound_file_has_no_findings(tmp_path, with_next):
    columns = sound()
    if not with_next:
        del columns["next_observations"]
    assert findings(tmp_path, columns) == {}


def test_jumps_are_found_by_next_observations(tmp_path):
    columns = sound()
    columns["next_observations"][[7, 300]] += 0.01
    assert findings(tmp_path, columns) == {"jump": [7, 300]}


def test_jumps_are_found_without_next_observations(tmp_path):
    columns = sound()
    del columns["next_observations"]
    columns["terminals"][2 * LENGTH + LENGTH - 1] = False
    row = 3 * LENGTH - 1
    assert findings(tmp_path, columns, None) == {"jump": [row]}


def test_episodes_too_long(tmp_path):
    columns = sound()
    columns["terminals"][3 * LENGTH - 1] = False
    found = findings(tmp_path, columns)
    assert found["missing end"] == [4 * LENGTH - 1] and found["jump"] == [3 * LENGTH - 1]


def test_missing_last_end(tmp_path):
    columns = sound()
    columns["timeouts"][-1] = False
    assert findings(tmp_path, columns) == {"missing end": [ROWS - 1]}


def test_overlapping_ends(tmp_path):
    columns = sound()
    columns["timeouts"][LENGTH - 1] = True
    assert findings(tmp_path, columns) == {"overlapping ends": [LENGTH - 1]}


def test_terminals_one_after_another(tmp_path):
    columns = sound()
    columns["terminals"][[20, 21, 22]] = True
    assert findings(tmp_path, columns) == {"overlapping ends": [21, 22]}


def test_non_finite_values(tmp_path):
    columns = sound()
    columns["rewards"][[3, 9]] = np.nan
    columns["actions"][9, 0] = np.inf
    found = findings(tmp_path, columns)
    assert found["not finite"] == [3, 9]


@pytest.mark.filterwarnings("error")
def test_values_too_large_for_float32_are_not_finite(tmp_path):
    columns = sound()
    columns["rewards"] = columns["rewards"].astype(np.float64)
    columns["rewards"][[3, 9]] = 1e300
    assert findings(tmp_path, columns) == {"not finite": [3, 9]}
    with pytest.raises(UserError, match="rewards has NaN or infinite values in 2 rows, the first of them 3"):
        load(str(tmp_path / "some.hdf5"))


def test_everything_that_loading_refuses_is_a_fault(tmp_path, capsys):
    columns = sound() | dict(terminals=np.zeros(ROWS, bool), timeouts=np.ones(ROWS, bool))
    columns.pop("next_observations")
    assert findings(tmp_path, columns) == {"refused": []}
    capsys.readouterr()
    assert dataset_commands.validate(str(tmp_path / "some.hdf5")) == 1
    out = "".join(capsys.readouterr().out.split("\n"))
    assert out.startswith("fault: refused: ") and out.endswith(
        "has a successor, so that there is nothing to learn from"
    )


def minari(tmp_path, observations, **metadata):
    """A dataset of one episode of three steps, with metadata that contradict it."""
    episode = Episode(observations, np.zeros((3, 1), np.float32), np.zeros(3), np.zeros(3, bool), np.zeros(3, bool), {})
    boxes = (gym.spaces.Box(-9, 9, (size,), np.float32) for size in (2, 1))
    names = ("observation_space", "action_space")
    write_minari(tmp_path, [episode], dataset_id="test/some-v0", env_spec=None, **dict(zip(names, boxes, strict=True)))
    about = tmp_path / "data/metadata.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | metadata))
    return [(of.kind, of.message) for of in validate(str(tmp_path)) if of.fault]


def test_all_observations_of_a_minari_episode_and_its_number_of_steps_are_checked(tmp_path):
    shown = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert minari(tmp_path / "sound", shown) == []
    ((kind, message),) = minari(tmp_path / "count", shown, total_steps=9)
    assert kind == "refused" and "promises 9 steps" in message
    shown[3, 1] = np.nan
    ((kind, message),) = minari(tmp_path / "nan", shown)
    assert kind == "refused" and "observations has NaN or infinite values in 1 rows, the first of them 3" in message


def test_actions_out_of_range(tmp_path):
    columns = sound()
    columns["actions"][[5, 8], 1] = [1.5, -1.01]
    assert findings(tmp_path, columns) == {"action range": [5, 8]}


def test_duplicated_rows(tmp_path):
    columns = sound()
    for key in ("observations", "actions", "rewards", "next_observations"):
        columns[key] = np.concatenate([columns[key], columns[key][:LENGTH]])
    for key in ("terminals", "timeouts"):
        columns[key] = np.concatenate([columns[key], columns[key][:LENGTH]])
    assert findings(tmp_path, columns) == {"duplicates": list(range(ROWS, ROWS + LENGTH))}


def test_unequal_lengths(tmp_path):
    columns = sound()
    columns["rewards"] = columns["rewards"][:-2]
    assert findings(tmp_path, columns) == {"unequal lengths": [ROWS - 2, ROWS - 1]}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    path = tmp_path / "some.hdf5"
    with h5py.File(path, "w") as hdf5:
        for key, column in sound().items():
            hdf5[key] = column
    return path


def test_description(file):
    data = load(str(file))
    facts = describe(data)
    assert (facts["rows"], facts["episodes"]) == (ROWS, EPISODES)
    assert facts["lengths"] == {"0%": 50, "25%": 50, "50%": 50, "75%": 50, "100%": 50, "mean": 50}
    assert facts["terminations"] == facts["truncations"] == EPISODES / 2
    returns = sound()["rewards"].reshape(EPISODES, LENGTH).astype(np.float64).sum(axis=1)
    assert facts["returns"]["mean"] == pytest.approx(returns.mean())
    assert facts["returns"]["100%"] == pytest.approx(returns.max())
    assert facts["obs"] == {"shape": [ROWS, 3], "dtype": "float32"}


def test_histograms(file, tmp_path):
    image = plot(load(str(file)), tmp_path / "new" / "some.png")
    assert image.read_bytes().startswith(b"\x89PNG") and image.stat().st_size > 2_000
    assert plot(load(str(file)), tmp_path / "some.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in plot(load(str(file)), tmp_path / "some.svg").read_text()[:1000]


def test_commands(file, tmp_path, capsys):
    dataset_commands.show(str(file), tmp_path / "some.png")
    assert "episodes\t60" in capsys.readouterr().out and (tmp_path / "some.png").exists()
    assert dataset_commands.validate(str(file)) == 0
    with h5py.File(file, "a") as hdf5:
        hdf5["actions"][4, 0] = 2
    assert dataset_commands.validate(str(file)) == 1
    assert "(1 rows: 4)" in capsys.readouterr().out
    listing.list_datasets()
    assert "kitchen-complete-v0\td4rl" in capsys.readouterr().out


def test_the_list_names_the_environments_of_installed_datasets(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    path = pendulum.install(tmp_path)
    listing.list_datasets()
    assert f"\n{pendulum.ID}\tminari\tyes\tPendulum-v1\t" in capsys.readouterr().out
    (path / "data/metadata.json").write_text("{}")
    listing.list_datasets()
    assert f"\n{pendulum.ID}\tminari\tyes\t\t" in capsys.readouterr().out, "damaged"


def test_the_list_on_a_terminal_of_80_columns(file, monkeypatch):
    """It fits, says what is present, and its names in braces expand to all names."""
    screen = io.StringIO()
    monkeypatch.setattr(
        listing, "console", Console(file=screen, force_terminal=True, width=80, soft_wrap=True, **PLAIN)
    )
    pendulum.install(file.parent / "minari")
    (file.parent / "minari/pendulum/.half-v0.0123abcd/data").mkdir(parents=True)  # which is still being written
    monkeypatch.setenv("OFFLINERL_HOME", str(file.parent))
    listing.list_datasets()
    lines = re.sub("\x1b\\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    text, groups = "\n".join(lines), []
    here = text.split("\n\n")[0]
    assert "half-v0" not in text
    assert "On this machine" in here and pendulum.ID in here and "offlinerl datasets generate NAME" in text
    for block in text.split("\n\n")[1:-1]:
        title, names = block.split("names", 1)
        column = names.index("environment") + len("names")
        cells = [line[:column].rstrip() for line in names.splitlines()[1:]]
        groups += re.findall(r"[^ {}]*\{[^}]*\}[^ ]*|[^ {},]+", " ".join(cells))
    found = [name for group in groups for name in expand(group)]
    assert sorted(found) == sorted(name for name in registry.names() if name not in here.split())


def expand(group):
    """Expand names in braces as a shell does."""
    begin, brace, rest = group.partition("{")
    middle, _, end = rest.partition("}")
    return [f"{begin}{name.strip()}{end}" for name in middle.split(",")] if brace else [group]


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (["kitchen"], "kitchen"),
        (["pen-human-v1", "pen-cloned-v1"], "pen-{human, cloned}-v1"),
        (["D4RL/pen/human-v2", "D4RL/pen/cloned-v2"], "D4RL/pen/{human, cloned}-v2"),
        (["hopper-expert", "hopper-medium-expert"], "hopper-{expert, medium-expert}"),
        (["PointMaze_UMaze-v3", "PointMaze_Large-v3"], "PointMaze_{UMaze, Large}-v3"),
        (["a", "b"], "{a, b}"),
    ],
)
def test_names_in_braces(names, group):
    assert listing.in_braces(names) == group and expand(group) == names


def test_walls_are_drawn_where_the_simulators_have_them():
    """The ant's and the point's mazes: what is drawn as a wall is a wall, in their own coordinates."""
    ant = make({"id": "offlinerl/AntMaze-umaze-v0"}).unwrapped
    centres, width = walls_of(ant)
    boxes = [ant.model.geom(i) for i in range(ant.model.ngeom) if ant.model.geom(i).type == mujoco.mjtGeom.mjGEOM_BOX]
    np.testing.assert_allclose(sorted(map(tuple, centres)), sorted(tuple(box.pos[:2]) for box in boxes))
    assert all(2 * box.size[0] == width for box in boxes)
    point = make({"id": "PointMaze_UMaze-v3"}).unwrapped
    centres, width = walls_of(point)
    blocks = [
        body for body in map(point.point_env.model.geom, range(point.point_env.model.ngeom)) if "block" in body.name
    ]
    np.testing.assert_allclose(sorted(map(tuple, centres)), sorted(tuple(block.pos[:2]) for block in blocks))
    other = make({"id": "Pendulum-v1"})
    other.unwrapped.walls = [(0, 0, 1, 1)]
    assert walls_of(other) is None


def test_import_and_export_lose_nothing(file, tmp_path):
    pytest.importorskip("minari")
    dataset_commands.import_file(file, "mine/some-v0")
    dataset_commands.export("mine/some-v0", tmp_path / "again.hdf5")
    original, installed, exported = (load(name) for name in (str(file), "mine/some-v0", str(tmp_path / "again.hdf5")))
    for column in ("obs", "action", "reward", "terminated", "last", "next_obs"):
        np.testing.assert_array_equal(getattr(installed, column), getattr(original, column))
        np.testing.assert_array_equal(getattr(exported, column), getattr(original, column))
    assert validate("mine/some-v0") == []


def test_an_imported_file_keeps_the_given_environment(file):
    minari = pytest.importorskip("minari")
    with h5py.File(file, "a") as hdf5:
        narrow = hdf5["actions"][:, :1]
        del hdf5["actions"]
        hdf5["actions"] = narrow
    dataset_commands.import_file(file, "mine/swing-v0", "Pendulum-v1")
    spec = minari.load_dataset("mine/swing-v0").env_spec
    assert spec.id == "Pendulum-v1" and registry.resolve("mine/swing-v0").env["spec"] == spec.to_json()
    with pytest.raises(UserError, match="no environment 'Pendulun-v1'; did you mean Pendulum-v1"):
        dataset_commands.import_file(file, "mine/other-v0", "Pendulun-v1")
