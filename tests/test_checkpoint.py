"""A run that was stopped and resumed is, to the bit, the run that never stopped."""

import csv
import logging
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml
from conftest import ACTING, SPEC, random_table
from torch._dynamo.utils import counters

from offlinerl import agents
from offlinerl.agents import base as agent_module
from offlinerl.agents import checkpoint
from offlinerl.agents.bc import BC
from offlinerl.agents.iql import IQL
from offlinerl.agents.xql import XQL
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table
from offlinerl.learning.compile import capture
from offlinerl.training.checkpointer import Checkpointer
from offlinerl.types import Spec
from offlinerl.util.errors import UserError
from offlinerl.util.settings import plain

SETTINGS = dict(hidden=(16,), dropout=0.1, decay_steps=40)


def test_a_replay_is_saved_again_only_if_it_or_the_counters_have_changed(tmp_path, monkeypatch):
    """An environment that fails in the middle of a block leaves steps behind that are not counted yet."""
    written = []
    monkeypatch.setattr(checkpoint, "write", lambda state, path: written.append(state) or path.touch())
    monkeypatch.setattr(checkpoint, "save", lambda trainer, path: None)
    replay = SimpleNamespace(added=3, state_dict=lambda copy: replay.added)
    saver = Checkpointer(tmp_path, SimpleNamespace(updates=5, steps=3), replay, 5.0)
    for added in (3, 3, 4):
        replay.added = added
        saver.save(None)
    assert written == [3, 4]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)


def trainer(*callbacks, epochs=1):
    return L.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip


class KeepSource(L.Callback):
    """Saves the sampler with the checkpoint, as a run does."""

    def __init__(self, source):
        self.source = source

    def state_dict(self):
        return self.source.state_dict()


def source(seeds):
    return OfflineData(Table(random_table(), SPEC, 0.99), seeds, 32, 5)


def test_a_resumed_training_equals_one_that_never_stopped(tmp_path):
    seeds = (0, 1)
    whole = XQL(SPEC, seeds, **SETTINGS)
    trainer().fit(whole, source(seeds).epoch(40))

    first, data = XQL(SPEC, seeds, **SETTINGS), source(seeds)
    half = trainer(KeepSource(data))
    half.fit(first, data.epoch(15))
    checkpoint.save(half, tmp_path / "last.ckpt")
    saved = checkpoint.read(tmp_path / "last.ckpt")
    second, data = XQL(SPEC, seeds, **SETTINGS), source(seeds)
    checkpoint.load_into(second, saved, tmp_path / "last.ckpt")
    data.load_state_dict(saved["callbacks"]["KeepSource"])
    assert second.updates == 15
    trainer().fit(second, data.epoch(25))

    assert second.updates == whole.updates == 40
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
    for name, optimizer in whole.optim.items():
        for p, q in zip(optimizer.state.values(), second.optim[name].state.values(), strict=True):
            assert torch.equal(p["exp_avg"], q["exp_avg"]) and torch.equal(p["exp_avg_sq"], q["exp_avg_sq"]), name
    assert torch.equal(whole.rng.bits((3, 8)), second.rng.bits((3, 8)))


def test_a_lost_sampler_state_would_be_noticed(tmp_path):
    """Shows that the test above can fail: without the sampler's state, the weights differ."""
    first, data = XQL(SPEC, (0,), **SETTINGS), source((0,))
    half = trainer()
    half.fit(first, data.epoch(15))
    checkpoint.save(half, tmp_path / "last.ckpt")
    ends = []
    for restore in (True, False):
        agent, again = XQL(SPEC, (0,), **SETTINGS), source((0,))
        checkpoint.load_into(agent, checkpoint.read(tmp_path / "last.ckpt"), tmp_path / "last.ckpt")
        if restore:
            again.load_state_dict(data.state_dict())
        trainer().fit(agent, again.epoch(15))
        ends.append(agent.actor.log_std)
    assert not torch.equal(*ends)


def test_lightnings_counter_counts_updates():
    agent = XQL(SPEC, (0,), **SETTINGS)
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append(trainer.global_step)

    run = trainer(Watch(), epochs=2)
    run.fit(agent, source((0,)).epoch(10))
    assert seen == [5, 10, 15, 20] and agent.updates == 20


def test_a_trainers_loggers_and_callbacks_get_the_metrics(tmp_path):
    from lightning.pytorch.callbacks import EarlyStopping
    from lightning.pytorch.loggers import CSVLogger

    agent, seen = XQL(SPEC, (3, 1), **SETTINGS), []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, agent, *_):
            seen.append((dict(trainer.callback_metrics), agent.metrics["value_loss"]))

    logger, stop = CSVLogger(tmp_path, ""), EarlyStopping("value_loss", stopping_threshold=1e9)
    L.Trainer(
        accelerator="cpu", devices=1, max_epochs=4, logger=logger, callbacks=[Watch(), stop], log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(agent, source((3, 1)).epoch(10))  # fmt: skip
    assert len(seen) == 2  # the callback ended the training after the first epoch
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["5", "10"]
    for row, (given, loss) in zip(rows, seen, strict=True):
        for name, value in [
            ("value_loss", loss.mean()),
            *zip(("value_loss/seed_3", "value_loss/seed_1"), loss, strict=True),
        ]:
            assert float(row[name]) == pytest.approx(float(value)) and given[name] == value


def test_lightnings_own_model_checkpoint_saves(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    agent = XQL(SPEC, (0,), **SETTINGS)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=10, save_top_k=-1)
    L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, callbacks=[keep], enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
    ).fit(agent, source((0,)).epoch(20))  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=10.ckpt", "step=20.ckpt"]


def test_a_checkpoint_is_loaded_without_any_other_file(tmp_path):
    agent = IQL(SPEC, (4, 2), expectile=0.8, **SETTINGS)
    agent.task = dict(env=dict(id="Somewhere-v0"), score=None)
    run = trainer()
    run.fit(agent, source((4, 2)).epoch(10))
    checkpoint.save(run, tmp_path / "a.ckpt")
    loaded = checkpoint.load_agent(tmp_path / "a.ckpt")
    assert type(loaded) is IQL and loaded.config.expectile == 0.8 and loaded.seeds == (4, 2) and loaded.spec == SPEC
    assert loaded.task == agent.task and loaded.updates == 10
    obs = torch.randn(2, 7, SPEC.obs_dim)
    assert torch.equal(loaded.act(obs), agent.act(obs))


def other(default):
    """Another value of the same type as a setting."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, (int, float)):
        return default + 1 if isinstance(default, int) else default / 2
    return [7] if isinstance(default, list) else default


@pytest.mark.parametrize("name", ACTING)
def test_every_setting_is_restored(name, tmp_path):
    agent_class = agents.get(name)
    settings = {key: other(default) for key, default in plain(agent_class.config_class()).items()}
    if name == "dt":
        settings["embedding"] = 3 * settings["heads"]  # one must be a multiple of the other
    if "normalize_obs" in settings:
        settings["normalize"] = False  # the two exclude each other
    agent = agent_class(SPEC if not agent_class.discrete else Spec(5, 1, (0.0,), (2.0,), 3), (4,), **settings)
    optimizers = [optimizer.state_dict() for optimizer in agent.configure_optimizers()]
    content = dict(state_dict=agent.state_dict(), optimizer_states=optimizers, hyper_parameters=dict(agent.hparams))
    agent.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    loaded = checkpoint.load_agent(tmp_path / "a.ckpt")
    assert loaded.seeds == (4,)
    assert loaded.config == agent.config and loaded.spec == agent.spec
    assert {key: loaded.hparams[key] for key in settings} == settings
    assert yaml.safe_load(yaml.safe_dump(dict(loaded.hparams))) == dict(loaded.hparams), "plain data"
    assert {k: v for k, v in vars(loaded).items() if isinstance(v, (int, float, str))} == {
        k: v for k, v in vars(agent).items() if isinstance(v, (int, float, str)) and k != "training"
    } | {"training": False}


def test_lightnings_loader_works_with_weights_only(tmp_path):
    agent = XQL(SPEC, (0,), **SETTINGS)
    run = trainer()
    run.fit(agent, source((0,)).epoch(10))
    checkpoint.save(run, tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["offlinerl"]["agent"] == "offlinerl.agents.xql:XQL"
    loaded = XQL.load_from_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(loaded.actor.log_std, agent.actor.log_std)


def test_a_checkpoint_of_other_networks_is_refused(tmp_path):
    run = trainer()
    run.fit(XQL(SPEC, (0,), **SETTINGS), source((0,)).epoch(5))
    checkpoint.save(run, tmp_path / "a.ckpt")
    other = XQL(SPEC, (0,), hidden=(8, 8))
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.load_into(other, checkpoint.read(tmp_path / "a.ckpt"), tmp_path / "a.ckpt")


# Classes of other modules


def of_class(agent_class, path, module=None, stated=None, **settings):
    """A checkpoint of a class that claims to be defined in a given module."""
    if module:
        agent_class.__module__ = module
    agent = agent_class(SPEC, (0,), **settings)
    content = dict(optimizer_states=[o.state_dict() for o in agent.configure_optimizers()])
    content |= dict(state_dict=agent.state_dict(), hyper_parameters=dict(agent.hparams))
    agent.on_save_checkpoint(content)
    if stated:
        content["offlinerl"]["agent"] = stated
    torch.save(content, path)
    return path


def mine():
    class Mine(BC):
        def __init__(self, spec, seeds=(0,), width=8):
            super().__init__(spec, seeds, hidden=(width, width))
            self.save_hyperparameters()

        def act(self, obs, explore=False):
            return -super().act(obs)

    return Mine


@pytest.mark.parametrize("module", ["bc", "__main__", "my.agents.bc", "offlinerl.agents.mine", "offlinerl.agents.bc"])
def test_a_class_of_another_module_is_never_loaded_as_ours(module, tmp_path):
    """Its networks are those of BC, so that it differs only by its name."""
    path = of_class(mine(), tmp_path / "a.ckpt", module)
    with pytest.raises(UserError, match=f"{module}:Mine.*agent_class"):
        checkpoint.load_agent(path)
    with pytest.raises(UserError, match="not of BC"):
        checkpoint.load_agent(path, agent_class=BC)


@pytest.mark.parametrize("module", ["bc", None])
def test_a_class_of_another_module_is_loaded_as_that_class(module, tmp_path):
    path, Mine = of_class(mine(), tmp_path / "a.ckpt", module, width=4), mine()
    obs = torch.randn(1, 100, SPEC.obs_dim, generator=torch.Generator().manual_seed(0))  # few may leave all units dead
    loaded = checkpoint.load_agent(path, agent_class=Mine)
    assert type(loaded) is Mine and loaded.hparams["width"] == 4
    assert torch.equal(loaded.act(obs), -BC.act(loaded, obs)) and not torch.equal(loaded.act(obs), BC.act(loaded, obs))


@pytest.mark.parametrize("name", ["bc", "iql"])
def test_checkpoints_of_older_versions_name_our_modules(name, tmp_path):
    path = of_class(agents.get(name), tmp_path / "a.ckpt", stated=name, hidden=(8, 8))
    assert type(checkpoint.load_agent(path)) is agents.get(name)


@pytest.mark.parametrize("stated", ["mine", "os:system", "offlinerl.agents.bc:nothing", ":", ""])
def test_no_class_is_imported_because_a_file_says_so(stated, tmp_path):
    path = of_class(BC, tmp_path / "a.ckpt", hidden=(8, 8))
    content = torch.load(path)
    content["offlinerl"]["agent"] = stated
    torch.save(content, path)
    with pytest.raises(UserError, match="not one of offlinerl's"):
        checkpoint.load_agent(path)


@pytest.mark.parametrize("gone", ["state_dict", "optimizer_states", "hyper_parameters"])
def test_a_checkpoint_that_lacks_something_is_named(gone, tmp_path):
    path = of_class(BC, tmp_path / "a.ckpt", hidden=(8, 8))
    content = torch.load(path)
    del content[gone]
    torch.save(content, path)
    with pytest.raises(UserError, match="a.ckpt has no|a.ckpt is damaged: it has no"):
        checkpoint.load_agent(path)


# Capturing


@pytest.fixture(scope="module")
def compiled_pair():
    """The same agent, trained eagerly with all seeds at once, and by one captured step with one seed after another."""
    pair = []
    for compile in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(agent_module, "CPU_ROWS", 1 if compile else 64)
            agent, data = XQL(SPEC, (0, 1), **SETTINGS), source((0, 1))
            agent.compile = compile
            for _ in range(3):
                agent.learn(data.draw())
            pair.append(agent)
    return pair


def test_a_captured_training_equals_an_eager_one(compiled_pair):
    eager, captured = compiled_pair
    [steps] = captured._steps.values()
    assert [step.__name__ for step in steps] == ["run", "run"], "nothing was compiled"
    assert captured.updates == eager.updates == 15
    for (name, p), q in zip(eager.named_parameters(), captured.parameters(), strict=True):
        apart = (p - q).abs()
        # 15 Adam steps of 3e-4 add up to 4.5e-3; the difference is rounding that Adam amplifies.
        assert apart.mean() < 2e-5 and apart.max() < 1e-3, name
    for name, optimizer in eager.optim.items():
        ours, theirs = (o.param_groups[0]["beta_powers"] for o in (optimizer, captured.optim[name]))
        torch.testing.assert_close(ours, theirs)


def test_compiled_graphs_are_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for found in (False, True):
        torch._dynamo.reset()
        counters.clear()
        weight = torch.arange(3.0)

        def step(x, weight=weight):
            weight.add_(x)
            return (weight * 2).sum()

        [captured] = capture([step], (torch.ones(3),), [[weight]])
        assert captured(torch.ones(3)).item() == 12
        assert weight.tolist() == [1, 2, 3]
        assert counters["inductor"]["fxgraph_cache_hit"] == found
        assert counters["inductor"]["fxgraph_cache_miss"] == (not found)


def test_tracing_leaves_the_state_as_it_was():
    weight = torch.ones(3)

    def step(x):
        weight.add_(x)
        return (weight * 2).sum()

    [captured] = capture([step], (torch.ones(3),), [[weight]])
    assert weight.tolist() == [1, 1, 1]
    assert captured(torch.full((3,), 2.0)).item() == 18
    assert weight.tolist() == [3, 3, 3]


def test_without_a_compiler_training_continues_uncompiled(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    agent, eager = XQL(SPEC, (0,), **SETTINGS), XQL(SPEC, (0,), **SETTINGS)
    agent.compile = True
    a, b = source((0,)), source((0,))
    with pytest.warns(UserWarning, match="uncompiled.*no C\\+\\+ compiler"):
        agent.learn(a.draw())
    agent.learn(a.draw())
    eager.learn(b.draw())
    eager.learn(b.draw())
    assert torch.equal(agent.actor.log_std, eager.actor.log_std)
