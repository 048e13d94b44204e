"""MuJoCo tasks observed as images, from the renderer to the trained policy."""

import gc
import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from offlinerl.cli import main
from offlinerl.data import load
from offlinerl.envs import make, pixels, rendering
from offlinerl.envs.make import with_limits
from offlinerl.envs.pool import Pool
from offlinerl.evaluation import video
from offlinerl.evaluation.task import Task
from offlinerl.util.errors import UserError

BALANCE, CHEETAH = "dm_control/cartpole-balance-v0", "HalfCheetah-v5"
FAST = dict(pixels=dict(fast=True))
SMALL = dict(pixels=dict(fast=True, size=36))


@pytest.fixture(scope="module", autouse=True)
def drawn():
    """Without OpenGL, these tests are skipped, and the message says how to install it; .ci/run installs it."""
    pytest.importorskip("dm_control", reason="dm_control is not installed: pip install 'offlinerl[pixels]'")
    if isinstance(tried := rendering.attempt("osmesa"), str):
        pytest.skip(f"OSMesa does not draw here ({tried}): apt-get install libosmesa6")


def seen(env_id, **limits):
    return with_limits({"id": env_id}, {**FAST, **limits})


def actions(env, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


def played(env, steps, seed=0):
    """The observations and rewards of an episode."""
    shown, paid = [env.reset(seed=seed)[0]], []
    for action in actions(env, steps):
        obs, reward, *_ = env.step(action)
        shown.append(obs)
        paid.append(reward)
    return np.stack(shown), paid


@pytest.mark.parametrize("filmed", [True, False])
@pytest.mark.parametrize("spec", [True, False])
def test_a_robot_that_walks_away_stays_in_the_picture(filmed, spec):
    env = {"spec": gym.spec("Hopper-v5").to_json()} if spec else {"id": "Hopper-v5"}
    made = make.make(env, render_mode="rgb_array") if filmed else make.make(with_limits(env, SMALL))
    made.reset(seed=0)
    inner = made.unwrapped
    inner.set_state(inner.data.qpos + np.eye(len(inner.data.qpos))[0] * 10, inner.data.qvel)
    frame = made.render().astype(int)
    assert (frame[..., 0] - frame[..., 2] > 40).sum() > 20, "nothing orange"
    made.close()


@pytest.mark.parametrize("how", [dict(camera_id=-1), dict(camera_name="track")])
def test_a_camera_of_the_environment_s_own_arguments_is_kept(how):
    made = make.make({"id": "Hopper-v5", "kwargs": how}, render_mode="rgb_array")
    assert made.unwrapped.mujoco_renderer.camera_id == (-1 if "camera_id" in how else 0)
    made.close()


def test_frames_are_those_of_dm_control():
    from dm_control import suite

    env = make.make(with_limits({"id": BALANCE}, dict(pixels=True, stack=1)))
    raw = suite.load("cartpole", "balance", task_kwargs={"random": 3})
    raw.reset()
    np.testing.assert_array_equal(env.reset(seed=3)[0], raw.physics.render(84, 84, 0))
    for action in actions(env, 3):
        obs, reward, *_ = env.step(action)
        assert reward == raw.step(action).reward + raw.step(action).reward  # two steps of one action
        np.testing.assert_array_equal(obs, raw.physics.render(84, 84, 0))
    assert obs.shape == (84, 84, 3) and obs.dtype == np.uint8
    raw.physics.free()
    env.close()


def test_frames_of_gymnasiums_tasks_are_those_of_their_renderer():
    env = make.make(with_limits({"id": CHEETAH}, dict(pixels=True, stack=1)))
    raw = gym.make(CHEETAH, render_mode="rgb_array", width=84, height=84, camera_name="track")
    raw.reset(seed=3)
    frames = [env.reset(seed=3)[0], env.step(actions(env, 1)[0])[0]]
    env.close()  # both use OpenGL, which allows one active renderer per thread
    drawn = [raw.render()]
    for _ in range(2):
        raw.step(actions(raw, 1)[0])
    np.testing.assert_array_equal(frames, [*drawn, raw.render()])
    raw.close()


def test_a_stack_has_only_frames_of_its_episode():
    single, env = (make.make(seen(BALANCE, stack=count)) for count in (1, 3))
    for seed in (0, 1):
        frames, paid = played(single, 4, seed)
        stacks, same = played(env, 4, seed)
        assert paid == same
        for t, stack in enumerate(stacks):
            wanted = [frames[max(0, t - back)] for back in (2, 1, 0)]
            np.testing.assert_array_equal(stack, np.concatenate(wanted, -1))
    assert env.observation_space.contains(stacks[0])
    single.close(), env.close()


def test_the_fast_scene_differs_and_is_recorded():
    scenes = [make.make(with_limits({"id": CHEETAH}, dict(pixels=dict(fast=fast), stack=1))) for fast in (False, True)]
    usual, fast = (played(env, 1)[0] for env in scenes)
    difference = np.abs(usual.astype(int) - fast).mean()
    assert 0.5 < difference < 60
    fast_env = with_limits({"id": CHEETAH}, FAST)
    assert pixels.is_fast(fast_env) and not pixels.is_fast(with_limits({"id": CHEETAH}, dict(pixels=True)))
    spec = {"spec": make.specification(scenes[1])}
    assert pixels.is_fast(spec) and not pixels.is_fast({"spec": make.specification(scenes[0])})
    assert Task(spec).label == "return, fast scene" and Task({"id": CHEETAH}).label == "return"
    again = make.make(spec)  # this is how a dataset describes its environment
    np.testing.assert_array_equal(played(again, 1)[0], fast)
    for env in (*scenes, again):
        env.close()


@pytest.mark.parametrize("env_id", [BALANCE, CHEETAH])
def test_frames_are_the_same_from_several_threads(env_id):
    pool = Pool(with_limits({"id": env_id}, SMALL), 3)

    def rollout(workers):
        pool._workers, pool._with_threads = workers, lambda jobs: workers > 1
        shown = [pool.reset({i: i for i in range(3)})]
        for action in actions(pool.envs[0], 3):
            shown.append({i: answer[0] for i, answer in pool.step(dict.fromkeys(range(3), action)).items()})
        return np.stack([[of[i] for i in range(3)] for of in shown])

    np.testing.assert_array_equal(rollout(1), rollout(2))
    pool.close()


def test_an_environment_that_was_not_closed_can_be_garbage_collected():
    """Without our code, dm_control would wait forever for the thread that rendered it."""
    env = make.make(with_limits({"id": BALANCE}, SMALL))
    env.reset(seed=0)
    env.myself = env
    del env
    gc.collect()


def test_the_arms_scene_is_fast_in_every_episode_and_reproducible():
    env = make.make(seen("dm_control/manipulation-reach_duplo-v0", stack=1))
    first, _ = played(env, 1, 0)
    other, _ = played(env, 1, 1)
    again, _ = played(env, 1, 0)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert not env.unwrapped.control.physics.model.light_castshadow.any()
    assert make.limit_of(make.native(env).env) == 250
    env.close()


@pytest.mark.parametrize(
    "domain, task, camera",
    [("quadruped", "walk", 2), ("walker", "walk", 0), ("manipulation", "reach_duplo", "front_close")],
)
def test_cameras_are_those_of_drqv2s_authors(domain, task, camera):
    how = pixels.camera(f"dm_control/{domain}-{task}-v0", None)
    assert how.get("camera_id", 0) == camera


def test_a_black_frame_is_an_error(monkeypatch):
    env = make.make(seen(BALANCE))
    monkeypatch.setattr(type(env.unwrapped), "render", lambda self: np.zeros((84, 84, 3), np.uint8))
    with pytest.raises(UserError, match="black frame"):
        env.reset(seed=0)
    env.close()


def test_another_frame_size_is_an_error(monkeypatch):
    env = make.make(seen(BALANCE))
    monkeypatch.setattr(type(env.unwrapped), "render", lambda self: np.ones((48, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"renders frames of \(48, 64, 3\) uint8 instead of \(84, 84, 3\)"):
        env.reset(seed=0)
    env.close()


@pytest.mark.parametrize(
    "env_id, sentence",
    [("CartPole-v1", "cannot be rendered in any size"), ("offlinerl/GridWorld-v0", "cannot be rendered in any size")],
)
def test_pixels_are_refused_for_tasks_without_mujoco(env_id, sentence):
    with pytest.raises(UserError, match=sentence):
        make.make(seen(env_id))


def test_images_without_channels_are_not_stacked():
    """Concatenated, they would be one wide image."""
    env = gym.Env()
    env.observation_space = gym.spaces.Box(0, 255, (84, 84), np.uint8)
    with pytest.raises(UserError, match=r"images of shape \(84, 84\) have no channel axis.*shape \(84, 84, 1\)"):
        pixels.Stacked(env, 4)


@pytest.mark.parametrize(
    "said, sentence",
    [
        (dict(size=0), "size of pixels must be a whole number of at least 1, not 0"),
        (dict(repeat="two"), "repeat of pixels must be"),
        (dict(fast=1), "fast of pixels must be true or false"),
        (dict(width=84), "pixels must be true, or some of size, repeat, fast, camera"),
        ("yes", "pixels must be true, or some of"),
    ],
)
def test_pixel_settings_are_checked(said, sentence):
    with pytest.raises(UserError, match=sentence):
        pixels.asked_for(said)


def in_a_process(code, **environment):
    import os

    clean = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, timeout=120
    )


def test_a_missing_library_is_named_with_its_installation():
    code = "from offlinerl.envs import rendering\nrendering.PACKAGES\nrendering.choose()"
    done = in_a_process(code, MUJOCO_GL="glfw", DISPLAY="")
    last = done.stderr.strip().splitlines()[-1]
    assert "frames cannot be rendered here (glfw: " in last and "apt-get install libglfw3" in last


def test_the_renderer_is_chosen_and_reported_once():
    code = (
        "import os\nfrom offlinerl.envs import rendering\n"
        "rendering.attempt = lambda backend: rendering.Renderer(backend, 'llvmpipe (LLVM)')\n"
        "a, b = rendering.choose(), rendering.choose()\n"
        "rendering.say_of_software(a, 'be quick'), rendering.say_of_software(b, 'be quick')\n"
        "print(a is b, a.software, a.backend, os.environ['MUJOCO_GL'])"
    )
    said, last = in_a_process(code).stdout.strip().splitlines()
    assert (
        last == "True True osmesa osmesa" and "rendered on the CPU, not on a GPU" in said and "slow; be quick" in said
    )
    gpu = code.replace("'llvmpipe (LLVM)'", "'NVIDIA H100/PCIe'")
    assert in_a_process(gpu).stdout.strip() == "True False egl egl"  # the first one that uses a GPU
    broken = code.replace("rendering.Renderer(backend, 'llvmpipe (LLVM)')", "'no such library'")
    assert "egl: no such library; osmesa: no such library" in in_a_process(broken).stderr


def test_a_video_of_a_simulator_needs_no_screen():
    """The renderer is chosen before the episodes are played."""
    code = (
        "import offlinerl\nfrom offlinerl.envs import rendering\nfrom offlinerl.envs.pool import Pool\n"
        "from offlinerl.evaluation import video\n"
        "pool = Pool({'id': 'Hopper-v5'}, 1)\nassert video.choose_renderer(pool)\npool.close()\n"
        "pool = Pool({'id': 'Hopper-v5'}, 1, render_mode='rgb_array')\npool.reset({0: 0})\n"
        "print(pool.envs[0].render().std() > 5)\npool.close()"
    )
    seeing = Pool(seen(BALANCE), 1)
    assert not video._is_blind(seeing), "what a policy sees keeps its shadows"
    seeing.close()
    done = in_a_process(code, DISPLAY="")
    assert done.stdout.splitlines()[-1] == "True", done.stderr


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A pixel dataset that DrQ-v2 collected while it learned, the run of XQL on it, and the folder of both."""
    folder = tmp_path_factory.mktemp("pixels")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        (folder / "small.yaml").write_text("fit: {pixels: {size: 36, fast: true}}\n")
        tiny = ["--agent.features", "4", "--agent.hidden", "[8]", "--agent.shift", "2"]
        common = ["--batch", "4", "--compile", "false", "--eval-every", "60", "--train.eval_episodes", "1"]
        few = ["--train.final_episodes", "1", "--max-episode-steps", "20"]
        collect = ["collect", "drqv2", "--env", BALANCE, "--config", "small.yaml", "--dataset", "pixels/balance-v0"]
        warm = ["--train.warm_up", "30", "--train.log_every", "10", "--train.replay", "disk"]
        assert main([*collect, "--steps", "60", *warm, *tiny, *common, *few]) == 0
        fit = ["fit", "xql", "--dataset", "pixels/balance-v0", "--updates", "3", "--agent.shift", "2"]
        assert main([*fit, *common, "--final-episodes", "1", "--out", "xql"]) == 0
        yield folder


def test_each_frame_is_stored_once(workplace):
    data = load.load("pixels/balance-v0")
    assert data.observations.shape == (66, 36, 36, 3) and data.observations.dtype == np.uint8  # 6 episodes of 10 steps
    metadata = json.loads((workplace / "minari/pixels/balance-v0/data/metadata.json").read_text())
    assert metadata["frame_stack"] == 3 and "fast scene" in metadata["description"]
    wrapper = json.loads(metadata["env_spec"])["additional_wrappers"][-1]
    assert wrapper["name"] == "Pixels" and wrapper["kwargs"] == dict(size=36, repeat=2, fast=True)
    single = make.make({"spec": metadata["env_spec"]})
    with np.errstate(all="ignore"):
        import minari

        episode = next(minari.load_dataset("pixels/balance-v0").iterate_episodes())
    shown = [single.reset(seed=int(metadata_seed(workplace, 0)))[0]]
    shown += [single.step(action)[0] for action in episode.actions]
    np.testing.assert_array_equal(episode.observations, shown)  # lossless: replaying it gives the same bits
    np.testing.assert_array_equal(data.observations[:11], shown)
    single.close()


def metadata_seed(workplace, number):
    import h5py

    with h5py.File(workplace / "minari/pixels/balance-v0/data/main_data.hdf5") as file:
        return file[f"episode_{number}"].attrs["seed"]


def test_an_agent_trained_on_it_acts_on_stacks(workplace):
    task = json.loads((workplace / "xql/summary.json").read_text())
    assert task["task"]["env"]["stack"] == 3 and task["score_kind"].endswith(", fast scene")
    for flags in ([], ["--env", BALANCE, "--stack", "3"]):
        where = ["--max-episode-steps", "6", "--episodes", "1", "--json", str(workplace / "found.json")]
        assert main(["evaluate", str(workplace / "xql"), *where, *flags]) == (1 if flags else 0)


@pytest.mark.parametrize("agent", ["iql", "bc", "td3bc", "drqv2"])
def test_offline_agents_learn_from_collected_frames(workplace, agent, monkeypatch):
    monkeypatch.chdir(workplace)
    small = ["--batch", "4", "--compile", "false", "--final-episodes", "1", "--max-episode-steps", "6"]
    fit = [
        "fit",
        agent,
        "--dataset",
        "pixels/balance-v0",
        "--updates",
        "2",
        "--agent.shift",
        "2",
        "--agent.hidden",
        "[8]",
    ]
    assert main([*fit, *small, "--out", agent]) == 0


def test_frames_are_refused_for_environments_with_other_observations(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    for number, flags in enumerate((["--env", BALANCE], ["--env", BALANCE, "--fast-scene"], ["--pixels"])):
        assert (
            main(["fit", "bc", "--dataset", "pixels/balance-v0", "--updates", "2", *flags, "--out", f"no-{number}"])
            == 1
        )
    states, size, twice = capsys.readouterr().err.strip().splitlines()
    assert "observations have shape (36, 36, 3) and the environment's (5,)" in states
    assert "observations have shape (36, 36, 3) and the environment's (84, 84, 3)" in size
    assert "returns images already: leave out --pixels" in twice
