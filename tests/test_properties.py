"""Random small datasets in every layout: they are loaded as they are meant, and no row depends on another episode.

Every row contains a unique number, and so does the observation after the last action of an episode. So a value from
the wrong row is detected.
"""

import json
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from conftest import transitions
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offlinerl import dataset_commands
from offlinerl.data.d4rl import END, TERMINAL, TIMEOUT, load_hdf5
from offlinerl.data.dataset import Dataset
from offlinerl.data.episode import Episode
from offlinerl.data.episode_log import write_collection
from offlinerl.data.journal import EPISODES, Journal
from offlinerl.data.load import load
from offlinerl.data.minari_reader import load_minari
from offlinerl.data.minari_writer import write_minari
from offlinerl.util.errors import UserError

GAMMA = 0.9
ID = "test/random-v0"
COLUMNS = ("obs", "action", "reward", "terminated", "last", "next_obs")


def examples(count):
    """The same examples in every run."""
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- expected rows


class Story(NamedTuple):
    """Episodes, described by their lengths and ends."""

    lengths: tuple[int, ...]
    ends: tuple[str, ...]  # "terminated", "truncated" or "both"; the last one may be "open"

    @property
    def rows(self) -> int:
        return sum(self.lengths)

    @property
    def ids(self) -> list[np.ndarray]:
        """For every episode, the numbers of its observations; there is one more than its steps."""
        begins = np.cumsum([0, *(length + 1 for length in self.lengths)])
        return [np.arange(begin, begin + length + 1) for begin, length in zip(begins, self.lengths, strict=False)]

    @property
    def now(self) -> np.ndarray:
        """``[rows]`` the numbers of the observations."""
        return np.concatenate([ids[:-1] for ids in self.ids])

    def flags(self, *kinds: str) -> np.ndarray:
        """``[rows]`` whether an episode ends there in one of the given ways."""
        parts = [
            (np.arange(length) == length - 1) & (end in kinds)
            for length, end in zip(self.lengths, self.ends, strict=True)
        ]
        return np.concatenate(parts)

    @property
    def final(self) -> np.ndarray:
        return self.flags("terminated", "truncated", "both", "open")


@st.composite
def stories(draw, ends=("terminated", "truncated", "both"), open_end=True, longest=6):
    lengths = tuple(draw(st.lists(st.integers(1, longest), min_size=1, max_size=6)))
    kinds = [draw(st.sampled_from(ends)) for _ in lengths]
    if open_end and draw(st.booleans()):
        kinds[-1] = "open"
    return Story(lengths, tuple(kinds))


def rewards_of(story: Story) -> np.ndarray:
    return story.now * 3.0 + 1


def check(data: Dataset, obs, next_obs, action, reward, terminated, last) -> None:
    """Check that a table has these rows and gives the right transitions."""
    for name, meant in dict(
        obs=obs, next_obs=next_obs, action=action, reward=reward, terminated=terminated, last=last
    ).items():
        column = getattr(data, name)
        meant = np.asarray(meant)
        assert column.shape == meant.shape, name
        np.testing.assert_array_equal(column, meant.astype(column.dtype), err_msg=name)
    for column in (data.obs, data.action, data.reward):
        assert column.flags.c_contiguous
    assert data.last[-1]
    for n in (1, 2, 3, 10):
        batch = transitions(data, GAMMA, n)
        totals, discounts, tails, stops = zip(*(sum_of(reward, terminated, last, row, n) for row in range(len(reward))),
                                              strict=True)  # fmt: skip
        np.testing.assert_allclose(batch.reward, totals, rtol=1e-5)
        np.testing.assert_allclose(batch.discount, discounts, rtol=1e-5)
        np.testing.assert_array_equal(batch.next_obs, data.next_obs[list(tails)])
        np.testing.assert_array_equal(batch.last, stops)


def sum_of(reward, terminated, last, row, n):
    """The n-step sum that starts at a row, its discount, its last row, and whether the episode ends there."""
    total, row_now = 0.0, row
    for k in range(n):
        row_now = row + k
        total += GAMMA**k * reward[row_now]
        if terminated[row_now] or last[row_now]:
            break
    discount = 0.0 if terminated[row_now] else GAMMA ** (row_now - row + 1)
    return total, discount, row_now, bool(terminated[row_now] or last[row_now])


def same(a: Dataset, b: Dataset) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert getattr(a, name).dtype == getattr(b, name).dtype, name


# --------------------------------------------------------------------------------------------------- D4RL


class File(NamedTuple):
    """A D4RL file: its columns, and the meaning of its rows."""

    story: Story
    columns: dict[str, np.ndarray]
    limit: int | None
    terminated: np.ndarray


NUMBERS = st.sampled_from([np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8])
FLAGS = st.sampled_from([np.bool_, np.uint8, np.int8, np.int64, np.float32, np.float64])


@st.composite
def flag_columns(draw):
    """A story, the flags that mark its ends, and the time limit that ends episodes without flags."""
    way = draw(
        st.sampled_from(["two", "two", "several", "terminal", "cut", "end", "terminal and end", "limit", "none"])
    )
    name_of = {kind: st.sampled_from(names) for kind, names in (("t", TERMINAL), ("c", TIMEOUT), ("e", END))}
    limit = None
    if way in ("terminal", "end"):
        story = draw(stories(ends=("terminated",)))
    elif way == "cut":
        story = draw(stories(ends=("truncated",)))
    elif way == "terminal and end":
        story = draw(stories(ends=("terminated", "truncated")))
    elif way in ("limit", "none"):
        limit = draw(st.integers(1, 6))
        ends = ("terminated", "truncated") if way == "limit" else ("truncated",)
        story = draw(stories(ends, open_end=way == "limit", longest=limit))
        lengths = tuple(
            limit if end == "truncated" else length for length, end in zip(story.lengths, story.ends, strict=True)
        )
        story = story._replace(lengths=lengths)
    else:
        story = draw(stories())
    terminal, cut = story.flags("terminated", "both"), story.flags("truncated", "both")
    flags = {}
    if way in ("two", "several", "terminal", "terminal and end", "limit"):
        flags[draw(name_of["t"])] = terminal
    if way in ("two", "several", "cut"):
        flags[draw(name_of["c"])] = cut
    if way in ("several", "end", "terminal and end"):
        flags[draw(name_of["e"])] = terminal | cut
    if way == "several":
        flags |= {draw(name_of["t"]): terminal, draw(name_of["c"]): cut}
    return story, flags, limit, terminal


def shaped(draw, column):
    """``[N]`` or ``[N, 1]``."""
    return column[:, None] if draw(st.booleans()) else column


@st.composite
def files(draw):
    story, flags, limit, terminal = draw(flag_columns())
    width = draw(st.integers(1, 3))
    flat = width == 1 and draw(st.booleans())
    dtype = draw(NUMBERS)

    def observed(ids):
        columns = (ids[:, None] + np.arange(width)).astype(dtype)
        return columns[:, 0] if flat else columns

    if draw(st.booleans()):
        actions = shaped(draw, (story.now % 7).astype(draw(st.sampled_from([np.int32, np.int64, np.float32]))))
    else:
        actions = np.stack([story.now + 0.5, -story.now], axis=1).astype(
            draw(st.sampled_from([np.float32, np.float64]))
        )
    columns = dict(
        observations=observed(story.now),
        actions=actions,
        rewards=shaped(draw, rewards_of(story).astype(draw(st.sampled_from([np.float32, np.float64, np.int64])))),
        **{name: shaped(draw, flag.astype(draw(FLAGS))) for name, flag in flags.items()},
    )
    if draw(st.booleans()):
        columns["next_observations"] = observed(story.now + 1)
    return File(story, columns, limit, terminal)


def write_file(folder: str, file: File) -> Path:
    path = Path(folder) / "random.hdf5"
    with h5py.File(path, "w") as target:
        for name, column in file.columns.items():
            target[name] = column
    return path


@examples(200)
@given(files())
def test_d4rl_files(file):
    story, columns = file.story, file.columns
    rows, final = story.rows, story.final
    has_next = "next_observations" in columns
    kept = np.ones(rows, bool) if has_next else ~final | file.terminated
    obs = columns["observations"].reshape(rows, -1)
    following = columns["next_observations"] if has_next else np.roll(columns["observations"], -1, axis=0)
    following = np.where(final[:, None] & (not has_next), obs, following.reshape(rows, -1))
    last = final | ~np.r_[kept[1:], False]
    with tempfile.TemporaryDirectory() as folder:
        path = write_file(folder, file)
        if not kept.any():
            with pytest.raises(UserError, match="no row has a successor"):
                load_hdf5(path, max_episode_steps=file.limit)
            return
        data = load_hdf5(path, max_episode_steps=file.limit)
    check(
        data, obs[kept], following[kept], columns["actions"].reshape(rows, -1)[kept], rewards_of(story)[kept],
        file.terminated[kept], last[kept],
    )  # fmt: skip


@examples(50)
@given(files())
def test_exported_and_imported_files_load_equal(file):
    if file.limit:
        return
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", f"{folder}/minari")
        path = write_file(folder, file)
        try:
            data = load(path)
        except UserError as error:
            assert "no row has a successor" in str(error)
            return
        exported = dataset_commands.export(str(path), Path(folder) / "exported.hdf5")
        same(load(exported), data)
        dataset_commands.import_file(path, ID)
        same(load(ID), data)


# ------------------------------------------------------------------------------------------ Minari, journals


class Recording(NamedTuple):
    """Episodes, their spaces, and the vectors that their observations are."""

    story: Story
    episodes: list[Episode]
    observation_space: spaces.Space
    action_space: spaces.Space
    vectors: list[np.ndarray]


FLOATS = st.sampled_from([np.float16, np.float32, np.float64])


@st.composite
def leaves(draw):
    kind = draw(st.sampled_from(["box", "matrix", "discrete", "multi", "binary"]))
    if kind in ("box", "matrix"):
        shape = (draw(st.integers(1, 3)),) if kind == "box" else (2, 2)
        dtype = draw(st.sampled_from([np.float32, np.float64, np.int64]))
        low, high = (-np.inf, np.inf) if np.dtype(dtype).kind == "f" else (-1000, 1000)
        return spaces.Box(low, high, shape, dtype)
    if kind == "discrete":
        return spaces.Discrete(draw(st.integers(1, 5)), start=draw(st.integers(-2, 2)))
    if kind == "multi":
        return spaces.MultiDiscrete(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    return spaces.MultiBinary(draw(st.integers(1, 4)))


def nested(inner):
    names = st.sampled_from(["b", "a", "z", "goal", "B", "state 1"])
    parts = st.lists(st.tuples(names, inner), min_size=1, max_size=3, unique_by=lambda part: part[0])
    return parts.map(lambda parts: spaces.Dict(OrderedDict(parts))) | st.lists(inner, min_size=1, max_size=3).map(
        spaces.Tuple
    )


PLAIN = st.tuples(st.integers(1, 3), FLOATS).map(lambda about: spaces.Box(-np.inf, np.inf, (about[0],), about[1]))
NESTED = st.recursive(leaves(), nested, max_leaves=5)
ROW = spaces.Box(-np.inf, np.inf, (1,), np.float32)


def value(space: spaces.Space, number: int) -> Any:
    """An element of a space for a row of that number."""
    if isinstance(space, spaces.Dict):
        return OrderedDict((key, value(part, number)) for key, part in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return tuple(value(part, number + k) for k, part in enumerate(space.spaces))
    if isinstance(space, spaces.Box):
        return (number + np.arange(np.prod(space.shape)).reshape(space.shape)).astype(space.dtype)
    if isinstance(space, spaces.Discrete):
        return np.int64(space.start + number % space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return ((number + np.arange(len(space.nvec))) % space.nvec).astype(space.dtype)
    return ((number >> np.arange(space.n)) & 1).astype(np.int8)


def stacked(values: list, tuples: bool) -> Any:
    """Values ``[T]`` of a space as arrays; tuples as mappings, as Minari names their parts, or as they are."""
    first = values[0]
    if isinstance(first, dict):
        return {key: stacked([v[key] for v in values], tuples) for key in first}
    if isinstance(first, tuple):
        parts = [stacked([v[k] for v in values], tuples) for k in range(len(first))]
        return tuple(parts) if tuples else {f"_index_{k}": part for k, part in enumerate(parts)}
    return np.stack(values)


ACTIONS = st.sampled_from(
    [
        spaces.Discrete(3),
        spaces.Discrete(4, start=1),
        spaces.Box(-2.0, 2.0, (2,), np.float32),
        spaces.Box(-1.0, 1.0, (1,), np.float64),
        spaces.Box(-np.inf, np.inf, (3,), np.float32),
        spaces.Box(-5, 5, (2,), np.int32),
    ]
)


def acted(space: spaces.Space, number: int) -> Any:
    if isinstance(space, spaces.Discrete):
        return value(space, number)
    return ((number % 11 - 5) / 5 * np.ones(space.shape)).astype(space.dtype)


@st.composite
def recordings(draw, tuples=False):
    story = draw(stories())
    space = draw(PLAIN | NESTED.map(lambda inner: spaces.Dict(OrderedDict(inner=inner, row=ROW))))
    action_space = draw(ACTIONS)
    kind = draw(FLOATS)
    narrow = not tuples and draw(st.booleans())  # one number a row, as [T, 1]
    items, vectors = [], []
    for ids, end in zip(story.ids, story.ends, strict=True):
        steps = len(ids) - 1
        seen = [value(space, number) for number in ids.tolist()]
        last = np.arange(steps) == steps - 1
        columns = (
            (ids[:-1] * 3 + 1).astype(kind),
            last & (end in ("terminated", "both")),
            last & (end in ("truncated", "both")),
        )
        columns = [column[:, None] if narrow else column for column in columns]
        actions = np.stack([acted(action_space, number) for number in ids[:-1].tolist()])
        items.append(Episode(stacked(seen, tuples), actions, *columns))
        vectors.append(np.stack([spaces.flatten(space, one) for one in seen]))
    return Recording(story, items, space, action_space, vectors)


def check_recording(data: Dataset, meant: Recording) -> None:
    story = meant.story
    actions = np.concatenate([np.reshape(episode.actions, (len(episode.actions), -1)) for episode in meant.episodes])
    check(
        data, np.concatenate([vectors[:-1] for vectors in meant.vectors]),
        np.concatenate([vectors[1:] for vectors in meant.vectors]), actions, rewards_of(story),
        story.flags("terminated", "both"), story.final,
    )  # fmt: skip


def facts(meant: Recording) -> dict[str, Any]:
    return dict(
        dataset_id=ID, env_spec=None, observation_space=meant.observation_space, action_space=meant.action_space
    )


@examples(100)
@given(recordings())
def test_minari_datasets(meant):
    with tempfile.TemporaryDirectory() as folder:
        path = write_minari(Path(folder) / "data-v0", iter(meant.episodes), **facts(meant))
        check_recording(load_minari(path), meant)


@examples(60)
@given(recordings(), st.integers(0, 40))
def test_journals_of_unfinished_collections(meant, torn):
    """The last record may have been written in part."""
    with tempfile.TemporaryDirectory() as folder:
        write_collection(Path(folder), **facts(meant))
        with Journal(Path(folder) / EPISODES) as journal:
            for episode in meant.episodes:
                journal.append(episode)
        whole = (Path(folder) / EPISODES).read_bytes()
        (Path(folder) / EPISODES).write_bytes(whole + whole[:torn])
        check_recording(load_minari(folder), meant)


@pytest.mark.filterwarnings("ignore:.*env:UserWarning")
@examples(40)
@given(recordings(tuples=True))
def test_datasets_written_by_minari_itself(meant):
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = [
        EpisodeBuffer(
            id=number, observations=one.observations, actions=one.actions, rewards=one.rewards,
            terminations=one.terminations, truncations=one.truncations, infos={},
        )
        for number, one in enumerate(meant.episodes)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", folder)
        minari.create_dataset_from_buffers(
            ID, buffers, observation_space=meant.observation_space, action_space=meant.action_space,
            author="a", author_email="a@b.c", code_permalink="c", algorithm_name="d", description="e",
        )  # fmt: skip
        check_recording(load(ID), meant)


@examples(50)
@given(recordings())
def test_exported_recordings_load_equal(meant):
    with tempfile.TemporaryDirectory() as folder:
        path = write_minari(Path(folder) / "data-v0", iter(meant.episodes), **facts(meant))
        exported = dataset_commands.export(str(path), Path(folder) / "exported.hdf5")
        data = load(exported)
        check_recording(data, meant)
        same(data, load_minari(path))
        with h5py.File(exported) as file:
            assert json.loads(file.attrs["provenance"])["minari_id"] == ID
