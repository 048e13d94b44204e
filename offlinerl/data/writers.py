"""Writes datasets in the formats of robomimic and LeRobot, which those programs and this one can read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offlinerl.data.columns import blocks
from offlinerl.data.dataset import Dataset
from offlinerl.data.edit import chained
from offlinerl.data.minari_writer import Sink
from offlinerl.data.registry import LEROBOT
from offlinerl.data.scales import mean_and_deviation
from offlinerl.data.tables import parquet_reader
from offlinerl.util.atomic import atomic_write
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_leaves

GYM = 2
"""The value of ``robomimic.envs.env_base.EnvType`` for Gym environments."""

WORTH_PACKING = 1 << 12
"""Bytes from which on a column is compressed: the index of a compressed one takes kilobytes by itself."""

ROWS_IN_A_FILE = 100_000
"""Frames after which LeRobot's next Parquet file begins, at the end of an episode; a million numbers take a few MB."""


def _episodes(data: Dataset) -> Iterator[slice]:
    """The rows of every episode, as a slice."""
    for start, length in zip(data.episode_starts.tolist(), data.episode_lengths.tolist(), strict=True):
        yield slice(start, start + length)


def write_robomimic(data: Dataset, file: Path, overwrite: bool = False, env_id: str | None = None) -> None:
    """Writes demonstrations in robomimic's format: ``data/demo_0/actions``, ``rewards``, ``dones``, which are 1 where
    the task terminated, ``obs/*`` and ``next_obs/*``. Observations that are one vector are called ``flat``, as
    robomimic calls those of Gym environments.

    Args:
        data: n episodes.
        file: to write.
        overwrite: replace the file if it exists.
        env_id: the Gymnasium id of their environment, if known.

    Raises:
        UserError: the file exists, or the disk is full.

    Source: https://robomimic.github.io/docs/datasets/overview.html
    """
    action = data.stored_actions
    env_args = dict(env_name=env_id or "", type=GYM, env_kwargs={})
    opened = partial(h5py.File, mode="w", libver="v110")  # whose index of many small arrays is smaller
    with atomic_write(file, overwrite) as temporary, Sink(temporary) as sink, opened(sink) as hdf5:
        demos = hdf5.create_group("data")
        demos.attrs["total"], demos.attrs["env_args"] = len(data), json.dumps(env_args)
        demos.attrs["provenance"] = json.dumps(data.provenance, default=str)
        for number, rows in enumerate(_episodes(data)):
            columns = dict(
                actions=action[rows], rewards=data.reward[rows], dones=data.terminated[rows].astype(np.int64)
            )
            if data.log_prob is not None:
                columns["log_prob"] = data.log_prob[rows]
            for path, leaf in tree_leaves(data.observations):
                key = path.replace("/", ".") or "flat"
                columns |= {f"obs/{key}": leaf[data.at[rows]], f"next_obs/{key}": leaf[data.next_at[rows]]}
            demo = demos.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = rows.stop - rows.start
            for name, column in columns.items():
                packing = dict(compression="gzip", shuffle=True) if column.nbytes >= WORTH_PACKING else {}
                demo.create_dataset(name, data=column, **packing)
                sink.check()


def write_lerobot(data: Dataset, folder: Path, fps: float, task: str, overwrite: bool = False) -> None:
    """Writes a folder in LeRobot's format v3.0, one frame per step: ``observation.state``, or the parts of observations
    by name, ``action``, ``next.reward``, ``next.terminated``, ``next.done`` and, if known, ``log_prob``. Images are
    stored as PNG.

    A truncated episode has one extra frame, which holds the observation after its last step, repeats the last action
    and has a reward of 0, because the format cannot store an observation without an action. A terminated episode has
    none, because nothing follows. Episodes are split where a step's next observation is not that of the next row; see
    ``offlinerl.data.edit.chained``.

    Args:
        data: n episodes.
        folder: to write; it appears only once it is complete.
        fps: steps per second.
        task: description of the task in words.
        overwrite: replace the folder if it exists.

    Raises:
        UserError: the folder exists, or is not such a dataset; the images have an unsupported shape, or pyarrow is not
            installed.

    Source: ``lerobot/datasets`` of its repository, version 0.4.4.
    """
    parquet_reader()
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = chained(data)
    action, parts = data.stored_actions, list(tree_leaves(data.observations))
    keys = [_feature(path, leaf, folder) for path, leaf in parts]
    features: dict[str, Any] = {}
    for key, (_, leaf) in zip(keys, parts, strict=True):
        image = leaf.ndim == 4
        names = ["height", "width", "channels"] if image else None
        features[key] = dict(dtype="image" if image else "float32", shape=list(leaf.shape[1:]), names=names)
    features["action"] = dict(dtype=str(action.dtype), shape=[action.shape[1]], names=None)
    singles: dict[str, type[np.generic]] = {
        "next.reward": np.float32, "next.terminated": np.bool_, "next.done": np.bool_, "timestamp": np.float32,
        "frame_index": np.int64, "episode_index": np.int64, "index": np.int64, "task_index": np.int64,
    }  # fmt: skip
    if data.log_prob is not None:
        singles["log_prob"] = np.float32
    features |= {name: dict(dtype=np.dtype(kind).name, shape=[1], names=None) for name, kind in singles.items()}
    episodes: list[dict[str, Any]] = []
    waiting: list[Any] = []  # tables for the next file
    index = number_of_file = rows_waiting = 0
    with atomic_write(folder, overwrite, LEROBOT) as temporary:

        def write(table: Any, place: str, of_file: int = 0) -> None:
            path = temporary / place.format(chunk_index=0, file_index=of_file)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)

        for number, rows in enumerate(_episodes(data)):
            last = rows.stop - 1
            final = int(not data.terminated[last])  # extra frames
            T = rows.stop - rows.start + final
            shown = np.append(data.at[rows], data.next_at[last])[:T]
            acted = np.minimum(np.arange(rows.start, rows.stop + final), last)
            columns = {key: _cells(leaf[shown]) for key, (_, leaf) in zip(keys, parts, strict=True)}
            columns["action"] = _cells(action[acted])
            values = {
                "next.reward": np.append(data.reward[rows], 0)[:T], "next.done": np.arange(T) == T - 1,
                "next.terminated": np.append(data.terminated[rows], False)[:T], "timestamp": np.arange(T) / fps,
                "frame_index": np.arange(T), "episode_index": np.full(T, number), "index": index + np.arange(T),
                "task_index": np.zeros(T),
            }  # fmt: skip
            if data.log_prob is not None:
                values["log_prob"] = data.log_prob[acted]
            columns |= {name: pa.array(values[name].astype(kind)) for name, kind in singles.items()}
            waiting.append(pa.table(columns))
            episodes.append({
                "episode_index": number, "tasks": [task], "length": T, "dataset_from_index": index,
                "dataset_to_index": index + T, "data/chunk_index": 0, "data/file_index": number_of_file,
                "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
            })  # fmt: skip
            index, rows_waiting = index + T, rows_waiting + T
            if rows_waiting >= ROWS_IN_A_FILE or rows.stop == len(data):
                write(pa.concat_tables(waiting), DATA_PATH, number_of_file)
                waiting, number_of_file, rows_waiting = [], number_of_file + 1, 0
        write(pa.Table.from_pylist(episodes), "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
        write(pa.table({"task_index": [0], "task": [task]}).replace_schema_metadata(TASKS), "meta/tasks.parquet")
        columns = dict(zip(keys, (leaf for _, leaf in parts), strict=True)) | dict(action=data.action)
        stats = {name: _statistics(column) for name, column in columns.items()}
        info = dict(
            codebase_version="v3.0", robot_type=data.provenance.get("robot"), total_episodes=len(episodes),
            total_frames=index, total_tasks=1, chunks_size=1000, data_files_size_in_mb=100,
            video_files_size_in_mb=200, fps=int(fps) if fps == int(fps) else fps,
            splits=dict(train=f"0:{len(episodes)}"), data_path=DATA_PATH, video_path=None, features=features,
        )  # fmt: skip
        for name, content in dict(info=info, stats=stats, provenance=data.provenance).items():
            (temporary / "meta" / f"{name}.json").write_text(json.dumps(content, indent=1, default=str))


DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
"""Where LeRobot stores frames."""

TASKS = {"pandas": json.dumps(dict(
    index_columns=["task"], column_indexes=[], columns=[
        dict(name="task_index", field_name="task_index", pandas_type="int64", numpy_type="int64", metadata=None),
        dict(name="task", field_name="task", pandas_type="unicode", numpy_type="object", metadata=None),
    ], creator=dict(library="pyarrow", version=""), pandas_version="2.0.0",
))}  # fmt: skip
"""Schema metadata that make pandas, with which LeRobot reads the tasks, use the tasks' texts as the table's index."""


def _feature(path: str, leaf: np.ndarray, folder: Path) -> str:
    """LeRobot's name for a part of an observation."""
    if leaf.ndim > 2 and not (leaf.ndim == 4 and leaf.dtype == np.uint8 and leaf.shape[-1] in (1, 3, 4)):
        raise UserError(
            f"{folder}: observations of shape {leaf.shape[1:]} are no pictures, which have 1, 3 or 4 channels; choose"
            " other parts with --obs-keys"
        )
    name = path.replace("/", ".")
    if name.split(".")[0] == "observation":
        return name
    return f"observation.{'images.' if leaf.ndim == 4 else ''}{name or ('top' if leaf.ndim == 4 else 'state')}"


def _cells(column: np.ndarray) -> Any:
    """A column as stored: single numbers as such, vectors as lists, images as PNG."""
    if column.ndim == 2:
        import pyarrow as pa

        rows, width = column.shape
        ends = np.arange(rows + 1, dtype=np.int32) * width
        return column[:, 0] if width == 1 else pa.ListArray.from_arrays(ends, np.ascontiguousarray(column).ravel())
    import imageio.v3 as images

    cells = []
    for image in column:
        buffer = io.BytesIO()
        images.imwrite(buffer, image.squeeze(-1) if image.shape[-1] == 1 else image, extension=".png")
        cells.append(dict(bytes=buffer.getvalue(), path=None))
    return cells


def _statistics(column: np.ndarray) -> dict[str, Any]:
    """The statistics by which LeRobot normalises a vector or the channels of images, which it scales to [0, 1]."""
    axes, unit, shape = ((0, 1, 2), 255.0, (-1, 1, 1)) if column.ndim == 4 else ((0,), 1.0, -1)
    low, high = zip(*((block.min(axes), block.max(axes)) for block in blocks(column)), strict=True)
    mean, std = mean_and_deviation(column, axes)
    found = dict(min=np.min(low, 0), max=np.max(high, 0), mean=mean, std=std)
    return {name: (value / unit).reshape(shape).tolist() for name, value in found.items()} | dict(count=[len(column)])
