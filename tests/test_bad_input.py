"""Every mistake of a user leads to one sentence that names it and says what to do, never to a traceback."""

import dataclasses
import errno
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pendulum
import pytest
import torch
import yaml

import offlinerl
from offlinerl.agents import checkpoint
from offlinerl.cli import main
from offlinerl.data import registry
from offlinerl.evaluation.plots import read_columns
from offlinerl.experience.ring import Replay
from offlinerl.training import request
from offlinerl.util.device import pick_device
from offlinerl.util.errors import UserError
from offlinerl.util.folder import append, clear

COLLECT = ("collect", "--env", "Pendulum-v1", "--dataset", "test/new-v0", "--episodes", "1")
FIT = ("fit", "bc", "--dataset", pendulum.ID, "--compile", "false", "--updates", 10, "--batch", 8,
       "--eval-every", 10, "--final-episodes", 1)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    with pendulum.workplace(tmp_path_factory.mktemp("bad")) as folder:
        yield folder


@pytest.fixture(scope="module")
def run(here):
    """The folder of a finished run."""
    assert main([*map(str, FIT), "--out", str(here / "run")]) == 0
    return here / "run"


def says(line, *words):
    for word in words:
        assert str(word) in line, f"{word!r} is not in: {line}"


# Names and flags


@pytest.mark.parametrize(
    "argv, words",
    [
        (("fit", "xql", "--dataset", "kitchn"), ("'kitchn'", "did you mean kitchen")),
        (("fit", "xql", "--dataset", "qwxz"), ("'qwxz'", "offlinerl datasets list")),
        (("fit", "xql", "--dataset", "no/such/file.hdf5"), ("no/such/file.hdf5 does not exist", "check the path")),
        (("fit", "xlq", "--dataset", pendulum.ID), ("'xlq'", "did you mean", "xql")),
        ((*FIT, "--env", "Pendulun-v1"), ("'Pendulun-v1'", "Pendulum-v1")),
        ((*FIT, "--env", "Nowhere-v7"), ("Nowhere",)),
        (("fit", "td3bc", *FIT[2:], "--env", "CartPole-v1"), ("CartPole-v1", "discrete", "dqn")),
        (
            (*FIT, "--agent.bta", "2"),
            ("bc has no setting 'bta'", "there are normalize, convolutions, encoder, shift, lr"),
        ),
        ((*FIT, "--agent.hiden", "[8]"), ("bc has no setting 'hiden'", "did you mean hidden")),
        ((*FIT, "--agent.lr", "fast"), ("lr must be a number", "'fast'")),
        ((*FIT, "--agent.lr", "-1"), ("lr must be greater than 0", "-1")),
        ((*FIT, "--agent.lr", "nan"), ("lr must be a number", "nan")),
        ((*FIT, "--agent.dropout", "1.5"), ("dropout must be", "1.5")),
        ((*FIT, "--agent.hidden", "wide"), ("hidden must be a list", "'wide'")),
        ((*FIT, "--agent.decay_steps", "soon"), ("decay_steps must be", "'soon'")),
        (("fit", "td3", "--env", "Pendulum-v1", "--agent.hold", "1"), ("hold must be at least 0 and less than 1",)),
        (("fit", "xql", "--dataset", pendulum.ID, "--agent.n_step", "1.5"), ("n_step must be a whole number", "1.5")),
        (("fit", "xql", "--dataset", pendulum.ID, "--agent.value_layer_norm", "5"), ("value_layer_norm must be true",)),
        ((*FIT, "--config", "absent.yaml"), ("absent.yaml", "No such file")),
        ((*COLLECT, "random", "--agent.foo", "3"), ("nothing learns here, so leave out --agent.foo",)),
        ((*COLLECT, "scripted", "--batch", "3"), ("nothing learns here, so leave out --train.batch",)),
        ((*COLLECT, "random", "--config", "/nope.yaml"), ("nothing learns here, so leave out --config",)),
        ((*COLLECT, "random", "--noise", "0.5"), ("leave out --noise",)),
        ((*COLLECT, "random", "--agent-class", "a:B"), ("--agent-class applies to a checkpoint", "leave it out")),
        (("collect", "sac", *COLLECT[1:5], "--steps", "9", "--noise", "1"), ("sac learns", "leave out --noise")),
        (("evaluate", "absent.ckpt"), ("there is no checkpoint absent.ckpt",)),
        (("datasets", "show", "hopper-medum-v2"), ("'hopper-medum-v2'", "hopper-medium-v2")),
        (("datasets", "generate", "kitchn"), ("kitchn",)),
        (("datasets", "import", "absent.hdf5", "test/a-v0"), ("absent.hdf5 does not exist",)),
        (("report", "nothing"), ("nothing",)),
    ],
)  # fmt: skip
def test_names_that_do_not_exist_are_named(argv, words, refused):
    says(refused(*argv), *words)


@pytest.mark.parametrize(
    "argv, words",
    [
        (("fit", "td3", "--env", "Pendulum-v1", "--train.updates", "5"), ("by acting is counted in --steps, not in",)),
        ((*FIT, "--train.steps", "5"), ("learning from a dataset is counted in --updates, not in --steps",)),
        (
            ("collect", "random", "--env", "Pendulum-v1", "--dataset", "a/b-v0"),
            ("collect needs --steps or --episodes",),
        ),
        (("collect", "td3", "--env", "Pendulum-v1", "--dataset", "a/b-v0", "--episodes", 5), ("give --steps instead",)),
    ],
)
def test_flags_that_do_not_go_together_are_wrong_usage(argv, words, refused):
    says(refused(*argv, status=2), *words)


@pytest.mark.parametrize(
    "argv, words",
    [
        ((), ("COMMAND", "--help")),
        (("fti",), ("'fti'", "fit")),
        (("fit",), ("needs an agent",)),
        (("fit", "xql"), ("needs --dataset",)),
        ((*FIT, "--seeds", ""), ("--seeds", "''")),
        ((*FIT, "--seeds", "0,0"), ("--seeds", "'0,0' names a seed twice")),
        ((*FIT, "--seeds", "-1"), ("--seeds",)),
        ((*FIT, "--seeds=-1,2"), ("--seeds", "'-1'", "of at least 0")),
        ((*FIT, "--seeds", "one"), ("--seeds", "'one'")),
        ((*FIT, "--seeds", "0,1.5"), ("--seeds", "'1.5'")),
        ((*FIT, "--updates", "0"), ("--updates", "'0'", "of at least 1")),
        ((*FIT, "--batch", "inf"), ("--batch", "'inf'")),
        ((*FIT, "--batch", "many"), ("--batch", "'many'", "whole number")),
        ((*FIT, "--compile", "maybe"), ("--compile", "'maybe'")),
        ((*FIT, "--device", "tpu"), ("--device", "'tpu'")),
        ((*FIT, "--updats", "5"), ("--updats",)),
        ((*FIT, "--agent.lr"), ("--agent.lr needs a value",)),
        ((*FIT, "--agent.lr", "--batch", "5"), ("--agent.lr needs a value",)),
        (("evaluate", "a.ckpt", "--seed", "-3"), ("--seed", "'-3'")),
        (("evaluate", "a.ckpt", "--agent.lr", "1"), ("evaluate takes no --agent settings",)),
        (("fit", "--resume", "a", "--out", "b"), ("--resume", "leave out --out")),
        (("fit", "--resume", "a", "--seeds", "1", "--pixels"), ("leave out --seeds, --pixels",)),
        (("export", "a", "--onnx", "b.onnx", "--device", "cuda"), ("--device", "leave them out")),
        (("export", "a", "--torchscript", "b.pt", "--episodes", "3"), ("--episodes", "leave them out")),
    ],
)
def test_wrong_usage_is_status_2(argv, words, refused):
    says(refused(*argv, status=2), *words)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (("fit", "bc", "--dataset", ""), "--dataset"), ((*FIT, "--out", ""), "--out"), ((*FIT, "--out="), "--out"),
        (("fit", "--resume", ""), "--resume"), ((*FIT, "--env", ""), "--env"), ((*FIT, "--config", ""), "--config"),
        (("select", "run", "--dataset", ""), "--dataset"), (("select", "run", ""), "RUN"), (("report", ""), "RUN"),
        (("evaluate", "run", "--video", ""), "--video"), (("evaluate", ""), "checkpoint"),
        (("collect", "random", "--env", "Pendulum-v1", "--episodes", "1", "--dataset", ""), "--dataset"),
        (("datasets", "show", ""), "name"), (("export", "run", "--onnx", ""), "--onnx"),
    ],
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(argv, name, refused, here):
    says(refused(*argv, status=2), f"{name}: is empty", "not set")


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: offlinerl.fit("bc", ""), "dataset"), (lambda: offlinerl.fit("bc", pendulum.ID, out=""), "out"),
        (lambda: offlinerl.fit(resume=""), "resume"), (lambda: offlinerl.fit("", pendulum.ID), "agent"),
        (lambda: offlinerl.evaluate(""), "policy"), (lambda: offlinerl.evaluate("run", video=""), "video"),
        (lambda: offlinerl.select("run", ""), "dataset"), (lambda: offlinerl.select(["run", ""]), "runs"),
        (lambda: offlinerl.report(""), "runs"), (lambda: offlinerl.load_policy(""), "path"),
        (lambda: offlinerl.collect("random", "Pendulum-v1", "", episodes=1), "dataset_id"),
        (lambda: offlinerl.collect("random", "Pendulum-v1", "test/e-v0", episodes=1, out=""), "out"),
        (lambda: offlinerl.load_dataset(""), "source"), (lambda: offlinerl.export("", "policy.pt"), "run"),
    ],
)  # fmt: skip
def test_an_empty_argument_is_not_the_current_folder(call, name, run):
    with pytest.raises(UserError, match=f"^{name} is empty, perhaps because a variable is not set: give a value"):
        call()


def test_without_cuda_the_flag_is_refused(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    says(refused(*FIT, "--device", "cuda"), "--device cuda", "--device cpu")


def doors(run):
    """The functions that take a device."""
    return (
        lambda device: offlinerl.load_policy(run, device=device),
        lambda device: offlinerl.evaluate(run, device=device, episodes=1),
        lambda device: offlinerl.select(run, device=device, updates=1),
        lambda device: offlinerl.collect("random", "Pendulum-v1", "test/none-v0", episodes=1, device=device),
        lambda device: offlinerl.fit("bc", pendulum.ID, device=device, out=run / "none"),
    )


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda", "--device cuda: this machine has no CUDA device that torch can use; try --device cpu"),
        ("cuda:0", "--device cuda:0: this machine has no CUDA"), (torch.device("cuda", 1), "--device cuda:1: this"),
        ("gpu", "device must be auto, cpu or cuda, not 'gpu'"), (None, "device must be auto, cpu or cuda, not None"),
        ("cpu:x", "device must be auto, cpu or cuda, not 'cpu:x'"), (3.5, "device must be auto, cpu or cuda, not 3.5"),
        ("xpu", "device must be auto, cpu or cuda, not 'xpu'"),
    ],
)  # fmt: skip
def test_invalid_devices_are_refused(device, words, run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for door in doors(run):
        with pytest.raises(UserError, match=re.escape(words)):
            door(device)
    assert not (run / "none").exists()


def test_a_cuda_device_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == torch.device("cuda") and pick_device("cuda:0").index == 0
    with pytest.raises(UserError, match="--device cuda:1: this machine has 1 CUDA device; try --device cuda"):
        pick_device("cuda:1")


@pytest.mark.parametrize(
    "text, words",
    [
        ("agent: [1", ("not YAML",)),
        ("- 1", ("sections",)),
        ("agent: 5", ("sections",)),
        ("trian: {updates: 5}", ("'trian'",)),
        ("train: {update: 5}", ("'update'", "updates")),
        ("train: {batch: 0}", ("batch must be at least 1",)),
        ("train: {compile: often}", ("compile must be",)),
        ("fit: {seeds: 3}", ("seeds must be a list", "not 3")),
        ("fit: {seeds: [1, 1]}", ("seeds must be a list", "[1, 1]")),
        ("fit: {sedes: [0, 1]}", ("section fit of the configuration my.yaml", "'sedes'; did you mean seeds?")),
        ("fit: {updates: 5}", ("my.yaml has updates in its section fit: put it into train",)),
        ("datasets: {test/pendulum-v0: 5}", ("my.yaml, for test/pendulum-v0, must hold sections", "not 5")),
        ("datasets: {test/pendulum-v0: {updates: 5}}", ("for test/pendulum-v0, has an unknown section 'updates'",)),
        ("datasets: {another: {trian: {batch: 3}}}", ("for another, has an unknown section 'trian'; did you mean",)),
        ("environments: {test/pendulum-v0: {train: 5}}", ("must hold settings in its section train, and not 5",)),
    ],
)
def test_invalid_configurations_are_refused(text, words, refused, here):
    (here / "my.yaml").write_text(text)
    says(refused("fit", "bc", "--dataset", pendulum.ID, "--config", "my.yaml"), *words)


def test_a_misspelt_datasets_entry_is_named_unless_the_right_one_exists(tmp_path):
    def updates(tables, name="kitchen"):
        (tmp_path / "my.yaml").write_text(f"datasets: {tables}\n")
        return request.settings_for("bc", name, None, None, tmp_path / "my.yaml", None)[0]["train"]["updates"]

    few = "{train: {updates: 5}}"
    with pytest.raises(UserError, match="kichen, which is no dataset or environment, and none for kitchen: correct"):
        updates(f"{{kichen: {few}}}")
    assert updates(f"{{kichen: {few}, kitchen: {{}}}}") == 20_000
    assert updates(f"{{kitchen: {few}, kitchen-partial: {{}}, my-robot: {{}}, 3: {{}}}}") == 5
    assert updates(f"{{kitchen-partial: {few}, kitchen-complete-v0: {{}}}}") == 20_000
    assert updates("{mine/robot-v0: {}}", "mine/robot-v1") == updates("{}", "mine/robot-v1"), "both are a user's own"


@pytest.mark.parametrize(
    "over, words",
    [
        ({"updates": 5, "training": {}}, "over has an unknown section 'updates'"),
        ({"training": {"updates": 5}}, "over has an unknown section 'training'; did you mean train?"),
        ({"train": 5}, "over must hold settings in its section train, and not 5"),
        (5, "over must hold sections of settings"),
    ],
)
def test_settings_outside_their_section_are_refused(over, words, run):
    for begun in (dict(agent="bc", dataset="kitchen"), dict(resume=run)):
        with pytest.raises(UserError, match=re.escape(words)):
            offlinerl.fit(**begun, over=over)


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="did you mean"):
        main(["fit", "xql", "--dataset", "kitchn", "--debug"])


# Servers out of reach


def test_unreachable_d4rl_file(refused, monkeypatch):
    entry = dataclasses.replace(registry.entry("kitchen-complete-v0"), source={"d4rl": {"url": "http://127.0.0.1:9/a"}})
    monkeypatch.setitem(registry._load(), "kitchen-complete-v0", entry)
    began = time.monotonic()
    line = refused("fit", "xql", "--dataset", "kitchen-complete-v0")
    says(line, "http://127.0.0.1:9/a could not be reached", "--dataset FILE --env kitchen-complete-v0")
    assert time.monotonic() - began < 5


def test_unreachable_minari_dataset(refused, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    began = time.monotonic()
    line = refused("fit", "xql", "--dataset", "D4RL/kitchen/complete-v2")
    says(line, "D4RL/kitchen/complete-v2 is not installed", "minari download")
    assert time.monotonic() - began < 5


# Files


@pytest.fixture
def file(tmp_path):
    """Writes a D4RL file of Pendulum with some columns replaced or left out."""

    def write(**columns):
        rng = np.random.default_rng(0)
        sound = dict(
            observations=rng.normal(size=(60, 3)).astype(np.float32),
            actions=rng.uniform(-2, 2, (60, 1)).astype(np.float32),
            rewards=rng.normal(size=60).astype(np.float32),
            terminals=np.zeros(60, bool),
            timeouts=np.arange(60) % 20 == 19,
        )
        with h5py.File(tmp_path / "my.hdf5", "w") as file:
            for key, column in (sound | columns).items():
                if column is not None:
                    file[key] = column
        return tmp_path / "my.hdf5"

    return write


def fit_file(path, *flags):
    return ("fit", "bc", "--dataset", path, "--env", "Pendulum-v1", *flags)


@pytest.mark.parametrize(
    "columns, words",
    [
        (dict(actions=None), ("lacks actions",)),
        (dict(rewards=np.full(60, np.nan)), ("rewards", "NaN", "the first of them 0")),
        (dict(observations=np.zeros((59, 3))), ("unequal lengths", "observations 59")),
        (dict(observations=np.zeros((60, 4))), ("observations have shape (4,)", "(3,)", "--env")),
        (dict(next_observations=np.zeros((60, 2))), ("next_observations are (60, 2)", "observations (60, 3)", "alike")),
        (dict(actions=np.zeros((60, 2))), ("actions have shape (2,)", "(1,)", "--env")),
    ],
)
def test_broken_files(columns, words, refused, file):
    says(refused(*fit_file(file(**columns))), *words)


def test_a_configuration_of_another_agent_is_named(refused, here):
    (here / "xql.yaml").write_text("fit: {agent: xql, dataset: kitchen}\nagent: {beta: 2.0}\n")
    says(refused("fit", "bc", "--config", "xql.yaml"), "xql.yaml is of xql, and bc has no setting 'beta'")


@pytest.mark.parametrize("keep", [0, 100, 2000])
def test_truncated_files(keep, refused, file):
    path = file()
    path.write_bytes(path.read_bytes()[:keep])
    says(refused(*fit_file(path)), path, "not an HDF5 file, or only a part of one")


def test_a_file_that_names_no_environment(refused, file):
    fine_tune = ("fit", "bc", "--online-steps", "10", "--dataset")
    says(refused(*fine_tune, file()), "fine-tuning needs an environment", "names none", "--env ID")
    says(refused(*fine_tune, "kitchen", "--env", "none"), "fine-tuning needs an environment", "but --env is none")


def test_obs_keys_of_a_single_vector_are_refused(refused, file, tmp_path):
    (tmp_path / "my.csv").write_text("x,y,u,r\n1,2,3,4\n2,3,4,5\n")
    table = (tmp_path / "my.csv", "--columns", "obs=x,y", "action=u", "reward=r")
    for data in ([file()], table):
        line = refused("fit", "bc", "--dataset", *data, "--obs-keys", "a,b", "--updates", 1)
        says(line, "its observations are one vector without parts; leave out --obs-keys")


def test_a_damaged_minari_dataset(refused, here):
    shutil.copytree(here / "minari" / pendulum.ID, here / "minari/test/broken-v0")
    data = here / "minari/test/broken-v0/data/main_data.hdf5"
    data.write_bytes(data.read_bytes()[:5000])
    says(refused("fit", "bc", "--dataset", "test/broken-v0"), data)


# Folders


def test_the_output_folder_is_never_written_over(refused, run):
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    says(refused(*FIT, "--out", run), run, "--resume", "--out")
    assert before == {path: path.stat().st_mtime_ns for path in run.iterdir()}


def test_a_file_in_place_of_a_folder_is_refused(refused, here):
    (here / "taken").write_text("")
    says(refused(*FIT, "--out", here / "taken"), "taken", "--out")
    says(refused(*FIT, "--out", here / "taken" / "below"), "taken/below", "not a directory")


@pytest.mark.parametrize(
    "argv",
    [
        ("evaluate", "run", "--episodes", 1, "--json"),
        ("select", "run", "--updates", 1, "--png"),
        ("select", "run", "--updates", 1, "--json"),
        ("datasets", "show", pendulum.ID, "--png"),
        ("datasets", "show", pendulum.ID, "--json"),
        ("datasets", "export", pendulum.ID, "--overwrite"),
        ("datasets", "export", pendulum.ID, "--format", "robomimic", "--overwrite"),
        ("datasets", "filter", pendulum.ID, "--episodes", "0-3", "--overwrite", "--out"),
        ("export", "run", "--overwrite", "--onnx"),
        ("export", "run", "--overwrite", "--torchscript"),
        ("export", "run", "--overwrite", "--safetensors"),
        ("benchmark", "bc", "--json"),
    ],
)
def test_a_folder_is_never_replaced_by_a_file(argv, run, refused, here):
    kept = here / f"results.{'safetensors' if '--safetensors' in argv else 'hdf5'}" / "kept.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    says(refused(*argv, kept.parent), f"{kept.parent} is a folder: name a file")
    assert [*kept.parent.iterdir()] == [kept] and kept.read_text() == "mine"


def test_only_a_dataset_is_replaced_by_a_dataset(refused, here):
    kept = here / "project" / "data" / "kept.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    into = ("datasets", "export", pendulum.ID, here / "project", "--format", "lerobot", "--fps", 20, "--overwrite")
    says(refused(*into), "project is not a dataset of this kind", "has no meta/info.json", "choose another name")
    made = ("datasets", "generate", "kitchen-complete", "--episodes", 1, "--out", here / "project", "--overwrite")
    says(refused(*made), "project is not a dataset of this kind", "has no data/metadata.json")
    installed = here / "minari" / "test" / "mine-v0"
    shutil.copytree(here / "project", installed)
    says(
        refused("datasets", "filter", pendulum.ID, "--episodes", "0-3", "--out", "test/mine-v0", "--overwrite"),
        "is not a dataset",
    )
    assert kept.read_text() == (installed / "data" / "kept.txt").read_text() == "mine"
    (here / "taken.txt").write_text("mine")
    says(refused(*into[:3], here / "taken.txt", *into[4:]), "taken.txt is a file: name a folder")


def test_nothing_is_left_of_a_run_that_cannot_start(refused, here):
    refused(*FIT, "--env", "CartPole-v1", "--out", here / "unborn")
    assert not (here / "unborn").exists()


def test_resuming_what_is_not_a_run_is_refused(refused, run, here):
    (here / "empty").mkdir()
    for folder in ("empty", "absent"):
        says(refused("fit", "--resume", folder), folder, "no run to resume")
    says(refused("fit", "iql", "--resume", run), "agent bc, not iql")
    says(refused("fit", "--resume", run, "--batch", 3), "batch cannot be given", "--updates")
    says(refused("fit", "--resume", run, "--updates", 5), "10 updates already", "--updates")
    says(refused("fit", "--resume", run, "--train.updates", "many"), "updates must be a whole number", "'many'")

    shutil.copytree(run, here / "bare")
    (here / "bare" / "config.yaml").write_text("agent: {}\ntrain: {}\n")
    says(refused("fit", "--resume", here / "bare"), here / "bare" / "config.yaml", "'fit'")


@pytest.mark.parametrize("given, changes", [("1e1", {}), ("7e2", dict(updates=700)), (12.0, dict(updates=12))])
def test_lengths_are_converted_to_their_type_when_a_run_is_resumed(given, changes, run):
    settings, _, changed = request.settings_of_run(run, None, None, None, dict(train=dict(updates=given, batch="8")))
    assert changed == changes and settings["train"]["updates"] == changes.get("updates", 10)


@pytest.mark.parametrize(
    "section, key, value, words",
    [
        ("agent", "lr", "fast", ("lr must be a number", "'fast'")),
        ("train", "batch", [], ("batch must be a whole number",)),
        ("fit", "seeds", 3, ("seeds must be a list", "not 3")),
        ("fit", "dataset", {"a": 1}, ("dataset must be a name",)),
        ("fit", "agent", None, ("needs an agent",)),
    ],
)
def test_resuming_with_wrong_settings(section, key, value, words, refused, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings[section][key] = value
    path.write_text(yaml.safe_dump(settings))
    says(refused("fit", "--resume", tmp_path / "run", "--updates", 20), path, *words)


@pytest.mark.parametrize("text", ["a,b\r\n1,2\r\n", "update,seed,score\r\n10,0,good\r\n"])
def test_damaged_tables_are_refused_before_training(text, refused, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "evaluations.csv").write_text(text)
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    line = refused("fit", "--resume", tmp_path / "run", "--updates", 20)
    says(line, tmp_path / "run" / "evaluations.csv", "damaged")
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


def test_a_table_of_an_older_version_gets_the_columns_it_lacks(tmp_path):
    path = tmp_path / "metrics.csv"
    append(path, [dict(update=1, seed=0, loss=0.5)])
    append(path, [dict(update=2, seed=0, value_loss=3.0, loss=1.5)])
    columns = read_columns(path)
    np.testing.assert_array_equal(columns["loss"], [0.5, 1.5])
    np.testing.assert_array_equal(columns["value_loss"], [np.nan, 3])


def test_a_long_table_is_not_read_again_for_a_row_that_comes_last(tmp_path, monkeypatch):
    path = tmp_path / "evaluations.csv"
    clear(path, "update", 1)
    assert not path.exists()
    for update in range(1, 20_000, 2_000):
        append(path, [dict(update=update + i, seed=0, score=0.5) for i in range(2_000)])
    before = path.read_text()
    with monkeypatch.context() as patch:
        patch.delattr("offlinerl.util.folder.trim")
        clear(path, "update", 20_001)
        assert path.read_text() == before
        with pytest.raises(NameError):
            clear(path, "update", 20_000)
    clear(path, "update", 19_999)
    assert path.read_text() == before[: before.index("19999,")]
    path.write_text("update,seed,score\r\n")
    clear(path, "update", 1)
    assert path.read_text() == "update,seed,score\n"


# Checkpoints


@pytest.mark.parametrize("damage", ["truncated", "cut large", "random", "pickle", "empty", "other", "of a user"])
def test_damaged_checkpoints(damage, refused, run, tmp_path):
    path = tmp_path / "a.ckpt"
    whole = (run / "last.ckpt").read_bytes()
    if damage == "other":
        torch.save({"state_dict": {}}, path)
    elif damage == "cut large":  # torch then seeks before its start
        torch.save(dict(weights=torch.randn(100, 100)), path)
        path.write_bytes(path.read_bytes()[:20_000])
    elif damage == "of a user":
        torch.save({"offlinerl": Path("not plain data")}, path)
    else:
        random = np.random.default_rng(0).bytes(5000)
        path.write_bytes(
            {"truncated": whole[: len(whole) // 2], "random": random, "pickle": pickle.dumps([1]), "empty": b""}[damage]
        )
    line = refused("evaluate", path, "--episodes", 1)
    says(line, path, "not a checkpoint")

    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    shutil.copy(path, broken / "last.ckpt")
    says(refused("fit", "--resume", broken, "--updates", 20), broken / "last.ckpt", "not a checkpoint")


NO_CHECKPOINTS = dict(
    text=lambda path: path.write_text("junk\n"),
    empty=lambda path: path.write_text(""),
    json=lambda path: path.write_text('{"offlinerl": 1}'),
    zip=lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"),
    numpy=lambda path: np.savez(path.open("wb"), a=np.arange(3)),
    bytes=lambda path: path.write_bytes(bytes(range(256)) * 40),
    pickle=lambda path: path.write_bytes(pickle.dumps([1, 2])),
    tensor=lambda path: torch.save(torch.ones(3), path),
    weights=lambda path: torch.save(dict(state_dict=dict(w=torch.ones(3)), epoch=1), path),
    ours_in_name=lambda path: torch.save(dict(offlinerl=3), path),
    agent_in_name=lambda path: torch.save(dict(offlinerl=dict(agent="bc")), path),
    folder=lambda path: path.mkdir(),
)  # fmt: skip


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
@pytest.mark.parametrize("command", ["evaluate", "collect"])
def test_other_files_are_refused_as_checkpoints(command, kind, refused, tmp_path):
    path = tmp_path / "junk.ckpt"
    NO_CHECKPOINTS[kind](path)
    more = ("--env", "Pendulum-v1", "--dataset", "a/b-v0", "--steps", 5) if command == "collect" else ()
    says(refused(command, path, *more), path, "checkpoint")


def test_a_run_folder_stands_for_its_last_checkpoint(run, here, capsys):
    for given in (run, run / "last.ckpt"):
        assert main(["evaluate", str(given), "--episodes", "1", "--json", str(here / "a.json")]) == 0
        assert json.loads((here / "a.json").read_text())["checkpoint"] == str(run / "last.ckpt")


def test_a_checkpoint_of_another_run_is_refused(refused, run, tmp_path):
    """A checkpoint of another algorithm, and one that Lightning saved on its own."""
    shutil.copytree(run, tmp_path / "run")
    content = torch.load(tmp_path / "run" / "last.ckpt")
    for changes, word in (
        (dict(offlinerl=content["offlinerl"] | dict(agent="offlinerl.agents.iql:IQL")), "IQL"),
        (dict(callbacks={}), "was not saved by"),
    ):
        torch.save(content | changes, tmp_path / "run" / "last.ckpt")
        says(refused("fit", "--resume", tmp_path / "run", "--updates", 20), tmp_path / "run" / "last.ckpt", word)


def test_a_checkpoint_runs_no_code(refused, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"offlinerl": Trap()}, tmp_path / "trap.ckpt")
    refused("evaluate", tmp_path / "trap.ckpt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "env, words",
    [
        ("MountainCarContinuous-v0", ("2 observations", "the policy 3", "trained for")),
        ("CartPole-v1", ("CartPole-v1", "2 discrete actions")),
        ("Nowhere-v0", ("Nowhere",)),
    ],
)
def test_evaluating_in_an_environment_that_does_not_fit_is_refused(env, words, refused, run):
    says(refused("evaluate", run / "last.ckpt", "--env", env), *words)


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved["optimizer_states"][0]["state"].clear(),
        lambda saved: saved["offlinerl"].update(updates="ten"),
        lambda saved: saved["offlinerl"].update(rng=[]),
        lambda saved: saved["callbacks"]["Run"].update(best={"mean": 1.0}),
        lambda saved: saved["callbacks"]["Run"].pop("seconds"),
        lambda saved: saved["callbacks"]["Run"].update(source=5),
    ],
)
def test_checkpoints_with_entries_of_a_wrong_type_are_refused(change, refused, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)
    says(refused("fit", "--resume", tmp_path / "run", "--updates", 20), path)


# Full disks


@pytest.mark.parametrize("batch", [10**12, 10**18])
def test_a_batch_too_large_for_memory_is_named(batch, refused, here):
    line = refused(*FIT, "--batch", batch, "--out", here / f"huge-{batch}")
    says(line, f"batches of {batch:,} need more memory than is available", "--batch")


def test_networks_too_large_for_memory_are_named(refused, here):
    line = refused("fit", "bc", "--dataset", pendulum.ID, "--agent.hidden", "[10000000, 10000000]")
    says(line, "the networks need more memory than is available: give smaller ones, or fewer --seeds")


def test_a_save_that_no_memory_holds_is_not_blamed_on_the_batch(refused, here, monkeypatch):
    def too_large(self, copy=True):
        raise MemoryError("can't allocate memory")

    monkeypatch.setattr(Replay, "state_dict", too_large)
    argv = ("fit", "td3", "--env", "Pendulum-v1", "--steps", 40, "--train.warm_up", 10, "--batch", 8)
    line = refused(*argv, "--out", here / "saved-without-memory")
    says(line, "saving needs more memory than is available", "--train.replay disk", "--train.capacity")


def test_a_full_disk_keeps_the_previous_checkpoint(refused, run, here, monkeypatch):
    folder = here / "full"
    shutil.copytree(run, folder)
    before = (folder / "last.ckpt").read_bytes()

    def full(self, path, **_):
        Path(path).write_bytes(b"the beginning of a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning.Trainer.save_checkpoint", full)
    says(refused("fit", "--resume", folder, "--updates", 20), folder / "last.ckpt", "the disk is full")
    assert (folder / "last.ckpt").read_bytes() == before
    assert not list(folder.glob(".*")), "what was written of the new one is deleted"
    assert checkpoint.load_agent(folder / "last.ckpt").updates == 10


LIMITED = """
import resource, sys
from offlinerl.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (limit := int(sys.argv[1]), limit))
sys.exit(main(sys.argv[2:]))
"""


def test_a_file_that_may_not_grow_keeps_the_previous_checkpoint(run, here):
    """The operating system itself refuses to write; in a separate process."""
    folder = here / "limited"
    shutil.copytree(run, folder)
    before = (folder / "last.ckpt").read_bytes()
    process = pendulum.start_python(LIMITED, len(before) // 2, "fit", "--resume", folder, "--updates", 20)
    (line,) = process.communicate(timeout=100)[1].splitlines()
    assert process.returncode == 1
    says(line, "last.ckpt", "the disk is full")
    assert (folder / "last.ckpt").read_bytes() == before
    assert not list(folder.glob(".*"))


def test_a_full_disk_that_stops_saving_the_replay_is_named(tmp_path):
    """torch alone would only say that it wrote less than it should have."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(UserError, match=r"replay-8.pt was not written, because the disk is full"):
            checkpoint.write(dict(numbers=torch.zeros(10_000)), tmp_path / "replay-8.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", ["datasets list", "datasets validate kitchen"])
@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_a_full_disk_behind_standard_output_is_named(words, unbuffered):
    with open("/dev/full", "w") as full:
        command, settings = [sys.executable, "-m", "offlinerl", *words.split()], dict(PYTHONUNBUFFERED=unbuffered)
        process = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100, env={**os.environ, **settings}
        )
    assert process.returncode == 1 and process.stderr.splitlines() == [
        "offlinerl datasets: the disk is full: free some space"
    ]
