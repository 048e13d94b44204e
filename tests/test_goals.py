"""Policies that learn to reach any goal."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SPEC, random_table
from gymnasium import spaces

import offlinerl
from offlinerl.agents.iql import IQL
from offlinerl.data import registry
from offlinerl.data.registry import entry
from offlinerl.data.validate import validate
from offlinerl.envs.goals import GoalSeen
from offlinerl.envs.make import make
from offlinerl.evaluation.task import Task
from offlinerl.experience.hindsight import Goal, Hindsight
from offlinerl.experience.ring import Replay
from offlinerl.experience.sources import GoalData
from offlinerl.experience.table import Table
from offlinerl.nn.encoders import Normalized
from offlinerl.training.goals import places, with_goals
from offlinerl.types import Transition
from offlinerl.util.errors import UserError

STEPS = 30


class Hidden(gym.Env):
    """A point that moves by up to 0.1 m a step, and does not observe its goal."""

    observation_space = spaces.Box(-2, 2, (3,))
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        self.steps = 0
        return self.seen(), self.about()

    def step(self, action):
        self.place = np.clip(self.place + 0.1 * np.clip(action, -1, 1), -2, 2)
        self.steps += 1
        there = bool(np.linalg.norm(self.place - self.goal) <= 0.15)
        return self.seen(), float(there) - 1, there, self.steps == STEPS, {"success": there, **self.about()}

    def seen(self):
        return np.float32([0.5, *self.place])  # the first number is none of the place's

    def about(self):
        return {}


class Told(Hidden):
    """It tells a goal that is a whole observation."""

    def about(self):
        return {"goal": np.float32([0.5, *self.goal])}


class Parted(Hidden):
    """Its observations have the parts of a ``GoalEnv``."""

    observation_space = spaces.Dict(
        observation=spaces.Box(-2, 2, (3,)), achieved_goal=spaces.Box(-2, 2, (2,)), desired_goal=spaces.Box(-2, 2, (2,))
    )
    distance_threshold = 0.15

    def seen(self):
        return dict(
            observation=super().seen(), achieved_goal=np.float32(self.place), desired_goal=np.float32(self.goal)
        )


def wandering(kind=Hidden, episodes=60):
    """What a point sees that holds every action for a few steps, whatever its goal."""
    env, rng = kind(), np.random.default_rng(0)
    rows = []
    for number in range(episodes):
        obs, _ = env.reset(seed=number)
        for step in range(STEPS):
            if step % 6 == 0:
                action = rng.uniform(-1, 1, 2).astype(np.float32)
            next_obs, reward, *_ = env.step(action)
            rows.append((obs, action, reward, next_obs, step == STEPS - 1))
            obs = next_obs
    obs, action, reward, next_obs, last = zip(*rows, strict=True)

    def column(seen):
        if isinstance(seen[0], dict):
            return {part: np.array([of[part] for of in seen]) for part in seen[0]}
        return np.array(seen)

    return offlinerl.load_dataset(dict(
        obs=column(obs), action=np.array(action), reward=np.float32(reward), next_obs=column(next_obs),
        terminated=np.zeros(len(rows), bool), truncated=np.array(last),
    ))  # fmt: skip


BRIEF = dict(hidden=(16,), updates=20, eval_every=20, final_episodes=2, eval_episodes=2, logger="csv", compile=False)


def brief(agent="bc", kind=Told, data=None, **settings):
    """A short training towards goals that are reached later."""
    return offlinerl.fit(agent, data or wandering(kind), env=kind, **BRIEF | dict(goals="future") | settings)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


# Batches


def line(rows=12, episode=4):
    """Episodes along a line, a step of 1 each: the goal's place, [3], comes before the place, [0]."""
    data = random_table(rows)
    data.last[:] = np.arange(rows) % episode == episode - 1
    data.terminated[:] = data.last
    at = np.arange(rows) + np.arange(rows) // episode
    observations = np.zeros((rows + rows // episode, 5), np.float32)
    observations[:, 0] = np.arange(len(observations))
    observations[:, 3] = -7
    return type(data)(observations, at, at + 1, data.action, data.reward, data.terminated, data.last)


LINE = Goal(achieved=[0], desired=[3], radius=0.5)


def drawn(anywhere=0.0, own=0.0, gamma=0.9, seeds=(0, 1), goal=LINE, updates=40):
    spec = type(SPEC)(5, SPEC.action_dim, SPEC.action_low, SPEC.action_high)
    return GoalData(Table(line(), spec, gamma), seeds, 64, hindsight=Hindsight(goal, anywhere, own)).draw(updates)


def test_goals_are_reached_later_in_the_episode_and_rewards_are_theirs():
    batch = drawn()
    here, there, goal = batch.obs[..., 0], batch.next_obs[..., 0], batch.obs[..., 3]
    np.testing.assert_array_equal(there, here + 1)
    assert (goal >= there).all() and (goal // 5 == here // 5).all()  # five observations to an episode
    np.testing.assert_array_equal(batch.next_obs[..., 3], goal)
    reached = goal == there
    np.testing.assert_array_equal(batch.reward, reached.float() - 1)
    np.testing.assert_allclose(batch.discount, 0.9 * ~reached)  # also in stored steps that are terminal
    first = here % 5 == 0
    counts = np.bincount((goal - there)[first].long(), minlength=4)
    expected = int(first.sum()) / 4
    assert (abs(counts - expected) < 5 * expected**0.5).all()  # each of the four later ones alike


def test_a_goal_is_reached_within_the_radius():
    batch = drawn(goal=LINE._replace(radius=1.0))
    away = batch.obs[..., 3] - batch.next_obs[..., 0]
    np.testing.assert_array_equal(batch.reward, -(away > 1).float())


def test_some_goals_come_from_anywhere():
    batch = drawn(anywhere=0.5)
    here, goal = batch.obs[..., 0], batch.obs[..., 3]
    other = (goal // 5 != here // 5).float().mean()
    assert abs(other - 0.5 * 2 / 3) < 0.03  # two of the three episodes are others
    assert (goal % 5 != 0).all()  # nothing is reached before a step


def test_some_rows_keep_their_goal():
    batch = drawn(own=0.25, anywhere=0.25)
    assert abs((batch.obs[..., 3] == -7).float().mean() - 0.25) < 0.03
    np.testing.assert_array_equal(batch.obs[..., 3], batch.next_obs[..., 3])
    assert (batch.reward[batch.obs[..., 3] == -7] == -1).all()


def filled(steps, capacity=24, envs=2, seeds=(0, 1), lengths=(5, 7)):
    """A replay buffer in which the place, [0], counts the steps of each environment; the episodes of environment e have
    ``lengths[e]`` steps, and begin 100 further."""
    ring = Replay(type(SPEC)(5, 2, (-1.0, -1.0), (1.0, 1.0)), seeds, capacity, envs, gamma=0.9, goals=True)
    shape, length, over = (len(seeds), envs), np.array(lengths), np.zeros(envs, bool)
    obs = np.zeros((*shape, 5), np.float32)
    for step in range(steps):
        obs = np.where(over[:, None], obs + 100, obs)
        over = step % length == length - 1
        next_obs = obs.copy()
        next_obs[..., 0] += 1
        ends = np.broadcast_to(over, shape)
        ring.add(Transition(obs, np.zeros((*shape, 2)), np.zeros(shape), ends, next_obs, ends))
        obs = next_obs
    return ring


@pytest.mark.parametrize("steps", [3, 11, 40])
def test_goals_in_a_replay_buffer_are_reached_later_in_the_episode(steps):
    ring = filled(steps)  # 12 steps of two environments; it wraps
    assert min(steps, 12) * 2 == len(ring)
    rows = torch.arange(len(ring)).view(1, 1, -1).expand(300, 2, -1)
    batch = ring.transitions(rows)
    here, goal = batch.obs[..., 0], ring.goals(rows, torch.rand(rows.shape))[..., 0]
    apart = goal - here
    assert apart.min() == 1 and apart.max() <= 7  # never in another episode, which is 100 away
    for row in range(len(ring)):
        env, number = row % 2, steps - 1 - (steps - 1 - row // 2) % 12
        length = (5, 7)[env]
        left = min(length - number % length, steps - number)
        counts = np.bincount(apart[:, :, row].flatten().long(), minlength=left + 1)
        assert counts.sum() == counts[1 : left + 1].sum() and (counts[1 : left + 1] > 0).all()


def test_a_restored_replay_buffer_knows_its_episodes():
    for steps in (9, 31):
        ring, again = filled(steps), filled(0)
        again.load_state_dict(ring.state_dict())
        assert torch.equal(ring.until, again.until)
        np.testing.assert_array_equal(ring.began, again.began)
        rows = torch.arange(len(ring)).view(1, 1, -1).expand(3, 2, -1)
        uniform = torch.rand(rows.shape)
        assert torch.equal(ring.goals(rows, uniform), again.goals(rows, uniform))


def test_seeds_draw_the_same_goals_alone_and_with_a_discount_of_their_own():
    both = drawn(anywhere=0.3, gamma=torch.tensor([0.9, 0.5]))
    alone = drawn(anywhere=0.3, gamma=0.5, seeds=(1,))
    for name in ("obs", "next_obs", "reward", "discount", "action"):
        assert torch.equal(getattr(both, name)[:, 1:], getattr(alone, name))


def test_values_are_the_discounted_number_of_steps_to_the_goal():
    """The value k steps before a goal, all of them rewarded with -1 except the last, is -(1 - gamma^(k - 1)) / (1 -
    gamma)."""
    spec = type(SPEC)(5, SPEC.action_dim, SPEC.action_low, SPEC.action_high)
    agent = IQL(spec, (0,), hidden=(64, 64), expectile=0.5, gamma=0.8, lr=3e-3, tau=0.05)
    data = line()
    data.observations[:] /= 5
    hindsight = Hindsight(LINE._replace(radius=0.05))
    source = GoalData(Table(data, spec, 0.8), (0,), 256, hindsight=hindsight, updates=50)
    for _ in range(40):
        agent.learn(source.draw())
    obs = torch.zeros(1, 4, 5)
    obs[..., 0], obs[..., 3] = torch.arange(4) / 5, 4 / 5
    values = agent.value(obs)[0].detach()
    steps = torch.arange(4.0, 0, -1)
    assert torch.allclose(values, -(1 - 0.8 ** (steps - 1)) / (1 - 0.8), atol=0.25)


# Environments


def test_an_environment_shows_its_goal_at_the_end_of_its_observations():
    env = GoalSeen(Hidden(), 2)
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs[3:], np.float32(env.unwrapped.goal))
    assert obs in env.observation_space and env.observation_space.shape == (5,)
    after, *_ = env.step(np.ones(2, np.float32))
    np.testing.assert_array_equal(after[3:], obs[3:])
    np.testing.assert_allclose(after[1:3], obs[1:3] + 0.1, rtol=1e-6)
    assert (env.reset(seed=1)[0][3:] != obs[3:]).any()


def test_the_ant_sees_its_goal():
    env = make({"id": "offlinerl/AntMaze-umaze-v0", "goal": 2})
    obs, _ = env.reset(seed=3)
    np.testing.assert_array_equal(obs[29:], np.float32(env.unwrapped.goal))


@pytest.mark.parametrize("name", ["antmaze-large-diverse", "antmaze-umaze-v2", "pointmaze-medium"])
def test_mazes_know_where_their_robot_is(name):
    goal = entry(name).goal
    env = make(entry(name).env, entry(name).obs_keys)
    obs, _ = env.reset(seed=0)
    np.testing.assert_allclose(obs[goal["achieved"]], env.unwrapped.data.qpos[:2], rtol=1e-6)


def test_a_goal_of_another_size_is_refused():
    with pytest.raises(UserError, match="Hidden has a goal of 2 numbers, but a policy here needs one of 3"):
        GoalSeen(Hidden(), 3).reset()
    with pytest.raises(UserError, match="goals can be added only to vectors"):
        GoalSeen(Parted(), 2)
    wordy = Hidden()
    wordy.about = lambda: dict(goal="the door")
    with pytest.raises(UserError, match="Hidden has no goal, but a policy here needs one of 2"):
        GoalSeen(wordy, 2).reset()


def test_parts_lie_one_after_another():
    leaves = dict(one=spaces.Box(-1, 1, (2, 2)), two=spaces.Discrete(3), three=spaces.Box(-1, 1, (1,)))
    assert places(leaves) == dict(one=range(4), two=range(4, 7), three=range(7, 8))


# Runs


@pytest.mark.parametrize("kind", [Told, Parted])
def test_a_point_that_wandered_reaches_goals(kind):
    settings = dict(hidden=(64, 64), updates=1500, final_episodes=50, goal_radius=0.15, eval_every=1500)
    run = brief("bc", kind, wandering(kind, 300), **settings)
    taught = run.summary["last"]["mean"]
    assert run.summary["score_kind"] == "success" and taught > 60
    again = offlinerl.evaluate(run.folder / "last.ckpt", env=kind, episodes=20, seed=7)
    assert again["score_kind"] == "success" and again["mean"] > 60
    assert again["mean_return"] > -20  # -28 if it moves at random, and -7 straight to its goal


def test_a_run_observes_the_goal_and_its_policy_acts_for_it():
    run = brief("iql")
    assert run.summary["task"]["env"]["goal"] == 3
    spec = run.policy.spec
    assert spec.obs_dim == 6
    assert run.policy(np.zeros(6, np.float32)).shape == (2,)
    collected = offlinerl.load_dataset(offlinerl.collect(run.folder, Told, "point/told-v0", episodes=2))
    assert collected.obs.shape[1] == 6
    np.testing.assert_array_equal(collected.obs[:STEPS, 3:], collected.obs[:1, 3:].repeat(STEPS, 0))
    assert brief("iql", data=collected).policy.spec.obs_dim == 6  # the goal is not added again


def test_a_policy_that_observes_goals_is_not_judged_on_data_without_them():
    data = wandering(Told)
    run = brief("iql", data=data)
    with pytest.raises(UserError, match="observes a goal, which the rows of .* do not have: give --episodes N"):
        offlinerl.select([run.folder], dataset=data)
    shown = offlinerl.load_dataset(offlinerl.collect(run.folder, Told, "point/shown-v0", episodes=3))
    assert offlinerl.select([run.folder], dataset=shown, updates=10)["tried"] == 1


def test_policies_are_ranked_by_the_share_of_goals_they_reach():
    gym.register("Parted-v0", Parted, max_episode_steps=STEPS)
    data = wandering(Parted, 300)
    brief_ones = dict(BRIEF, goals="future", goal_radius=0.15, hidden=(64, 64))
    runs = [offlinerl.fit("bc", data, env="Parted-v0", **brief_ones | dict(updates=n)) for n in (1, 1500)]
    found = offlinerl.select([run.folder for run in runs], episodes=60)
    best, worst = found["policies"]
    assert found["unit"] == "success in %" and best["run"] == str(runs[1].folder)
    assert 0 <= worst["estimate"] < best["estimate"] <= 100


def test_goals_are_whole_observations_in_ogbench():
    pytest.importorskip("ogbench", reason="ogbench is not installed")
    name = "ogbench:pointmaze-medium-v0"
    offlinerl.collect("random", name, "point/random-v0", steps=200)
    run = offlinerl.fit("iql", "point/random-v0", goals="future", **BRIEF)
    assert run.summary["score_kind"] == "success" and run.policy.spec.obs_dim == 4


def test_a_run_continues_to_the_bit():
    whole = brief("iql", updates=40, goals_anywhere=0.3)
    data = wandering(Told)
    part = brief("iql", data=data, updates=20, goals_anywhere=0.3)
    offlinerl.fit(resume=part.folder, dataset=data, env=Told, updates=40)
    one, two = (torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, part))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_radius_is_the_settings_or_the_environments_or_the_datasets(capsys):
    brief(kind=Parted)
    assert "within 0.15 of its goal" in capsys.readouterr().out
    brief(kind=Parted, goal_radius=0.3)
    assert "within 0.3 of its goal" in capsys.readouterr().out
    brief(kind=Told)
    assert "within 0 of its goal" in capsys.readouterr().out


def test_episodes_held_out_have_goals_too():
    run = brief("iql", held_out=0.2, log_every=20)
    assert run.summary["held_out"]["value_loss"][0] > 0


ACTING = dict(hidden=(32, 32), steps=1200, warm_up=200, eval_every=1200, final_episodes=20, logger="csv", compile=False)


def test_goals_are_normalised_as_what_is_reached():
    """The data's own goals, which are not learned from, may all be the same."""
    data = wandering(Parted)
    own = data.observations["desired_goal"]
    own[:] = 0.5 + 0.01 * np.random.default_rng(0).normal(size=own.shape)
    run = brief(kind=Parted, data=data, normalize=True)
    (encoder,) = [module for module in run.agent.modules() if isinstance(module, Normalized)]
    mean, scale = (getattr(encoder, name).flatten() for name in ("mean", "scale"))
    np.testing.assert_array_equal(mean[5:], mean[3:5])
    np.testing.assert_array_equal(scale[5:], scale[3:5])


def test_what_is_reached_is_found_in_any_order_of_parts():
    task = registry.task("pointmaze-medium", ["desired_goal", "observation"])
    _, found = with_goals(Task.of(task), task.goal, None)
    assert found == Goal([2, 3], [0, 1], 0.45)
    with pytest.raises(UserError, match="FetchReach-v4 is observed without its desired_goal: add it to --obs-keys"):
        task = registry.task("FetchReach-v4", ["observation", "achieved_goal"])
        with_goals(Task.of(task), task.goal, None)


def test_the_ants_place_is_known_by_its_environment():
    task = registry.task("offlinerl/AntMaze-umaze-v0")
    assert with_goals(Task.of(task), task.goal, None)[1] == Goal([0, 1], [29, 30], 0.5)


def test_a_policy_is_judged_by_the_return_where_success_is_not_told():
    class Mute(Parted):
        def step(self, action):
            *answer, _ = super().step(action)
            return *answer, {}

    run = brief(kind=Parted)
    assert offlinerl.evaluate(run, env=Mute, episodes=2)["score_kind"] == "return"


def test_goals_are_found_in_actions_without_bounds():
    class Wide(Parted):
        action_space = spaces.Box(-np.inf, np.inf, (2,))

    assert brief(kind=Wide).policy.spec.action_dim == 2


def test_runs_with_and_without_goals_are_ranked_by_the_return():
    gym.register("Parted-v0", Parted, max_episode_steps=STEPS)
    data, few = wandering(Parted), dict(BRIEF, goal_radius=0.15)
    runs = [offlinerl.fit("bc", data, env="Parted-v0", **few, goals="future").folder]
    runs.append(offlinerl.fit("bc", data, env="Parted-v0", **BRIEF).folder)
    assert offlinerl.select(runs, episodes=4)["unit"] == "return"
    assert offlinerl.select(runs[1:], dataset=data, updates=10)["tried"] == 1  # its parts become one vector here too


def test_an_agent_that_acts_learns_from_goals_it_reached_by_chance():
    """Its own goals are hardly ever reached at random: with their rewards it learns nothing, 2% of success."""
    run = offlinerl.fit("sac", env=Parted, goals="future", goal_radius=0.15, gamma=0.9, lr=3e-3, **ACTING)
    assert run.summary["score_kind"] == "success" and run.summary["last"]["mean"] >= 50


@pytest.mark.parametrize("kind", [Told, Parted])
def test_a_run_that_acts_continues_to_the_bit(kind):
    few = ACTING | dict(steps=300, eval_every=100, final_episodes=1, eval_episodes=1, goals="future", envs=2)
    whole = offlinerl.fit("td3", env=kind, **few)
    part = offlinerl.fit("td3", env=kind, **few | dict(steps=200))
    offlinerl.fit(resume=part.folder, env=kind, steps=300)
    one, two = (torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, part))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_an_agent_collected_on_its_way_to_goals_can_be_learned_from():
    few = ACTING | dict(steps=300, eval_every=300, final_episodes=1)
    over = dict(agent=dict(hidden=(8,)), train=dict(goals="future", **{k: few[k] for k in few if k != "hidden"}))
    gym.register("Told-v0", Told, max_episode_steps=STEPS)
    collected = offlinerl.load_dataset(offlinerl.collect("sac", "Told-v0", "point/sac-v0", over=over))
    assert collected.obs.shape == (300, 6) and validate("point/sac-v0") == []
    assert offlinerl.fit("iql", "point/sac-v0", **BRIEF).policy.spec.obs_dim == 6
    over["train"]["goals"] = "data"
    with pytest.raises(UserError, match="point/sac-v0"):  # its episodes have goals
        offlinerl.collect("sac", "Told-v0", "point/sac-v0", over=over, append=True, out="other")
    again = offlinerl.fit("iql", "point/sac-v0", goals="future", **BRIEF)  # elsewhere the goal is added, and only once
    assert offlinerl.evaluate(again.folder, env="Told-v0", episodes=1)["score_kind"] == "success"
    first = offlinerl.fit("iql", wandering(Told), env="Told-v0", goals="future", **BRIEF)
    assert offlinerl.select([first.folder, again.folder], episodes=4)["tried"] == 2
    shows = gym.make("Told-v0")
    assert offlinerl.evaluate(again.folder, env=GoalSeen(shows, 3), episodes=1)["episodes"] == 1


@pytest.mark.parametrize("given", [dict(prioritized=True), dict(reward_clip=1.0)])
def test_settings_about_rewards_of_experience_are_refused(given):
    with pytest.raises(UserError, match=f"{next(iter(given))} is for the environment's own goals and rewards"):
        offlinerl.fit("sac", env=Parted, goals="future", **ACTING, **given)
    with pytest.raises(UserError, match="goal_radius is for other goals than the data's"):
        offlinerl.fit("sac", env=Parted, goal_radius=0.0, **ACTING)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(goals_own=0.6, goals_anywhere=0.6), "goals_own and goals_anywhere are fractions of the same goals"),
        (dict(goals="data", goals_anywhere=0.5), "goals_anywhere is for other goals than the data's"),
        (dict(goals="data", goal_radius=0.5), "goal_radius is for other goals than the data's"),
        (dict(reward="minus_one"), "other goals have other rewards, 0 and -1: leave out --train.reward minus_one"),
        (dict(terminal_ends=True), "with other goals no end of an episode is terminal"),
        (dict(goals_own=0.5), "has no goals that its rows could keep: leave out --train.goals_own"),
        (dict(online_steps=100), "in fine-tuning, goals are those of the environment"),
    ],
)  # fmt: skip
def test_settings_that_contradict_goals_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        brief(**given)


def test_agents_that_look_n_steps_ahead_are_refused():
    with pytest.raises(UserError, match="the rewards of n steps are those of an episode's own goal, and n_step is 3"):
        brief("td3", n_step=3)


def test_what_has_no_goals_is_refused():
    data = wandering(Hidden)
    with pytest.raises(UserError, match="unknown which of an observation say what is reached"):
        brief(kind=Hidden, data=data)
    narrow = wandering(Told)
    fewer = {name: getattr(narrow, name)[:, :2] for name in ("obs", "next_obs")}
    rest = {name: getattr(narrow, name) for name in ("action", "reward", "terminated")}
    with pytest.raises(UserError, match="observations have shape"):
        brief(data=offlinerl.load_dataset(dict(**fewer, **rest, truncated=narrow.last)))
    with pytest.raises(UserError, match="goals are given by an environment, and --env is none: give --env ID"):
        offlinerl.fit("bc", data, env="none", **BRIEF, goals="future")
    with pytest.raises(UserError, match=r"Pendulum-v1 has no goals, neither as a part desired_goal .* nor as info"):
        offlinerl.fit("bc", data, env="Pendulum-v1", **BRIEF, goals="future")


def test_a_dataset_on_disk_is_refused_where_goals_must_be_added(tmp_path):
    wandering(Told).write(tmp_path / "data")
    data = offlinerl.Dataset.mapped(tmp_path / "data")
    with pytest.raises(UserError, match="added to the observations of .* in memory: give --train.table memory"):
        brief(data=data)


def test_the_command_line_takes_goals(tmp_path, capsys):
    from offlinerl.cli import main

    offlinerl.collect("random", "offlinerl/AntMaze-umaze-v0", "ant/random-v0", steps=400, seed=1)
    given = ["--updates", "10", "--final-episodes", "1", "--max-episode-steps", "20", "--compile", "false"]
    status = main([
        "fit", "bc", "--dataset", "ant/random-v0", "--env", "antmaze-umaze-v2", "--train.goals", "future",
        "--out", "run", *given,
    ])  # fmt: skip
    assert status == 0 and "within 0.5 of its goal" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["task"]["env"]["goal"] == 2
