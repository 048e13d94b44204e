"""Files of version 0.1 are read and continued, or refused in a sentence that names the version."""

import shutil
from pathlib import Path

import numpy as np
import pendulum
import pytest
import torch
from pendulum import fit, rows

import offlinerl
from offlinerl.cli import main

# offlinerl 0.1: fit dqn --env CartPole-v1 --seeds 3 --steps 150, whose replay of 100 steps has wrapped
FORMER = Path(__file__).with_name("former") / "dqn"


@pytest.fixture
def run(tmp_path):
    with pendulum.empty_workplace(tmp_path):
        yield shutil.copytree(FORMER, tmp_path / "dqn")


def test_a_run_of_version_0_1_continues_as_it_did_there(run):
    assert fit("--resume", run, "--steps", 250) == 0
    last = rows(run / "metrics.csv")[-1]
    assert (last["update"], last["step"], last["seed"]) == ("230", "250", "3")
    theirs = dict(q_loss=0.2945062816143036, q=-0.03139856085181236, episode_return=10.869565217391305)
    assert {name: float(last[name]) for name in theirs} == pytest.approx(theirs, rel=1e-4)
    returns = [(row["step"], float(row["return"])) for row in rows(run / "evaluations.csv")]
    assert returns[-3:] == [("200", 10.0), ("250", 10.0), ("250", 9.0)]


def test_the_policy_of_version_0_1_acts(run, capsys):
    assert offlinerl.load_policy(run)(np.zeros(4, np.float32)) in (0, 1)
    assert main(["evaluate", str(run), "--episodes", "2", "--seed", "1000000"]) == 0
    assert "mean return 9.50" in capsys.readouterr().out, "as its last evaluation"


def test_a_checkpoint_that_does_not_fit_is_refused_with_its_version(run, refused):
    content = torch.load(run / "last.ckpt")
    del content["state_dict"]["q.layers.0.bias"]
    torch.save(content, run / "last.ckpt")
    for argv in (("fit", "--resume", run, "--steps", 250), ("evaluate", run)):
        assert "last.ckpt, written by offlinerl 0.1 or earlier, does not fit" in refused(*argv)
