"""Settings describe themselves: their types, bounds and help."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import SPEC

from offlinerl import agents
from offlinerl.agents.bc import BC
from offlinerl.agents.ddpg import DDPG, DDPGConfig
from offlinerl.agents.is_reinforce import ISREINFORCE
from offlinerl.agents.td3 import TD3Config
from offlinerl.agents.xql import XQL
from offlinerl.cli import main
from offlinerl.training.config import of_agent
from offlinerl.util import fast_yaml
from offlinerl.util.errors import UserError
from offlinerl.util.folder import write_config
from offlinerl.util.settings import Config, fixed, make, plain, setting, settings_of


@dataclass(frozen=True)
class Base(Config):
    rate: float = setting(0.5, "a rate", above=0, high=1)
    share: float = setting(0.5, "a share", low=0, high=1)
    part: float = setting(0.5, "a part", above=0, below=1)
    count: int = setting(3, "a count", low=1)
    limit: float | None = setting(None, "a limit", above=0)
    steps: int | None = setting(None, "steps", low=1, choices=("updates",))
    bound: float = setting(1.0, "a bound", above=0, choices=(math.inf,))
    sizes: tuple[int, ...] = setting((4, 4), "sizes")
    kind: str = setting("one", "which", choices=("one", "two"))
    on: bool = setting(True, "whether")
    when: bool = setting("auto", "whether", choices=("auto",))


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("rate", 0, "rate must be greater than 0 and at most 1, not 0"),
        ("rate", 1.5, "rate must be greater than 0 and at most 1, not 1.5"),
        ("rate", "fast", "rate must be a number, not 'fast'"),
        ("rate", math.nan, "rate must be a number, not nan"),
        ("rate", True, "rate must be a number, not True"),
        ("rate", None, "rate must be a number, not None"),
        ("share", -0.1, "share must be from 0 to 1, not -0.1"),
        ("part", 1, "part must be between 0 and 1, not 1"),
        ("count", 0, "count must be at least 1, not 0"),
        ("count", 1.5, "count must be a whole number, not 1.5"),
        ("limit", 0, "limit must be greater than 0 or null, not 0"),
        ("limit", [1], "limit must be a number or null, not [1]"),
        ("steps", "soon", "steps must be a whole number, updates or null, not 'soon'"),
        ("bound", -math.inf, "bound must be a number or inf, not -inf"),
        ("sizes", "wide", "sizes must be a list of whole numbers, such as [256, 256], not 'wide'"),
        ("sizes", [4, 0], "sizes must be a list of whole numbers, such as [256, 256], not [4, 0]"),
        ("kind", "three", "kind must be one or two, not 'three'"),
        ("on", 1, "on must be true or false, not 1"),
        ("when", "often", "when must be auto, true or false, not 'often'"),
    ],
)
def test_invalid_values_are_refused_in_one_sentence(name, value, sentence):
    with pytest.raises(UserError) as error:
        Base(**{name: value})
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "name, value, want",
    [
        ("rate", "3e-4", 3e-4), ("rate", 1, 1.0), ("count", 2.0, 2), ("count", "1e3", 1000), ("limit", None, None),
        ("limit", 2, 2.0), ("steps", "updates", "updates"), ("bound", math.inf, math.inf), ("bound", "inf", math.inf),
        ("sizes", [8], (8,)), ("sizes", [], ()), ("when", False, False), ("when", "auto", "auto"),
        ("kind", "two", "two"), ("kind", Path("two"), "two"), ("sizes", np.array([8, 4]), (8, 4)),
        ("sizes", [np.int64(8), np.array(4)], (8, 4)), ("rate", np.float32(0.5), 0.5), ("rate", np.array(0.5), 0.5),
        ("count", np.int8(2), 2), ("on", np.bool_(False), False), ("steps", np.str_("updates"), "updates"),
    ],
)  # fmt: skip
def test_valid_values_are_converted_to_their_type(name, value, want):
    got = getattr(Base(**{name: value}), name)
    assert got == want and type(got) is type(want)


def test_a_variant_keeps_settings_that_it_does_not_change():
    @dataclass(frozen=True)
    class Variant(Base):
        rate: float = 0.25
        count: int = fixed(7)
        more: int = setting(0, "more", low=0)

    assert "count" not in settings_of(Variant) and Variant().count == 7 and Variant().rate == 0.25
    assert settings_of(Variant)["rate"].metadata == settings_of(Base)["rate"].metadata
    assert list(plain(Variant()))[-1] == "more" and Base().rate == 0.5
    with pytest.raises(UserError, match="rate must be greater than 0"):
        Variant(rate=0)
    with pytest.raises(UserError, match="a variant has no setting 'count'; did you mean"):
        make(Variant, dict(count=1), "a variant has no setting")


def test_settings_without_a_type_or_dataclass_are_refused():
    with pytest.raises(TypeError, match="rate needs the type"):

        class Untyped(Base):
            rate = 0.25

    class Undecorated(Base):
        rate: float = 0.25

    with pytest.raises(UserError, match="@dataclass"):
        plain(Undecorated())


def test_agents_are_made_with_keyword_arguments():
    agent = XQL(SPEC, (0, 1), beta=1, hidden=[8, 8])
    assert agent.config.beta == 1.0 and agent.config.hidden == (8, 8) and agent.gamma == 0.99
    assert agent.hparams["hidden"] == [8, 8] and agent.hparams["seeds"] == [0, 1] and agent.hparams["beta"] == 1.0
    assert XQL(**agent.hparams).config == agent.config and XQL(**agent.hparams).spec == SPEC
    assert ISREINFORCE(SPEC, hidden=(4,), max_weight=math.inf).config.max_weight == math.inf
    for settings, words in (
        (dict(beta=0), "beta must be greater than 0, not 0"),
        (dict(bta=1), "XQL has no setting 'bta'; did you mean beta"),
        (dict(decay_steps="updates"), "decay_steps as a number"),
    ):
        with pytest.raises(UserError, match=words):
            XQL(SPEC, (0,), hidden=(4,), **settings)


def test_variants_share_what_they_do_not_change():
    changed = {name for name, value in plain(DDPGConfig()).items() if value != plain(TD3Config())[name]}
    assert changed == {"tau", "actor_lr", "critic_lr", "hidden", "exploration", "sigma"}
    agent = DDPG(SPEC, (0,), hidden=(4,))
    assert agent.period == 1 and agent.critic.net.layers[0].weight.shape[1] == 1
    with pytest.raises(UserError, match="DDPG has no setting 'policy_delay'"):
        DDPG(SPEC, (0,), policy_delay=2)


def test_every_agent_has_a_gamma_even_without_the_setting():
    assert BC(SPEC, hidden=(4,)).gamma == 0.99 and "gamma" not in settings_of(BC.config_class)


@pytest.mark.parametrize("name", agents.names())
def test_help_lists_every_setting(name, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["fit", name, "--help"])
    said = capsys.readouterr().out
    assert leaving.value.code == 0
    words = " ".join(said.split())
    for key, field in settings_of(agents.outline(name).config_class).items():
        assert f"--agent.{key} " in words and field.metadata["help"] in words, key
    assert "(default: 0.99)" in words or name in ("bc", "dt", "vae")
    assert "[agent] batch" not in words, "what is no flag is not in the usage"


def test_help_without_an_agent(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert "--agent.KEY" in (said := capsys.readouterr().out) and "--agent.lr" not in said


def test_a_decay_over_a_given_number_of_updates_includes_fine_tuning():
    train = dict(updates=10, online_steps=5)
    assert of_agent(dict(agent=dict(decay_steps=7), train=train)) == dict(decay_steps=7)
    assert of_agent(dict(agent=dict(decay_steps="updates"), train=train)) == dict(decay_steps=None)
    assert of_agent(dict(agent=dict(decay_steps="updates"), train=dict(updates=10))) == dict(decay_steps=10)


def test_a_decay_over_all_updates_knows_how_many_there_are():
    acting = dict(agent=dict(decay_steps="updates"), train=dict(steps=120, warm_up=20))
    for ratio, updates in ((dict(), 100), (dict(steps_per_update=4), 25), (dict(updates_per_step=3), 300)):
        assert of_agent(acting | dict(train=acting["train"] | ratio)) == dict(decay_steps=updates)


def test_a_files_name_that_is_not_utf8_is_read_as_it_was_written(tmp_path):
    name = os.fsdecode(b"bad\xff.hdf5")
    write_config(tmp_path, dict(fit=dict(dataset=name)))
    assert fast_yaml.parse((tmp_path / "config.yaml").read_text("utf-8"))["fit"]["dataset"] == name
    with pytest.raises(yaml.YAMLError):
        fast_yaml.parse("fit: [")
