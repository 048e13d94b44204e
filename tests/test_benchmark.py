"""The numbers that a benchmark is based on, apart from its time measurements."""

import pytest
import torch

from offlinerl import benchmark
from offlinerl.experience.sources import OfflineData
from offlinerl.experience.table import Table


def test_the_matrix_products_of_an_xql_update_by_hand():
    B, H, O, A = 32, 256, 60, 9
    # A layer with one output is a sum and does not count as a matrix product.
    value, critic, actor = (i * H + H * H + H * o for i, o in ((O, 0), (O + A, 0), (O, A)))
    forward = 2 * critic + 2 * value  # both targets; V of obs and of next_obs
    # A trained network has a forward pass and a backward pass to its weights and hidden layers, but not to its input.
    trained = (3 * value - O * H) + (3 * actor - O * H) + 2 * (3 * critic - (O + A) * H)
    source = OfflineData(Table(benchmark.synthetic_table(500), benchmark.KITCHEN, 0.99), (0, 1), B)
    agent = benchmark.build("xql", (0, 1), torch.device("cpu"), compile=False)
    assert benchmark.count_flops(agent, source) == 2 * 2 * B * (forward + trained)  # two seeds


def test_lightnings_share_of_the_time_is_between_0_and_1():
    source = OfflineData(Table(benchmark.synthetic_table(500), benchmark.KITCHEN, 0.99), (0,), 8, updates=5)
    agent = benchmark.build("bc", (0,), torch.device("cpu"), compile=False)
    assert 0 <= benchmark.lightning_share(agent, source, blocks=3) < 1
    assert agent.updates == 15


def test_a_delayed_actor_counts_in_the_average():
    source = OfflineData(Table(benchmark.synthetic_table(500), benchmark.KITCHEN, 0.99), (0,), 8)
    each = []
    for period in (1, 2, 4):
        agent = benchmark.build("td3", (0,), torch.device("cpu"), compile=False)
        agent.period = period
        each.append(benchmark.count_flops(agent, source))
    actor = each[0] - each[1]  # half of the actor's share, by learning in every other update
    assert actor > 0 and each[1] - each[2] == actor / 2


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiling takes longer than the measurement, and the counts do not depend on it."""
    monkeypatch.setattr("offlinerl.agents.base.capture", lambda steps, *_: steps)


def test_steps_per_second_counts_steps(uncompiled):
    over = dict(agent=dict(hidden=(8, 8)), train=dict(batch=8, steps_per_update=4, block=1))
    assert benchmark.steps_per_second("dqn", torch.device("cpu"), over, seconds=0.2) > 10


def test_steps_per_second_counts_those_of_rollouts(uncompiled):
    over = dict(agent=dict(hidden=(8, 8), epochs=1), train=dict(batch=128))
    assert benchmark.steps_per_second("ppo", torch.device("cpu"), over, seconds=0.2) > 10


def test_every_agent_can_be_benchmarked():
    for name, updates in (("ppo", 80), ("trpo", 81), ("a2c", 1), ("is_reinforce", 2), ("dqn", 48), ("dt", 2)):
        agent = benchmark.build(name, (0, 1), torch.device("cpu"), compile=False, batch=4)
        agent.learn(benchmark.synthetic_source(agent, 4).draw())
        assert agent.updates == updates, name
