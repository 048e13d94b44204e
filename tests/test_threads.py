"""Waiting threads spin only briefly while other programs need the cores."""

import os
import subprocess
import sys
import time

import pytest
import torch

from offlinerl.cli import main
from offlinerl.util import cores, threads
from offlinerl.util.errors import UserError
from offlinerl.util.threads import Watch

CORES = os.cpu_count() or 1


def count() -> int:
    return len(os.listdir("/proc/self/task"))


def comes_to(number: int) -> bool:
    """Whether this process soon has this number of threads."""
    until = time.monotonic() + 10
    while count() != number and time.monotonic() < until:
        time.sleep(0.01)
    return count() == number


@pytest.fixture
def openmp(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    found = threads._libgomp()
    if found is None:
        pytest.skip("torch's OpenMP library is not libgomp here")
    return found


def test_a_process_has_more_threads_than_cores_while_the_machine_is_busy(openmp):
    before = count()
    watch = Watch(openmp, 5.0, 100.0)
    watch.look(5.01, 100.2)  # 5% of the time
    assert watch.sleepers is None
    watch.look(5.06, 100.4)  # 25%
    assert comes_to(before + CORES + 1)
    watch.look(5.06, 101.0)
    watch.look(5.2, 101.2)  # busy again before a second was quiet
    watch.look(5.2, 102.1)
    assert count() == before + CORES + 1
    watch.look(5.2, 102.3)
    assert watch.sleepers is None and comes_to(before)


def test_ended_threads_indicate_neither_quiet_nor_load(openmp):
    watch = Watch(openmp, 5.0, 100.0)
    watch.look(1.0, 100.2)  # the waiting time of an ended thread is no longer in the sum
    assert watch.sleepers is None


def test_the_delay_grows_if_there_are_more_threads_than_cores():
    if threads._delay() is None:
        pytest.skip("this system does not tell how long threads wait for a core")
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * CORES)]
    try:
        before, until = threads._delay(), time.monotonic() + 2
        while time.monotonic() < until:
            pass
        assert threads._delay() > before + 0.1
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_the_users_settings_of_waiting_are_not_changed(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert threads._libgomp() is None


def test_threads_are_divided_among_processes_until_they_end(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "ALL", 8)
    monkeypatch.setattr(threads, "_libgomp", lambda: None)
    try:
        for number, processes, within, after in ((None, 4, 2, before), (None, 16, 1, before), (3, 4, 3, 3)):
            torch.set_num_threads(before)
            with pytest.raises(KeyError), threads.threads_for(number, processes):
                assert torch.get_num_threads() == within
                raise KeyError
            assert torch.get_num_threads() == after
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("files, cores_", [
    ({"cpu.max": "150000 100000"}, 2), ({"cpu.max": "max 100000"}, None), ({}, None),
    ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
])  # fmt: skip
def test_a_container_counts_only_its_share_of_cores(files, cores_, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    assert cores.quota() == cores_
    assert cores.cores() <= (cores_ or CORES)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not confine processes to cores")
def test_a_job_of_a_cluster_counts_only_its_own_cores():
    count = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
    count += "from offlinerl.util.cores import cores; print(cores())"
    assert subprocess.run([sys.executable, "-c", count], capture_output=True, check=True).stdout == b"1\n"


@pytest.mark.parametrize("argv", [["evaluate", "run"], ["select", "run"]])
def test_commands_that_train_nothing_take_a_number_of_threads_too(argv, monkeypatch, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    given = []
    monkeypatch.setattr(threads, "set_threads", given.append)
    assert main([*argv, "--threads", "3"]) == 1  # the checkpoint is empty
    assert given == [3]


@pytest.mark.parametrize("number", [0, 513, 100_000, 1.5, "2"])
def test_numbers_of_threads_that_make_no_sense_are_refused(number):
    before = torch.get_num_threads()
    with pytest.raises(UserError, match="threads must be"):
        threads.set_threads(number)
    assert torch.get_num_threads() == before
