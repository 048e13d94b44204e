"""Writing a dataset: completely or not at all."""

import errno
import os
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from offlinerl.data import minari_writer
from offlinerl.data.episode import Episode
from offlinerl.data.minari_reader import load_minari
from offlinerl.data.minari_writer import write_minari
from offlinerl.util.atomic import atomic_write, sweep
from offlinerl.util.errors import UserError

BOX = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)


def episode(value=0.0, steps=3, dtype=np.float32):
    last = np.arange(steps) == steps - 1
    return Episode(
        np.full((steps + 1, 1), value, dtype), np.zeros((steps, 1), dtype), np.ones(steps), last, ~last & last
    )


def write(path, episodes, **more):
    spaces = dict(observation_space=BOX, action_space=BOX)
    return write_minari(path, episodes, dataset_id="test/data-v0", env_spec=None, **spaces, **more)


def interrupted(error, after=1):
    for _ in range(after):
        yield episode(2.0)
    raise error


def names(folder: Path):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_failure_midway_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        write(tmp_path / "data-v0", interrupted(error))
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_failure_midway_keeps_the_old_dataset(tmp_path, error):
    path = write(tmp_path / "data-v0", [episode(1.0)])
    with pytest.raises(type(error)):
        write(path, interrupted(error), overwrite=True)
    assert names(tmp_path) == ["data-v0"]
    assert (load_minari(path).obs == 1).all()


class FullSink(minari_writer.Sink):
    def write(self, data):
        if self.tell() > 4000:
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_is_reported_and_keeps_the_old_dataset(tmp_path, monkeypatch):
    path = write(tmp_path / "data-v0", [episode(1.0)])
    seen = []

    def endless():
        while len(seen) < 1000:
            seen.append(1)
            yield episode(2.0, 1000, np.float64)

    monkeypatch.setattr(minari_writer, "Sink", FullSink)
    with pytest.raises(UserError, match="data-v0 was not written, because the disk is full"):
        write(path, endless(), overwrite=True)
    assert len(seen) < 1000, "the recording went on though the disk was full"
    assert names(tmp_path) == ["data-v0"]
    assert (load_minari(path).obs == 1).all()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_hdf5_never_sees_a_failed_write():
    with pytest.raises(OSError, match="No space"), minari_writer.Sink("/dev/full") as sink:
        assert sink.write(b"much") == 4


def test_a_failed_swap_restores_the_old_dataset(tmp_path, monkeypatch):
    path = write(tmp_path / "data-v0", [episode(1.0)])
    replace = os.replace

    def fail_second(source, target):
        if Path(target) == path and not str(source).endswith(".old"):
            raise OSError(errno.EIO, "no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_second)
    with pytest.raises(OSError):
        write(path, [episode(2.0)], overwrite=True)
    assert names(tmp_path) == ["data-v0"]
    assert (load_minari(path).obs == 1).all()


def killed(folder, *stages):
    """The state after a process was killed while it replaced ``a``: folders with these names, each with a file that
    says which one it is."""
    for name in stages:
        (folder / name).mkdir()
        (folder / name / "is").write_text(name)
    return folder


def test_a_folder_whose_writer_was_killed_is_restored(tmp_path):
    """It is complete, at whatever moment the process was killed, and no other files remain."""
    new, old = ".a.0123abcd", ".a.0123abcd.old"
    for number, (left, then) in enumerate({
        (new,): None, ("a", new): "a", (new, old): old, ("a", old): "a", (old,): None,
        ("a", new, old, ".a.deadbeef"): "a",
    }.items()):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        folder = killed(tmp_path / str(number), *left, ".b.0123abcd", ".a.b", ".a-b.0123abcd")
        sweep(folder, "a")
        assert names(folder) == sorted([".b.0123abcd", ".a.b", ".a-b.0123abcd", *(["a"] if then else [])]), left
        assert then is None or (folder / "a/is").read_text() == then
        sweep(folder)
        assert names(folder) == sorted([".a.b", *(["a"] if then else [])])


def test_overwriting_must_be_requested(tmp_path):
    path = write(tmp_path / "data-v0", [episode(1.0)])
    with pytest.raises(UserError, match="data-v0 already exists"):
        write(path, [episode(2.0)])
    assert (load_minari(path).obs == 1).all()
    write(path, [episode(2.0)], overwrite=True)
    assert names(tmp_path) == ["data-v0"]
    assert (load_minari(path).obs == 2).all()


def test_nothing_to_write_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no episode"):
        write(tmp_path / "data-v0", [])
    assert names(tmp_path) == []


def test_mismatched_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="observations has 3 rows for 3 rewards"):
        write(tmp_path / "data-v0", [episode()._replace(observations=np.zeros((3, 1)))])
    assert names(tmp_path) == []


def test_metadata_and_infos_reach_minari(tmp_path):
    minari = pytest.importorskip("minari")
    item = episode()._replace(infos=dict(success=np.array([0, 0, 1]), where=dict(x=np.zeros(3))))
    metadata = dict(author="Ada", licence="MIT", seed=np.int64(3), provenance=dict(parts={"b", "a"}))
    path = write(tmp_path / "data-v0", [item], metadata=metadata)
    data = minari.MinariDataset(path / "data")
    assert data.storage.metadata["author"] == {"Ada"} and data.storage.metadata["seed"] == 3
    assert data.storage.metadata["provenance"] == {"parts": ["a", "b"]}
    np.testing.assert_array_equal(data[0].infos["success"], [0, 0, 1])
    np.testing.assert_array_equal(data[0].infos["where"]["x"], np.zeros(3))


def test_images_are_stored_without_loss(tmp_path):
    minari = pytest.importorskip("minari")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    item = Episode(pixels, np.zeros((2, 1), np.float32), np.ones(2), np.zeros(2, bool), np.ones(2, bool))
    space = gymnasium.spaces.Box(0, 255, (40, 40, 3), np.uint8)
    path = write_minari(
        tmp_path / "data-v0",
        [item],
        dataset_id="data-v0",
        env_spec=None,
        observation_space=space,
        action_space=BOX,
    )
    np.testing.assert_array_equal(minari.MinariDataset(path / "data")[0].observations, pixels)
    np.testing.assert_array_equal(load_minari(path).next_obs, pixels[1:])


def test_files_are_written_atomically_too(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert names(tmp_path) == ["file"] and path.read_text() == "whole"
