"""An agent in a file outside the package works like the built-in agents."""

import csv
import importlib
import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pendulum
import pytest
import torch
import yaml
from conftest import SPEC, random_table

import offlinerl
from offlinerl import agents, api
from offlinerl.agents import checkpoint
from offlinerl.agents.bc import BC
from offlinerl.cli import main
from offlinerl.data.load import load
from offlinerl.evaluation.evaluate import evaluate_checkpoint
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table
from offlinerl.nn.critics import Value
from offlinerl.rollout.deployed import DeployedPolicy
from offlinerl.training import choosing
from offlinerl.types import Spec
from offlinerl.util.errors import UserError

SOURCE = '''
from dataclasses import dataclass

from offlinerl.agents.base import Agent, Config, setting
from offlinerl.agents.td3 import TD3, TD3Config
from offlinerl.nn.actors import DeterministicActor


@dataclass(frozen=True)
class RegressionConfig(Config):
    lr: float = setting(1e-3, "Adam's learning rate", above=0)
    power: int = setting(2, "of the error", low=1)
    hidden: tuple[int, ...] = setting((8,), "sizes of the hidden layers")


class Regression(Agent):
    """Actions by regression."""

    config_class = RegressionConfig

    def build(self):
        self.actor = DeterministicActor(
            self.encoder("actor"), self.spec.action_dim, self.config.hidden, self.init_rng("actor")
        )

    def configure_optimizers(self):
        return self.adam(self.config.lr, actor=self.actor)

    def update(self, batch, noise, k):
        error = (self.actor(batch.obs) - batch.action).abs() ** self.config.power
        return dict(loss=self.descend("actor", error.mean(-1)))

    def act(self, obs, explore=False):
        return self.to_env(self.actor(obs))


@dataclass(frozen=True)
class GentleConfig(TD3Config):
    sigma: float = 0.05


class Gentle(TD3):
    config_class = GentleConfig


@dataclass(frozen=True)
class WindowedConfig(RegressionConfig):
    context: int = setting(4, "steps of a window", low=1)


class Windowed(Regression):
    config_class = WindowedConfig
    kinds = ("windows",)

    def update(self, batch, noise, k):
        obs, action, mask = (x.flatten(1, 2) for x in (batch.obs, batch.action, batch.mask))
        error = (self.actor(obs) - action).square().mean(-1)
        return dict(loss=self.descend("actor", error * mask), share=mask.mean(-1))


class NoAgent:
    pass
'''

FEW = ("--compile", "false", "--batch", 8, "--eval-episodes", 1, "--final-episodes", 2)
FIT = ("fit", "mine:Regression", "--dataset", pendulum.ID, "--eval-every", 10, *FEW)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A working directory with a dataset and a module of the user that has not been imported yet."""
    with pendulum.workplace(tmp_path_factory.mktemp("own")) as folder, pytest.MonkeyPatch.context() as patch:
        (folder / "mine.py").write_text(SOURCE)
        (folder / "broken.py").write_text("import nothing_of_that_name\n")
        (folder / "wrong.py").write_text("1 / 0\n")
        patch.syspath_prepend(folder)
        yield folder
        sys.modules.pop("mine", None)


ODD = {
    "None": "returns NoneType; return a dictionary of metrics",
    "dict(m, seed=m['loss'])": "returns a metric seed, which is a column of metrics.csv",
    "dict(m, update=m['loss'])": "returns a metric update, which is a column of metrics.csv",
    "{**m, 'agent.lr': m['loss']}": "returns a metric agent.lr, which is a column of metrics.csv",
    "dict(m, share=0.5)": "returns float as share; return a tensor with one number per seed",
    "dict(m, share=m['loss'].expand(7))": "returns share of shape [7]; return [1], one number per seed",
    "dict(m, share=m['loss'].sum())": "returns share of shape []; return [1], one number per seed",
    "dict(m, priority=m['loss'])": "returns priority of shape [1]; return [1, B], one number per row",
}


@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("given", ODD)
def test_invalid_metrics_are_refused_at_the_first_update(given, compiled, here, refused):
    source = f"""
from mine import Regression

class Odd(Regression):
    def update(self, batch, noise, k):
        m = super().update(batch, noise, k)
        return {given}
"""
    name = f"odd_{list(ODD).index(given)}"
    (here / f"{name}.py").write_text(source)
    out = here / f"{name}-{compiled}"
    fit = ("fit", f"{name}:Odd", *FIT[2:], "--updates", 20, "--compile", compiled, "--out", out)
    assert f"Odd.update {ODD[given]}" in refused(*fit)


def test_metrics_may_be_counts_and_flags(here):
    (here / "countmetrics.py").write_text("""
from mine import Regression

class Counting(Regression):
    def update(self, batch, noise, k):
        m = super().update(batch, noise, k)
        return dict(m, rows=(batch.reward > -1e9).sum(-1), large=m["loss"] > 1e9)
""")
    argv = ["fit", "countmetrics:Counting", *FIT[2:], "--updates", 20, "--out", here / "counted"]
    assert main([*map(str, argv)]) == 0
    last = pendulum.rows(here / "counted" / "metrics.csv")[-1]
    assert (float(last["rows"]), float(last["large"])) == (8, 0)


@pytest.mark.parametrize("wrong, says", [("[..., 0]", "actions of shape"), (".numpy()", "ndarray as actions")])
def test_actions_of_another_kind_are_refused(wrong, says, here):
    name = f"acting_{len(says)}"
    (here / f"{name}.py").write_text(f"""
from mine import Regression

class Acting(Regression):
    def act(self, obs, explore=False):
        return super().act(obs).detach(){wrong}
""")
    agent = importlib.import_module(name).Acting
    policy = DeployedPolicy(agent(Spec(3, 2, (-1.0,) * 2, (1.0,) * 2)))
    with pytest.raises(UserError, match=f"the policy returns {says}"):
        policy(np.zeros(3, np.float32))


def test_an_agent_may_learn_from_windows(here):
    fit = ("fit", "mine:Windowed", "--dataset", pendulum.ID, "--updates", 200, "--eval-every", 100, "--log-every", 50)
    assert main([*map(str, (*fit, *FEW, "--agent.context", 30, "--out", "windowed"))]) == 0
    with open("windowed/metrics.csv", newline="") as file:
        first, *_, last = csv.DictReader(file)
    assert float(last["loss"]) < 0.95 * float(first["loss"])
    assert 0.2 < float(last["share"]) < 0.9, "windows reach beyond the episodes, which are masked there"


@pytest.fixture(scope="module")
def run(here):
    assert main([*map(str, FIT), "--updates", "20", "--seeds", "0,1", "--agent.power", "1", "--out", "run"]) == 0
    return Path("run")


def of(folder):
    saved = checkpoint.read(folder / "last.ckpt")
    return saved["offlinerl"], saved["state_dict"]


def test_a_run_records_its_class(run):
    facts, _ = of(run)
    stated = yaml.safe_load((run / "config.yaml").read_text())
    assert facts["agent"] == stated["fit"]["agent"] == "mine:Regression"
    common = dict(normalize=False, convolutions="nature", encoder=None, shift=0)
    assert stated["agent"] == dict(**common, lr=1e-3, power=1, hidden=[8])
    plain = yaml.safe_load((run / "hparams.yaml").read_text())
    assert plain["agent"] == stated["agent"] and plain["fit"]["seeds"] == [0, 1]
    assert json.loads((run / "summary.json").read_text())["agent"] == "mine:Regression"


def test_a_resumed_run_is_the_one_that_never_stopped(run, here):
    longer = [*map(str, FIT), "--updates", "30", "--seeds", "0,1", "--agent.power", "1", "--out", "whole"]
    assert main(longer) == 0
    assert main(["fit", "--config", str(run / "config.yaml"), "--out", "part"]) == 0
    assert main(["fit", "--resume", "part", "--updates", "30"]) == 0
    (whole, weights), (part, resumed) = of(here / "whole"), of(here / "part")
    assert whole["updates"] == part["updates"] == 30
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())


def test_without_out_the_folder_is_named_after_the_class(here):
    assert main([*map(str, FIT), "--updates", "1"]) == 0
    assert [path.name for path in Path("runs").iterdir()] == ["Regression-test-pendulum-v0"]


def test_evaluating_needs_the_class(run, refused, capsys):
    line = refused("evaluate", run, "--episodes", 2)
    assert "mine:Regression" in line and "--agent-class mine:Regression" in line
    named = ("--agent-class", "mine:Regression")
    assert main(["evaluate", str(run), "--episodes", "2", "--json", "a.json", *named]) == 0
    assert json.loads(Path("a.json").read_text())["seeds"] == [0, 1]
    assert "holds an agent of the class mine:Regression, not of BC" in refused("evaluate", run, "--agent-class", "bc")
    collect = ("collect", run, "--env", "Pendulum-v1", "--episodes", 1)
    assert "--agent-class" in refused(*collect, "--dataset", "own/none-v0")
    assert main([*map(str, collect), "--dataset", "own/copy-v0", *named]) == 0
    assert len(load("own/copy-v0")) == 200


def test_an_own_agent_is_ranked_beside_ours(run, here):
    import mine

    ours = ("fit", "bc", "--dataset", pendulum.ID, "--updates", 4, "--eval-every", 4, *FEW, "--agent.hidden", "[8]")
    assert main([*map(str, (*ours, "--out", "ours"))]) == 0
    offlinerl.export("run", "mine.safetensors", episodes=1, agent_class=mine.Regression)
    offlinerl.export("ours", "ours.safetensors", episodes=1)
    ranked = ("select", "run", "ours", "--updates", 2, "--critics", 2, "--agent-class", "mine:Regression")
    assert main([*map(str, ranked)]) == 0
    files = dict(dataset=pendulum.ID, updates=2, critics=2, agent_class=mine.Regression)
    found = choosing.select([Path("mine.safetensors"), Path("ours.safetensors")], **files)
    assert {row["run"] for row in found["policies"]} == {"mine.safetensors", "ours.safetensors"}
    with pytest.raises(UserError, match="holds an agent of the class mine:Regression, not of Gentle"):
        offlinerl.select(["run", "ours"], agent_class=mine.Gentle)


def test_agents_of_several_own_classes_are_ranked_together(run, here, refused):
    import mine

    argv = ("fit", "mine:Gentle", "--dataset", pendulum.ID, "--updates", 4, "--eval-every", 4, *FEW)
    assert main([*map(str, (*argv, "--agent.hidden", "[8]", "--out", "gentle"))]) == 0
    ranked = ("select", "run", "gentle", "--episodes", 6, "--agent-class")
    assert main([*map(str, ranked), "mine:Gentle,mine:Regression"]) == 0
    with pytest.raises(UserError, match="agent_class must be a class or module:Class, or a list of them, not 3"):
        offlinerl.select(["run", "gentle"], episodes=6, agent_class=[mine.Regression, 3])
    found = offlinerl.select(["run", "gentle"], episodes=6, agent_class=[mine.Regression, "mine:Gentle"])
    assert {row["run"] for row in found["policies"]} == {"run", "gentle"}
    assert "--agent-class mine:Gentle" in refused(*ranked, "mine:Regression,mine:Other")


def test_the_command_that_exports_the_best_policy_names_its_class(run, here, capsys):
    ranked = ("select", "run", "--updates", 2, "--critics", 2, "--agent-class", "mine:Regression")
    assert main([*map(str, ranked)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to deploy the first: ")]
    assert line.endswith("--agent-class mine:Regression --onnx policy.onnx")
    words = line.partition("offlinerl ")[2].split()
    assert main([*words[:-2], "--safetensors", "best.safetensors", "--episodes", "1"]) == 0


def test_an_agent_that_acts_collects_while_it_learns(here):
    argv = ("collect", "mine:Gentle", "--env", "Pendulum-v1", "--dataset", "own/gentle-v0", "--steps", 40)
    assert main([*map(str, argv), "--compile", "false", "--batch", "8", "--agent.hidden", "[8]"]) == 0
    assert len(load("own/gentle-v0")) == 40
    saved = checkpoint.read(here / "runs/own-gentle-v0/last.ckpt")
    assert saved["offlinerl"]["agent"] == "mine:Gentle" and saved["hyper_parameters"]["sigma"] == 0.05


def test_an_own_agent_works_from_python(run, here):
    import mine

    run_of_python = api.fit(
        mine.Regression, pendulum.ID, out=here / "python", seeds=[0, 1],
        over=dict(agent=dict(power=1), train=dict(yaml.safe_load((run / "config.yaml").read_text())["train"])),
    )  # fmt: skip
    assert run_of_python.summary["agent"] == "mine:Regression" and type(run_of_python.policy.agent) is mine.Regression
    assert (here / "python/evaluations.csv").read_text() == (run / "evaluations.csv").read_text()
    for given in (mine.Regression, "mine:Regression"):
        loaded = checkpoint.load_agent(here / "python", agent_class=given)
        assert type(loaded) is mine.Regression and loaded.config.power == 1 and loaded.updates == 20
    loaded = mine.Regression.load_from_checkpoint(here / "python/last.ckpt")
    assert loaded.config.power == 1 and loaded.seeds == (0, 1)
    assert evaluate_checkpoint(here / "python", episodes=2, agent_class=mine.Regression)["seeds"] == [0, 1]


def test_a_class_that_cannot_be_found_again_is_refused(here):
    import mine

    class Local(mine.Regression):
        pass

    with pytest.raises(UserError, match="Local cannot be imported by its name; define it at the top level of a module"):
        api.fit(Local, pendulum.ID)


def test_an_own_agent_works_in_a_separate_process(here, tmp_path):
    """The module is found only in the current folder."""
    argv = [*map(str, FIT), "--updates", "10", "--out", str(tmp_path / "run")]
    process = pendulum.start(*argv, cwd=here)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert of(tmp_path / "run")[0]["agent"] == "mine:Regression"


@pytest.mark.parametrize(
    "name, words",
    [
        ("absent:Agent", "there is no module absent"),
        ("mine:Absent", "mine:Absent is not an agent"),
        ("mine:NoAgent", "mine:NoAgent is not an agent"),
        ("broken:Agent", "needs nothing_of_that_name, which is not installed"),
        ("wrong:Agent", "wrong cannot be imported: ZeroDivisionError"),
        ("mine:", "there is no agent 'mine:'"),
        ("../mine:Agent", "there is no agent"),
    ],
)
def test_something_that_is_no_agent_is_refused_in_one_sentence(name, words, here, refused):
    assert words in refused("fit", name, "--dataset", pendulum.ID)


CLASSES = """
from dataclasses import dataclass

import torch

from mine import Regression, RegressionConfig
from offlinerl.agents.base import Agent, Config


class NoAct(Agent):
    def configure_optimizers(self): ...
    def update(self, batch, noise, k): ...


class BareConfig(Config):
    lr: float = 0.1


@dataclass(frozen=True, kw_only=True)
class LackingConfig(Config):
    lr: float


@dataclass(frozen=True)
class OtherConfig:
    lr: float = 0.1


class Bare(Regression):
    config_class = BareConfig


class Lacking(Regression):
    config_class = LackingConfig


class Other(Regression):
    config_class = OtherConfig


class Scaled(Regression):
    def build(self):
        super().build()
        self.register_buffer("scale", torch.ones(len(self.seeds), 1))
        self.register_buffer("table", torch.ones(1, 7))

    def update(self, batch, noise, k):
        error = (self.actor(batch.obs) - batch.action).square().mean(-1)
        self.scale.lerp_(error.detach().mean(-1, keepdim=True), 0.1)
        return dict(loss=self.descend("actor", error / self.scale))


class Divided(Scaled):
    def build(self):
        super().build()
        del self.scale
        self.scale = torch.nn.Parameter(torch.ones(len(self.seeds), 1), requires_grad=False)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NoAct", "the agent classes:NoAct lacks act: define what Agent declares"),
        ("Bare", "the settings BareConfig need the decorator @dataclass(frozen=True)"),
        ("Lacking", "the setting LackingConfig.lr needs a default value"),
        ("Other", "the settings OtherConfig must inherit offlinerl.agents.base.Config"),
    ],
)
def test_a_class_that_lacks_something_is_refused_in_one_sentence(name, words, here, refused):
    (here / "classes.py").write_text(CLASSES)
    assert words in refused("fit", f"classes:{name}", "--dataset", pendulum.ID)


def test_what_an_update_changes_is_divided_with_the_seeds_or_refused(here):
    """Seeds are trained in parts if their batches are large."""
    (here / "classes.py").write_text(CLASSES)
    scaled, divided = (getattr(importlib.import_module("classes"), name) for name in ("Scaled", "Divided"))

    def trained(kind, *seeds, batch=700):
        agent = kind(SPEC, seeds)
        agent.learn(OfflineData(Table.of(agent, random_table()), seeds, batch, 5).draw())
        return agent

    assert len(trained(scaled, 0, 1, batch=8).division(8)) == 1
    says = "Scaled has the buffer scale, but the seeds are trained in parts.*make it torch.nn.Parameter.*axis of 2;"
    with pytest.raises(UserError, match=says):
        trained(scaled, 0, 1)
    both, alone = trained(divided, 0, 1), trained(divided, 1)
    torch.testing.assert_close(both.scale[1], alone.scale[0])
    for p, q in zip(both.actor.parameters(), alone.actor.parameters(), strict=True):
        torch.testing.assert_close(p[1], q[0])


@pytest.mark.parametrize("failure", ["ImportError('initialization failed')", "ValueError('no such thing')"])
def test_ctrl_c_during_an_import_is_no_error_of_it(failure, here, refused):
    (here / "interrupted_env.py").write_text(f"""
try:
    raise KeyboardInterrupt
except KeyboardInterrupt as error:
    raise {failure} from error
""")
    assert refused("fit", "interrupted_env:Mine", "--dataset", pendulum.ID).endswith("interrupted")
    assert refused("fit", "td3", "--env", "interrupted_env:Mine-v0", "--steps", 5).endswith("interrupted")


@pytest.mark.parametrize("file", ["mine.py", "./mine.py", "sub/mine.py"])
def test_a_file_instead_of_a_module_is_refused_with_the_name_to_give(run, file, here, refused):
    says = f"{file}:Own names a file: give mine:Own, the class in its module, and run this in the folder"
    task = ("--env", "Pendulum-v1", "--steps", 10, "--dataset", "some/own-v0")
    for argv in (
        ("fit", f"{file}:Own", "--dataset", pendulum.ID), ("collect", f"{file}:Own", *task),
        ("collect", run, *task, "--agent-class", f"{file}:Own"), ("evaluate", run, "--agent-class", f"{file}:Own"),
    ):  # fmt: skip
        assert f"{says} {(Path.cwd() / file).parent}" in refused(*argv)
    assert "give mine:Class, the class in" in refused("fit", file, "--dataset", pendulum.ID)


def test_wrong_settings_of_an_own_agent_are_refused(here, refused, capsys):
    assert "mine:Regression has no setting 'powr'; did you mean power" in refused(*FIT, "--agent.powr", 1)
    assert "power must be at least 1, not 0" in refused(*FIT, "--agent.power", 0)
    with pytest.raises(SystemExit):
        main(["fit", "mine:Regression", "--help"])
    assert "--agent.power N" in capsys.readouterr().out


def test_an_installed_agent_goes_by_its_name(run, here, monkeypatch, refused):
    point = EntryPoint("regression", "mine:Regression", agents.GROUP)
    monkeypatch.setattr(agents, "installed", lambda: dict(regression=point))
    assert main(["evaluate", str(run), "--episodes", "1"]) == 0, "no name is needed, for it is installed"
    argv = ("fit", "regression", "--dataset", pendulum.ID, "--updates", 10, *FEW, "--out", "installed")
    assert main([*map(str, argv)]) == 0
    assert main(["evaluate", "installed", "--episodes", "1"]) == 0
    assert "did you mean regression" in refused("fit", "regresion", "--dataset", pendulum.ID)


def test_entry_points_of_the_group_are_installed_agents(monkeypatch):
    points = {agents.GROUP: [EntryPoint("mine", "mine:Regression", agents.GROUP)]}
    monkeypatch.setattr(agents, "entry_points", lambda group: points[group])
    agents.installed.cache_clear()
    try:
        assert agents.is_name("mine") and not agents.is_name("yours")
    finally:
        agents.installed.cache_clear()


def test_a_checkpoint_says_which_version_wrote_it(run, tmp_path):
    import mine

    saved = torch.load(run / "last.ckpt", weights_only=True)
    saved["state_dict"]["actor.layers.0.weight"] = saved["state_dict"].pop("actor.net.layers.0.weight")
    for version in ("0.0.9", None):
        saved["offlinerl"] |= dict(version=version)
        if version is None:
            del saved["offlinerl"]["version"]
        torch.save(saved, tmp_path / "a.ckpt")
        with pytest.raises(UserError, match=f"written by offlinerl {version or '0.1 or earlier'}, does not fit"):
            checkpoint.load_agent(tmp_path / "a.ckpt", agent_class=mine.Regression)


def test_an_agent_may_add_optimisers_to_inherited_ones():
    class More(BC):
        def build(self):
            super().build()
            self.more = Value(self.encoder("more"), (4,), self.init_rng("more"))

        def configure_optimizers(self):
            return super().configure_optimizers() + self.adam(1e-2, more=self.more)

        def update(self, batch, noise, k):
            loss = self.descend(self.group, (batch.reward - self.more(batch.obs)).square())
            return super().update(batch, noise, k) | dict(more=loss)

    More.group = "more"
    agent, batch = More(SPEC, (0, 1), hidden=(4,)), OfflineData(Table(random_table(), SPEC, 0.99), (0, 1), 8, 1)
    first = [agent.learn(batch.draw())[0]["more"].mean() for _ in range(60)]
    assert first[-1] < first[0] and [*agent.optim] == ["actor", "more"]
    assert len(agent.configure_optimizers()) == 2, "no more than there are"
    More.group = "moer"
    with pytest.raises(UserError, match="More descends 'moer', but its configure_optimizers names other groups: actor"):
        More(SPEC, (0, 1), hidden=(4,)).learn(batch.draw())
