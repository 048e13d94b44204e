"""A name means exactly one dataset or is an error, and every error is one sentence that says what to do."""

import hashlib
import http.server
import threading
import time

import h5py
import numpy as np
import pytest

from offlinerl.data import registry
from offlinerl.data.d4rl import load_hdf5
from offlinerl.data.episode import Episode
from offlinerl.data.formats import kind_of
from offlinerl.data.load import load
from offlinerl.data.minari_reader import load_minari
from offlinerl.data.minari_writer import write_minari
from offlinerl.data.registry import Entry, normalized_score, resolve
from offlinerl.data.rewards import online_reward
from offlinerl.envs.make import make
from offlinerl.training.tasks import dataset_score
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map


@pytest.fixture(autouse=True)
def no_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINERL_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def write(path, **columns):
    sound = dict(
        observations=np.zeros((4, 2), np.float32),
        actions=np.zeros((4, 1), np.float32),
        rewards=np.zeros(4, np.float32),
        terminals=np.arange(4) == 3,
    )
    with h5py.File(path, "w") as file:
        for key, column in (sound | columns).items():
            if column is not None:
                file[key] = column
    return path


# ---------------------------------------------------------------------------------------------- names


def test_every_entry_is_complete():
    assert len(registry.names()) > 80
    for name in registry.names():
        entry = registry.entry(name)
        assert entry.kind in ("builtin", "recipe", "minari", "d4rl"), name
        assert entry.family in ("kitchen", "antmaze", "maze2d", "locomotion", "adroit"), name
        assert entry.env is not None or entry.kind == "minari", name
        assert "{" not in str(entry.source.get("d4rl", "")).replace("{'url'", ""), name
        assert entry.score is None or entry.score["min"] < entry.score["max"], name


def test_scores_are_d4rls():
    scores = {
        "halfcheetah-medium-v2": (-280.178953, 12135.0),
        "hopper-medium-replay-v2": (-20.272305, 3234.3),
        "walker2d-full-replay-v2": (1.629008, 4592.3),
        "walker2d-expert-v2": (1.629008, 4592.3),
        "antmaze-large-play-v0": (0, 1),
        "kitchen-mixed-v0": (0, 4),
        "pen-human-v1": (96.262799, 3076.8331017826877),
        "door-cloned-v0": (-56.512833, 2880.5693087298737),
        "hammer-expert-v1": (-274.856578, 12794.134825156867),
        "relocate-human-v1": (-6.425911, 4233.877797728884),
        "maze2d-umaze-v1": (23.85, 161.86),
        "maze2d-medium-v1": (13.13, 277.39),
        "maze2d-large-v1": (6.7, 273.99),
    }
    for name, (low, high) in scores.items():
        entry = resolve(name)
        assert entry.score_of(low) == 0 and entry.score_of(high) == pytest.approx(100)
    assert normalized_score(2, 0, 4) == 50


def test_no_v5_environment_gives_a_d4rl_score():
    for name in registry.names():
        entry = registry.entry(name)
        if entry.family == "locomotion" and entry.kind == "d4rl":
            assert entry.env["id"].endswith("-v4")
        if entry.kind == "minari" and entry.family in ("locomotion", "adroit"):
            assert entry.score is None


def test_placeholders_fill_urls_and_tasks():
    entry = resolve("hopper-medium-replay-v2")
    assert entry.where["url"].endswith("gym_mujoco_v2/hopper_medium_replay-v2.hdf5")
    assert (entry.env["id"], entry.reward, entry.max_episode_steps) == (
        "Hopper-v4",
        "scale_by_return_range",
        1000,
    )
    maze = resolve("antmaze-umaze-diverse-v2")
    assert maze.where["url"].endswith(
        "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5"
    )
    assert (maze.split, maze.reward, maze.max_episode_steps) == ("jump", "minus_one", 700)
    assert resolve("kitchen-mixed-v0").env["kwargs"]["tasks"] == [
        "microwave",
        "kettle",
        "bottom burner",
        "light switch",
    ]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("kitchen-complete-v1", "kitchen-complete-v0"),
        ("hopper-medum-v2", "hopper-medium-v2"),
        ("kitchn", "kitchen"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_name(wrong, right):
    with pytest.raises(UserError, match=f"there is no dataset '{wrong}'; did you mean .*{right}"):
        resolve(wrong)


def test_a_d4rl_name_is_not_the_built_in_data():
    assert resolve("kitchen").kind == "builtin"
    assert resolve("kitchen-complete-v0").kind == "d4rl"
    assert resolve("D4RL/kitchen/complete-v2").kind == "minari"


@pytest.mark.parametrize("name", ["complete", "partial", "mixed"])
def test_the_score_of_minaris_kitchen_is_the_number_of_tasks(name, tmp_path):
    """Its data was recorded where every step pays the number of tasks done, until the time is up: a reward of 2 in the
    last step is a score of 50. Its policies are evaluated where a task pays once."""
    kwargs = dict(remove_task_when_completed=False, terminate_on_tasks_completed=False)
    recorded = make({"id": "FrankaKitchen-v1", "kwargs": kwargs}, observed=False)
    shown, _ = recorded.reset(seed=0)
    stacked = tree_map(lambda leaf: np.stack([leaf] * 11), shown)
    done = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2.0])
    episode = Episode(stacked, np.zeros((10, 9)), done, np.zeros(10, bool), np.arange(10) == 9)
    write_minari(
        tmp_path / f"minari/D4RL/kitchen/{name}-v2", [episode], dataset_id=f"D4RL/kitchen/{name}-v2",
        env_spec=recorded.spec, observation_space=recorded.observation_space, action_space=recorded.action_space,
    )  # fmt: skip
    entry = resolve(f"D4RL/kitchen/{name}-v2")
    data = load(entry)
    assert data.obs.shape == (10, 59) and data.reward.tolist() == done.tolist()
    assert dataset_score(entry, data) == 50 and entry.score_of(2) == 50
    own = make(entry.env, entry.obs_keys).unwrapped
    assert own.remove_task_when_completed and own.terminate_on_tasks_completed
    assert {*own.goal} == {
        "microwave",
        "kettle",
        "light switch",
        "bottom burner" if name == "mixed" else "slide cabinet",
    }
    reward = online_reward(entry, data)
    assert [float(reward(np.float32(r), np.float32(t))) for r, t in ((0, 0), (1, 1), (0, 1), (1, 2))] == [0, 1, 1, 2]


@pytest.mark.parametrize("name", ["pen-human-v1", "pen-cloned-v0"])
def test_an_episode_of_pen_ends_when_the_pen_is_dropped(name):
    entry = resolve(name)
    env, other = make(entry.env), make({"id": "AdroitHandPen-v1"})
    env.reset(seed=0), other.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(99):
        action = env.action_space.sample()
        shown, reward, terminated, truncated, _ = env.step(action)
        same, paid, goes_on, *_ = other.step(action)
        assert np.array_equal(shown, same) and reward == paid and not goes_on
        hand = other.unwrapped
        assert terminated == bool(hand.data.xpos[hand.obj_body_id][2] < 0.075)
        if terminated:
            break
    assert terminated and not truncated and entry.steps_allowed == 100


def test_a_file_named_after_an_entry_gets_its_task_and_is_checked(tmp_path):
    entry = resolve(str(write(tmp_path / "kitchen-complete-v0.hdf5")))
    assert (entry.env["id"], entry.score["max"], entry.kind) == ("offlinerl/Kitchen-v0", 4, "file")
    assert load(entry).provenance["checksum"] == "differs"
    other = resolve(str(write(tmp_path / "mine.hdf5")))
    assert other.env is None and other.score_kind == "return" and other.score_of(7.0) == 7
    assert load(other).provenance["checksum"] == "unknown"


def test_env_sets_the_whole_task_or_only_the_environment(tmp_path):
    path = str(write(tmp_path / "mine.hdf5"))
    task = resolve(path, "kitchen-mixed-v0")
    assert task.where == path and task.score["max"] == 4 and "bottom burner" in task.env["kwargs"]["tasks"]
    alone = resolve(path, "CartPole-v1")
    assert alone.env == {"id": "CartPole-v1"} and alone.score is None
    with pytest.raises(UserError, match="no environment 'kitchen-complet-v0'; did you mean kitchen-complete-v0"):
        resolve(path, "kitchen-complet-v0")


def test_minaris_reference_scores_are_labelled_as_such(tmp_path):
    folder = tmp_path / "minari" / "mujoco" / "hopper" / "medium-v0" / "data"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(
        '{"dataset_id": "x", "total_episodes": 1, "total_steps": 1, "ref_min_score": 10, "ref_max_score": 20}'
    )
    entry = resolve("mujoco/hopper/medium-v0")
    assert entry.score_kind == "minari" and entry.score_of(15) == 50
    assert resolve("mujoco/hopper/expert-v0").score_kind == "return"


def test_a_folder_with_data_is_never_taken_for_a_minari_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (
        "logs/run-v1/day.csv",
        "lr/robot-v0/meta/info.json",
        "mine/copy-v0/dataset.json",
        "notes/about-v0/a.md",
    ):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text('{"provenance": {}}')
    for name in ("logs/run-v1", "lr/robot-v0", "mine/copy-v0"):
        assert resolve(name).source == {"file": name}
    assert resolve("notes/about-v0").kind == "minari", "a folder without data is called so by chance"
    installed = tmp_path / "minari/notes/about-v0/data"
    installed.mkdir(parents=True)
    (installed / "metadata.json").write_text('{"dataset_id": "installed", "total_episodes": 1, "total_steps": 1}')
    assert resolve("notes/about-v0").name == "installed"


def test_a_folder_of_another_format_may_have_a_file_named_as_minaris(tmp_path):
    for file in ("meta/info.json", "metadata.json"):
        (tmp_path / "robot" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "robot" / file).write_text("{}")
    folder = tmp_path / "robot"
    assert resolve(str(folder)).source == {"file": str(folder)} and kind_of(folder) == "lerobot"


# ------------------------------------------------------------------------------------------- downloads


def d4rl(url, **known):
    return Entry("some-v0", {"d4rl": {"url": url, **known}})


def test_an_unreachable_server_fails_fast():
    start = time.monotonic()
    with pytest.raises(UserError, match="could not be reached; download it elsewhere .* --dataset FILE"):
        load(d4rl("http://127.0.0.1:9/some.hdf5"))
    assert time.monotonic() - start < 2


def test_a_minari_dataset_out_of_reach_fails_fast(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(UserError, match="D4RL/kitchen/complete-v2 is not installed .* `minari download"):
        load("D4RL/kitchen/complete-v2")
    assert time.monotonic() - start < 2


def test_a_mistyped_id_is_refused_with_the_nearest_local_one(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (registry.minari_root() / "mine/hopper-v0/data").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mine/hoper-v0 is not installed \(did you mean mine/hopper-v0\?\)"):
        load("mine/hoper-v0")
    with pytest.raises(UserError, match="there is no dataset 'mine/hopper'; did you mean mine/hopper-v0"):
        load("mine/hopper")


@pytest.fixture
def server(tmp_path):
    content = write(tmp_path / "published.hdf5").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/missing":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path == "/half" else content)

        def log_message(self, *_):
            """Keeps the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", content
        server.shutdown()


def test_a_download_is_checked_and_kept(server):
    url, content = server
    entry = d4rl(f"{url}/whole", bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    registry.download(entry)
    assert entry.path.read_bytes() == content
    assert len(load(entry)) == 4


@pytest.mark.parametrize(
    ("page", "known", "message"),
    [
        ("whole", {"sha256": "0" * 64}, "not the published one"),
        ("whole", {"bytes": 7}, "bytes instead of 7"),
        ("half", {}, "bytes instead of"),
        ("missing", {}, "could not be reached"),
    ],
)
def test_a_wrong_download_leaves_nothing(server, page, known, message):
    entry = d4rl(f"{server[0]}/{page}", **known)
    with pytest.raises(UserError, match=message):
        load(entry)
    assert list(entry.path.parent.iterdir()) == []


# ----------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (dict(actions=None), "lacks actions; it has observations, rewards, terminals"),
        (dict(rewards=np.zeros(3)), "unequal lengths .*observations 4.* rewards 3"),
        (
            dict(rewards=np.array([0, np.nan, 0, np.inf])),
            "rewards has NaN or infinite values in 2 rows.* first of them 1",
        ),
        (dict(observations=np.full((4, 2), np.nan)), "observations has NaN or infinite values in 4 rows"),
        (dict(actions=np.full((4, 1), 1e300)), "actions has NaN or infinite values in 4 rows"),
        (dict(rewards=np.zeros((4, 2))), r"rewards must have 1 axes, but it is \(4, 2\)"),
        (dict(observations=np.zeros((4, 2, 2))), "observations must have 2 axes"),
        (
            {
                key: np.zeros((0, 1)[: 2 if key in ("observations", "actions") else 1])
                for key in ("observations", "actions", "rewards", "terminals")
            },
            "is empty",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_invalid_files_are_refused(tmp_path, columns, message):
    with pytest.raises(UserError, match=message) as caught:
        load_hdf5(write(tmp_path / "some.hdf5", **columns))
    assert "some.hdf5" in str(caught.value) and "\n" not in str(caught.value)


def test_the_named_row_is_that_of_the_file(tmp_path):
    rewards = np.zeros(6)
    rewards[4] = np.nan
    path = tmp_path / "some.hdf5"
    wide = dict(observations=np.zeros((6, 2)), actions=np.zeros((6, 1)), rewards=rewards)
    write(path, **wide, terminals=np.zeros(6, bool), timeouts=np.arange(6) % 3 == 2)
    with pytest.raises(UserError, match="first of them 4"):
        load_hdf5(path)


def test_truncated_foreign_and_missing_files(tmp_path):
    path = write(tmp_path / "some.hdf5")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="some.hdf5 is not an HDF5 file, or only a part of one"):
        load(str(path))
    path.write_text("not HDF5")
    with pytest.raises(UserError, match="not an HDF5 file"):
        load(str(path))
    with pytest.raises(UserError, match="none.hdf5 does not exist"):
        load(str(tmp_path / "none.hdf5"))


def test_a_broken_minari_dataset_is_refused(tmp_path):
    folder = tmp_path / "minari" / "mine-v0" / "data"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="metadata.json cannot be read"):
        load_minari("mine-v0")
    (folder / "metadata.json").write_text(
        '{"dataset_id": "mine-v0", "total_steps": 3, "total_episodes": 1, "jpeg_encoding": false}'
    )
    with pytest.raises(UserError, match="main_data.hdf5 does not exist"):
        load_minari("mine-v0")
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        file["episode_0/observations"] = np.zeros((3, 1))
        file["episode_0/actions"], file["episode_0/rewards"] = np.zeros((3, 1)), np.zeros(3)
        file["episode_0/terminations"] = np.zeros(3, bool)
    with pytest.raises(UserError, match="mine-v0, episode 0: 3 observations, 3 actions"):
        load_minari("mine-v0")
