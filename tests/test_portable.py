"""Policies exported for other programs give the same actions as here."""

import json

import numpy as np
import pytest
import torch
from pendulum import empty_workplace
from test_no_environment import FEW, logs

import offlinerl
from offlinerl import agents
from offlinerl.agents.bc import BC
from offlinerl.cli import main
from offlinerl.rollout.deployed import DeployedPolicy
from offlinerl.rollout.portable import Portable, _require_alike, write_onnx, write_torchscript
from offlinerl.types import Leaf, Spec
from offlinerl.util.errors import UserError

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")

LOW, HIGH = (-1.0, -30.0), (1.0, 20.0)
WIDTHS = np.float32(HIGH) - np.float32(LOW)
SPECS = dict(
    vector=Spec(5, 2, LOW, HIGH),
    images=Spec((Leaf("", (48, 48, 3), "uint8"),), 2, LOW, HIGH),
    parts=Spec((Leaf("arm/joints", (4,), "float32"), Leaf("camera", (48, 48, 3), "uint8")), 2, LOW, HIGH),
    latents=Spec((Leaf("", (48, 48, 6), "uint8"),), 2, LOW, HIGH, latent=("nature", 7, 3)),
    choices=Spec(5, 1, (0.0,), (3.0,), 4, 2),
    whole=Spec(5, 2, (0.0, -3.0), (10.0, 300.0), whole=True),
)


@pytest.fixture
def table(here):
    rng = np.random.default_rng(0)
    lines = [f"{run},{','.join(f'{x:.3f}' for x in rng.normal(size=5))}" for run in range(4) for _ in range(10)]
    (here / "log.csv").write_text("\n".join(["run,x,y,angle,throttle,r", *lines]))
    return here / "log.csv"


@pytest.fixture
def here(tmp_path):
    with empty_workplace(tmp_path) as folder:
        yield folder


def policy_of(name, spec, **settings):
    agent = agents.get(name)(spec, (3, 8), **settings)
    if settings.get("normalize"):
        rng = np.random.default_rng(0)
        sizes = {leaf.path: leaf.shape[0] for leaf in spec.obs if len(leaf.shape) == 1}
        agent.normalize_by({path: (rng.normal(size=O), rng.uniform(0.5, 2, O)) for path, O in sizes.items()})
    if spec.latent:
        for weight in agent.frozen.buffers():
            torch.nn.init.normal_(weight, 0, 0.05)
    return DeployedPolicy(agent.eval(), 8)


def observations(spec, batch, seed=1):
    rng = np.random.default_rng(seed)
    found = {
        leaf.path: rng.integers(256, size=(batch, *leaf.shape), dtype=np.uint8) if leaf.dtype == "uint8" else
        3 * rng.normal(size=(batch, *leaf.shape)).astype(np.float32)
        for leaf in spec.obs
    }  # fmt: skip
    return found


def both(file, given):
    """The actions that ONNX Runtime and libtorch compute from named inputs."""
    session = onnxruntime.InferenceSession(str(file.with_suffix(".onnx")), providers=["CPUExecutionProvider"])
    by_onnx = session.run(None, {path.replace("/", ".") or "obs": leaf for path, leaf in given.items()})[0]
    script = torch.jit.load(str(file.with_suffix(".pt")))
    return by_onnx, script(*map(torch.from_numpy, given.values())).numpy()


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [("bc", "vector", dict(normalize=True)), ("xql", "vector", dict(normalize=True)), ("td3bc", "vector", {}),
     ("iql", "vector", {}), ("sac", "vector", {}), ("ppo", "vector", {}), ("bc", "images", {}),
     ("drqv2", "images", dict(hidden=(32,))), ("td3", "vector", dict(layer_norm=True)),
     ("bc", "latents", dict(encoder="vae")), ("bc", "parts", dict(normalize=True)), ("dqn", "choices", {}),
     ("bc", "whole", {}), ("ppo", "choices", {})],
)  # fmt: skip
def test_exported_actions_are_those_of_the_policy(tmp_path, name, kind, settings):
    spec, file = SPECS[kind], tmp_path / "policy"
    policy = policy_of(name, spec, **settings)
    write_onnx(policy, file.with_suffix(".onnx"))
    facts = write_torchscript(policy, file.with_suffix(".pt"))
    assert facts["seed"] == 8 and [of["name"] for of in facts["inputs"]] == [
        l.path.replace("/", ".") or "obs" for l in spec.obs
    ]
    for batch in (1, 5, 40):
        given = observations(spec, batch)
        due = policy(given.get("", given))
        for have in both(file, given):
            assert have.dtype == due.dtype and have.shape == due.shape
            np.testing.assert_allclose(have, due, atol=1e-5 * (1 if spec.num_actions else WIDTHS.max()), rtol=0)
            if spec.num_actions:
                assert set(have) <= {2, 3, 4, 5}
            else:
                assert (have >= policy.low).all() and (have <= policy.high).all()
                assert (have == np.rint(have)).all() == spec.whole
    assert len({tuple(np.ravel(row)) for row in due}) > 1, "an action that is always the same would show nothing"


@pytest.mark.parametrize("named", [False, True])
def test_the_columns_of_a_table_are_in_the_metadata(named, table):
    obs = ["obs.arm=x,y", "obs.tip=angle"] if named else ["obs=x,y,angle"]
    run = offlinerl.fit("bc", table, columns=[*obs, "action=throttle", "reward=r", "episode=run"], over=dict(train=FEW))
    facts = write_onnx(run.policy, table.with_suffix(".onnx"))
    assert facts["inputs"][0]["columns"] == ["x", "y", "angle"] and facts["action"]["columns"] == ["throttle"]


def test_a_run_is_exported_for_one_seed_and_the_file_acts(here, capsys):
    run = offlinerl.fit("bc", logs(), seeds=[4, 6], over=dict(train=FEW, agent=dict(normalize=True)))
    obs = logs(seed=3)["obs"]
    for seed, name in ((None, "first"), (6, "second")):
        flags = [] if seed is None else ["--seed", str(seed)]
        assert main(["export", str(run.folder), "--onnx", f"{name}.onnx", *flags]) == 0
        assert main(["export", str(run.folder / "last.ckpt"), "--torchscript", f"{name}.pt", *flags]) == 0
        for have in both(here / name, {"": obs}):
            np.testing.assert_allclose(have, offlinerl.load_policy(run.folder, seed)(obs), atol=1e-5, rtol=0)
    assert "obs [batch, 3] float32 to action float32" in capsys.readouterr().out
    alone = offlinerl.fit("bc", logs(), seeds=[4], over=dict(train=FEW, agent=dict(normalize=True)))
    write_torchscript(alone.policy, here / "alone.pt")
    size = (here / "alone.pt").stat().st_size
    assert (here / "second.pt").stat().st_size < 1.1 * size, "without the other seed's weights"
    assert np.abs(np.subtract(*[both(here / name, {"": obs})[0] for name in ("first", "second")])).max() > 1e-3
    session = onnxruntime.InferenceSession("first.onnx")
    facts = json.loads(session.get_modelmeta().custom_metadata_map["policy"])
    assert facts["seed"] == 4 and facts["agent"] == "BC" and len(facts["action"]["low"]) == 1
    extra = {"policy.json": ""}
    torch.jit.load("second.pt", _extra_files=extra)
    assert json.loads(extra["policy.json"])["seed"] == 6
    for flags, says in (
        (["--onnx", "first.onnx"], "exists"), (["--onnx", "third.onnx", "--seed", "5"], "there is no policy of seed 5"),
    ):  # fmt: skip
        assert main(["export", str(run.folder), *flags]) == 1
        assert says in capsys.readouterr().err
    assert main(["export", str(run.folder), "--onnx", "first.onnx", "--overwrite"]) == 0
    with pytest.raises(SystemExit):
        main(["export", str(run.folder)])


def test_a_policy_with_memory_is_not_exported(here):
    run = offlinerl.fit("dt", logs(), over=dict(train=FEW, agent=dict(context=3, embedding=16, heads=1, blocks=1)))
    with pytest.raises(UserError, match="DT acts by what it remembers of the episode"):
        Portable(run.policy)


def test_a_graph_with_different_actions_is_not_written(tmp_path, monkeypatch):
    policy = policy_of("bc", SPECS["vector"])
    trace = torch.jit.trace

    def wrong(module, *args, **more):
        module.high -= 30.0
        traced = trace(module, *args, **more)
        module.high += 30.0
        return lambda *leaves: traced(*leaves) - 0.01

    monkeypatch.setattr(torch.jit, "trace", wrong)
    with pytest.raises(UserError, match="would not act like the policy"):
        write_torchscript(policy, tmp_path / "policy.pt")
    assert not list(tmp_path.iterdir())


def test_a_policy_that_onnx_does_not_know_is_named(tmp_path, capsys):
    class Own(BC):
        def act(self, obs, explore=False):
            return torch.linalg.pinv(obs.transpose(1, 2) @ obs)[:, :1, :2].expand(-1, obs.shape[1], -1)

    policy, file = DeployedPolicy(Own(SPECS["vector"], (0,)).eval(), 0), tmp_path / "own.onnx"
    with pytest.raises(UserError, match=r"ONNX cannot hold the policy of Own \(.*pinv.*\): export it with --to"):
        write_onnx(policy, file)
    assert not [*tmp_path.iterdir()] and not capsys.readouterr().out


def test_without_its_extra_onnx_says_what_to_install(tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnx" else find(name, *more))
    with pytest.raises(UserError, match=r"pip install 'offlinerl\[onnx\]'"):
        write_onnx(policy_of("bc", SPECS["vector"]), tmp_path / "policy.onnx")


@pytest.mark.parametrize("instead", [np.nan, 9.0])
def test_different_actions_are_detected(instead):
    module = Portable(policy_of("bc", SPECS["vector"]))
    with pytest.raises(UserError, match=r"policy.onnx would not act like the policy"):
        _require_alike(module, lambda obs: np.full((len(obs), 2), instead, np.float32), "policy.onnx")


def test_a_deployed_policy_accepts_observations_of_the_environment():
    """Parts are found by their paths in a dictionary; unsuitable observations lead to one sentence."""
    policy = policy_of("bc", SPECS["parts"])
    joints, camera = np.zeros(4, np.float32), np.zeros((48, 48, 3), np.uint8)
    flat = policy({"arm/joints": joints, "camera": camera})
    np.testing.assert_array_equal(policy({"arm": {"joints": joints}, "camera": camera, "more": 1}), flat)
    for wrong, says in (
        ({"arm/joints": joints}, "the parts arm/joints, camera, not arm/joints"),
        ({"arm": 3, "camera": camera}, "the parts arm/joints, camera, not arm, camera"),
        ({"arm/joints": joints[None].repeat(5, 0), "camera": camera[None].repeat(2, 0)}, "batches of [25] or [25]"),
        ({"arm/joints": joints + np.nan, "camera": camera}, "the observation, in its part arm/joints, is not finite"),
        (joints, "takes observations of shape"),
    ):
        with pytest.raises(UserError, match=says):
            policy(wrong)
    vector = policy_of("bc", SPECS["vector"])
    np.testing.assert_array_equal(vector({"only": np.ones(5)}), vector(np.ones(5)))
    with pytest.raises(UserError, match="put its parts into one vector, in the order"):
        vector({"observation": np.ones(3), "goal": np.ones(2)})
    vector.agent.task = dict(obs_keys=["goal", "observation"])
    with pytest.raises(UserError, match="in the order goal, observation"):
        vector({"observation": np.ones(3), "goal": np.ones(2)})
    with pytest.raises(UserError, match="the observation is not finite"):
        vector(np.array([0, np.inf, 0, 0, 0]))
