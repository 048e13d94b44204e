"""Unusual environments: used as they are meant, or refused in one sentence."""

import json
import signal
import threading
from contextlib import closing, nullcontext
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import gymnasium as gym
import h5py
import imageio.v3 as imageio
import numpy as np
import pendulum
import pytest
import torch
import yaml

import offlinerl
from offlinerl.agents import checkpoint
from offlinerl.cli import main
from offlinerl.data.load import load
from offlinerl.envs import checks
from offlinerl.envs.make import make, native_action, spec_of
from offlinerl.envs.pixels import Stacked
from offlinerl.envs.pool import Pool
from offlinerl.evaluation.video import frames_per_second
from offlinerl.rollout.loop import EnvironmentLoop
from offlinerl.types import Spec
from offlinerl.util.errors import UserError, command

FEW = ("--compile", "false", "--batch", 8, "--agent.hidden", "[8]", "--eval-episodes", 1, "--final-episodes", 1)
FEW = (*FEW, "--eval-every", 20)


class Reach(gym.Env):
    """An action moves a point; episodes have ``length`` steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": None}

    def __init__(self, low=-1.0, high=1.0, dtype="float32", length=10, nan_at=None, render_mode=None, **how):
        self.low, self.high = (np.broadcast_to(np.asarray(side, dtype), 2) for side in (low, high))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(self.low, self.high, (2,), np.dtype(dtype))
        self.length, self.nan_at, self.how, self.render_mode = length, nan_at, how, render_mode
        self.taken = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.place.copy(), {}

    def step(self, action):
        assert action.dtype == self.action_space.dtype and self.action_space.contains(action)
        self.steps += 1
        self.place = (self.place + 0.01 * np.asarray(action, np.float32)).astype(np.float32)
        reward, over = -float(abs(self.place).sum()), self.steps == self.length
        if self.nan_at == ("reward", self.steps):
            reward = float("nan")
        if self.nan_at == ("observation", self.steps):
            self.place[0] = np.nan
        if self.how.get("arrays"):
            return self.place, np.array([reward]), np.array([over]), np.bool_(False), {"success": np.array([over])}
        return self.place, reward, over, False, {}

    def render(self):
        return np.full((8, 8, 3), 100, np.uint8) if self.how.get("draws") else None


class Old(Reach):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class Pair(Old):
    """Its observation of two numbers could be confused with the pair that reset returns."""


class FourValues(Reach):
    def step(self, action):
        obs, reward, over, _, info = super().step(action)
        return obs, reward, over, info


class NoSeed(Reach):
    def reset(self):
        return super().reset()


class WrongShape(Reach):
    def step(self, action):
        obs, *rest = super().step(action)
        return np.r_[obs, 0.0].astype(np.float32), *rest


class Worded(Reach):
    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, "much", *rest


class Blind(Reach):
    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs * np.nan, info


class Later(Reach):
    """Has the fault ``fault`` in the seventh step."""

    def step(self, action):
        obs, reward, over, cut, info = super().step(action)
        fault = self.how["fault"] if self.steps == 7 else None
        if fault == "raises":
            raise KeyError("joint")
        if fault == "four values":
            return obs, reward, over, info
        if fault == "huge reward":
            reward = 1e300
        if fault == "huge observation":
            obs = obs.astype(np.float64) * 1e200
        if fault == "shape":
            obs = obs[:1]
        if fault == "no observation":
            obs = None
        if fault == "words":
            reward = "3"
        if fault == "flag":
            over = float("nan")
        if fault == "info":
            info = None
        if fault == "success":
            info = {"success": "yes"}
        return obs, reward, over, cut, info


class Stubborn(Reach):
    """Cannot be made."""

    def __init__(self, **how):
        raise {"assertion": AssertionError(), "key": KeyError("robot.xml"), "run": RuntimeError("no device")}[how["by"]]


class Ajar(Reach):
    """Cannot be closed."""

    def close(self):
        raise OSError("the socket is gone")


class Choices(Reach):
    def __init__(self, **_):
        super().__init__()
        self.action_space = gym.spaces.MultiDiscrete([2, 3])


def register(name, entry_point, limit=50, **kwargs):
    if name not in gym.registry:
        gym.register(name, entry_point, max_episode_steps=limit, kwargs=kwargs)
    return name


def made(name, maker, **kwargs):
    return register(name, f"{__name__}:{maker.__name__}", **kwargs)


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    with pendulum.workplace(tmp_path_factory.mktemp("environments")) as folder:
        (folder / "warm.yaml").write_text("train: {warm_up: 10}\n")
        yield folder


def run(*argv):
    return main([str(word) for word in argv])


@pytest.fixture
def refused(refused):
    """Check what holds for every failed command, and that the message does not blame the training."""

    def check(*argv):
        line = refused(*argv)
        assert "diverged" not in line
        return line

    return check


def online(env, out, *more):
    return ("fit", "td3", "--env", env, "--steps", 40, "--config", "warm.yaml", *FEW, "--out", out, *more)


# What a reset and a step must return


@pytest.mark.parametrize(
    "maker, words",
    [
        (Old, ("reset must return", "one ndarray", "shimmy")), (Pair, ("reset must return",)),
        (FourValues, ("step", "4")), (NoSeed, ("reset fails", "seed")), (WrongShape, ("shape (3,)", "(2,)")),
        (Worded, ("reward is 'much'",)), (Blind, ("observation of reset", "not finite")),
        (Choices, ("MultiDiscrete",)), (Ajar, ("its close fails (OSError: the socket is gone)", "fix the")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["fit", "collect"])
def test_wrong_results_of_reset_and_step_are_refused(maker, words, command, refused, here):
    env = made(f"Odd{maker.__name__}-v0", maker)
    collect = ("collect", "random", "--env", env, "--episodes", 1, "--dataset", "odd/other-v0")
    line = refused(*(online(env, here / "other") if command == "fit" else collect))
    assert all(word in line for word in (env, *words)), line
    assert not (here / "other").exists()


@pytest.mark.parametrize(
    "space",
    [gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(3),
     gym.spaces.Tuple([gym.spaces.Discrete(2)]), gym.spaces.Dict(a=gym.spaces.Box(-1, 1)), gym.spaces.Text(3),
     gym.spaces.Box(-1, 1, (2, 2)), gym.spaces.Box(-1, 1, ()), gym.spaces.Box(-1, 1, (0,))],
    ids=str,
)  # fmt: skip
def test_unsupported_action_spaces_are_refused(space):
    env = Reach()
    env.action_space = space
    with pytest.raises(UserError, match="Reach has actions .*agents here need a vector or one discrete action"):
        spec_of(env)


def test_other_environments_are_closed_if_closing_one_fails():
    pool = Pool({"id": made("Closing-v0", Reach)}, 3)
    closed = []
    for place in (0, 2):
        pool.envs[place].close = lambda place=place: closed.append(place)
    pool.envs[1] = Ajar()
    with pytest.raises(UserError, match="its close fails"):
        pool.close()
    assert sorted(closed) == [0, 2]


@pytest.mark.parametrize(
    "agent, change, words",
    [
        ("dqn", {}, "does not support continuous actions"),  # the agent cannot be built
        ("td3", dict(envs=3, steps_per_update=2), "must be a multiple of 6"),  # nor what it learns from
        ("td3", {}, ""),  # a whole run
    ],
)
def test_all_environments_are_closed_whether_a_run_begins_or_not(agent, change, words, here):
    open_ = []

    class Counted(Reach):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            open_.append(self)

        def close(self):
            open_.remove(self)

    train = dict(steps=20, eval_every=20, batch=8, warm_up=10, eval_episodes=1, final_episodes=1, compile=False)
    with pytest.raises(UserError, match=words) if words else nullcontext():
        offlinerl.fit(agent, env=Counted, over=dict(train=train | change, agent=dict(hidden=[8])))
    assert not open_


def test_the_trial_run_uses_another_instance():
    made("Counted-v0", Reach)
    pool = Pool({"id": "Counted-v0"}, 2)
    assert all(not hasattr(env.unwrapped, "steps") for env in pool.envs), "another instance was tried"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_numbers_of_every_dtype_are_checked(number, dtype):
    with pytest.raises(checks.Unsound, match="not finite"):
        checks.observation(np.array([0, number], dtype), (2,))
    checks.observation(np.array([0, 5], dtype), (2,))
    checks.observation([0, 5], (2,))
    checks.observation(np.array([True, False]), (2,))


# Numbers


@pytest.mark.parametrize("what", ["a reward", "an observation"])
def test_values_that_are_not_finite_are_named_with_their_step(what, refused, here):
    kind = what.split()[1]
    env = made(f"Nan{kind}-v0", Reach, nan_at=(kind, 7))
    line = refused("collect", "random", "--env", env, "--episodes", 3, "--dataset", f"odd/nan-{kind}-v0")
    assert f"{env} gives {what} that is not finite in step 7" in line and "seed" in line
    line = refused(*online(env, here / f"nan-{kind}"))
    assert f"{env} gives {what} that is not finite in step 7" in line


def test_an_error_in_an_evaluation_loses_no_training(refused, here):
    sound, broken = made("Sound-v0", Reach), made("Broken-v0", Reach, nan_at=("reward", 7))
    assert run("collect", "random", "--env", sound, "--episodes", 5, "--dataset", "odd/sound-v0") == 0
    fit = ("fit", "bc", "--dataset", "odd/sound-v0", "--env", broken, *FEW, "--updates", 60)
    line = refused(*fit, "--out", here / "kept")
    assert broken in line and line.endswith(f"resume with: offlinerl fit --resume {here / 'kept'}")
    assert checkpoint.read(here / "kept/last.ckpt")["offlinerl"]["updates"] == 20


def test_arrays_of_size_one_are_accepted_as_numbers(here):
    env = made("Arrays-v0", Reach, arrays=True)
    assert run("collect", "random", "--env", env, "--episodes", 4, "--dataset", "odd/arrays-v0") == 0
    assert load("odd/arrays-v0").terminated.sum() == 4
    assert run("fit", "bc", "--dataset", "odd/arrays-v0", *FEW, "--updates", 20, "--out", here / "arrays") == 0
    assert run("evaluate", here / "arrays", "--episodes", 2, "--json", here / "a.json") == 0
    assert json.loads((here / "a.json").read_text())["success"] == 1.0


FAULTS = {
    "raises": "fails in step 7 of the episode that was reset with seed {seed} (KeyError: 'joint'); --debug shows where",
    "four values": "fails in step 7", "huge reward": "a reward that is too large for 32 bits in step 7",
    "huge observation": "an observation that is too large for 32 bits", "words": "its reward is '3'",
    "shape": "an observation of shape (1,) instead of (2,)", "no observation": "an observation of shape ()",
    "flag": "its terminated is nan", "info": "step must return", "success": "its success is 'yes'",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_later_errors_are_named_with_their_step(fault, here, capsys):
    """The error occurs in an evaluation; everything that was trained is kept."""
    sound, broken = made("Sound-v0", Reach), made(f"Later-{fault.replace(' ', '-')}-v0", Later, fault=fault)
    dataset, out = "odd/before-v0", here / fault
    if not (here / "minari" / dataset).exists():
        assert run("collect", "random", "--env", sound, "--episodes", 5, "--dataset", dataset) == 0
    assert run("fit", "bc", "--dataset", dataset, "--env", broken, *FEW, "--updates", 20, "--out", out) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert broken in line and FAULTS[fault].format(seed=1_000_000) in line
    assert checkpoint.read(out / "last.ckpt")["offlinerl"]["updates"] == 20


@pytest.mark.parametrize("by, words", [("assertion", "AssertionError"), ("key", "robot.xml"), ("run", "no device")])
def test_an_environment_that_cannot_be_made_is_named(by, words, refused, here):
    env = made(f"Stubborn-{by}-v0", Stubborn, by=by)
    line = refused(*online(env, here / by))
    assert f"environment {env} cannot be made" in line and words in line
    missing = register(f"Missing-{by}-v0", f"{__name__}:Nobody")
    assert f"environment {missing} cannot be made" in refused(*online(missing, here / by))


@pytest.mark.parametrize("source", ["random", "td3"])
def test_collected_episodes_are_kept_if_an_environment_fails_later(source, here, monkeypatch, capsys):
    env, step, taken = made("Failing-v0", Reach), Reach.step, []

    def fails(self, action):
        taken.append(True)
        if len(taken) == 28:
            raise OSError("the robot is gone")
        return step(self, action)

    monkeypatch.setattr(Reach, "step", fails)
    settings = ("--config", "warm.yaml", "--compile", "false", "--agent.hidden", "[8]") if source == "td3" else ()
    collect = ("collect", source, "--env", env, "--dataset", f"odd/failing-{source}-v0", "--steps", 40, *settings)
    capsys.readouterr()
    assert run(*collect) == 1
    said = capsys.readouterr()
    assert "failed after 2 episodes, which are kept" in said.out and "the robot is gone" in said.err
    assert run(*collect, "--resume") == 0
    assert load(f"odd/failing-{source}-v0").episode_lengths.tolist()[:2] == [10, 10]


def failing_once(monkeypatch, at):
    """Let the environment fail in its step with this number, counted over the whole process."""
    step, taken = Reach.step, []

    def fails(self, action):
        taken.append(True)
        if len(taken) == at:
            raise OSError("the robot is gone")
        return step(self, action)

    monkeypatch.setattr(Reach, "step", fails)


LATE = {
    "td3": ("--train.warm_up", 10),
    "td3 in two": ("--train.warm_up", 10, "--train.envs", 2, "--train.steps_per_update", 4),
    "ppo": ("--batch", 24, "--train.envs", 2, "--agent.minibatch", 8),
}  # fmt: skip


@pytest.mark.parametrize("kind", LATE)
def test_a_run_is_saved_if_an_environment_fails(kind, here, monkeypatch, capsys):
    """In the middle of a block of several steps."""
    env, folder, whole = made("Late-v0", Reach), here / f"late-{kind}", here / f"never-{kind}"
    argv = ("fit", kind.split()[0], "--env", env, *FEW, "--steps", 120, "--eval-every", 120, *LATE[kind])
    assert run(*argv, "--out", whole) == 0
    with monkeypatch.context() as patch:
        failing_once(patch, 91)
        capsys.readouterr()
        assert run(*argv, "--out", folder) == 1
    said = capsys.readouterr()
    assert said.err.endswith(f"--debug shows where; resume with: {command('fit', '--resume', folder)}\n")
    saved = checkpoint.read(folder / "last.ckpt")["offlinerl"]
    assert 60 < saved["steps"] < 91 and f"the training up to step {saved['steps']} is saved" in said.out
    assert run("fit", "--resume", folder) == 0
    assert "not reproducible" not in capsys.readouterr().out
    ends = [checkpoint.read(of / "last.ckpt")["offlinerl"] for of in (folder, whole)]
    assert [(end["steps"], end["updates"]) for end in ends] == [(120, ends[1]["updates"])] * 2


def test_a_failed_measurement_of_reference_scores_loses_no_data(here, monkeypatch, capsys):
    env = made("Measured-v0", Reach)
    assert run(*online(env, here / "measured")) == 0

    def fails(*_):
        raise UserError("Measured-v0 fails in step 3")

    monkeypatch.setattr("offlinerl.training.collection.evaluate", fails)
    capsys.readouterr()
    assert run("collect", here / "measured", "--env", env, "--dataset", "odd/measured-v0", "--episodes", 3) == 0
    assert "no reference scores: Measured-v0 fails" in capsys.readouterr().out
    assert len(load("odd/measured-v0").episode_starts) == 3


@pytest.mark.parametrize("command", ["fit", "collect", "evaluate"])
def test_a_policy_of_nan_is_not_blamed_on_the_environment(command, here, capsys):
    env, out = made("Innocent-v0", Reach), here / f"diverged-{command}"
    if command == "fit":
        assert run(*online(env, out, "--agent.actor_lr", 1e38, "--agent.critic_lr", 1e38)) == 1
    else:
        assert run(*online(env, out)) == 0
        saved = torch.load(out / "last.ckpt", weights_only=True)
        for name, value in saved["state_dict"].items():
            if name.startswith("actor"):
                value.fill_(float("nan"))
        torch.save(saved, out / "last.ckpt")
        capsys.readouterr()
        collect = (out, "--env", env, "--dataset", "odd/diverged-v0", "--episodes", 1)
        assert run(command, *(collect if command == "collect" else (out,))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the policy of seed 0 returns actions that are not finite: its training diverged" in line


# Actions


@pytest.mark.parametrize(
    "low, high, dtype",
    [(-3, 3, "int64"), (-3, 3, "int8"), (0, 255, "uint8"), (-1, 1, "float16"), (-1, 1, "float64"),
     ([-1, 0.5], [1, 0.5], "float32"), ([2, 2], [2, 2], "int32"), (-0.1, 0.1, "float64"),
     ([-0.4, 0.1], [0.1, 0.7], "float32"), (0, 16_777_219, "int32")],
)  # fmt: skip
def test_an_environment_gets_actions_of_its_dtype_with_fixed_dimensions_unchanged(low, high, dtype, here, request):
    number = request.node.callspec.indices["low"]
    env = made(f"Typed{number}-v0", Reach, low=low, high=high, dtype=dtype)
    dataset, out = f"odd/typed{number}-{dtype}-v0", here / f"typed-{number}-{dtype}"
    assert run("collect", "random", "--env", env, "--episodes", 4, "--dataset", dataset) == 0
    action = load(dataset).action
    assert (action >= np.float32(low)).all() and (action <= np.float32(high)).all()
    if "int" in dtype:
        assert (action == np.rint(action)).all()
    assert run("fit", "iql", "--dataset", dataset, *FEW, "--updates", 20, "--out", out) == 0
    state = checkpoint.read(out / "last.ckpt")["state_dict"]
    assert all(np.isfinite(value.numpy()).all() for value in state.values() if value.is_floating_point())
    assert run(*online(env, here / f"online-{number}-{dtype}")) == 0


@pytest.mark.parametrize(
    "low, high, dtype, action, want",
    [(-0.1, 0.1, "float64", np.float32(0.1), 0.1), (-0.1, 0.1, "float64", np.float32(-0.1), -0.1),
     (-128, 127, "int8", 300.0, 127), (0, 255, "uint8", -3.0, 0), (-3, 3, "int64", 1.6, 2), (-1, 1, "float16", 1.2, 1)],
)  # fmt: skip
def test_an_action_at_its_bound_is_within_it(low, high, dtype, action, want):
    space = gym.spaces.Box(low, high, (1,), np.dtype(dtype))
    taken = native_action(space, np.float32([action]))
    assert space.contains(taken) and taken.tolist() == [want]


def test_a_fixed_dimension_is_zero_in_scaled_actions():
    spec = Spec(1, 2, (-2.0, 3.0), (2.0, 3.0))
    assert spec.in_unit(np.float32([[1.0, 3.0]])).tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize(
    "low, high, open_",
    [((-1, -np.inf), (1, 1), (False, True)), ((-1, -1), (np.inf, 1), (True, False)),
     ((np.finfo(np.float32).min,) * 2, (np.finfo(np.float32).max,) * 2, (True, True)),
     ((-1, -5), (1, 5), (False,) * 2), ((-1e4, -1e30), (1e4, 1), (False, True))],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinite_or_huge_bounds_count_as_none(low, high, open_, dtype):
    space = gym.spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)
    assert checks.unbounded(space).tolist() == list(open_)


@pytest.mark.parametrize("dtype, open_", [(np.int8, False), (np.uint16, False), (np.int32, True), (np.int64, True),
                                          (np.float16, True)])  # fmt: skip
def test_the_limits_of_a_dtype_count_as_no_bounds_if_they_are_huge(dtype, open_):
    about = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    assert checks.unbounded(gym.spaces.Box(about.min, about.max, (2,), dtype)).tolist() == [open_] * 2


@pytest.mark.parametrize(
    "low, high, dtype, given, want",
    [(0.0, np.inf, "float32", (-1, 1), (0, 1)), (-np.inf, -3.0, "float32", (-5, 1), (-5, -3)),
     (-(2**31), 2**31 - 1, "int32", (-1.5, 2.5), (-1, 2)), (0, 2**32 - 1, "uint32", (-1, 7), (0, 7))],
)  # fmt: skip
def test_an_action_range_stays_within_existing_bounds(low, high, dtype, given, want, request):
    env = made(f"Half{request.node.callspec.indices['low']}-v0", Reach, low=low, high=high, dtype=dtype)
    spec = spec_of(make({"id": env, "action_range": given}))
    assert (spec.action_low, spec.action_high) == ((want[0],) * 2, (want[1],) * 2)


def test_an_action_range_that_leaves_no_actions_is_refused(refused, here):
    env = made("Negative-v0", Reach, low=-np.inf, high=-3.0)
    line = refused(*online(env, here / "nothing", "--action-range", "1,2"))
    assert env in line and "does not overlap with its actions" in line


def test_another_environment_under_the_same_name_is_tried_too(refused, here):
    env = made("Again-v0", Reach)
    Pool({"id": env}, 1).close()
    del gym.registry[env]
    with pytest.raises(UserError, match="reset must return"):
        Pool({"id": made("Again-v0", Old)}, 1)


def test_missing_bounds_are_taken_from_the_data_or_must_be_given(refused, here, capsys):
    env = made("Open-v0", Reach, low=[-1, -np.inf], high=[1, np.inf])
    assert "--action-range LOW,HIGH" in refused(*online(env, here / "open"))
    collect = ("collect", "random", "--env", env, "--dataset", "odd/open-v0")
    assert "--action-range LOW,HIGH" in refused(*collect, "--episodes", 4)
    assert run(*collect, "--episodes", 4, "--action-range", "-2,2") == 0
    assert (np.abs(load("odd/open-v0").action).max(0) > 1).tolist() == [False, True]
    bounded = made("Bounded-v0", Reach)
    assert "leave out --action-range" in refused(*online(bounded, here / "bounded", "--action-range", "-2,2"))

    with h5py.File(here / "open.hdf5", "w") as file:
        rng = np.random.default_rng(0)
        file["observations"], file["rewards"] = rng.normal(size=(100, 2)), rng.normal(size=100)
        file["actions"] = rng.uniform(-1, 1, (100, 2)) * [1, 30]
        file["terminals"], file["timeouts"] = np.zeros(100, bool), np.arange(100) % 10 == 9
    fit = ("fit", "bc", "--dataset", here / "open.hdf5", "--env", env, *FEW, "--updates", 20)
    assert run(*fit, "--out", here / "range") == 0
    assert f"{env} has actions without bounds, so those of the data are used" in capsys.readouterr().out
    spec = checkpoint.load_agent(here / "range").spec
    assert spec.action_high == (1.0, pytest.approx(30, abs=2)) and spec.action_low[0] == -1
    assert run("evaluate", here / "range", "--episodes", 1) == 0

    assert run(*fit, "--action-range", "-40,40", "--out", here / "given") == 0
    assert checkpoint.load_agent(here / "given").spec.action_high == (1.0, 40.0)
    assert yaml.safe_load((here / "given/config.yaml").read_text())["fit"]["action_range"] == [-40.0, 40.0]
    assert run("fit", "--resume", here / "given", "--updates", 40) == 0


# Episodes that nothing ends


def test_an_endless_environment_is_reported_and_can_be_limited(here, capsys, monkeypatch):
    env = made("Endless-v0", Reach, limit=None, length=-1)
    out = here / "endless"
    assert run(*online(env, out, "--max-episode-steps", 15)) == 0
    assert "no time limit" not in capsys.readouterr().out
    assert run("evaluate", out, "--episodes", 2, "--json", here / "b.json") == 0
    assert json.loads((here / "b.json").read_text())["mean_length"] == 15
    collect = ("collect", "random", "--env", env, "--episodes", 2, "--dataset", "odd/endless-v0")
    assert run(*collect, "--max-episode-steps", 12) == 0
    assert load("odd/endless-v0").episode_lengths.tolist() == [12, 12]

    step, taken = Pool.step, []

    def pressed(self, actions):
        taken.append(True)
        if len(taken) == 60:
            signal.raise_signal(signal.SIGINT)
        return step(self, actions)

    monkeypatch.setattr(Pool, "step", pressed)
    capsys.readouterr()
    assert run(*online(env, here / "for-ever")) == 1
    said = capsys.readouterr()
    assert "no time limit" in said.out and "--max-episode-steps N" in said.out
    assert "interrupted" in said.err and len(taken) == 60, "the evaluation heard Ctrl-C at once"


# Environments without a path


def test_a_class_may_be_registered_instead_of_a_path(here):
    env = register("ByClass-v0", Reach)
    assert run("collect", "random", "--env", env, "--episodes", 3, "--dataset", "odd/by-class-v0") == 0
    assert run("fit", "bc", "--dataset", "odd/by-class-v0", *FEW, "--updates", 20, "--out", here / "by-class") == 0
    assert run("evaluate", here / "by-class", "--episodes", 1) == 0


def test_a_registered_lambda_must_be_named_again_for_an_evaluation(here, refused):
    env = register("ByLambda-v0", lambda **kwargs: Reach(**kwargs))
    assert run("collect", "random", "--env", env, "--episodes", 3, "--dataset", "odd/by-lambda-v0") == 0
    fit = ("fit", "bc", "--dataset", "odd/by-lambda-v0", *FEW, "--updates", 20, "--out", here / "by-lambda")
    assert run(*fit) == 0
    assert "name one with --env" in refused("evaluate", here / "by-lambda", "--episodes", 1)
    assert run(*fit[:-1], here / "by-lambda-2", "--env", env) == 0
    assert run("evaluate", here / "by-lambda-2", "--episodes", 1) == 0


def test_a_class_may_have_bound_arguments(here):
    """A partial object has neither a name nor a module."""
    env = register("ByPartial-v0", partial(Reach, length=5))
    assert run("collect", "random", "--env", env, "--episodes", 3, "--dataset", "odd/by-partial-v0") == 0
    assert load("odd/by-partial-v0").episode_lengths.tolist() == [5, 5, 5]


def test_a_collection_of_endless_episodes_ends(here):
    """Measuring reference scores would never end, because it needs whole episodes."""
    env, out = made("Truly-endless-v0", Reach, limit=None, length=-1), here / "truly-endless"
    assert run(*online(env, out, "--max-episode-steps", 15)) == 0
    assert run("collect", out, "--env", env, "--dataset", "odd/truly-endless-v0", "--steps", 30) == 0
    assert load("odd/truly-endless-v0").episode_lengths.tolist() == [30]


# Videos


def test_videos_of_environments_without_metadata(here, refused, capsys):
    env, blank = made("Drawn-v0", Reach, draws=True), made("Blank-v0", Reach)
    assert run(*online(env, here / "drawn")) == 0
    assert run("evaluate", here / "drawn", "--episodes", 1, "--video", here / "films") == 0
    assert (here / "films/seed-0.gif").exists()
    if find_spec("av"):
        assert imageio.imread(here / "films/seed-0.mp4", plugin="pyav").shape == (10, 8, 8, 3)
    assert "films/seed-0.gif: 10 frames" in capsys.readouterr().out
    line = refused("evaluate", here / "drawn", "--env", blank, "--episodes", 1, "--video", here / "none")
    assert blank in line and "renders no images" in line


@pytest.mark.parametrize(
    "metadata, fps",
    [({"render_fps": 12}, 12), ({}, 30), (None, 30), ({"render_fps": 0}, 30), ({"render_fps": -4}, 30),
     ({"render_fps": "fast"}, 30), ({"render_fps": np.float32(8)}, 8), ({"render_fps": float("nan")}, 30)],
)  # fmt: skip
def test_frames_per_second_of_videos(metadata, fps):
    env = Reach()
    env.metadata = metadata
    assert frames_per_second(env) == fps


def test_bounds_come_from_the_given_action_range():
    made("Asked-v0", Reach, low=-np.inf, high=np.inf)
    spec = spec_of(make({"id": "Asked-v0", "action_range": [[-1, -2], [1, 2]]}))
    assert (spec.action_low, spec.action_high) == ((-1.0, -2.0), (1.0, 2.0))


def test_an_episode_whose_reset_fails_has_not_begun(monkeypatch):
    with closing(Pool({"id": made("Unready-v0", Reach)}, 1)) as pool:
        loop = EnvironmentLoop(pool, 1, lambda s, e, episode: episode)
        begin = np.ones((1, 1), bool), np.full((1, 1), 3)
        with monkeypatch.context() as context, pytest.raises(OSError, match="not ready"):
            context.setattr(pool, "reset", lambda seeds: (_ for _ in ()).throw(OSError("not ready")))
            loop.begin(*begin)
        assert loop.episodes.item() == -1 and not loop.playing.any()
        loop.begin(*begin)
        assert loop.episodes.item() == 3 and loop.playing.all()


class Waiting(gym.Env):
    """Waits in every step, by a clock of its own, and notes whether a thread of the pool called it; four threads wait
    at the same time."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Box(-1, 1, (1,))
    seconds, threads, now = 0.005, [], 0.0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.threads.append(threading.current_thread() is not threading.main_thread())
        Waiting.now += self.seconds / (4 if self.threads[-1] else 1)
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_threads_step_environments_only_as_long_as_they_are_faster(monkeypatch):
    monkeypatch.setattr("offlinerl.envs.pool.AGAIN", 20)
    monkeypatch.setattr("offlinerl.envs.pool.time", SimpleNamespace(perf_counter=lambda: Waiting.now))
    with closing(Pool({"id": made("Waiting-v0", Waiting)}, 4, threads=4)) as pool:
        pool.reset(dict.fromkeys(range(4), 0))

        def share_of_threads(steps):
            Waiting.threads.clear()
            for _ in range(steps):
                pool.step({i: np.zeros(1) for i in range(4)})
            return np.mean(Waiting.threads)

        share_of_threads(10)
        assert share_of_threads(40) > 0.6
        Waiting.seconds = 0.0
        share_of_threads(40)
        assert share_of_threads(100) == 0.0


class Counter(gym.Env):
    """Always returns the same array as its observation and counts in it."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self):
        self.shown = np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        self.shown[:] = 0
        return self.shown, {}

    def step(self, action):
        self.shown += 1
        return self.shown, 0.0, False, False, {}


def test_a_stack_does_not_change_with_the_array_that_an_environment_shows():
    env = Stacked(Counter(), 3)
    shown = [env.reset()[0]] + [env.step(np.zeros(1))[0] for _ in range(3)]
    assert np.array(shown).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]


class Sensors(Reach):
    """Shows its place beside two switches and a mode."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = gym.spaces.Dict(
            mode=gym.spaces.Discrete(3), place=self.observation_space, switches=gym.spaces.MultiBinary(2)
        )

    def _shown(self, place):
        return dict(mode=np.int64(self.steps % 3), place=place, switches=(place > 0).astype(np.int8))

    def reset(self, *, seed=None, options=None):
        return self._shown(super().reset(seed=seed)[0]), {}

    def step(self, action):
        place, *rest = super().step(action)
        return self._shown(place), *rest


def test_stacks_of_parts_of_all_kinds_are_collected_and_learned_from(here):
    env = made("Sensors-v0", Sensors)
    with (
        closing(make({"id": env, "stack": 2})) as stacked,
        closing(make({"id": env, "stack": 2}, observed=False)) as own,
    ):
        assert stacked.observation_space.shape == (14,)
        assert own.observation_space == Sensors().observation_space
    assert run("collect", "random", "--env", env, "--stack", 2, "--episodes", 4, "--dataset", "odd/sensors-v0") == 0
    assert run("fit", "bc", "--dataset", "odd/sensors-v0", "--updates", 20, *FEW, "--out", here / "bc") == 0
    agent = checkpoint.load_agent(here / "bc", torch.device("cpu"))
    assert agent.spec.obs_dim == 14
    assert run("datasets", "validate", "odd/sensors-v0") == 0
