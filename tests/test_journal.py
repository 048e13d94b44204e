"""The journal: no finished episode is lost, duplicated or changed, whatever ends the process."""

import fcntl
import itertools
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from episodes import BOX, ENV, ID, SPACES, episode, filled, sealed

from offlinerl import dataset_commands
from offlinerl.data import registry, validate
from offlinerl.data.episode import Episode
from offlinerl.data.episode_log import check_target, seal, write_collection
from offlinerl.data.journal import COLLECTION, EPISODES, Journal
from offlinerl.data.load import load
from offlinerl.data.minari_reader import load_minari
from offlinerl.data.minari_writer import write_minari
from offlinerl.util.errors import UserError


def strange():
    """An episode of nested observations, many dtypes, odd memory layouts and infos."""
    rng = np.random.default_rng(0)
    observations = dict(
        pixels=rng.integers(0, 256, (4, 5, 6, 3), np.uint8)[:, :, ::-1],
        state=dict(q=rng.normal(size=(4, 2)), big=rng.normal(size=(4, 3)).astype(">f4")),
        empty=np.zeros((4, 0), np.float16),
    )
    infos = dict(
        success=np.array([False, True, True]), name=np.array(["a", "Käse", ""]), more=dict(n=np.arange(3)), none={}
    )
    rewards = np.array([np.nan, -0.0, np.inf], np.float32)
    last = np.array([False, False, True])
    return Episode(observations, np.asfortranarray(rng.integers(9, size=(3, 2))), rewards, last, ~last, infos)


def assert_same(one, other):
    """Compare bit for bit, including dtypes, shapes and nesting."""
    if isinstance(one, Episode):
        assert isinstance(other, Episode)
        assert one.seed == other.seed
        one, other = one.columns, other.columns
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
        return
    assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def assert_holds(episodes, numbers):
    for found, number in itertools.zip_longest(episodes, numbers):
        assert_same(found, episode(number))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / EPISODES


def names(folder: Path):
    return sorted(file.name for file in folder.iterdir())


# ---------------------------------------------------------------------------------------------- episodes


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int8, np.uint8, bool])
def test_episodes_come_back_bit_by_bit(path, dtype):
    items = [episode(n)._replace(observations=episode(n).observations.astype(dtype)) for n in range(3)]
    items.append(strange())
    with Journal(path) as journal:
        for item in items:
            assert journal.append(item)
        for found, item in itertools.zip_longest(journal, items):
            assert_same(found, item)
    with Journal(path) as journal:
        assert len(journal) == 4 and journal.steps == 3 + 4 + 5 + 3 and journal.torn == 0
        for found, item in itertools.zip_longest(journal, items):
            assert_same(found, item)
            assert found.rewards.flags.writeable and found.rewards.flags.aligned
    assert names(path.parent) == [EPISODES]


def test_objects_are_refused(path):
    with Journal(path) as journal:
        with pytest.raises(ValueError, match="dtype object cannot be written"):
            journal.append(episode()._replace(rewards=np.array([1, None, 2])))
        assert len(journal) == 0 and path.stat().st_size == 0


def test_numbers_start_at_zero(path):
    with Journal(filled(path)) as journal:
        assert_same(journal[2], episode(2))
        for number in (-1, 3):
            with pytest.raises(IndexError, match=f"3 episodes and none of number {number}"):
                journal[number]


def test_an_episode_made_again_is_compared_and_not_stored_twice(path):
    with Journal(filled(path)) as journal:
        size, checksum = path.stat().st_size, journal.crc(1)
        assert all(journal.append(episode(number), number) for number in range(3))
        assert not journal.append(episode(7), 1), "another episode passed for the one that is there"
        barely = episode(1)
        barely.observations.view(np.uint8)[-1, -1] ^= 1
        assert not journal.append(barely, 1), "one bit made no difference"
        assert not journal.append(episode(1)._replace(rewards=np.ones(4, np.float32)), 1), "nor did a dtype"
        assert (len(journal), path.stat().st_size, journal.crc(1)) == (3, size, checksum)
        with pytest.raises(ValueError, match="episode 4 cannot follow 3 episodes"):
            journal.append(episode(4), 4)
        assert journal.append(episode(3), 3)
        assert_holds(journal, range(4))


def test_the_digest_distinguishes_episodes(tmp_path):
    digests = [
        Journal(filled(tmp_path / str(number), numbers)).digest
        for number, numbers in enumerate([(0, 1), (0, 1), (1, 0), (0, 1, 2)])
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


# ------------------------------------------------------------------------------------------------ damage


def test_an_incomplete_last_episode_is_cut_off(path):
    begin, whole = len(filled(path, range(2)).read_bytes()), filled(path, [2]).read_bytes()
    for size in range(begin, len(whole)):
        path.write_bytes(whole[:size])
        with Journal(path, write=False) as journal:
            assert (len(journal), journal.torn) == (2, size - begin)
        assert path.stat().st_size == size, "reading changed the file"
        with Journal(path) as journal:
            assert (len(journal), journal.torn, path.stat().st_size) == (2, size - begin, begin)
            assert_holds(journal, range(2))
            assert journal.append(episode(2))
        assert path.read_bytes() == whole


def test_every_flipped_byte_is_detected(path):
    begin, whole = len(filled(path, range(2)).read_bytes()), filled(path, [2]).read_bytes()
    for at in range(begin, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x40
        path.write_bytes(damaged)
        with Journal(path) as journal:
            assert (len(journal), journal.torn) == (2, len(whole) - begin), f"byte {at}"
        assert path.read_bytes() == whole[:begin]


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\x89episode" + b"\0" * 100, b"\x89episode" + b"\xff" * 100])
def test_other_tails_are_cut_off(path, tail):
    whole = filled(path).read_bytes()
    path.write_bytes(whole + tail)
    with Journal(path) as journal:
        assert len(journal) == 3 and journal.torn == len(tail)
    assert path.read_bytes() == whole


def test_files_that_are_no_journal_are_not_changed(path):
    path.parent.mkdir()
    path.write_bytes(b"dear diary")
    for write in (True, False):
        with pytest.raises(UserError, match="episodes.journal is no journal of episodes"):
            Journal(path, write)
    assert path.read_bytes() == b"dear diary"


def test_reading_creates_nothing(path):
    with pytest.raises(UserError, match="episodes.journal does not exist"):
        Journal(path, write=False)
    assert not path.parent.exists()


# --------------------------------------------------------------------------------------------- processes


def child(code, *argv, **more):
    """Run Python code in a separate process that can import from this folder."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, argv)], stdout=subprocess.PIPE, text=True, **more)


FOREVER = """
import itertools
from episodes import episode
from offlinerl.data.journal import Journal
with Journal(sys.argv[1]) as journal:
    for number in itertools.count(len(journal)):
        journal.append(episode(number, 2000 if number % 3 else None), number)
        print(number, flush=True)
"""


def test_killed_at_any_moment(path):
    random = np.random.default_rng()
    for _ in range(3):
        writer = child(FOREVER, path)
        reported = int(writer.stdout.readline())
        time.sleep(random.uniform(0, 0.2))
        writer.kill()
        reported = int(([reported] + writer.stdout.read().split("\n")[:-1])[-1])
        writer.wait()
        with Journal(path) as journal:
            assert len(journal) > reported
            for number, found in enumerate(journal):
                assert_same(found, episode(number, 2000 if number % 3 else None))
            number = len(journal)
            assert journal.append(episode(number, 2000 if number % 3 else None), number)
    assert names(path.parent) == [EPISODES]


def test_one_process_writes_and_others_read(path):
    with child(FOREVER, path) as writer:
        try:
            writer.stdout.readline()
            with pytest.raises(UserError, match="episodes.journal is being written by another process"):
                Journal(path)
            counts = []
            for _ in range(20):
                with Journal(path, write=False) as journal:
                    counts.append(len(journal))
                    assert_same(journal[len(journal) - 1], episode(n := len(journal) - 1, 2000 if n % 3 else None))
                writer.stdout.readline()
            assert counts == sorted(counts) and counts[0] < counts[-1], "nothing was written meanwhile"
        finally:
            writer.kill()
    with Journal(path) as journal, pytest.raises(UserError, match="written by another process"):
        Journal(journal.path)


LIMITED = """
import resource
from pathlib import Path
from episodes import episode
from offlinerl.data.journal import Journal
from offlinerl.util.errors import UserError
with Journal(sys.argv[1]) as journal:
    limit = Path(sys.argv[1]).stat().st_size + 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for _ in range(2):
        try:
            journal.append(episode(3))
        except UserError as error:
            print(error)
    print(len(journal), Path(sys.argv[1]).stat().st_size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.append(episode(3))
    print(len(journal))
"""


def test_a_full_disk_is_reported_and_keeps_the_episodes(path):
    before = filled(path).stat().st_size
    with child(LIMITED, path) as process:
        first, second, state, after = process.stdout.read().splitlines()
    assert first == second
    assert first == f"{path} holds 3 episodes and no further one, because the disk is full: free some space"
    assert state == f"3 {before}" and after == "4"
    with Journal(path) as journal:
        assert journal.torn == 0
        assert_holds(journal, range(4))


# ----------------------------------------------------------------------------------------------- sealing


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("OFFLINERL_HOME", str(tmp_path / "cache"))
    return tmp_path / "minari"


def contents(folder):
    """Every file below a folder."""
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_stored(folder, numbers):
    """What Minari reads from a dataset, bit for bit."""
    minari = pytest.importorskip("minari")
    data = minari.MinariDataset(folder / "data")
    assert data.total_episodes == len(numbers)
    for found, number in zip(data, numbers, strict=True):
        for field in ("observations", "actions", "rewards", "terminations", "truncations"):
            assert_same(getattr(found, field), getattr(episode(number), field))
    return data


def test_a_journal_becomes_a_minari_dataset(tmp_path, root):
    minari = pytest.importorskip("minari")
    folder = sealed(tmp_path / "a", range(4), commit="abc")
    assert_stored(folder, range(4))
    data = minari.load_dataset(ID)
    assert data.recover_environment().spec.to_json() == gymnasium.make("CartPole-v1").spec.to_json()
    assert data.storage.metadata["author"] == {"offlinerl"} and data.total_steps == 18
    provenance = data.storage.metadata["provenance"]
    assert {key: provenance[key] for key in ("collected_by", "agent", "commit", "episodes", "steps")} == dict(
        collected_by="offlinerl", agent="random", commit="abc", episodes=4, steps=18
    )
    assert names(tmp_path) == ["a", "minari"] and names(root) == ["test"] and names(root / "test") == ["cartpole-v0"]


def test_a_dataset_is_not_overwritten(tmp_path, root):
    folder = sealed(tmp_path / "a", range(2))
    before = contents(root)
    with pytest.raises(UserError, match="cartpole-v0 exists already; choose another --dataset or add --append"):
        sealed(tmp_path / "b", range(3))
    with Journal(tmp_path / "b") as journal, pytest.raises(UserError, match="cartpole-v0 exists already"):
        provenance = dict(agent="random")
        more = dict(dataset_id=ID, env_spec=ENV, metadata=dict(provenance=provenance), append=False)
        seal(journal, folder, **SPACES, **more)
    assert contents(root) == before and names(root / "test") == ["cartpole-v0"]


def test_appending_keeps_the_old_and_says_where_each_part_comes_from(tmp_path, root):
    sealed(tmp_path / "a", range(3), agent=dict(name="sac", hidden=(8, 8)), seed=0)
    sealed(tmp_path / "b", range(5, 7), agent=dict(name="sac", hidden=(8, 8)), append=True, seed=1)
    folder = sealed(tmp_path / "c", range(9, 10), agent=dict(name="sac", hidden=[8, 8]), append=True, seed=2)
    data = assert_stored(folder, [0, 1, 2, 5, 6, 9])
    provenance = data.storage.metadata["provenance"]
    parts = [provenance, *provenance["appended"]]
    assert [(part["seed"], part["episodes"], part["steps"]) for part in parts] == [(0, 3, 12), (1, 2, 7), (2, 1, 7)]
    assert data.storage.metadata["description"] == "from a" and names(root / "test") == ["cartpole-v0"]
    assert len(load_minari(folder)) == 26 == data.total_steps


def test_appending_keeps_every_array_and_dtype(tmp_path):
    odd = strange()._replace(observations={**strange().observations, "empty": np.zeros((4, 2), np.float16)})
    space = gymnasium.spaces.Dict(a=BOX)  # only a description; it need not fit the episodes
    journals = [Journal(tmp_path / name) for name in "ab"]
    for append, journal in enumerate(journals):
        journal.append(odd._replace(rewards=odd.rewards + append))
        more = dict(observation_space=space, action_space=BOX, metadata=dict(provenance=dict(agent="random")))
        path = seal(journal, tmp_path / "d-v0", dataset_id="d-v0", env_spec=None, append=bool(append), **more)
    with h5py.File(path / "data" / "main_data.hdf5") as file:
        for number, item in enumerate(journal[0] for journal in journals):
            group = file[f"episode_{number}"]
            assert group.attrs["id"] == number and group.attrs["total_steps"] == 3
            for field in ("rewards", "actions", "terminations", "truncations"):
                assert_same(group[field][()], getattr(item, field))
            for name in ("pixels", "empty"):
                assert_same(group[f"observations/{name}"][()], item.observations[name])
            for name in ("q", "big"):
                assert_same(group[f"observations/state/{name}"][()], item.observations["state"][name])
            assert_same(group["infos/success"][()], item.infos["success"])
            assert list(group["infos/name"].asstr()) == ["a", "Käse", ""]


def changed(**fields):
    spec = gymnasium.make("CartPole-v1").spec
    for key, value in fields.items():
        setattr(spec, key, value)
    return spec


@pytest.mark.parametrize(
    "other, words",
    [
        (dict(agent="sac"), "was collected by random, not by sac"),
        (dict(env_spec=gymnasium.spec("CartPole-v0")), "environment whose id is 'CartPole-v1', not 'CartPole-v0'"),
        (dict(env_spec=changed(max_episode_steps=50)), "whose max_episode_steps is 500, not 50"),
        (dict(env_spec=None), "whose id is 'CartPole-v1', not None"),
        (dict(observation_space=gymnasium.spaces.Box(-1, 1, (4,), np.float32)), "has observations of another space"),
        (dict(obs_keys=["position"]), r"was collected with obs_keys None, not \['position'\]"),
    ],
)
def test_appending_to_a_dataset_collected_otherwise_is_refused(tmp_path, root, other, words):
    sealed(tmp_path / "a", range(2), env_spec=changed())
    before = contents(root)
    source = dict(agent="random", env_spec=changed(), observation_space=BOX) | other
    with pytest.raises(UserError, match=f"cartpole-v0 .*{words}.*choose another --dataset$"):
        check_target(ID, True, **source)
    with pytest.raises(UserError, match="exists already; choose another --dataset$"):
        check_target(ID, False, **source)
    with Journal(filled(tmp_path / "b")) as journal, pytest.raises(UserError, match=words):
        metadata = dict(provenance=dict(agent=source.pop("agent")), obs_keys=source.pop("obs_keys", None))
        seal(journal, root / ID, dataset_id=ID, metadata=metadata, append=True, **(SPACES | source))
    assert contents(root) == before and names(root / "test") == ["cartpole-v0"]


@pytest.mark.parametrize("provenance", [None, "a book", dict(collected_by="me", agent="random")])
def test_appending_to_datasets_of_other_programs_is_refused(tmp_path, root, provenance):
    metadata = dict(provenance=provenance)
    write_minari(root / ID, [episode()], dataset_id=ID, env_spec=ENV, metadata=metadata, **SPACES)
    before = contents(root)
    with pytest.raises(UserError, match="cartpole-v0 was not collected by `offlinerl collect`"):
        sealed(tmp_path / "a", range(2), append=True)
    assert contents(root) == before


@pytest.mark.parametrize("dataset_id", ["cartpole", "cartpole-v", "cart pole-v0", "../cartpole-v0", "", "/tmp/a-v0"])
def test_malformed_ids_are_refused(dataset_id):
    with pytest.raises(UserError, match=f"--dataset {dataset_id} is no name of a dataset"):
        check_target(dataset_id, False, "random", ENV, BOX)


def test_published_names_and_existing_folders_are_refused(root):
    with pytest.raises(UserError, match="kitchen-complete-v0 is the name of a published dataset"):
        check_target("kitchen-complete-v0", True, "random", ENV, BOX)
    (root / "space-v0" / "data-v0").mkdir(parents=True)
    with pytest.raises(UserError, match="space-v0 exists and is no dataset"):
        check_target("space-v0", True, "random", ENV, BOX)
    assert check_target("new/data-v0", True, "random", ENV, BOX) == root / "new" / "data-v0"
    assert names(root) == ["space-v0"], "checking leaves nothing behind"


@pytest.mark.parametrize("append", [False, True])
def test_sealing_again_stores_nothing_twice(tmp_path, root, append):
    first = sealed(tmp_path / "a", range(2))
    if append:
        sealed(tmp_path / "b", range(5, 7), append=True)
    before = contents(root)
    with Journal(tmp_path / ("b" if append else "a")) as journal:
        metadata = dict(provenance=dict(agent="random"))
        more = dict(dataset_id=ID, env_spec=ENV, metadata=metadata, append=append)
        assert seal(journal, first, **SPACES, **more) == first
    assert contents(root) == before


def test_an_append_killed_while_it_replaced_the_dataset_is_recovered(tmp_path, root, monkeypatch):
    """Between the two renames the dataset does not exist under its name; the next process still finds it."""
    folder = sealed(tmp_path / "a", range(4))
    replace = os.replace

    def killed(source, target):
        if os.fspath(source).endswith(".old") or os.fspath(target) == os.fspath(folder):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        patch.setattr("offlinerl.util.atomic._delete", lambda path: None)
        sealed(tmp_path / "b", range(5, 7), append=True)
    assert not folder.exists() and len(names(root / "test")) == 2
    with pytest.raises(UserError, match="exists already"):
        check_target(ID, False, "random", ENV, BOX)
    with Journal(tmp_path / "b") as journal:
        metadata = dict(provenance=dict(agent="random"))
        seal(journal, folder, dataset_id=ID, env_spec=ENV, metadata=metadata, append=True, **SPACES)
    assert_stored(folder, [0, 1, 2, 3, 5, 6])
    assert names(root / "test") == ["cartpole-v0"]


def test_without_an_episode_nothing_is_sealed(tmp_path, root):
    with pytest.raises(UserError, match="no episode has ended; collect more steps"):
        sealed(tmp_path / "a", [])
    assert not root.exists()


def test_a_damaged_dataset_is_not_appended_to(tmp_path, root):
    folder = sealed(tmp_path / "a", range(2))
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    (folder / "data" / "metadata.json").write_text(json.dumps(metadata | dict(total_episodes=3)))
    before = contents(root)
    with pytest.raises(UserError, match="main_data.hdf5: episode 2 cannot be read"):
        sealed(tmp_path / "b", range(2, 4), append=True)
    assert contents(root) == before and names(root / "test") == ["cartpole-v0"]


APPEND = """
import sys
from pathlib import Path
import minari
from episodes import sealed
print("ready", flush=True)
sealed(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[2]) + 3), append=True)
"""


def test_two_appends_at_once_wait_for_each_other(tmp_path, root):
    sealed(tmp_path / "a", range(3))
    descriptor = os.open(root / "test", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    writers = [child(APPEND, tmp_path / str(begin), begin) for begin in (10, 20)]
    for writer in writers:
        writer.stdout.readline()
    time.sleep(0.5)
    assert len(load_minari(root / ID).episode_lengths) == 3, "they did not wait"
    os.close(descriptor)
    for writer in writers:
        writer.communicate()
    assert len(load_minari(root / ID).episode_lengths) == 9, "the last one undid the first"


# -------------------------------------------------------------------------------- unfinished collections


@pytest.fixture
def unfinished(tmp_path):
    folder = tmp_path / "runs" / "one"
    filled(folder / EPISODES)
    metadata = dict(seed=np.int64(3), provenance=dict(collected_by="offlinerl", agent="random"))
    path = write_collection(folder, dataset_id=ID, env_spec=ENV, metadata=metadata, **SPACES)
    assert path == folder / COLLECTION
    return folder


def test_an_unfinished_collection_loads(unfinished, capsys):
    entry = registry.resolve(str(unfinished))
    assert (entry.name, entry.kind, entry.env_id) == (ID, "file", "CartPole-v1")
    data = load(str(unfinished))
    expected = [episode(number) for number in range(3)]
    np.testing.assert_array_equal(data.obs, np.concatenate([item.observations[:-1] for item in expected]))
    np.testing.assert_array_equal(data.next_obs, np.concatenate([item.observations[1:] for item in expected]))
    np.testing.assert_array_equal(data.action[:, 0], np.concatenate([item.actions for item in expected]))
    np.testing.assert_array_equal(data.terminated, np.concatenate([item.terminations for item in expected]))
    np.testing.assert_array_equal(data.episode_lengths, [3, 4, 5])
    assert data.provenance["provenance"]["agent"] == "random" and data.provenance["seed"] == 3
    assert validate.validate(entry) == []
    dataset_commands.show(str(unfinished))
    assert "CartPole-v1" in capsys.readouterr().out
    assert names(unfinished) == [COLLECTION, EPISODES]


def test_an_unfinished_collection_loads_like_the_finished_dataset(unfinished, root):
    with Journal(unfinished / EPISODES) as journal:
        metadata = dict(provenance=dict(agent="random"))
        path = seal(journal, root / ID, dataset_id=ID, env_spec=ENV, metadata=metadata, append=False, **SPACES)
    before, after = load(str(unfinished)), load(ID)
    for column in ("obs", "action", "reward", "terminated", "last", "next_obs"):
        assert_same(getattr(before, column), getattr(after, column))
    metadata = registry.minari_metadata(path / "data")
    collection = registry.minari_metadata(unfinished)
    for key in ("env_spec", "observation_space", "action_space", "total_episodes", "total_steps"):
        assert collection[key] == metadata[key]


def test_an_unfinished_collection_loads_while_it_is_written(unfinished, monkeypatch):
    with Journal(unfinished / EPISODES) as journal, open(unfinished / EPISODES, "ab") as file:
        file.write(b"\x89episode and a half")
        file.flush()
        size = (unfinished / EPISODES).stat().st_size
        assert len(load(str(unfinished))) == 12
        assert (unfinished / EPISODES).stat().st_size == size

        totals = registry.minari_metadata(unfinished)
        journal.append(episode(3))
        monkeypatch.setattr("offlinerl.data.minari_reader.minari_metadata", lambda folder: totals)
        assert len(load_minari(unfinished)) == 12, "an episode that ended while it was loaded is left for later"
    monkeypatch.undo()
    assert len(load_minari(unfinished)) == 18


def test_nested_observations_of_an_unfinished_collection(tmp_path):
    item = strange()._replace(rewards=np.ones(3))
    with Journal(tmp_path / EPISODES) as journal:
        journal.append(item)
    box = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    big = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    space = gymnasium.spaces.Dict(state=gymnasium.spaces.Dict(q=box, big=big))
    write_collection(tmp_path, dataset_id=ID, env_spec=None, observation_space=space, action_space=box)
    state = item.observations["state"]
    np.testing.assert_array_equal(load(str(tmp_path)).obs, np.c_[state["q"], state["big"]].astype(np.float32)[:-1])
    chosen = load_minari(tmp_path, obs_keys=["state/q"])
    np.testing.assert_array_equal(chosen.next_obs, state["q"].astype(np.float32)[1:])


def test_a_collection_without_an_episode_is_refused(unfinished):
    (unfinished / EPISODES).write_bytes(b"")
    with pytest.raises(UserError, match="the dataset is empty"):
        load(str(unfinished))
    (unfinished / EPISODES).unlink()
    with pytest.raises(UserError, match="episodes.journal does not exist"):
        load(str(unfinished))
