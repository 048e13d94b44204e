"""Datasets generated from recipes: bit for bit the same with any number of workers and after any kill."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from offlinerl.agents import shipped
from offlinerl.agents.base import Agent
from offlinerl.agents.checkpoint import load_agent
from offlinerl.agents.sac import SAC
from offlinerl.cli import main
from offlinerl.data import registry
from offlinerl.data.episode import Episode
from offlinerl.data.journal import Journal
from offlinerl.data.load import load
from offlinerl.data.minari_writer import write_minari
from offlinerl.data.validate import validate
from offlinerl.envs.make import make, spec_of
from offlinerl.envs.quick import quicken
from offlinerl.experience.table import Table
from offlinerl.recipes import generate, rollouts
from offlinerl.recipes.antmaze import relabelled
from offlinerl.recipes.recipe import environment, names, read
from offlinerl.training.generation import generate_dataset
from offlinerl.util.atomic import alone
from offlinerl.util.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("OFFLINERL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    """Blocks of four environments, which take 50 steps and then finish their episodes."""
    monkeypatch.setattr(generate, "LANES", 4)
    monkeypatch.setattr(generate, "STEPS", 50)


def ship(folder, name, env, seed=0):
    """Ship a policy that has not learned anything."""
    made = make({"id": env})
    shipped.write(SAC(spec_of(made), (seed,), hidden=(16,)), folder / f"policies/{name}.safetensors", {"seed": seed})
    made.close()


def made(*argv):
    assert main(["datasets", "generate", *map(str, argv)]) == 0


def contents(name):
    """Every number of a dataset, in order, and its reset seeds."""
    with h5py.File(registry.resolve(name).path / "data/main_data.hdf5") as file:
        groups = [file[f"episode_{i}"] for i in range(len(file))]
        return [
            (g.attrs.get("seed"), *(g[key][()].tobytes() for key in ("observations", "actions", "rewards")))
            for g in groups
        ]


# --------------------------------------------------------------------------------------------- the engine


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(here, small):
    ship(here, "hopper-medium", "Hopper-v5")
    file = here / "datasets/hopper-medium/data/main_data.hdf5"
    made("hopper-medium", "--size", 800, "--workers", 1)
    alone, bytes_alone = contents("hopper-medium"), file.read_bytes()
    made("hopper-medium", "--size", 800, "--workers", 2, "--overwrite")
    assert contents("hopper-medium") == alone and file.read_bytes() == bytes_alone


def test_interruptions_change_nothing(here, small):
    ship(here, "hopper-medium", "Hopper-v5")
    made("hopper-medium", "--size", 800, "--workers", 1)
    alone = contents("hopper-medium")
    assert len({seed for seed, *_ in alone}) == len(alone) > 16
    parts, folder = generate.parts_of("hopper-medium", 800, None, False), here / "partial"
    for steps in (7, 60, 90):  # interrupted in the middle of episodes, three times
        left = iter(range(steps))
        generation = generate.Generation(folder, parts, {})
        assert not generation.run(1, lambda left=left: next(left, None) is not None, lambda made: None)
    generation = generate.Generation(folder, parts, {})
    assert generation.run(1, lambda: True, lambda made: None)
    assert [(e.seed, e.observations.tobytes(), e.actions.tobytes()) for e in generation] == [
        (seed, obs, action) for seed, obs, action, _ in alone
    ]


PROGRAM = """
import sys
from offlinerl.cli import main
from offlinerl.recipes import generate, rollouts

generate.LANES, generate.STEPS = 4, 50
sys.exit(main(["datasets", "generate", *sys.argv[1:]]))
"""


def alive(group):
    """Processes of a group that have not ended."""
    found = subprocess.run(["ps", "-eo", "pgid,stat,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()[1:]]
    return [row for row in rows if int(row[0]) == group and row[1][0] != "Z"]


@pytest.mark.slow
def test_a_killed_generation_is_resumed(here, small):
    """SIGKILL loses no finished episode and leaves no worker behind."""
    argv = ("walker2d-random", "--size", "4000", "--workers", "2")
    environ = {**os.environ, "OFFLINERL_HOME": str(here)}
    start = dict(env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *argv], **start)
    partial = here / "datasets/walker2d-random.partial"

    def written():
        return {path.name: path.stat().st_size for path in partial.glob("*.journal")}

    until = time.monotonic() + 400
    while sum(written().values()) < 100_000:
        assert process.poll() is None and time.monotonic() < until, process.stderr.read()
        time.sleep(0.01)
    process.kill()
    process.wait()
    while alive(process.pid):
        assert time.monotonic() < until, alive(process.pid)
        time.sleep(0.05)
    before = written()
    assert not (here / "datasets/walker2d-random").exists()
    with pytest.raises(UserError, match="unfinished dataset: resume it with --resume"):
        generate_dataset("walker2d-random", size=4000)
    with pytest.raises(UserError, match="was started with other parts"):
        generate_dataset("walker2d-random", size=5000, resume=True)
    assert written() == before
    done = subprocess.Popen([sys.executable, "-c", PROGRAM, *argv, "--resume"], **start)
    assert done.wait() == 0, done.stderr.read()
    assert not partial.exists()
    resumed = contents("walker2d-random")
    generate_dataset("walker2d-random", size=4000, workers=1, overwrite=True)
    assert contents("walker2d-random") == resumed


def test_files_that_another_process_writes_are_not_deleted(here, small, refused):
    """A dataset that a running process is generating, and one whose process was killed while writing."""
    path = here / "datasets/hopper-random"
    partial, writing = path.with_name("hopper-random.partial"), path.with_name(".hopper-random.0123abcd")
    writing.mkdir(parents=True)
    argv = ("datasets", "generate", "hopper-random", "--size", 20, "--workers", 1)
    with alone(partial):
        assert "resume it with --resume" in refused(*argv)
        assert "written by another process" in refused(*argv, "--resume")
        assert writing.exists() and not path.exists()
    made(*argv[2:], "--resume")
    assert path.exists() and not writing.exists() and not partial.exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume(here):
    argv = ("hopper-random", "--size", "500000", "--workers", "2")
    start = dict(env={**os.environ, "OFFLINERL_HOME": str(here)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *argv], text=True, start_new_session=True, **start)
    partial, until = here / "datasets/hopper-random.partial", time.monotonic() + 400
    while not any(path.stat().st_size for path in partial.glob("*.journal")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 1 and len(error.splitlines()) == 1, error
    assert "transitions, which are kept in" in error and "--resume" in error
    assert not alive(process.pid)


def test_the_held_out_tenth_has_other_episodes(here, small):
    made("hopper-random", "--size", 2000, "--workers", 1)
    made("hopper-random", "--size", 2000, "--split", "heldout", "--workers", 1)
    train, heldout = load("hopper-random", reward="none"), load("hopper-random-heldout", reward="none")
    assert 2000 <= len(train) < 2200 and 200 <= len(heldout) < 300
    assert not {seed for seed, *_ in contents("hopper-random")} & {
        seed for seed, *_ in contents("hopper-random-heldout")
    }
    assert registry.resolve("hopper-random-heldout").score_kind == registry.resolve("hopper-random").score_kind
    provenance = heldout.provenance["provenance"]
    assert provenance["split"] == "heldout" and provenance["size"] == 200 and provenance["recipe"]["kind"] == "random"
    with pytest.raises(UserError, match="generate walker2d-random --split heldout"):
        load("walker2d-random-heldout")
    assert validate("hopper-random") == []


# --------------------------------------------------------------------------------------------- the recipes


def test_every_recipe_has_an_entry_in_the_registry():
    ours = [name for name in registry.names() if registry.entry(name).kind in ("recipe", "builtin")]
    assert sorted(ours) == names() and len(ours) == 15 + 6 + 3 + 3 + 4
    for name in ours:
        recipe, entry = read(name), registry.entry(name)
        if recipe["kind"] in ("random", "policy", "controller"):
            assert environment(recipe) == entry.env and recipe.get("obs_keys") == (entry.obs_keys and [*entry.obs_keys])
        assert not name.endswith(("-v0", "-v1", "-v2"))  # which are D4RL's
    assert registry.entry("hopper-medium-v2").kind == "d4rl" and registry.entry("hopper-medium").kind == "recipe"
    assert read("antmaze-large-play")["goal"] == [32.75, 24.75]


def test_a_score_of_ours_is_not_called_d4rls():
    for name in ("hopper-medium", "antmaze-umaze", "pointmaze-large", "walker2d-medium-replay"):
        assert registry.entry(name).score_kind in ("ours", "return")
    assert registry.entry("antmaze-umaze-v2").score_kind == "normalized"


def test_medium_expert_is_medium_followed_by_expert(here, small):
    ship(here, "hopper-medium", "Hopper-v5", 0)
    ship(here, "hopper-expert", "Hopper-v5", 1)
    made("hopper-medium-expert", "--size", 600, "--workers", 1)
    for name in ("hopper-medium", "hopper-expert"):
        made(name, "--size", 300, "--workers", 1)
    assert contents("hopper-medium-expert") == contents("hopper-medium") + contents("hopper-expert")
    policies = load("hopper-medium-expert").provenance["provenance"]["policies"]
    assert [policies[name]["seed"] for name in ("hopper-medium", "hopper-expert")] == [0, 1]


def test_a_policy_samples_its_actions(here, small, monkeypatch):
    """From its own distribution, with different samples in every environment and episode."""
    ship(here, "hopper-medium", "Hopper-v5")
    made("hopper-medium", "--size", 300, "--workers", 1)
    data = load("hopper-medium", reward="none")
    agent = load_agent(here / "policies/hopper-medium.safetensors")
    mean, std = agent.actor.mean_and_std(torch.from_numpy(data.obs)[None])
    z = (
        (np.arctanh(data.action.clip(-1 + 1e-6, 1 - 1e-6)) - mean[0].detach().numpy()) / std[0].detach().numpy()
    ).ravel()
    assert abs(z.mean()) < 0.1 and abs(z.std() - 1) < 0.1
    firsts = data.action[data.episode_starts]
    assert len(np.unique(firsts, axis=0)) == len(firsts)
    with torch.no_grad():
        known = agent.log_prob(torch.from_numpy(data.obs)[None], torch.from_numpy(data.action)[None])
    np.testing.assert_allclose(data.log_prob, known[0], rtol=1e-3, atol=1e-3)
    monkeypatch.setitem(read("hopper-medium"), "explore", False)
    made("hopper-medium", "--size", 20, "--workers", 1, "--overwrite")
    likeliest = load("hopper-medium", reward="none")
    assert likeliest.log_prob is None, "what was not drawn has no probability"
    mean, _ = agent.actor.mean_and_std(torch.from_numpy(likeliest.obs)[None])
    np.testing.assert_allclose(likeliest.action, torch.tanh(mean[0]).detach(), atol=1e-5)
    made("hopper-random", "--size", 100, "--workers", 1)
    np.testing.assert_allclose(load("hopper-random").log_prob, -3 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("kept", [7, 200])
def test_the_number_of_steps_kept_in_memory_changes_nothing(here, small, monkeypatch, kept):
    """Dropping old steps and making room for new ones changes no episode, whatever the lengths of episodes."""
    made("hopper-random", "--size", 300)
    whole = contents("hopper-random")
    shutil.rmtree(here / "datasets")
    monkeypatch.setattr(rollouts, "STEPS_KEPT", kept)
    made("hopper-random", "--size", 300, "--workers", 1)
    assert contents("hopper-random") == whole and len(whole) > 9


def test_two_episodes_with_the_same_reset_seed_are_both_kept(here, small, monkeypatch):
    """This happens once in some thousands of blocks; also in a dataset that was stopped and resumed."""
    seeds = lambda seed, lane, number: 1001 if (lane, number) == (2, 0) else int(1000 * lane + number)  # noqa: E731
    monkeypatch.setattr(rollouts, "reset_seed", seeds)
    block = generate.Part(dict(read("hopper-random")), 200, "transitions").block(0)
    found = []
    for limit in (10**9, 60):
        with Journal(here / f"{limit}.journal") as journal:
            steps = itertools.count()
            block.play(journal, lambda steps=steps, limit=limit: next(steps) < limit)
            block.play(journal, lambda: True)
            found.append(sorted(journal[place].rewards.tobytes() for place in block.order(journal)))
            assert found[-1] == sorted(episode.rewards.tobytes() for episode in journal) and len(journal) > 8
    assert found[0] == found[1]


def test_medium_replay_is_the_experience_of_a_training(here, monkeypatch, capsys):
    monkeypatch.setattr("offlinerl.training.collection.REFERENCE_EPISODES", 2)
    shorter = dict(warm_up=200, final_episodes=1, eval_every=300, eval_episodes=1, compile=False)
    training = dict(read("hopper-medium-replay")["training"], settings=dict(agent=dict(hidden=[16]), train=shorter))
    monkeypatch.setitem(read("hopper-medium-replay"), "training", training)
    written = []

    def full(*arguments, **more):
        if written:
            raise UserError("the disk is full")
        written.append(write_minari(*arguments, **more))

    with monkeypatch.context() as patch:
        patch.setattr("offlinerl.training.generation.write_minari", full)
        assert main(["datasets", "generate", "hopper-medium-replay", "--size", "600"]) == 1
        patch.undo()
        patch.setattr(Agent, "learn", None)  # nothing is trained again
        made("hopper-medium-replay", "--size", 600, "--resume")
    train, heldout = (load(name, reward="none") for name in ("hopper-medium-replay", "hopper-medium-replay-heldout"))
    assert len(train) + len(heldout) == 600
    count = len(train.episode_starts) + len(heldout.episode_starts)
    assert len(heldout.episode_starts) == count // 10 > 0
    assert train.provenance["provenance"]["recipe"]["training"]["steps"] == 140000
    assert not (here / "datasets/hopper-medium-replay.partial").exists()
    assert validate("hopper-medium-replay") == []
    shutil.rmtree(here / "datasets/hopper-medium-replay")
    capsys.readouterr()
    assert main(["datasets", "generate", "hopper-medium-replay", "--size", "600"]) == 1  # before it trains
    assert "hopper-medium-replay-heldout already exists" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_replay_of_few_episodes_is_written(here, monkeypatch, capsys, count):
    """The last episode is held out, unless it is the only one."""
    monkeypatch.setattr("offlinerl.training.collection.REFERENCE_EPISODES", 2)
    monkeypatch.setattr("offlinerl.training.generation.Journal", lambda *at, **how: FirstOf(Journal(*at, **how), count))
    shorter = dict(warm_up=200, final_episodes=1, eval_every=300, eval_episodes=1, compile=False)
    training = dict(read("hopper-medium-replay")["training"], settings=dict(agent=dict(hidden=[16]), train=shorter))
    monkeypatch.setitem(read("hopper-medium-replay"), "training", training)
    made("hopper-medium-replay", "--size", 300)
    assert len(load("hopper-medium-replay", reward="none").episode_starts) == max(1, count - 1)
    if count > 1:
        assert len(load("hopper-medium-replay-heldout", reward="none").episode_starts) == 1
    else:
        assert "hopper-medium-replay-heldout is not written" in capsys.readouterr().out
    assert not (here / "datasets/hopper-medium-replay.partial").exists()


class FirstOf:
    """The first ``count`` episodes of a journal."""

    def __init__(self, journal, count):
        self.journal, self.count = journal, count

    def __enter__(self):
        self.journal.__enter__()
        return self

    def __exit__(self, *error):
        return self.journal.__exit__(*error)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.journal[i]


@pytest.mark.parametrize(("name", "steps"), [("halfcheetah-medium", 1000), ("pointmaze-umaze", 300)])
def test_faster_steps_change_nothing(here, small, monkeypatch, name, steps):
    """Neither observations, nor rewards, nor ends, to the bit."""
    monkeypatch.setattr(generate, "STEPS", steps)
    monkeypatch.setitem(read(name), "lanes", 3)
    block = generate.Part(dict(read(name)), 10**6, "transitions").block(0)
    found, quicken = [], rollouts.quicken
    for own in (True, False):
        monkeypatch.setattr(rollouts, "quicken", (lambda envs: None) if own else quicken)
        rollouts._pool.cache_clear()
        with Journal(here / f"{own}.journal") as journal:
            block.play(journal, lambda: True)
            found.append([[column.tobytes() for column in episode[:5]] for episode in journal])
            assert journal.steps >= 3 * steps
            assert any(episode.terminations[-1] for episode in journal) == name.startswith("pointmaze")
    rollouts._pool.cache_clear()
    assert found[0] == found[1]


def test_only_known_steps_are_replaced():
    def replaced(name, **kwargs):
        env = make({"id": name, "kwargs": kwargs}, observed=False)
        quicken([env])
        return "step" in vars(env.unwrapped)

    assert replaced("HalfCheetah-v5") and not replaced("Hopper-v5")
    assert not replaced("HalfCheetah-v5", exclude_current_positions_from_observation=False)
    assert replaced("PointMaze_UMaze-v3", continuing_task=False) and not replaced("PointMaze_UMaze-v3")
    assert not replaced("PointMaze_UMaze-v3", continuing_task=False, reward_type="dense")


@pytest.mark.parametrize("name", ["pointmaze-umaze", "pointmaze-medium", "pointmaze-large"])
def test_the_point_reaches_its_goals(name):
    made(name, "--size", 1500, "--workers", 1)
    data = load(name, reward="none")
    assert data.obs.shape[1] == 6
    assert data.episode_returns.mean() > 0.9 and data.reward.sum() == data.terminated.sum()
    ends = data.next_obs[data.terminated]
    assert (np.linalg.norm(ends[:, :2] - ends[:, 4:6], axis=1) <= 0.46).all()
    folder = str(registry.resolve(name).path)  # whose provenance states what was observed
    assert validate(name) == validate(folder) == []
    assert main(["datasets", "filter", folder, "--min-length", "2", "--out", "point/filtered-v0"]) == 0
    assert load("point/filtered-v0").obs.shape[1] == 6
    entry = registry.entry(name)
    assert spec_of(make(entry.env, entry.obs_keys)).obs_dim == 6


def test_antmaze_is_stored_with_its_relabelled_rewards(here):
    ship(here, "ant-direction", "offlinerl/AntDirection-v0")
    made("antmaze-umaze-diverse", "--size", 1500, "--workers", 1)
    data = load("antmaze-umaze-diverse", reward="none")
    assert data.obs.shape == (2000, 29) and data.episode_lengths.tolist() == [1000, 1000]
    near = np.linalg.norm(data.next_obs[:, :2] - [0.75, 8.75], axis=1) <= 0.5
    np.testing.assert_array_equal(data.terminated, near)
    np.testing.assert_array_equal(data.reward, near)
    assert [finding for finding in validate("antmaze-umaze-diverse") if finding.fault] == []


def test_a_walk_beyond_the_goal_becomes_the_same_table_as_from_d4rl(here):
    """The table of our dataset equals that of a file in D4RL's format with the same steps."""
    rng = np.random.default_rng(0)
    steps, goal = 60, np.array([0.75, 8.75])
    episodes = []
    for start in (0.0, 5.0):
        obs = rng.normal(size=(steps + 1, 29)).astype(np.float32)
        obs[:, 0], obs[:, 1] = 0.75, start + 0.15 * np.arange(steps + 1)  # past the goal, or from before it
        action = rng.uniform(-1, 1, (steps, 8)).astype(np.float32)
        none = np.zeros(steps, bool)
        plain = Episode(obs, action, np.zeros(steps, np.float32), none, np.arange(steps) == steps - 1)
        episodes.append(relabelled(plain, goal))
    assert all(2 < episode.terminations.sum() < steps for episode in episodes)
    env = make({"id": "offlinerl/AntMaze-umaze-v0"})
    write_minari(
        registry.resolve("antmaze-umaze").path, episodes, dataset_id="offlinerl/antmaze-umaze-v0", env_spec=env.spec,
        observation_space=env.observation_space, action_space=env.action_space,
    )  # fmt: skip
    with h5py.File(here / "antmaze-umaze-v2.hdf5", "w") as file:
        file["observations"] = np.concatenate([e.observations[:-1] for e in episodes])
        file["next_observations"] = np.concatenate([e.observations[1:] for e in episodes])
        file["actions"] = np.concatenate([e.actions for e in episodes])
        file["rewards"] = np.concatenate([e.rewards for e in episodes])
        file["terminals"] = np.concatenate([e.terminations for e in episodes])
        file["timeouts"] = np.concatenate([e.truncations for e in episodes])
    ours, theirs = load("antmaze-umaze"), load(str(here / "antmaze-umaze-v2.hdf5"))
    for column in ("obs", "next_obs", "action", "reward", "terminated", "last"):
        np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column))
    assert set(np.unique(ours.reward)) == {-1, 0} and ours.last.sum() == 2
    every = torch.arange(len(ours))
    for n in (1, 3):
        one, other = (Table(data, spec_of(env), 0.99, n).transitions(every) for data in (ours, theirs))
        for left, right in zip(one, other, strict=True):
            assert (left is None and right is None) or bool((left == right).all())
    assert validate("antmaze-umaze") == []


# ---------------------------------------------------------------------------------------------- messages


def test_mistakes_are_reported(here, refused, monkeypatch):
    assert "hopper-medium" in names()
    monkeypatch.setattr("offlinerl.recipes.recipe.share", lambda *parts: here.joinpath("nothing", *parts))
    generate_ = ("datasets", "generate")
    line = refused(*generate_, "hopper-medium")
    assert "fit sac --env Hopper-v5 --steps 140000 --seeds 0 --out runs/hopper-medium" in line
    assert f"export runs/hopper-medium --safetensors {here}/policies/hopper-medium.safetensors" in line
    assert "antmaze" in refused(*generate_, "antmaze-umazee")
    assert "--size" in refused(*generate_, "hopper-random", "--episodes", 3)
    refused(*generate_, "hopper-random", "--episodes", 3, "--size", 5, status=2)
    made("kitchen-complete", "--episodes", 1, "--workers", 1)
    assert "already exists" in refused(*generate_, "kitchen-complete", "--episodes", 1)


def test_a_recipe_of_demonstrations_accepts_a_size_too(here, monkeypatch):
    monkeypatch.setattr(generate, "DEMONSTRATIONS", 1)
    made("kitchen-complete", "--size", 100, "--workers", 1)
    (one,) = contents("kitchen-complete")
    made("kitchen-complete", "--episodes", 1, "--workers", 1, "--out", Path("again"))
    with h5py.File("again/data/main_data.hdf5") as file:
        assert file["episode_0/actions"][()].tobytes() == one[2]


def test_our_counterparts_are_trained_with_the_papers_settings():
    """The settings are those for the corresponding dataset of D4RL."""
    for path in Path(__file__).parents[1].glob("configs/*/*.yaml"):
        known = yaml.safe_load(path.read_text()).get("datasets", {})
        for name in known if path.stem in ("locomotion", "antmaze") else ():
            ours = name.removesuffix("-v2")
            if name.endswith("-v2") and ours in registry.names():
                assert known[ours] == known[name], (path, name)
