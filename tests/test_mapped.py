"""A replay buffer with its frames on the disk, compared with one in memory."""

import errno
import os
import sys

import numpy as np
import pendulum
import pytest
import torch

from offlinerl.experience.ring import Replay
from offlinerl.types import Leaf, Spec, Transition
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_leaves, tree_map

LEAVES = (Leaf("image", (4, 4, 6), "uint8"), Leaf("state", (4,), "float32"))
SPEC = Spec(LEAVES, 1, (-1.0,), (1.0,))


class Play:
    """Two seeds of two environments, with episodes of several lengths; each observation shows where it is from."""

    def __init__(self, seed=0):
        self.rng, self.frames = np.random.default_rng(seed), None

    def begin(self, where):
        new = dict(
            image=self.rng.integers(0, 256, (2, 2, 4, 4, 3), dtype=np.uint8),
            state=self.rng.normal(size=(2, 2, 2)).astype(np.float32),
        )
        if self.frames is None:
            self.frames = [new, new]
        mask = where[..., None]
        for number in (0, 1):
            old = self.frames[number]
            self.frames[number] = dict(
                image=np.where(mask[..., None, None], new["image"], old["image"]),
                state=np.where(mask, new["state"], old["state"]),
            )

    def stack(self):
        return tree_map(lambda *x: np.concatenate(x, -1), *self.frames)

    def steps(self, count):
        ended = np.ones((2, 2), bool)
        for _ in range(count):
            if ended.any():
                self.begin(ended)
            obs = self.stack()
            self.frames = [self.frames[1], None]
            self.frames[1] = dict(
                image=self.rng.integers(0, 256, (2, 2, 4, 4, 3), dtype=np.uint8),
                state=self.rng.normal(size=(2, 2, 2)).astype(np.float32),
            )
            ended = self.rng.random((2, 2)) < 0.1
            action = self.rng.uniform(-1, 1, (2, 2, 1)).astype(np.float32)
            reward = self.rng.normal(size=(2, 2)).astype(np.float32)
            yield Transition(obs, action, reward, ended & (action[..., 0] > 0), self.stack(), ended)


def rings(folder, capacity=40):
    common = dict(envs=2, gamma=0.9, n_step=3, stack=2)
    return [Replay(SPEC, (3, 4), capacity, folder=place, **common) for place in (None, folder)]


def require_equal(one, other):
    for (_, a), (_, b) in zip(tree_leaves(one), tree_leaves(other), strict=True):
        assert torch.equal(a, b)


def test_a_replay_on_the_disk_gives_the_same_rows_as_one_in_memory(tmp_path):
    memory, disk = rings(tmp_path)
    disk.files.limit = 1 << 18  # handed back many times
    for step in Play().steps(90):  # more than twice around
        memory.add(step), disk.add(step)
        if disk.added > 3:
            require_equal(memory.sample(2, 5), disk.sample(2, 5))
    assert {file.name for file in tmp_path.iterdir()} == {"image-24.bin", "state-24.bin", "newest.bin"}


def test_a_run_resumes_with_its_files(tmp_path):
    memory, disk = rings(tmp_path)
    play = list(Play().steps(30))
    for step in play[:15]:  # before it is full
        memory.add(step), disk.add(step)
    saved = disk.state_dict()
    assert len(saved["lanes"]) == 1  # only the ages: frames are not written a second time
    for step in play[15:18]:  # lost with the process
        disk.add(step)
    _, again = rings(tmp_path)
    again.load_state_dict(saved)
    assert not again.lost
    for step in play[15:]:
        memory.add(step), again.add(step)
        require_equal(memory.sample(2, 5), again.sample(2, 5))


@pytest.mark.parametrize("name", ["image-24.bin", "newest.bin"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_lost_files_are_not_taken_for_new_ones(tmp_path, name, damage):
    _, disk = rings(tmp_path)
    for step in Play().steps(9):
        disk.add(step)
    state = disk.state_dict()
    damage(tmp_path / name)
    for capacity in (40, 60):  # a longer run takes over the files of the shorter one
        with pytest.raises(UserError, match="is missing or damaged, so this run cannot be resumed"):
            rings(tmp_path, capacity)[1].load_state_dict(state)


def test_rows_overwritten_after_the_checkpoint_are_not_drawn(tmp_path):
    _, disk = rings(tmp_path)
    play = list(Play().steps(80))
    for step in play[:50]:
        disk.add(step)
    saved, held = disk.state_dict(), len(disk)
    for step in play[50:60]:
        disk.add(step)
    _, again = rings(tmp_path)
    again.load_state_dict(saved)
    assert 0 < len(again) < held and again.lost == held - len(again)
    memory, _ = rings(tmp_path / "other")
    for step in play[:50]:
        memory.add(step)
    (oldest,) = set(again.oldest.tolist())  # of both seeds
    assert oldest > memory.oldest.max() == memory.added - memory.steps
    rows = torch.arange(len(again))
    places = (oldest + rows // 2) % memory.steps * 2 + rows % 2  # their places in a ring that has all of them
    require_equal(*(ring.transitions(of.expand(1, 2, -1)) for ring, of in ((again, rows), (memory, places))))


def test_a_longer_run_takes_over_the_frames_of_a_shorter_one(tmp_path):
    memory, disk = rings(tmp_path, capacity=40)
    play = list(Play().steps(30))
    for step in play[:15]:
        memory.add(step), disk.add(step)
    saved = disk.state_dict()
    _, longer = rings(tmp_path, capacity=60)
    longer.load_state_dict(saved)
    rows = torch.arange(len(memory)).expand(1, 2, -1)
    require_equal(memory.transitions(rows), longer.transitions(rows))
    assert not list(tmp_path.glob("*-24.bin"))


FILL = """
import resource, sys, time
from pathlib import Path
import numpy as np, torch
from offlinerl.experience.ring import Replay
from offlinerl.types import Leaf, Spec, Transition

torch.set_num_threads(1)
E, T, size = 500, 400, 24
spec = Spec((Leaf("", (size, size, 9), "uint8"),), 1, (-1.0,), (1.0,))
ring = Replay(spec, (0,), E * T, E, stack=3, folder=Path(sys.argv[1]))
ring.files.limit = 1 << 26

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))

def shown(t):
    obs = np.zeros((1, E, size, size, 9), np.uint8)
    obs[0, :, 0, 0, -3:] = np.stack([np.arange(E) % 256, np.full(E, t % 256), np.arange(E) // 256 + 2 * (t // 256)], -1)
    return obs

before, most, row = resident(), 0.0, np.zeros((1, E))
obs = shown(0)
for t in range(T):
    last, obs = obs, shown(t + 1)
    ring.add(Transition(last, np.zeros((1, E, 1), np.float32), row, row > 0, obs, row + t == T - 1))
    most = max(most, resident())
began = time.process_time()
for _ in range(40):
    batch = ring.sample(1, 256)
    most = max(most, resident())
seconds = (time.process_time() - began) / 40
e, t, both = batch.obs[0, 0, :, 0, 0, -3:].long().unbind(-1)
e, t = e + 256 * (both % 2), t + 256 * (both // 2)
_, u, rest = batch.next_obs[0, 0, :, 0, 0, -3:].long().unbind(-1)
sound = bool((u + 256 * (rest // 2) == t + 1).all()) and len(e.unique()) > 150
print(len(ring), round(most - before), round(1000 * seconds, 2), sound)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_two_hundred_thousand_frames_take_little_memory(tmp_path):
    process = pendulum.start_python(FILL, tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    held, megabytes, milliseconds, sound = out.split()
    assert int(held) == 200_000 and sound == "True"
    on_disk = (tmp_path / "observations-453.bin").stat().st_size / 2**20
    assert int(megabytes) < 180 < 360 < on_disk
    assert float(milliseconds) < 250  # of CPU time; an update on 256 stacks of this size takes longer


def test_a_full_disk_is_reported_immediately(tmp_path, monkeypatch):
    """Writing into a gap of a mapped file would kill the process."""
    rings(tmp_path / "whole")

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        UserError, match="needs .* MB, more than is free on the disk: free some, or give a smaller --tr"
    ):
        rings(tmp_path / "new")
    assert not [*(tmp_path / "new").rglob("*.bin")]
    kept = {path: path.read_bytes() for path in (tmp_path / "whole").rglob("*.bin")}
    with pytest.raises(UserError, match="more than is free on the disk"):
        rings(tmp_path / "whole")
    assert kept and {path: path.read_bytes() for path in (tmp_path / "whole").rglob("*.bin")} == kept
