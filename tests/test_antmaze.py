"""D4RL's ant and its mazes, compared with the numbers of D4RL's own model and code."""

import subprocess
import sys

import mujoco
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from offlinerl.data.registry import resolve
from offlinerl.envs import ant
from offlinerl.envs.antmaze import AntMaze
from offlinerl.envs.make import make
from offlinerl.evaluation.evaluate import evaluate
from offlinerl.evaluation.task import Task
from offlinerl.rollout.policy import Policy

LAYOUTS = {
    "umaze": "11111 10001 11101 10001 11111",
    "medium": "11111111 10011001 10010001 11000111 10010001 10100101 10001001 11111111",
    "large": (
        "111111111111 100001000001 101101010101 100000010001 101111011101 100101000001 110101010111 100100010001"
        " 111111111111"
    ),
}
GOAL_CELLS = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}
STEPS = {"umaze": 700, "medium": 1000, "large": 1000}


def maze(name="umaze", **kwargs):
    return make({"id": f"offlinerl/AntMaze-{name}-v0", "kwargs": kwargs})


def mass_of(radius, length):
    """The mass of a capsule of density 5: a cylinder and a ball."""
    return 5 * np.pi * radius**2 * (length + 4 / 3 * radius)


def test_the_model_has_d4rls_numbers():
    model = ant.model()
    assert (model.nq, model.nv, model.nu, model.nbody, model.ngeom) == (15, 14, 8, 14, 14)
    assert model.opt.timestep == 0.02 and model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    assert ant.FRAME_SKIP == 5
    thigh, shin = mass_of(0.08, 0.2 * 2**0.5), mass_of(0.08, 0.4 * 2**0.5)
    np.testing.assert_allclose(model.body_mass, [0, 5 * 4 / 3 * np.pi * 0.25**3, *[thigh, thigh, shin] * 4])
    np.testing.assert_array_equal(model.qpos0, [0, 0, 0.75, 1, *[0] * 11])

    hips, ankles = np.radians([-30, 30]), np.radians([30, 70])
    ranges = [hips, ankles, hips, -ankles[::-1], hips, -ankles[::-1], hips, ankles]
    np.testing.assert_allclose(model.jnt_range[1:], ranges)
    np.testing.assert_array_equal(model.jnt_limited, [0, *[1] * 8])
    across, along = np.array([-1, 1, 0]) / 2**0.5, np.array([1, 1, 0]) / 2**0.5
    np.testing.assert_allclose(model.jnt_axis[2::2], [across, along, across, along])
    np.testing.assert_array_equal(model.jnt_axis[1::2], [[0, 0, 1]] * 4)
    for column in (model.dof_armature, model.dof_damping):
        np.testing.assert_array_equal(column, [0] * 6 + [1] * 8)

    joints = [model.joint(number).name for number in model.actuator_trnid[:, 0]]
    assert joints == [f"{part}_{leg}" for leg in (4, 1, 2, 3) for part in ("hip", "ankle")]
    np.testing.assert_array_equal(model.actuator_gear[:, 0], [30] * 8)
    np.testing.assert_array_equal(model.actuator_ctrlrange, [[-1, 1]] * 8)
    assert model.actuator_ctrllimited.all()


def test_contacts_have_d4rls_numbers():
    for model in (ant.model(), maze("medium").unwrapped.model):
        np.testing.assert_array_equal(model.geom_condim, 3)
        np.testing.assert_array_equal(model.geom_contype, 1)
        np.testing.assert_array_equal(model.geom_margin, 0.01)
        for column, number in ((model.geom_friction, [1, 0.5, 0.5]), (model.geom_solref, [0.02, 1])):
            np.testing.assert_array_equal(column, [number] * model.ngeom)
        np.testing.assert_array_equal(model.geom_solimp[:, :3], [[0.8, 0.8, 0.01]] * model.ngeom)
        still = model.geom_bodyid == 0  # the floor and the walls
        np.testing.assert_array_equal(model.geom_conaffinity, still)


def test_the_ant_moves_as_ogbenchs_model_of_it():
    ogbench = pytest.importorskip("ogbench.locomaze.ant", reason="ogbench is not installed")
    models = ant.model(), mujoco.MjModel.from_xml_path(ogbench.AntEnv.xml_file)
    rng = np.random.default_rng(0)
    start, actions = rng.uniform(-0.1, 0.1, 15), rng.uniform(-1, 1, (200, 8))
    paths = []
    for model in models:
        data = mujoco.MjData(model)
        data.qpos += start
        path = []
        for action in actions:
            data.ctrl[:] = action
            mujoco.mj_step(model, data, ant.FRAME_SKIP)
            path.append(data.qpos.copy())
        paths.append(path)
    np.testing.assert_array_equal(*paths)


@pytest.mark.parametrize("name", LAYOUTS)
def test_walls_are_where_d4rl_has_them(name):
    env, rows = maze(name), LAYOUTS[name].split()
    model = env.unwrapped.model
    boxes = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_BOX)
    np.testing.assert_array_equal(model.geom_size[boxes], [[2, 2, 1]] * len(boxes))
    wanted = {
        (4.0 * (j - 1), 4.0 * (i - 1), 1.0) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell == "1"
    }
    found = [tuple(position) for position in model.geom_pos[boxes].tolist()]
    assert len(found) == len(wanted) and set(found) == wanted
    assert env.spec.max_episode_steps == STEPS[name]


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_episode_starts_at_the_origin_with_d4rls_noise_and_goal(name):
    env = maze(name)
    row, column = GOAL_CELLS[name]
    first, goals = [], []
    for seed in range(1000):
        first.append(env.reset(seed=seed)[0])
        goals.append(env.unwrapped.goal)
    first, goals = np.array(first), np.array(goals)
    off = first[:, :15] - [0, 0, 0.75, 1, *[0] * 11]
    assert np.abs(off).max() <= 0.1 + 1e-6
    np.testing.assert_allclose(off.std(0), 0.1 / 3**0.5, rtol=0.1)
    np.testing.assert_allclose(first[:, 15:].std(0), 0.1, rtol=0.15)
    np.testing.assert_allclose(off.mean(0), 0, atol=0.012)
    offset = goals - [4 * (column - 1), 4 * (row - 1)]
    assert (offset >= 0).all() and (offset <= 1.5).all()
    np.testing.assert_allclose(offset.mean(0), 0.75, atol=0.06)
    np.testing.assert_allclose(offset.var(0), 1 / 12 + 0.25 / 12, rtol=0.15)  # U(0, 1) + U(0, 0.5)
    assert len(np.unique(goals[:, 0])) == 1000


def test_a_seed_decides_an_episode():
    env, actions = maze(), np.random.default_rng(0).uniform(-1, 1, (30, 8)).astype(np.float32)

    def episode(seed):
        return [env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions), env.unwrapped.goal]

    once, other, again = episode(3), episode(4), episode(3)
    for left, right in zip(once, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.array_equal(once[0], other[0]) and not np.array_equal(once[-1], other[-1])


def test_v0_has_one_goal_and_v2_draws_one_for_each_episode():
    for version, count in (("v0", 1), ("v2", 5)):
        env = make(resolve(f"antmaze-medium-play-{version}").env)
        goals = set()
        for seed in range(5):
            env.reset(seed=seed)
            goals.add(tuple(env.unwrapped.goal))
        assert len(goals) == count


@pytest.mark.parametrize("continuing", [False, True])
def test_reaching_the_goal_gives_a_reward_of_one_and_terminates(continuing):
    env, nothing = maze(continuing_task=continuing), np.zeros(8, np.float32)
    _, info = env.reset(seed=0)
    assert info == {"success": False}
    assert env.step(nothing)[1:] == (0.0, False, False, {"success": False})
    for distance, reached in ((0.3, True), (0.9, False)):
        env.reset(seed=0)
        env.unwrapped.goal = env.unwrapped.data.qpos[:2] + [0, distance]
        obs, reward, terminated, truncated, info = env.step(nothing)
        assert (np.linalg.norm(obs[:2] - env.unwrapped.goal) <= 0.5) == reached
        assert (reward, terminated, truncated) == (float(reached), reached and not continuing, False)
        assert info == {"success": reached}


def test_an_episode_in_the_umaze_is_truncated_after_700_steps():
    env = maze()
    env.reset(seed=0)
    ends = [env.step(np.zeros(8, np.float32))[2:4] for _ in range(700)]
    assert ends == [(False, False)] * 699 + [(False, True)]


def test_walls_hold_the_ant_back():
    rng, rows = np.random.default_rng(0), LAYOUTS["large"].split()
    env = maze("large", starts=[(1, 1), (7, 9)])
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(100):
            x, y = env.step(rng.choice([-1.0, 1.0], 8).astype(np.float32))[0][:2]
            assert rows[round(y / 4) + 1][round(x / 4) + 1] == "0"


def test_starts_and_goals_are_drawn_from_the_given_cells():
    env = maze("medium", starts=[(1, 2), (6, 3)], goals=[(2, 6), (5, 1)])
    found = set()
    for seed in range(100):
        obs, _ = env.reset(seed=seed)
        start, goal = obs[:2], env.unwrapped.goal
        assert ((start % 4 >= 0) & (start % 4 <= 1)).all() and ((goal % 4 >= 0) & (goal % 4 <= 1.5)).all()
        found.add(tuple((1 + int(y // 4), 1 + int(x // 4)) for x, y in (start, goal)))
    assert found == {(start, goal) for start in [(1, 2), (6, 3)] for goal in [(2, 6), (5, 1)]}


def test_d4rls_names_make_the_environment():
    for name, steps in STEPS.items():
        for kind in ("", "-diverse") if name == "umaze" else ("-play", "-diverse"):
            for version in ("v0", "v2"):
                entry = resolve(f"antmaze-{name}{kind}-{version}")
                assert (entry.env_id, entry.steps_allowed) == (f"offlinerl/AntMaze-{name}-v0", steps)
                assert entry.obs_keys is None and not entry.note
    assert resolve("D4RL/antmaze/medium-play-v1").env_id == "AntMaze_Medium-v4"


class Steady(Policy):
    """Applies the same torques whatever it observes."""

    seeds, spec = (0,), None

    def begin(self, where, episodes):
        self.shape = where.shape

    def act(self, obs, explore=False):
        return torch.full((*self.shape, 8), 0.5)


def test_an_evaluation_scores_the_share_of_episodes_that_reach_the_goal(monkeypatch):
    monkeypatch.setattr(AntMaze, "draw_goal", lambda self, rng: np.array([0, 8.0 * (rng.random() < 0.5)]))
    found = evaluate(Steady(), Task.of(resolve("antmaze-umaze-v2")), 5)
    near = found.lengths[0] == 1
    assert 0 < near.sum() < 5 and (found.lengths[0] == np.where(near, 1, 700)).all()
    for column, one in ((found.success, 1), (found.returns, 1), (found.scores, 100)):
        np.testing.assert_array_equal(column[0], one * near)


def test_an_unknown_maze_is_named():
    with pytest.raises(Exception, match="no maze 'huge'; known: umaze, medium, large"):
        make({"id": "offlinerl/AntMaze-umaze-v0", "kwargs": {"maze": "huge"}})


def test_the_reward_is_the_distance_covered_in_the_direction():
    env, rng = make({"id": "offlinerl/AntDirection-v0"}), np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    positions = env.unwrapped.data.qpos
    changes = 0
    for step in range(1, 301):
        before, direction = positions[:2].copy(), obs[27:]
        np.testing.assert_allclose(np.linalg.norm(direction), 1, rtol=1e-6)
        # With these small torques, it does not fall.
        obs, reward, terminated, _, _ = env.step(0.3 * rng.uniform(-1, 1, 8).astype(np.float32))
        np.testing.assert_allclose(reward, (positions[:2] - before) @ direction, atol=1e-6)
        np.testing.assert_array_equal(obs[:13], positions[2:].astype(np.float32))
        assert not terminated
        turned = not np.array_equal(direction, obs[27:])
        assert turned == (step % 100 == 0)
        changes += turned
    assert changes == 3 and env.spec.max_episode_steps == 1000


def test_an_episode_terminates_when_the_torso_leaves_its_range_of_heights():
    env = make({"id": "offlinerl/AntDirection-v0"})
    for height, ends in ((0.6, False), (1.3, True)):
        env.reset(seed=0)
        env.unwrapped.data.qpos[2] = height
        assert env.step(np.zeros(8, np.float32))[2] == ends


def test_registering_does_not_import_the_simulator():
    code = "import sys, offlinerl.envs, gymnasium; gymnasium.spec(sys.argv[1]); print('mujoco' in sys.modules)"
    name = "offlinerl/AntMaze-medium-v0"
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


RENDER = """
import gymnasium, offlinerl.envs
env = gymnasium.make("offlinerl/AntMaze-umaze-v0", render_mode="rgb_array")
env.reset(seed=0)
image = env.render().astype(int)
assert image.shape == (480, 480, 3), image.shape
green = (image[..., 1] > image[..., 0] + 50) & (image[..., 1] > image[..., 2] + 50)
orange = image[..., 0] > image[..., 2] + 50
height = {name: part.nonzero()[0].mean() for name, part in dict(goal=green, ant=orange).items()}
assert height["goal"] < 240 < height["ant"], height  # the row of the goal is the upper one
assert env.metadata["render_fps"] == 10
env.close()
"""


def test_the_picture_shows_the_ant_and_the_goal(monkeypatch):
    """In a separate process, because the first import of OpenGL fixes the renderer of the whole process."""
    for backend in ("egl", "osmesa"):
        monkeypatch.setenv("MUJOCO_GL", backend)
        done = subprocess.run([sys.executable, "-c", RENDER], capture_output=True, text=True)
        if done.returncode == 0:
            return
        assert "AssertionError" not in done.stderr, done.stderr
    pytest.skip("neither EGL nor OSMesa draws here")


@pytest.mark.filterwarnings("ignore:.*A Box observation space")
def test_gymnasiums_checker_finds_no_fault():
    check_env(maze("umaze").unwrapped, skip_render_check=True)
