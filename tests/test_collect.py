"""``offlinerl collect``: with every kind of source, killed and resumed, until a training uses the dataset."""

import json
import random
import signal
import time

import gymnasium as gym
import minari
import numpy as np
import pendulum
import pytest
import torch
import yaml

from offlinerl.agents.base import Agent
from offlinerl.cli import main
from offlinerl.data.journal import EPISODES, Journal
from offlinerl.data.load import load
from offlinerl.rollout.collector import Collector, reset_seed
from offlinerl.util.errors import UserError

SHORT = "train: {eval_episodes: 1, final_episodes: 1, warm_up: 200, steps_per_update: 4}\n"
AGENT = ("--env", "Pendulum-v1", "--compile", "false", "--batch", 16, "--agent.hidden", "[16,16]")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("OFFLINERL_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("offlinerl.training.collection.REFERENCE_EPISODES", 4)
    (tmp_path / "quick.yaml").write_text(SHORT)
    return tmp_path


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """The checkpoint of an agent that learned for two episodes."""
    with pendulum.empty_workplace(tmp_path_factory.mktemp("policy")) as folder:
        (folder / "quick.yaml").write_text(SHORT)
        assert pendulum.fit("td3", *AGENT, "--steps", 400, *QUICK, "--out", folder / "td3") == 0
        return folder / "td3/last.ckpt"


def collect(*argv):
    return main(["collect", *map(str, argv)])


def learner(name, steps, *more):
    return ("td3", *AGENT, "--agent.sigma", 0.3, "--dataset", name, "--steps", steps, "--eval-every", 400, *more)


def episodes(name):
    """Observations, actions and rewards of every episode, in order."""
    return [(e.observations, e.actions, e.rewards) for e in minari.load_dataset(name)]


def same(a, b):
    return len(a) == len(b) and all(
        np.array_equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    )


def leftovers(folder):
    return [path.name for path in folder.rglob(".*")]


def test_a_learning_agent_leaves_a_dataset_and_a_policy(here):
    assert collect(*learner("pendulum/td3-v0", 2000, "--envs", 2, *QUICK)) == 0
    dataset = minari.load_dataset("pendulum/td3-v0")
    assert dataset.total_episodes == 10 and dataset.total_steps == 2000
    env = dataset.recover_environment()
    assert env.spec.id == "Pendulum-v1"
    for episode in dataset:
        assert episode.observations.shape == (201, 3) and episode.actions.dtype == np.float32
        assert not episode.terminations.any() and episode.truncations.tolist() == [False] * 199 + [True]
    seeds = [int(facts["seed"]) for facts in dataset.storage.get_episode_metadata(range(10))]
    assert len(set(seeds)) == 10
    for seed, episode in zip(seeds, dataset, strict=True):
        obs, _ = env.reset(seed=seed)
        assert np.array_equal(obs, episode.observations[0])
        for t, action in enumerate(episode.actions[:50]):
            obs, reward, *_ = env.step(action)
            assert np.array_equal(obs, episode.observations[t + 1]) and reward == pytest.approx(episode.rewards[t])
    provenance = json.loads((here / "minari/pendulum/td3-v0/data/metadata.json").read_text())["provenance"]
    assert (
        provenance["agent"] == "td3"
        and provenance["seed"] == 0
        and provenance["versions"]["gymnasium"] == gym.__version__
    )
    assert provenance["config"]["agent"]["sigma"] == 0.3
    folder = here / "runs/pendulum-td3-v0"
    assert {"last.ckpt", "evaluations.csv", "metrics.csv", "summary.json", "curves.png"} <= {
        p.name for p in folder.iterdir()
    }
    assert not list(folder.glob("replay-*")) and not (folder / EPISODES).exists() and not leftovers(here)


def test_a_configuration_of_an_offline_run_also_works_for_collecting(here):
    (here / "run.yaml").write_text(f"fit: {{agent: bc, dataset: elsewhere/gone-v0, subset: train}}\n{SHORT}")
    assert collect(*learner("pendulum/td3-v0", 400, "--config", "run.yaml")) == 0
    assert minari.load_dataset("pendulum/td3-v0").total_steps == 400


def test_what_was_collected_can_be_trained_on(here):
    assert collect("random", "--env", "Pendulum-v1", "--dataset", "pendulum/random-v0", "--episodes", 3) == 0
    fit = ("fit", "bc", "--dataset", "pendulum/random-v0", "--updates", 10, "--eval-episodes", 1, "--final-episodes", 1)
    assert main([*map(str, fit), "--compile", "false"]) == 0
    assert load("pendulum/random-v0").episode_lengths.tolist() == [200] * 3
    assert not (here / "runs/pendulum-random-v0").exists(), "nothing is left of a collection without a policy"


def test_a_checkpoint_collects_with_noise(here, policy):
    for name, noise in (("still", 0), ("noisy", 0.5)):
        argv = ("--env", "Pendulum-v1", "--dataset", f"pendulum/{name}-v0", "--episodes", 2, "--noise", noise)
        assert collect(policy, *argv) == 0
    still, noisy = load("pendulum/still-v0"), load("pendulum/noisy-v0")
    assert np.array_equal(still.obs[0], noisy.obs[0]), "the same seed starts alike"
    import torch

    from offlinerl.agents.checkpoint import load_agent

    with torch.no_grad():
        greedy = load_agent(policy).act(torch.from_numpy(noisy.obs[None]))[0].numpy()
        assert np.allclose(
            load_agent(policy).act(torch.from_numpy(still.obs[None]))[0].numpy(), still.action, atol=1e-5
        )
    inside = np.abs(noisy.action) < 2
    assert (noisy.action - greedy)[inside].std() == pytest.approx(1.0, rel=0.25), "0.5 of half the range of 4"


def test_a_discrete_agent_collects_action_numbers(here):
    argv = ("dqn", "--env", "CartPole-v1", "--steps", 512, "--compile", "false", "--dataset", "cartpole/dqn-v0")
    assert collect(*argv, "--eval-every", 256) == 0
    dataset = minari.load_dataset("cartpole/dqn-v0")
    for episode in dataset:
        assert episode.actions.dtype == np.int64 and set(episode.actions) <= {0, 1}
        assert episode.terminations[-1] or episode.truncations[-1]


def test_the_number_of_environments_does_not_change_an_episode(here):
    """If nothing learns, an episode does not depend on what runs beside it."""
    for name, envs in (("one", 1), ("three", 3)):
        argv = ("--env", "Pendulum-v1", "--dataset", f"pendulum/{name}-v0", "--episodes", 3, "--envs", envs)
        assert collect("random", *argv) == 0
    one, three = episodes("pendulum/one-v0"), episodes("pendulum/three-v0")
    assert same(one[:1], three[:1]) and not same(one[1:2], three[1:2]), "lane 0 begins alike, others differ"


def test_short_episodes_are_not_preferred(here, monkeypatch):
    """Each environment collects its share, and a fast one no more than that, even if the collection was stopped."""
    argv = ("random", "--env", "CartPole-v1", "--episodes", 7, "--envs", 3, "--dataset", "cartpole/random-v0")
    append, left = Journal.append, iter(range(3))

    def stopping(self, *arguments):
        if next(left, None) is None:
            raise RuntimeError("stopped")
        return append(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr(Journal, "append", stopping)
        collect(*argv)
    assert collect(*argv, "--resume") == 0
    facts = minari.load_dataset("cartpole/random-v0").storage.get_episode_metadata(range(7))
    due = [reset_seed(0, lane, number) for lane, count in enumerate((3, 2, 2)) for number in range(count)]
    assert sorted(int(one["seed"]) for one in facts) == sorted(due)


def test_it_appends_only_to_datasets_of_collect(here, capsys):
    argv = ("random", "--env", "Pendulum-v1", "--dataset", "pendulum/random-v0", "--episodes", 2)
    assert collect(*argv) == 0
    first = episodes("pendulum/random-v0")
    assert collect(*argv, "--seed", 1) == 1 and "--append" in capsys.readouterr().err
    assert collect(*argv, "--seed", 1, "--append") == 0
    both = episodes("pendulum/random-v0")
    assert len(both) == 4 and same(both[:2], first) and not same(both[2:], first)
    pendulum.install(here / "minari", "pendulum/other-v0", 1)
    before = episodes("pendulum/other-v0")
    assert collect("random", "--env", "Pendulum-v1", "--dataset", "pendulum/other-v0", "--episodes", 1, "--append") == 1
    assert same(episodes("pendulum/other-v0"), before)


QUICK = ("--config", "quick.yaml")

APPENDED = dict(
    random=("random", "--episodes", 3),
    random_steps=("random", "--steps", 450),
    lanes=("random", "--episodes", 3, "--envs", 3),
    checkpoint=(None, "--episodes", 3, "--noise", 0.3),
    learning=("td3", *AGENT[2:], "--steps", 400, "--eval-every", 400, "--envs", 2, *QUICK),
    script=("scripted", "--episodes", 1),
)


def distinct(name):
    """How many different first observations and actions the episodes of a dataset have."""
    found = episodes(name)
    firsts = {(obs[0].tobytes(), actions[: len(actions) // 2].tobytes()) for obs, actions, _ in found}
    return len(found), len(firsts)


@pytest.mark.parametrize("kind", APPENDED)
def test_appending_continues_where_the_dataset_ends(here, kind, policy):
    """The same command three times, and once more with another number of environments."""
    source, *more = APPENDED[kind]
    env = "offlinerl/Kitchen-v0" if kind == "script" else "Pendulum-v1"
    argv = (source or policy, "--env", env, "--dataset", "some/appended-v0", *more)
    assert collect(*argv) == 0
    if kind == "script":
        dataset = load("some/appended-v0")
        assert dataset.obs.shape[1] == 60 and dataset.episode_returns[0] >= 2
    sizes, first = [len(episodes("some/appended-v0"))], episodes("some/appended-v0")
    times = ((), ()) if kind in ("script", "learning") else ((), (), ("--envs", 2))
    for changed in times:
        assert collect(*argv, "--append", *changed) == 0
        sizes.append(len(episodes("some/appended-v0")))
    assert np.diff(sizes).min() >= (1 if kind == "script" else 2)
    count, different = distinct("some/appended-v0")
    assert count == sizes[-1] and different == count, "an episode was collected twice"
    assert same(episodes("some/appended-v0")[: sizes[0]], first)
    facts = minari.load_dataset("some/appended-v0").storage.get_episode_metadata(range(count))
    assert len({int(one["seed"]) for one in facts}) == count


@pytest.mark.parametrize("kind", ["random", pytest.param("learning", marks=pytest.mark.slow)])
def test_an_interrupted_append_is_resumed(here, kind, monkeypatch):
    """Stopped half-way and resumed; an equal dataset is not stopped, for comparison."""
    argv = {
        name: (
            learner(name, 800, "--envs", 2, "--eval-every", 400, *QUICK)
            if kind == "learning"
            else ("random", "--env", "Pendulum-v1", "--dataset", name, "--episodes", 6)
        )
        for name in ("pendulum/whole-v0", "pendulum/stopped-v0")
    }
    for each in argv.values():
        assert collect(*each) == 0
    assert collect(*argv["pendulum/whole-v0"], "--append") == 0
    append, kept = Journal.append, []

    def stopping(self, *arguments):
        if len(kept) == 3:
            raise RuntimeError("stopped")
        kept.append(append(self, *arguments))
        return kept[-1]

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr(Journal, "append", stopping)
        collect(*argv["pendulum/stopped-v0"], "--append")
    assert collect(*argv["pendulum/stopped-v0"], "--append") == 1, "it must say that there is something to go on with"
    assert collect(*argv["pendulum/stopped-v0"], "--append", "--resume") == 0
    assert same(episodes("pendulum/stopped-v0"), episodes("pendulum/whole-v0"))
    count, different = distinct("pendulum/stopped-v0")
    assert count == different


def test_a_collection_of_an_older_version_is_resumed(here, monkeypatch, refused):
    """Its configuration lacks settings that were added since."""
    argv, keep, kept = learner("pendulum/td3-v0", 600, *QUICK), Journal.append, []

    def stopping(self, *arguments):
        if kept:
            raise RuntimeError("stopped")
        kept.append(keep(self, *arguments))
        return kept[-1]

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr(Journal, "append", stopping)
        collect(*argv)
    file = here / "runs/pendulum-td3-v0/config.yaml"
    before = yaml.safe_load(file.read_text())
    del before["train"]["updates_per_step"], before["train"]["patience"], before["agent"]["layer_norm"]
    file.write_text(yaml.safe_dump(before))
    assert "started with critics 2, not 3" in refused("collect", *argv, "--resume", "--agent.critics", "3")
    assert collect(*argv, "--resume") == 0
    assert minari.load_dataset("pendulum/td3-v0").total_steps == 600


def test_resuming_a_finished_collection_says_what_to_do(here, capsys):
    argv = learner("pendulum/td3-v0", 400, *QUICK)
    assert collect(*argv) == 0
    capsys.readouterr()
    for more in ((), ("--resume",)):
        assert collect(*argv, *more) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "--append" in line and "--out" in line and "--resume" not in line
    assert collect(*argv, "--append") == 0


@pytest.mark.parametrize(
    "before, after, says",
    [(("--noise", 0), ("--noise", 0.5), "noise 0.0, not 0.5"), ((), ("--stack", 2), "frame_stack None, not 2")],
)
def test_resuming_with_other_settings_is_refused(here, before, after, says, policy, refused, monkeypatch):
    """Another total is allowed; another way of acting would contradict the episodes that exist already."""
    source = policy if before else "random"
    argv = ("collect", source, "--env", "Pendulum-v1", "--dataset", "pendulum/same-v0")
    append = Journal.append

    def stopping(self, *arguments):
        append(self, *arguments)
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", stopping)
        assert "stopped" in refused(*argv, *before, "--episodes", 2)
    if before:  # another policy under the same name
        kept = policy.read_bytes()
        changed = torch.load(policy, weights_only=True)
        for weights in changed["state_dict"].values():
            weights += 1
        torch.save(changed, policy)
        says_so = refused(*argv, *before, "--episodes", 2, "--resume")
        assert f"{policy} is not the policy with which runs/pendulum-same-v0 was started" in says_so
        policy.write_bytes(kept)
    assert says in refused(*argv, *after, "--episodes", 2, "--resume")
    assert collect(*argv[1:], *before, "--episodes", 1, "--resume") == 0


def test_a_policy_collects_with_the_parts_that_it_was_trained_on(here):
    maze, few = ("--env", "PointMaze_UMaze-v3"), ("--updates", 2, "--compile", "false", "--env", "none")
    assert collect("random", *maze, "--dataset", "point/part-v0", "--steps", 10, "--obs-keys", "achieved_goal") == 0
    assert main([*map(str, ("fit", "bc", "--dataset", "point/part-v0", *few, "--out", "run"))]) == 0
    assert collect("run", *maze, "--dataset", "point/again-v0", "--episodes", 1, "--max-episode-steps", 5) == 0
    data = load("point/again-v0")
    assert data.obs.shape == (5, 2) and data.entry.obs_keys == ("achieved_goal",)


def test_noise_on_discrete_actions_is_a_probability(here, refused):
    few = ("--steps", 20, "--train.warm_up", 10, "--batch", 4, "--eval-every", 20, "--eval-episodes", 1)
    fit = ("fit", "dqn", "--env", "CartPole-v1", *few, "--final-episodes", 1, "--out", "pole")
    assert main([*map(str, fit)]) == 0
    argv = ("collect", "./pole", "--env", "CartPole-v1", "--episodes", 1, "--dataset", "pole/noisy-v0", "--noise")
    assert "noise on discrete actions is the probability of a random one, from 0 to 1, not 1.5" in refused(*argv, 1.5)
    assert main([*map(str, argv), "1"]) == 0
    np.testing.assert_allclose(load("pole/noisy-v0").log_prob, np.log(0.5), rtol=1e-6)


def test_appending_with_other_obs_keys_is_refused(here, refused):
    argv = ("collect", "random", "--env", "PointMaze_UMaze-v3", "--dataset", "point/part-v0", "--steps", 10)
    assert main([*map(str, argv), "--obs-keys", "achieved_goal"]) == 0
    before = load("point/part-v0").obs
    says = refused(*argv, "--obs-keys", "desired_goal", "--append")
    assert "obs_keys ['achieved_goal'], not ['desired_goal']" in says
    assert np.array_equal(load("point/part-v0").obs, before)


@pytest.mark.parametrize("replay", ["kept", "deleted"])  # as if killed while deleting it
def test_a_dataset_that_could_not_be_written_is_written_on_resuming(here, replay, monkeypatch):
    """The disk may be full, or the process killed, after the training and before the dataset is written."""
    argv = learner("pendulum/late-v0", 412, *QUICK)

    def full(*_, **__):
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("offlinerl.data.episode_log.write_minari", full)
        assert collect(*argv) == 1
    folder = here / "runs/pendulum-late-v0"
    (saved,) = folder.glob("replay-*.pt")
    if replay == "deleted":
        saved.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Agent, "learn", None)  # nothing is trained again
        assert collect(*argv, "--resume") == 0
    assert [len(rewards) for *_, rewards in episodes("pendulum/late-v0")] == [200, 200, 12]
    assert not list(folder.glob("replay-*.pt")) and not (folder / EPISODES).exists()


def test_ctrl_c_in_the_first_episode_of_a_learner(here, capsys, monkeypatch):
    """If it says that something is saved or begun, this can be resumed."""
    step, taken = Collector.step, []
    argv = learner("pendulum/early-v0", 400, *QUICK)

    def stopping(self, *arguments, **more):
        taken.append(1)
        if len(taken) in (1, 60):
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Collector, "step", stopping)
        for says in ("before the first step", "64 of 400 steps, which are saved"):
            capsys.readouterr()
            assert collect(*argv, "--resume") == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert says in line and "--resume" in line
    assert collect(*argv) == 1 and "resume it with --resume" in capsys.readouterr().err
    assert collect(*argv, "--resume") == 0
    assert collect(*(str(word).replace("early", "whole") for word in argv)) == 0
    assert same(episodes("pendulum/early-v0"), episodes("pendulum/whole-v0"))


@pytest.mark.parametrize("kills", [1, *(pytest.param(kills, marks=pytest.mark.slow) for kills in (2, 10))])
@pytest.mark.parametrize("source", [pytest.param("random", marks=pytest.mark.slow), "learning"])
def test_sigkill_loses_no_finished_episode(here, source, kills):
    """A collection that is killed at random moments and resumed each time ends like one that was never killed."""
    count = 20 + 30 * kills  # long enough not to end before the last kill, as are the steps below
    argv = ("random", "--env", "Pendulum-v1", "--dataset", "pendulum/killed-v0", "--episodes", count, "--envs", 2)
    if source == "learning":
        argv = learner("pendulum/killed-v0", 800 * kills, "--envs", 2, "--eval-every", 100, *QUICK)
    rng, journal = random.Random(kills), here / "runs/pendulum-killed-v0" / EPISODES
    known: list[int] = []
    for _ in range(kills):
        process = pendulum.start("collect", *argv, "--resume", cwd=here)
        began, size = time.monotonic(), journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and time.monotonic() - began < 60:
            if journal.exists() and journal.stat().st_size > size:
                break
            time.sleep(0.002)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Journal(journal, write=False) as kept:
            now = [kept.crc(i) for i in range(len(kept))]
        assert len(now) >= len(known) and now[: len(known)] == known, "an episode that was there is lost"
        known = now
    assert 0 < len(known) < count
    assert collect(*argv, "--resume") == 0
    assert not leftovers(here)
    killed = episodes("pendulum/killed-v0")
    assert collect(*(str(word).replace("killed", "whole") for word in argv)) == 0
    whole = episodes("pendulum/whole-v0")
    if source == "random":  # an environment that was ahead at the kill stays ahead, so the order may differ
        assert len(killed) == len(whole) == count
        a, b = ({episode[0][0].tobytes() for episode in each} for each in (killed, whole))
        assert len(a) == count and a == b
    else:
        assert same(killed, whole)


def test_wrong_commands_say_what_to_do(here, capsys):
    env = ("--env", "Pendulum-v1")
    for argv, status, says in (
        (("randm", *env, "--dataset", "a/b-v0", "--steps", 5), 1, "random"),
        (("random", *env, "--dataset", "noversion", "--steps", 5), 1, "version"),
        (("random", *env, "--dataset", "ab/c-v0"), 2, "--steps or --episodes"),
        (("is_reinforce", *env, "--dataset", "ab/c-v0", "--steps", 5), 1, "learns from whole episodes of a dataset"),
        (("td3", *env, "--dataset", "ab/c-v0", "--episodes", 5), 2, "--steps"),
        (("scripted", *env, "--dataset", "ab/c-v0", "--episodes", 1), 1, "offlinerl/Kitchen-v0"),
        (("td3", "--env", "CartPole-v1", "--dataset", "ab/c-v0", "--steps", 5), 1, "dqn"),
        (("scripted", "--env", "offlinerl/Kitchen-v0", "--dataset", "ab/c-v0", "--steps", 5, "--envs", 2), 1, "--envs"),
        (("random", *env, "--dataset", "ab/c-v0", "--steps", 5, "--obs-keys", "some"), 1, "leave out --obs-keys"),
        (("random", "--env", "Pendulum-v2", "--dataset", "ab/c-v0", "--steps", 5), 1, "Pendulum-v1"),
    ):
        assert collect(*argv) == status, argv
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
    assert not (here / "minari/ab").exists()


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_proposed_command_trains(env, capsys):
    assert main(["collect", "random", "--env", env, "--dataset", "mine/random-v0", "--episodes", "1"]) == 0
    said = capsys.readouterr().out
    assert "1 episode, " in said and "train on it with: offlinerl fit xql --dataset mine/random-v0\n" in said
    few = ["--updates", "2", "--eval-episodes", "1", "--final-episodes", "1", "--batch", "4", "--compile", "false"]
    assert main(["fit", "xql", "--dataset", "mine/random-v0", *few]) == 0
