"""Games of Atari and MinAtar as DQN observes them."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from offlinerl.agents import outline
from offlinerl.agents.dqn import DQN
from offlinerl.cli import main
from offlinerl.data import registry
from offlinerl.envs import atari, make
from offlinerl.evaluation.plots import read_columns
from offlinerl.rollout.collector import Collector
from offlinerl.training import config
from offlinerl.util.errors import UserError

BREAKOUT = "MinAtar/Breakout-v1"


def played(env, steps, seed=0):
    rng = np.random.default_rng(seed)
    shown, paid = [env.reset(seed=seed)[0]], []
    for _ in range(steps):
        obs, reward, terminated, *_ = env.step(int(rng.integers(env.action_space.n)))
        shown.append(obs)
        paid.append(reward)
        if terminated:
            break
    return np.stack(shown), paid


def test_minatar_is_observed_as_planes_and_episodes_repeat():
    pytest.importorskip("minatar", reason="MinAtar is not installed: pip install 'offlinerl[atari]'")
    env = make.make({"id": BREAKOUT})
    first, paid = played(env, 60)
    assert first.dtype == np.uint8 and first.shape[1:] == (10, 10, 4) and set(np.unique(first)) == {0, 255}
    again, same = played(env, 60)  # after an episode that ended with another action
    np.testing.assert_array_equal(first, again)
    assert paid == same and make.limit_of(env) == 5000 == make.steps_allowed({"id": BREAKOUT})
    raw = gym.make(BREAKOUT)
    np.testing.assert_array_equal(first[0] > 0, raw.reset(seed=0)[0])
    twin = make.make({"spec": make.specification(env)})
    np.testing.assert_array_equal(played(twin, 60)[0], first)


def test_a_film_of_minatar_has_its_colours():
    pytest.importorskip("minatar", reason="MinAtar is not installed: pip install 'offlinerl[atari]'")
    pytest.importorskip("seaborn", reason="seaborn is not installed: pip install 'offlinerl[atari]'")
    env = make.make({"id": BREAKOUT}, render_mode="rgb_array")
    env.reset(seed=0)
    frame, colours = env.render(), env.unwrapped.render()
    assert frame.dtype == np.uint8 and frame.shape == (160, 160, 3)
    np.testing.assert_array_equal(frame[8::16, 8::16], np.rint(255 * colours))


def test_dqn_learns_from_minatar(tmp_path, monkeypatch):
    pytest.importorskip("minatar", reason="MinAtar is not installed: pip install 'offlinerl[atari]'")
    monkeypatch.chdir(tmp_path)
    few = ["--steps", "60", "--eval-every", "60", "--train.warm_up", "20", "--batch", "4", "--final-episodes", "1"]
    assert main(["fit", "dqn", "--env", BREAKOUT, *few, "--compile", "false", "--max-episode-steps", "30"]) == 0
    saved = config.read(next(tmp_path.glob("runs/*/config.yaml")))
    assert saved["agent"]["convolutions"] == "minatar" and saved["agent"]["hidden"] == [128]


def test_atari_is_preprocessed_as_gymnasium_does():
    pytest.importorskip("ale_py", reason="ale-py is not installed: pip install 'offlinerl[atari]'")
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'offlinerl[atari]'")
    described = make.with_limits({"id": "ALE/Breakout-v5"}, dict(pixels=True))
    env = make.make(described)
    raw = gym.wrappers.AtariPreprocessing(gym.make("ALE/Breakout-v5", frameskip=1), grayscale_newaxis=True)
    (shown, paid), (frames, same) = played(env, 12), played(raw, 12)
    assert shown.shape[1:] == (84, 84, 4) and shown.dtype == np.uint8 and paid == same
    assert (
        make.steps_allowed(described) == 27_000 and make.limit_of(env) == 108_000
    )  # frames for which no action is held
    assert make.steps_allowed({"id": "ALE/Breakout-v5"}) == 27_000
    np.testing.assert_array_equal(shown[..., -1:], frames)
    np.testing.assert_array_equal(shown[3:, ..., :1], frames[:-3])
    agent = DQN(make.spec_of(env), (0,), hidden=(512,))
    assert [tuple(layer.weight.shape[1:]) for layer in agent.q.encoder.layers] == [
        (32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)
    ]  # fmt: skip
    assert agent.q.encoder.features == 3136 and agent.q.net.layers[0].weight.shape[1:] == (3136, 512)


def test_the_settings_are_those_of_the_paper():
    entry = registry.limited(registry.task("ALE/Breakout-v5"), dict(pixels=True))
    found = config.resolve("dqn", outline("dqn"), entry, "replay")
    repeat, train, agent = entry.env["pixels"]["repeat"], found["train"], found["agent"]
    assert (repeat, entry.env["stack"]) == (4, 4)  # extended data table 1, in frames
    assert repeat * train["steps"] == 50_000_000 and repeat * train["warm_up"] == 50_000
    assert repeat * agent["epsilon_steps"] == 1_000_000 and agent["final_epsilon"] == 0.1
    assert (train["batch"], train["steps_per_update"], train["capacity"]) == (32, 4, 10**6)
    assert (agent["gamma"], agent["target_every"]) == (0.99, 10_000)
    assert train["reward_clip"] == 1  # "clipping all positive rewards at 1 and all negative rewards at -1"


@pytest.mark.parametrize("env_id, package", [("ALE/Breakout-v5", "ale_py"), (BREAKOUT, "minatar")])
def test_a_missing_package_is_named(env_id, package, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(atari.importlib, "import_module", missing)
    with pytest.raises(UserError, match=rf"{env_id} needs {package}, .*pip install 'offlinerl\[atari\]'"):
        atari.register(env_id)


def test_only_learning_uses_the_clipped_rewards(tmp_path, monkeypatch):
    """Pendulum's rewards are 0 to -16: those in the replay buffer are clipped, and those of an evaluation are not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(Collector, "totals")  # as with workers, which are ahead
    few = [
        "--steps",
        "60",
        "--eval-every",
        "60",
        "--train.warm_up",
        "60",
        "--final-episodes",
        "1",
        "--agent.hidden",
        "[8]",
    ]
    clip = ["--train.reward_clip", "0.5", "--compile", "false", "--max-episode-steps", "30", "--out", "run"]
    assert main(["fit", "ddpg", "--env", "Pendulum-v1", *few, *clip]) == 0
    (replay,) = tmp_path.glob("run/replay-*.pt")
    rewards = torch.load(replay, weights_only=True)["numbers"][..., 1]
    assert len(rewards.flatten()) == 60 and rewards.min() == -0.5
    (last,) = read_columns(tmp_path / "run/evaluations.csv")["return"]
    assert last < -0.5 * 30


@pytest.mark.parametrize("said", [dict(fast=True), dict(camera="side")])
def test_a_fast_scene_or_a_camera_is_refused_for_games(said):
    pytest.importorskip("ale_py", reason="ale-py is not installed: pip install 'offlinerl[atari]'")
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'offlinerl[atari]'")
    with pytest.raises(UserError, match="Pong-v5 returns images already: leave out --fast-scene, and any camera"):
        make.make(make.with_limits({"id": "ALE/Pong-v5"}, dict(pixels=said)))
