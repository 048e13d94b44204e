"""The parts of a recording as a CUDA graph, tested without a GPU; with one, see test_cuda."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from offlinerl.learning.compile import Recorded, _same_effect, put_back
from offlinerl.learning.rng import Streams


@pytest.fixture
def without_gpu(monkeypatch):
    """A graph that is launched again instead of replayed."""
    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None))

    def record(launch, example, state):
        recorded = Recorded(launch, example, state)
        recorded.graph.replay = lambda: recorded.found.copy_(
            torch.cat([t.reshape(-1) for t in launch(*recorded.given)])
        )
        return recorded

    return record


def test_a_recording_accepts_arguments_of_any_memory_layout(without_gpu):
    numbers = torch.randn(4, 7)
    obs, reward = numbers[:, :5], numbers[:, 5]  # columns of one table
    example = [obs.contiguous(), reward.contiguous()]
    total = torch.zeros(4)

    def launch(obs, reward):  # like compiled code, which assumes the strides of its example
        obs, reward = (torch.as_strided(x, e.shape, e.stride()) for x, e in zip((obs, reward), example, strict=True))
        total.add_(reward)
        return [obs.sum(-1) + reward, total]

    recorded = without_gpu(launch, example, [total])
    assert not total.any(), "recording is no update"
    for n in (1, 2):
        first, second = recorded(obs, reward)
        torch.testing.assert_close(first, numbers[:, :6].sum(-1))
        torch.testing.assert_close(second, n * numbers[:, 5])
    kept = second.clone()
    recorded(obs, reward)
    assert torch.equal(second, kept), "what was found belongs to the caller"


def test_effects_are_compared_and_undone():
    state, example = [torch.zeros(3)], [torch.ones(3)]

    def step(factor, result=0.0):
        def launch(x):
            state[0].add_(factor * x)
            return [x.sum() + result]

        return launch

    assert _same_effect(step(1.0), step(1.001), example, state)
    assert not _same_effect(step(1.0), step(0.5), example, state)
    assert not _same_effect(step(1.0), step(1.0, result=1.0), example, state)
    assert not _same_effect(step(1.0), step(float("nan")), example, state)
    assert not state[0].any()


def test_the_state_is_restored_after_an_error():
    state = torch.ones(2)
    with pytest.raises(RuntimeError), put_back([state]):
        state.zero_()
        raise RuntimeError
    assert state.all()


def test_random_numbers_drawn_ahead_belong_to_their_seed():
    def drawn(seeds, count):
        streams, found = Streams(seeds, "update"), []
        streams.ahead(count)
        for _ in range(count):
            found.append([streams.normal((5,)), streams.normal((5,)), streams.bits((2, 6))])
        return streams, found

    streams, both = drawn((3, 4), 3)
    _, alone = drawn((4,), 3)
    for of_both, of_one in zip(both, alone, strict=True):
        for stacked, single in zip(of_both, of_one, strict=True):
            assert torch.equal(stacked[1:], single)
    numbers = torch.stack([x for normal in both for x in normal[:2]])
    assert len(numbers.unique()) == numbers.numel(), "no number comes twice"
    state = streams.state_dict()
    streams.ahead(2)
    expected = streams.normal((5,))
    again = Streams((3, 4), "update")
    again.load_state_dict(state)
    again.ahead(2)
    assert torch.equal(again.normal((5,)), expected)
