"""Several processes train one policy together, each on its share of every batch."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pendulum
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import yaml
from conftest import SPEC, random_table
from test_stopping import same
from torch.utils import _pytree as pytree

import offlinerl
from offlinerl import agents
from offlinerl.agents.base import Agent
from offlinerl.agents.checkpoint import read
from offlinerl.cli import main
from offlinerl.data.dataset import Dataset
from offlinerl.experience.sources import OfflineData, WindowData
from offlinerl.experience.table import Table
from offlinerl.learning.rng import Streams
from offlinerl.training import build
from offlinerl.training.loop import checksum
from offlinerl.training.processes import Team
from offlinerl.types import Spec
from offlinerl.util.trees import tree_map

FRAMES = Spec((("", (36, 36, 3), "uint8"),), 2, (-1.0, -1.0), (1.0, 1.0))
B = 14
"""Rows of a batch; no other dimension in these networks has this size."""

VECTORS = ("xql", "td3bc", "rebrac", "edac", "cql", "calql", "awac", "fql", "dt")
CASES = [(name, SPEC) for name in VECTORS] + [("xql", FRAMES), ("vae", FRAMES)]


def frames(rows=60):
    rng, data = np.random.default_rng(0), random_table(rows)
    images = rng.integers(0, 256, (rows + 1, 36, 36, 3), dtype=np.uint8)
    columns = {name: getattr(data, name) for name in ("action", "reward", "terminated", "last")}
    return Dataset.of_rows(images[:-1], images[1:], **columns)


def agent_of(name, spec, **settings):
    small = dict(context=4, embedding=16, blocks=1) if name == "dt" else {}
    agent = agents.get(name)(spec, [3, 5], **small, **settings)
    agent.configure_optimizers()
    return agent


def share_of(x, rank):
    """One of two halves along the axis of the batch's rows, in double precision."""
    x = x.double() if x.is_floating_point() else x
    return x if rank is None else x.narrow(x.shape.index(B), rank * B // 2, B // 2)


def descended(name, spec, rank):
    """An agent after some updates on a whole batch, or on its share of it together with another process, and the
    metrics."""
    agent, metrics = agent_of(name, spec), {}
    if rank is not None:
        agent.share_batches(2, rank)
        agent.rng = Streams([3, 5], "update")  # the same random numbers in both processes; each uses its share
    table = Table.of(agent, frames() if spec is FRAMES else random_table())
    window = dict(length=agent.config.context) if name == "dt" else {}
    block = (WindowData if name == "dt" else OfflineData)(table, [3, 5], B, 3, **window).draw()
    for k in range(3):
        agent.before_update()
        noise = pytree.tree_map(lambda x: share_of(x, rank), agent.draw(B))
        batch = tree_map(lambda x, k=k: share_of(x[k], rank), block)
        metrics |= agent._update(batch, noise, agent.phase())
        agent.updates += 1
    return agent, metrics


def in_two_processes(job):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.start_processes(joined, (store.port, job), 2, start_method="forkserver")


def joined(rank, port, job):
    team = Team(2, rank)
    team.connect(dist.TCPStore("127.0.0.1", port))
    job(team)
    team.close()


def compare(team):
    """Gradient descent on shares equals gradient descent on the whole batch."""
    torch.set_default_dtype(torch.float64)
    for case in CASES:
        start = agent_of(*case)
        whole, metrics = descended(*case, None)
        ours, own_metrics = descended(*case, team.rank)
        for (path, a), b, before in zip(whole.named_parameters(), ours.parameters(), start.parameters(), strict=True):
            np.testing.assert_allclose(b.detach(), a.detach(), rtol=1e-9, atol=1e-9, err_msg=f"{case} {path}")
            assert not a.requires_grad or not torch.equal(a, before), (case, path)
        assert len(set(team.gather(checksum(ours)))) == 1, case  # to the bit
        means = team.mean({name: value.tolist() for name, value in own_metrics.items()})
        for name, value in metrics.items():
            np.testing.assert_allclose(means[name], value, rtol=1e-7, atol=1e-9, err_msg=f"{case} {name}")
    clipped_after_the_mean(team)


def clipped_after_the_mean(team):
    """Gradients of 3 and 5 average to 4, which is clipped to 1; Adam's first moment is a tenth of it."""
    agent = agent_of("bc", SPEC)
    agent.share_batches(2, team.rank)
    parameter = agent.optim["actor"].parameters[0]
    agent.optim = {"actor": type(agent.optim["actor"])([parameter], 0.1)}
    loss = (3.0 + 2 * team.rank) * parameter.flatten(1)[:, :1]  # [S, 1]
    agent.descend("actor", loss, max_norm=1.0)
    moment = agent.optim["actor"].state[parameter]["exp_avg"].flatten(1)
    torch.testing.assert_close(moment[:, 0], torch.full((2,), 0.1), rtol=0, atol=1e-6)
    assert not moment[:, 1:].any()


def compiled(team):
    """The compiled update averages gradients within its graph, and gives the same result as the uncompiled one."""
    found = []
    for compile in (False, True):
        agent = agent_of("bc", SPEC, hidden=[8])
        agent.share_batches(2, team.rank)
        agent.compile = compile
        source = OfflineData(Table.of(agent, random_table()), agent.seeds, B, 5, rank=team.rank)
        agent.learn(source.draw())
        assert len(set(team.gather(checksum(agent)))) == 1
        found.append(agent)
    (step,) = next(iter(found[1]._steps.values()))
    assert step.__qualname__.startswith("capture"), "it was not compiled"
    for a, b in zip(*(agent.parameters() for agent in found), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_training_on_shares_of_a_batch_equals_training_on_the_batch():
    in_two_processes(compare)


@pytest.mark.slow
def test_a_compiled_update_averages_gradients_within_its_graph():
    in_two_processes(compiled)


def test_every_process_draws_its_own_random_numbers():
    first, again, second = (Streams([3, 5], "rows", rank=rank).integers(1000, (50,)) for rank in (0, 0, 1))
    assert torch.equal(first, again) and not (first == second).all(-1).any()
    assert torch.equal(first, Streams([3, 5], "rows").integers(1000, (50,)))  # of one process, as usual


# Runs

FEW = ("--compile", "false", "--batch", 8, "--agent.hidden", "[8]", "--eval-episodes", 1, "--final-episodes", 2)
TOGETHER = ("xql", "--dataset", pendulum.ID, *FEW, "--train.held_out", 0.2, "--updates", 120, "--eval-every", 40)
TOGETHER += ("--train.block", 10, "--agent.dropout", 0.1, "--devices", 2)


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    with pendulum.workplace(tmp_path_factory.mktemp("processes")) as folder:
        yield folder


@pytest.fixture(scope="module")
def whole(here):
    assert pendulum.fit(*TOGETHER, "--out", "whole") == 0
    return here / "whole"


@pytest.mark.slow
def test_a_run_of_two_processes_writes_the_usual_files(whole):
    summary = pendulum.summary(whole)
    assert summary["updates"] == 120 and summary["last"]["episodes"] == 2 and summary["held_out"]
    assert [row["update"] for row in pendulum.rows(whole / "held_out.csv")] == ["40", "80", "120"]
    assert [row["update"] for row in pendulum.rows(whole / "evaluations.csv")] == ["40", "80", "120", "120"]
    first, second = read(whole / "last.ckpt")["callbacks"]["Run"]["processes"]
    for name in ("update", "source"):
        pairs = zip(first[name]["states"], second[name]["states"], strict=True)
        assert not any(torch.equal(a, b) for a, b in pairs), name
    assert main(["evaluate", str(whole), "--episodes", "1"]) == 0  # in one process


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_stopped_run_of_two_processes_resumes_bit_for_bit(whole, here, number, status, monkeypatch, capsys):
    folder = here / f"stopped-{number}"
    with monkeypatch.context() as patch:
        learn = Agent.learn

        def learning(self, block):
            if self.updates == 50:
                signal.raise_signal(number)
            return learn(self, block)

        patch.setattr(Agent, "learn", learning)
        assert pendulum.fit(*TOGETHER, "--out", folder) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert "after 60 of 120 updates" in line and f"offlinerl fit --resume {folder}" in line
    assert pendulum.fit("--resume", folder) == 0
    assert same(folder, whole)
    states = (pytree.tree_leaves(read(run / "last.ckpt")["callbacks"]["Run"]["processes"]) for run in (folder, whole))
    assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(*states, strict=True))
    assert (folder / "held_out.csv").read_text() == (whole / "held_out.csv").read_text()


@pytest.mark.slow
def test_from_python_on_pixels_without_an_environment(here):
    over = dict(train=dict(updates=4, batch=4, block=2, devices=2, held_out=0.4, eval_every=2, compile=False))
    run = offlinerl.fit("xql", frames(), over=dict(over, agent=dict(hidden=[8])), out=here / "pixels")
    assert run.scores is None and run.summary["updates"] == 4
    assert np.isfinite(run.held_out["critic_loss"]).all()
    assert run.policy(frames().observations[0]).shape == (2,)


DRIFTS = """
import torch
from offlinerl.agents.bc import BC

class Drifts(BC):
    def update(self, batch, noise, k):
        metrics = super().update(batch, noise, k)
        with torch.no_grad():
            next(self.parameters()).add_(batch.reward.mean())
        return metrics
"""


@pytest.mark.slow
def test_an_agent_that_changes_parameters_outside_descend_is_detected(here, refused, monkeypatch):
    (here / "drifts.py").write_text(DRIFTS)
    monkeypatch.syspath_prepend(here)
    argv = ("drifts:Drifts", "--dataset", pendulum.ID, *FEW, "--updates", 40, "--eval-every", 20, "--devices", 2)
    assert "changes parameters by other means than descend" in refused("fit", *argv, "--out", here / "drifted")


@pytest.mark.slow
def test_a_lost_process_ends_the_run_in_one_sentence(here, refused, monkeypatch):
    def losing(self, block):
        others = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
        os.kill(others[-1], signal.SIGKILL)
        return learn(self, block)

    learn = Agent.learn
    monkeypatch.setattr(Agent, "learn", losing)
    line = refused("fit", *TOGETHER, "--out", here / "lost")
    assert "process 1" in line and "SIGKILL" in line


@pytest.mark.slow
def test_no_process_remains_of_a_killed_run(here):
    process = pendulum.start("fit", *TOGETHER, "--updates", 10**6, "--out", "killed", cwd=here)
    metrics = here / "killed/held_out.csv"
    while not metrics.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    (other,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{other}").exists() and "Z" not in Path(f"/proc/{other}/stat").read_text().split(")")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (("--dataset", pendulum.ID, "--batch", 9), "--batch must be a multiple of --devices, which is 2, not 9"),
        (("--env", "Pendulum-v1"), "--devices 2 only works when learning from a dataset alone, but this agent acts"),
        (("--dataset", pendulum.ID, "--online-steps", 9), "when learning from a dataset alone, but this agent acts"),
    ],
)
def test_unsupported_uses_lead_to_one_sentence(argv, sentence, refused):
    assert sentence in refused("fit", "xql", *argv, "--devices", 2)


def test_too_many_processes_are_refused(refused, monkeypatch):
    monkeypatch.setattr(build, "cores", lambda: 2)
    said = refused("fit", "bc", "--dataset", pendulum.ID, "--batch", 36, "--device", "cpu", "--devices", 9)
    assert "--devices 9 are too many for 2 cores: give --devices 2" in said


def test_agents_whose_batches_cannot_be_shared_are_refused(refused):
    assert "is_reinforce weights every row" in refused("fit", "is_reinforce", "--dataset", pendulum.ID, "--devices", 2)


@pytest.mark.slow
def test_a_run_must_be_resumed_with_the_same_number_of_processes(whole, here, refused):
    assert "devices cannot be given" in refused("fit", "--resume", whole, "--devices", 1)
    config = whole / "config.yaml"
    text = config.read_text()
    config.write_text(yaml.safe_dump(yaml.safe_load(text) | {"train": yaml.safe_load(text)["train"] | {"devices": 1}}))
    try:
        assert "trained by 2 processes" in refused("fit", "--resume", whole)
    finally:
        config.write_text(text)


@pytest.mark.slow
def test_a_run_resumed_at_its_end_can_still_be_extended(here):
    folder, length = here / "ended", ("--updates", 10, "--eval-every", 10)
    assert pendulum.fit("bc", "--dataset", pendulum.ID, *FEW, "--train.block", 10, "--devices", 2, *length,
                        "--out", folder) == 0  # fmt: skip
    assert pendulum.fit("--resume", folder) == 0
    assert len(read(folder / "last.ckpt")["callbacks"]["Run"]["processes"]) == 2
    assert pendulum.fit("--resume", folder, "--updates", 20) == 0
    assert pendulum.summary(folder)["updates"] == 20
