"""Workers and sweeps on Ray, which takes long to start."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pendulum
import pytest
import test_sweep
import torch
import yaml
from test_workers import COUNTING, LANES, SEEDS, SHORT, Life, LocalBackend, argv, episodes, same

from offlinerl.agents.checkpoint import read
from offlinerl.cli import main
from offlinerl.data.journal import EPISODES, Journal
from offlinerl.rollout.actor_pool import ActorPool
from offlinerl.rollout.ray_backend import RayBackend
from offlinerl.training import build, sweep
from offlinerl.util.errors import UserError

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")


@pytest.fixture
def here(tmp_path):
    with pendulum.workplace(tmp_path) as folder:
        (folder / "short.yaml").write_text(SHORT)
        yield folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ray, started once for all tests, in a folder that its processes can import from."""
    with pendulum.workplace(tmp_path_factory.mktemp("ray")) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.path.dirname(__file__), prepend=os.pathsep)  # where ``counting`` is
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield folder
        ray.shutdown()


# Workers


def test_workers_on_ray_give_the_same_as_one_process(cluster):
    """Including an epsilon that falls with the total steps of all workers."""
    life = Life("dqn-epsilon", RayBackend(2))
    try:
        assert life.live() == Life("dqn-epsilon").live()
        assert not life.said
    finally:
        life.pool.close()
    assert ray.is_initialized(), "it did not begin Ray, and so does not end it"


def test_a_killed_process_loses_nothing(cluster):
    class Murder(RayBackend):
        orders = 0

        def submit(self, worker, method, *arguments):
            pid = ray.get(worker.__ray_call__.remote(lambda _: os.getpid()))
            assert pid != os.getpid()
            answer = super().submit(worker, method, *arguments)
            self.orders += 1
            if self.orders == 6:  # worker 1 in its third rollout
                os.kill(pid, signal.SIGKILL)
            return answer

    life = Life("td3-ou", Murder(2))
    try:
        assert life.live(5) == Life("td3-ou").live(5)
    finally:
        life.pool.close()
    assert life.said == ["worker 1 died; another one continues from its last delivery"]


def refuse():
    raise UserError("there is no such agent")


@pytest.mark.parametrize("address, says", [("127.0.0.1:1", "no Ray cluster answers"), ("nowhere", "auto or HOST:PORT")])
def test_a_wrong_address_is_reported_immediately(here, capsys, address, says):
    assert main(argv("none", "--steps", 8, "--workers", 2, "--ray-address", address)) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_a_worker_that_cannot_begin_says_why(cluster):
    pooled = ActorPool(COUNTING, SEEDS, LANES, None, refuse, 1, RayBackend(1))
    with pytest.raises(UserError, match="a worker cannot start: .*there is no such agent"):
        list(pooled.rollout(Life("sac", workers=0).agent, 3))
    pooled.close()


def test_collect_with_workers(cluster, here, monkeypatch, capsys):
    words = ("--workers", 2, "--steps", 800)
    assert main(argv("ray", *words)) == 0
    monkeypatch.setattr(build, "RayBackend", lambda workers, address: LocalBackend())
    assert main(argv("one", *words)) == 0
    assert len(episodes("ray")) == 4 and same(episodes("ray"), episodes("one"))
    one, two = (read(here / f"runs/pendulum-{name}-v0/last.ckpt") for name in ("ray", "one"))
    assert one["offlinerl"]["updates"] == two["offlinerl"]["updates"] > 600
    assert all(torch.equal(p, two["state_dict"][name]) for name, p in one["state_dict"].items())
    assert "died" not in capsys.readouterr().out


def processes(session):
    """The state and the command of every process of a session."""
    listed = subprocess.run(["ps", "-s", str(session), "-o", "stat=,args="], stdout=subprocess.PIPE, text=True)
    return listed.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_resumed_on_ray(here, monkeypatch, how):
    """Ctrl-C goes to all processes of a terminal: the run is saved, and no process remains. After SIGKILL no process
    remains either, except two small agents of Ray, which take a minute or two to notice that they are alone."""
    words = ("--workers", 2, "--steps", 3200)
    start = partial(
        subprocess.Popen, [sys.executable, "-m", "offlinerl", *argv("ray", *words, "--resume")], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    process, folder = start(), here / "runs/pendulum-ray-v0"
    while not ((folder / "last.ckpt").exists() and (folder / EPISODES).stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
    out, err = process.communicate(timeout=60)
    with Journal(folder / EPISODES, write=False) as journal:
        assert 0 < len(journal) < 16, "it was to be stopped on the way"
    if how == signal.SIGINT:
        assert process.returncode == 1 and "saved; resume with" in err and err.count("\n") == 1, err
        assert "died" not in out
    late = time.monotonic() + 20
    while alive := [line for line in processes(process.pid) if line[0] != "Z" and "Agent" not in line]:
        assert time.monotonic() < late, alive
        time.sleep(1)
    process = start()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "differently" not in out
    monkeypatch.setattr(build, "RayBackend", lambda workers, address: LocalBackend())
    assert main(argv("one", *words)) == 0
    assert same(episodes("ray"), episodes("one"))


# Sweeps


def plan(**settings):
    """A file of a sweep of runs below ``runs``, in the current folder."""
    settings |= dict(out="runs", datasets=pendulum.ID, agent={"hidden": [8, 8]}, train=test_sweep.TRAIN)
    Path("sweep.yaml").write_text(yaml.safe_dump(settings))
    return "sweep.yaml"


def summaries(folder):
    found = {}
    for path in sorted(folder.glob("*/summary.json")):
        summary = json.loads(path.read_text())
        found[path.parent.name] = summary["last"], summary["best"]
    return found


@pytest.mark.slow
def test_a_sweep_survives_a_killed_worker_and_a_restart(here):
    """Twelve runs end bit for bit as they do one after another."""
    each = {"agent.lr": [0.001, 0.002, 0.003], "train.batch": [8, 16]}
    file = plan(agents=["bc", "iql"], each=each)
    command = [sys.executable, "-m", "offlinerl", "sweep", file]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = iter(process.stdout.readline, "")
    for line in lines:
        if line.startswith("[1/12]"):
            break
    killed = subprocess.run(["pkill", "-9", "-f", "ray::finish"], check=False).returncode
    assert killed == 0, "no worker was found to kill"
    for line in lines:
        if line.startswith("[4/12]"):
            break
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=300)[0]
    assert process.returncode == 143, rest
    assert 4 <= len(summaries(here / "runs")) < 12
    assert subprocess.run(command, timeout=600).returncode == 0
    found = summaries(here / "runs")

    for run in sweep.planned({**sweep.read(Path(file)), "out": str(here / "alone")}):
        assert sweep.finish(run) == 0
    assert len(found) == 12 and found == summaries(here / "alone")


def test_a_small_sweep_from_the_command_line(cluster, capsys):
    file = plan(agents=["bc"], each={"agent.lr": [0.001]})
    began = time.perf_counter()
    assert main(["sweep", file]) == 0
    first, took = capsys.readouterr().out, time.perf_counter() - began
    assert "[1/1] bc-" in first and "95% interval" in first
    assert (cluster / "runs" / "report" / "report.md").is_file()
    assert main(["sweep", file]) == 0, "a finished sweep trains nothing and prints its table again"
    assert time.perf_counter() - began - took < took


@pytest.mark.parametrize("asked, has", [(dict(cpus=3), "2"), (dict(gpus=1), "0"), (dict(cpus=2, gpus=0.5), "0")])
def test_runs_that_fit_on_no_machine_are_refused_at_once(cluster, refused, asked, has):
    name, number = list(asked.items())[-1]
    said = refused("sweep", plan(agents=["bc"], each={"agent.lr": [0.5]}, **asked))
    assert f"sweep.yaml: {name} of a run is {number}, but a machine has {has}: give no more" in said


def test_a_cluster_need_not_have_the_cores_of_this_machine(cluster, monkeypatch):
    monkeypatch.setattr(sweep, "cores", lambda: 64)
    for name, stand_in in (("is_initialized", lambda: False), ("init", lambda **_: None), ("shutdown", lambda: None)):
        monkeypatch.setattr(ray, name, stand_in)  # the running Ray stands for the cluster
    assert main(["sweep", plan(agents=["bc"], each={"agent.lr": [0.002]}), "--ray-address", "auto"]) == 0
