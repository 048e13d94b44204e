"""Workers: wherever they run and whichever of them dies, their results are the same, bit for bit."""

import io
import sys
from dataclasses import dataclass
from functools import partial

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch

from offlinerl import agents
from offlinerl.cli import main
from offlinerl.envs.make import make, spec_of
from offlinerl.rollout.actor_pool import DEATHS, ActorPool, Lost, Worker, one_thread
from offlinerl.rollout.collector import Collector
from offlinerl.training import config, request
from offlinerl.util.errors import UserError

COUNTING = {"spec": gym.envs.registration.EnvSpec("test/Counting-v0", "counting:Counting").to_json()}
SEEDS, LANES = (3, 1), range(4)
VARIANTS = {
    "td3-ou": (COUNTING, dict(exploration="ou")),
    "ddpg-parameter": (COUNTING, dict(exploration="parameter", layer_norm=True)),
    "sac": (COUNTING, {}),
    "dqn-epsilon": ({"id": "CartPole-v1"}, dict(epsilon_steps=60)),
}


SHORT = (
    "agent: {hidden: [16, 16], sigma: 0.3}\n"
    "train: {warm_up: 100, batch: 16, compile: false, eval_every: 400, eval_episodes: 1, final_episodes: 1}\n"
)


class Life:
    """An agent whose weights change from rollout to rollout, and its experience with or without workers.

    Attributes:
        steps: every transition.
        ended: s, e and the arrays of every episode, in the order in which they were reported.
        said: the messages of the pool.
    """

    def __init__(self, variant, backend=None, workers=2, first=0):
        env, settings = VARIANTS[variant]
        one = make(env)
        of = partial(agents.get(variant.partition("-")[0]), spec_of(one), SEEDS, hidden=(32, 32), **settings)
        one.close()
        self.agent, self.steps, self.ended, self.said, self.rollouts = of(), [], [], [], 0
        with torch.no_grad():
            for name, p in self.agent.named_parameters():
                if name.endswith("layers.0.weight"):
                    p[..., 0, :] *= 1e-3  # of the number of the seed, which would be all that matters
        if workers:
            self.pool = ActorPool(
                env, SEEDS, LANES, None, of, workers, backend or LocalBackend(), self.said.append, first
            )
        else:
            self.pool = Collector(env, SEEDS, LANES, first=first)
            self.pool.pool._workers = 1  # threads report episodes that end together in any order
            self.agent.explore_in(LANES)
        self.pool.on_episode = self.keep

    def keep(self, s, e, episode):
        self.ended.append((s, e, episode.seed, *map(np.array, episode[:5])))

    def live(self, rollouts=4, count=7):
        self.agent.offline_updates = 3  # workers explore by these, too
        for _ in range(rollouts):
            rng = torch.Generator().manual_seed(self.rollouts)
            with torch.no_grad():
                for p in self.agent.parameters():
                    p *= 1 + 0.2 * torch.randn(p.shape, generator=rng)
            for step in self.pool.rollout(self.agent, count, random=3 - count * self.rollouts):
                self.steps.append(step)
                self.agent.steps += len(LANES)
            self.rollouts += 1
        return self

    def __eq__(self, other):
        assert self.agent.steps == other.agent.steps == len(LANES) * len(self.steps) > 0
        assert self.pool.returns == other.pool.returns and self.pool.lengths == other.pool.lengths
        for name in ("episodes", "began"):
            assert np.array_equal(getattr(self.pool, name), getattr(other.pool, name)), name
        for t, (a, b) in enumerate(zip(self.steps, other.steps, strict=True)):
            for name, x, y in zip(a._fields, a, b, strict=True):
                assert x.dtype == y.dtype and np.array_equal(x, y), f"{name} differs at step {t}"
        for a, b in zip(self.ended, other.ended, strict=True):
            assert a[:3] == b[:3], "other episodes, or in another order"
            assert all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a[3:], b[3:], strict=True))
        return True


class LocalBackend:
    """Workers that take turns in this process; every other backend must give the same results."""

    def start(self, *args):
        return Worker(*args)

    def share(self, weights):
        return weights

    def submit(self, worker, method, *arguments):
        return getattr(worker, method)(*arguments)

    def receive(self, answer):
        return answer

    def stop(self, worker):
        worker.close()

    def close(self):
        pass


class Mortal(LocalBackend):
    """Workers that lose some answers; the numbers count the answers of all workers."""

    def __init__(self, *deaths):
        self.deaths, self.answers = deaths, 0

    def receive(self, answer):
        self.answers += 1
        if self.answers in self.deaths:
            raise Lost("it was shot")
        return answer


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("OFFLINERL_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.yaml").write_text(SHORT)
    return tmp_path


def argv(name, *more):
    return [
        *("collect", "td3", "--env", "Pendulum-v1", "--config", "short.yaml", "--dataset", f"pendulum/{name}-v0"),
        *map(str, more),
    ]


def episodes(name):
    return [(e.observations, e.actions, e.rewards) for e in minari.load_dataset(f"pendulum/{name}-v0")]


def same(a, b):
    """Whether two sequences of sequences of arrays are equal."""
    return len(a) == len(b) and all(
        np.array_equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    )


# In this process


def test_workers_continue_the_numbers_of_episodes():
    """When appending to a dataset, no environment repeats an episode that it has collected already."""
    before = Life("dqn-epsilon", workers=2).live()
    with one_thread():
        alone, pooled = (Life("dqn-epsilon", workers=n, first=5).live() for n in (0, 1))
    assert alone == pooled and pooled.pool.episodes.min() >= 5
    seeds = [one[2] for life in (before, pooled) for one in life.ended]
    assert len(pooled.ended) > 2 and len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_worker_gives_the_same_as_no_worker(variant):
    with one_thread():
        alone = Life(variant, workers=0).live()
    assert Life(variant, workers=1).live() == alone
    assert len(alone.ended) > 4 and len({len(ended[4]) for ended in alone.ended}) > 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_workers_give_the_same_as_none(variant):
    """In the same order, and the same except for the last bits of a policy's actions."""
    alone, pooled = Life(variant, workers=0).live(), Life(variant).live()
    assert [ended[:3] for ended in pooled.ended] == [ended[:3] for ended in alone.ended]
    assert {ended[1] for ended in pooled.ended} == set(LANES)
    for a, b in zip(alone.steps, pooled.steps, strict=True):
        assert all(np.allclose(x, y, rtol=0, atol=1e-4) for x, y in zip(a, b, strict=True))
    assert same(alone.steps[:3], pooled.steps[:3]), "at random they act alike"


def test_workers_act_with_the_learners_weights():
    pooled = Life("td3-ou").live(2)
    before = len(pooled.steps)
    with torch.no_grad():
        pooled.agent.actor.net.layers[-1].bias.fill_(50.0)
    pooled.live(1)
    assert all((step.action[..., 0] > 0.3).all() for step in pooled.steps[before:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_replaced_worker_delivers_the_same(variant):
    """Deaths during the first order, during consecutive orders, and twice in a row."""
    backend = Mortal(1, 4, 6, 9, 10)
    assert Life(variant, backend).live() == Life(variant).live()
    assert backend.answers == 2 * 4 + 5


def test_a_dead_worker_is_named():
    life = Life("sac", Mortal(4)).live(2)
    assert life.said == ["worker 1 died; another one continues from its last delivery"]


def test_a_worker_that_dies_repeatedly_ends_the_run():
    life = Life("sac", Mortal(*range(4, 4 + DEATHS))).live(1)
    with pytest.raises(UserError, match=f"worker 1 died {DEATHS} times in a row: it was shot"):
        life.live(1)
    assert len(life.said) == DEATHS - 1 and life.agent.steps == 7 * len(LANES)
    life.rollouts = 1
    with torch.no_grad():  # the weights that should have acted
        life.agent.load_state_dict(Life("sac").live(1).agent.state_dict())
    assert life.live(3) == Life("sac").live(), "it can go on from what was delivered"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_resumed_from_a_file_continues_identically(variant):
    whole, life = Life(variant).live(), Life(variant).live(2)
    file = io.BytesIO()
    torch.save(life.pool.state_dict(), file)
    file.seek(0)
    again = Life(variant)
    assert again.pool.load_state_dict(torch.load(file, weights_only=True))
    again.agent, again.steps, again.ended, again.rollouts = life.agent, life.steps, life.ended, life.rollouts
    assert again.live(2) == whole


def test_a_pool_that_has_not_started_can_be_saved():
    fresh = Life("td3-ou").pool.state_dict()
    again = Life("td3-ou")
    assert again.pool.load_state_dict(fresh)
    assert again.live() == Life("td3-ou").live()


def test_a_simulator_that_is_not_reproducible_starts_new_episodes():
    life = Life("td3-ou").live(1)
    state = life.pool.state_dict()
    assert not life.pool.began.all()
    state["workers"][1]["interaction"]["obs"] += 1
    assert not life.pool.load_state_dict(state)
    assert life.pool.began[:, 2:].all() and not life.pool.began[:, :2].all()
    life = Life("td3-ou", Mortal(4)).live(1)
    life.pool.states[1]["interaction"]["obs"] += 1
    life.live(1)
    assert [line[:14] for line in life.said] == ["worker 1 died;", "the simulator "]
    assert (life.steps[7].obs[:, 2:, 1] == 0).all(), "the replacement's environments begin anew"


def test_the_end_of_a_run_truncates_every_episode():
    alone, pooled = Life("td3-ou", workers=0).live(1), Life("td3-ou").live(1)
    under_way = int((~alone.pool.began).sum())
    assert under_way > 0
    for life in (alone, pooled):
        ended = len(life.ended)
        life.pool.truncate()
        assert len(life.ended) - ended == under_way and all(one[7][-1] or one[6][-1] for one in life.ended[ended:])
    assert [one[:3] for one in pooled.ended] == [one[:3] for one in alone.ended]
    pooled.pool.truncate()
    assert len(pooled.ended) == len(alone.ended), "there is nothing left to cut"


def test_environments_are_divided_evenly():
    with pytest.raises(UserError, match="multiple of 3, the number of workers, not 4"):
        Life("sac", workers=3)


def test_invalid_settings_of_workers_are_refused(monkeypatch):
    def settings(agent="td3", env="Pendulum-v1", **train):
        found = request.settings_for(agent, None, env, [0], None, dict(train=train))[0]["train"]
        return found["envs"], found["block"]

    assert settings() == (1, 1)
    assert settings(workers=2) == (2, 64)
    assert settings(workers=2, envs=6) == (6, 192)
    assert settings(workers=2, block=5) == (2, 5)
    assert settings(workers=3, envs=1) == (1, 96 // 3), "what was asked for stays, and is refused later"
    assert settings("d4pg", workers=3) == (6, 192), "of the four environments that d4pg has by itself"
    assert settings("dqn", "Acrobot-v1", workers=2) == (2, 16), "an update for every fourth step"

    @dataclass(frozen=True)
    class Long(config.OnlineConfig):
        block: int = 128

    monkeypatch.setitem(config.BY_SOURCE, "replay", Long)
    assert settings("td3", workers=1) == (1, 128), "blocks are longer anyway"
    with pytest.raises(UserError, match="workers must be at least 0"):
        settings(workers=-1)


def test_wrong_commands_say_what_to_do(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    random = ("collect", "random", "--env", "Pendulum-v1", "--dataset", "a/b-v0", "--steps", "8", "--workers", "2")
    for words, says in (
        (argv("none", "--steps", 8, "--workers", 2), "pip install 'offlinerl[ray]'"),
        (argv("none", "--steps", 8, "--ray-address", "auto"), "--workers"),
        (random, "--envs"),
    ):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
    assert not (here / "runs").exists()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_diverged_seed_ends_the_run_only_when_a_dataset_is_collected(workers, kept):
    life = Life(next(iter(VARIANTS)), workers=workers)
    if not kept:
        life.pool.on_episode = None
    with torch.no_grad():
        for p in life.agent.parameters():
            p[1] = torch.nan
    if kept:
        with pytest.raises(UserError, match="actions that are not finite"):
            life.live()
    else:
        assert len(life.live().steps) == 28


def test_observations_of_episodes_that_nobody_keeps_are_not_sent():
    backend = LocalBackend()
    sent = []
    backend.receive = lambda answer: sent.append(answer) or answer
    life = Life(next(iter(VARIANTS)), backend)
    life.pool.on_episode = None
    life.live(rollouts=12, count=20)
    ended = [one.episode for answer in sent for one in answer.ended]
    assert ended and all(len(one.observations) == 1 < len(one.rewards) for one in ended)
    other = Life(next(iter(VARIANTS))).live(rollouts=12, count=20)
    assert life.pool.returns == other.pool.returns and life.pool.lengths == other.pool.lengths
