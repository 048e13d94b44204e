"""Reads datasets in LeRobot's format, versions 2.0, 2.1 and 3.0: folders of Parquet files, with camera images as
videos."""

from __future__ import annotations

import glob
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offlinerl.data.assemble import Steps, observed
from offlinerl.data.registry import LEROBOT
from offlinerl.data.tables import from_arrow, parquet_reader
from offlinerl.envs import spaces
from offlinerl.util.errors import UserError, reading
from offlinerl.util.trees import Tree

CAMERAS = ("video", "image")
"""Kinds of features that are images, stored as videos or in the Parquet files."""


def lerobot_info(folder: Path) -> dict[str, Any]:
    """``meta/info.json`` of a dataset.

    Raises:
        UserError: it is damaged, or of an unsupported version.
    """
    path = folder / LEROBOT
    with reading(f"{path}", "get the dataset again"):
        info = json.loads(path.read_text("utf-8"))
        version = str(info["codebase_version"])
        if not version.startswith(("v2", "v3")):
            raise UserError(f"{folder} is in version {version} of LeRobot's format; convert it to v2.1 or v3.0 first")
        _ = info["features"]["action"], [feature["dtype"] for feature in info["features"].values()]
    return info


def left_out(folder: Path, obs_keys: Sequence[str] | None) -> list[str]:
    """The cameras of a dataset that are not among the requested parts."""
    features = lerobot_info(folder)["features"]
    return [name for name, of in features.items() if of["dtype"] in CAMERAS and name not in (obs_keys or ())]


def parts_of(folder: Path, obs_keys: Sequence[str] | None) -> list[str]:
    """The features to observe, see ``lerobot_episodes``.

    Raises:
        UserError: a feature does not exist, or there are only cameras.
    """
    features = lerobot_info(folder)["features"]
    parts = [name for name in features if name.split(".")[0] == "observation"]
    keys = list(obs_keys or [name for name in parts if features[name]["dtype"] not in CAMERAS])
    if unknown := [key for key in keys if key not in parts]:
        raise spaces.no_part(str(folder), unknown[0], parts)
    if not keys:
        raise UserError(f"{folder} has cameras alone: choose with --obs-keys among {', '.join(parts)}")
    return keys


def lerobot_episodes(folder: Path, obs_keys: Sequence[str] | None = None, subset: str | None = None) -> Iterator[Steps]:
    """The episodes of a dataset. A frame holds an observation and the action commanded at that time. No observation
    follows the last action, so that the last step is usable only if it is terminal.

    ``next.reward`` is the reward; without that column, ``next.success`` is. A step is terminal if ``next.terminated``
    says so or, without that column, if ``next.success`` does; ``next.done`` also marks the ends of truncated
    recordings, and is not used.

    Args:
        folder: with ``meta/info.json`` and ``data/``.
        obs_keys: features to observe; by default all ``observation.*`` except cameras, whose images are read only on
            request.
        subset: a split in ``info.json``, such as "train".

    Raises:
        UserError: it cannot be read, lacks what is asked for, or needs a package that is not installed.

    Source: ``lerobot/datasets`` of its repository, version 0.4.4, and its converter from v2.1 to v3.0.
    """
    info = lerobot_info(folder)
    features, keys = info["features"], parts_of(folder, obs_keys)
    wanted = _episodes_of(folder, info, subset)
    videos = [key for key in keys if features[key]["dtype"] == "video"]
    places = _video_places(folder, info, videos)
    columns = ["action", "episode_index", "frame_index", "timestamp", *(key for key in keys if key not in videos)]
    columns += [name for name in ("next.reward", "next.success", "next.terminated", "log_prob") if name in features]
    pq = parquet_reader()
    files = _parquet_files(folder / "data")
    if not files:
        raise UserError(f"{folder} has no Parquet files below data/; get the dataset again")
    read: dict[int, Path] = {}
    rows = 0
    for file in files:
        with reading(f"{file}", "get the dataset again"):
            table = pq.read_table(file, columns=columns)
            held = {name: table.column(name) for name in columns}
            found = {name: from_arrow(column) for name, column in held.items() if not _is_images(column)}
        numbers = found["episode_index"]
        bounds = np.r_[0, np.flatnonzero(np.diff(numbers)) + 1, len(numbers)]
        for first, end in zip(bounds[:-1], bounds[1:], strict=True):
            number = int(numbers[first]) if end > first else -1
            if number not in wanted:
                continue
            place = f"episode {number}"
            if number in read:
                raise UserError(
                    f"{folder}: {place} is in {read[number].relative_to(folder)} and again in"
                    f" {file.relative_to(folder)}; bring its frames together, or move a copy out of data/"
                )
            read[number] = file
            rows += end - first
            frames = {name: column[first:end] for name, column in found.items()}
            with reading(f"{file}, {place}", "get the dataset again"):  # one at a time, because images are large
                frames |= {name: _decoded(held[name].slice(first, end - first)) for name in held.keys() - found.keys()}
            if (np.diff(frames["frame_index"]) != 1).any():
                raise UserError(f"{folder}, {place}: its frames are not one after another; get the dataset again")
            shown = {key: frames[key] for key in keys if key not in videos}
            for key in videos:
                path, start = places(number, key)
                shown[key] = frames_at(path, start + frames["timestamp"], 0.5 / info["fps"])
            yield _steps(observed(shown, keys, str(folder)), frames, place)
    if len(read) < len(wanted) and "total_episodes" in info:
        missing = next(number for number in wanted if number not in read)
        raise UserError(
            f"{folder}: episode {missing} is not in the files below data/, which hold {len(read):,} of the"
            f" {len(wanted):,} that meta/info.json promises; get the dataset again"
        )
    if subset is None and rows < (promised := int(info.get("total_frames", rows))):
        raise UserError(
            f"{folder}: the files below data/ hold {rows:,} of the {promised:,} frames that meta/info.json promises;"
            " get the dataset again"
        )


def _parquet_files(folder: Path) -> list[Path]:
    """The Parquet files in a folder and in folders linked there, in order."""
    return sorted(folder / file for file in glob.glob("**/*.parquet", root_dir=folder, recursive=True))


def _steps(obs: Tree, frames: Mapping[str, np.ndarray], place: str) -> Steps:
    T = len(frames["action"])
    success = frames.get("next.success", np.zeros(T, bool))
    reward = frames.get("next.reward", success)
    terminated = frames.get("next.terminated", success)
    logs = frames.get("log_prob")
    return Steps(obs, frames["action"], reward.astype(np.float32), terminated, place=place, log_prob=logs)


def _episodes_of(folder: Path, info: Mapping[str, Any], subset: str | None) -> range:
    """The numbers of the episodes in a split, which is written as "0:50", for example."""
    if subset is None:
        return range(int(info.get("total_episodes", 1 << 62)))
    splits = info.get("splits") or {}
    if subset not in splits:
        raise UserError(f"{folder} has no subset {subset!r}; it has {', '.join(splits) or 'none'}")
    with reading(f"the split {splits[subset]!r} of {folder}", "mend meta/info.json"):
        first, _, end = splits[subset].partition(":")
        return range(int(first or 0), int(end))


def _is_images(column: Any) -> bool:
    return str(column.type).startswith("struct")


def _decoded(column: Any) -> np.ndarray:
    """The images in a column of a Parquet file, stored as ``{"bytes": ..., "path": ...}``."""
    import imageio.v3 as images

    return np.stack([np.atleast_3d(images.imread(io.BytesIO(cell["bytes"]))) for cell in column.to_pylist()])


def _video_places(folder: Path, info: Mapping[str, Any], videos: Sequence[str]) -> Any:
    """A function that gives the video file of an episode, and the time in seconds at which the episode begins in it."""
    if not videos:
        return None
    pattern = info["video_path"]
    if str(info["codebase_version"]).startswith("v2"):
        return lambda number, key: (
            folder / pattern.format(
                episode_chunk=number // info["chunks_size"], episode_index=number, video_key=key
            ), 0.0,
        )  # fmt: skip
    pq, places = parquet_reader(), {}
    for file in _parquet_files(folder / "meta" / "episodes"):
        with reading(f"{file}", "get the dataset again"):
            facts = ("chunk_index", "file_index", "from_timestamp")
            wanted = [f"videos/{key}/{fact}" for key in videos for fact in facts]
            for row in pq.read_table(file, columns=["episode_index", *wanted]).to_pylist():
                for key in videos:
                    chunk, number, start = (row[f"videos/{key}/{fact}"] for fact in facts)
                    video = pattern.format(video_key=key, chunk_index=chunk, file_index=number)
                    places[row["episode_index"], key] = folder / video, start

    def place(number: int, key: str) -> tuple[Path, float]:
        if (number, key) not in places:
            raise UserError(f"{folder}: meta/episodes does not say where episode {number} of {key} is; get it again")
        return places[number, key]

    return place


def frames_at(path: Path, times: np.ndarray, tolerance: float) -> np.ndarray:
    """The frames of a video nearest to some times, ``[T, H, W, 3]`` uint8.

    Args:
        path: of the video.
        times: ``[T]`` in seconds, ascending.
        tolerance: largest allowed distance between a time and its frame, in seconds.

    Raises:
        UserError: the video is missing or lacks a frame, or PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(
            "videos are decoded by an extra that is not installed: pip install 'offlinerl[lerobot]', or leave the"
            " cameras out of --obs-keys"
        ) from error
    if not path.is_file():
        raise UserError(f"the video {path} is missing; get it, or leave its camera out of --obs-keys")
    found = np.full(len(times), np.inf)  # seconds to the nearest frame so far
    frames: list[np.ndarray | None] = [None] * len(times)
    with reading(f"the video {path}", "get the dataset again"), av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(max(0, int((times[0] - tolerance) / stream.time_base)), stream=stream)
        for frame in container.decode(stream):
            now = float(frame.pts * stream.time_base)
            if now > times[-1] + tolerance:
                break
            near = np.flatnonzero((abs(times - now) <= tolerance) & (abs(times - now) < found))
            if len(near):
                image = frame.to_ndarray(format="rgb24")
                for i in near:
                    frames[i], found[i] = image, abs(times[i] - now)
    if missing := [time for time, frame in zip(times, frames, strict=True) if frame is None]:
        raise UserError(f"the video {path} has no frame at {missing[0]:.3f} s; get the dataset again")
    return np.stack([frame for frame in frames if frame is not None])
