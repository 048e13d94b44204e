"""The ring of the replay buffer: which rows it can return, and with which probability."""

import numpy as np
import pytest
import torch

from offlinerl.experience import ring
from offlinerl.experience.priorities import Priorities
from offlinerl.experience.ring import Replay
from offlinerl.learning.rng import Streams
from offlinerl.types import Leaf, Spec, Transition
from offlinerl.util.trees import first_leaf, tree_map

SPEC = Spec(1, 1, (-1.0,), (1.0,))
GAMMA = 0.9


def step(t, lasts=(), terminals=(), seeds=1, envs=1):
    """The transition from observation t to t + 1 in every environment, with reward t; lane e adds 1000 e and seed s
    adds 10,000 s."""
    base = 10_000 * np.arange(seeds)[:, None] + 1000 * np.arange(envs) + t * np.ones((seeds, envs))
    over = np.full((seeds, envs), t in terminals)
    return Transition(base[..., None], np.zeros((seeds, envs, 1)), base, over, base[..., None] + 1, over | (t in lasts))


def filled(steps, capacity, n_step=1, seeds=1, envs=1, priorities=None, **ends):
    replay = Replay(SPEC, range(seeds), capacity, envs, GAMMA, n_step, priorities)
    for t in range(steps):
        replay.add(step(t, seeds=seeds, envs=envs, **ends))
    return replay


@pytest.mark.parametrize("priorities", [None, (0.6, 0.4)])
def test_drawing_from_an_empty_ring_is_refused(priorities):
    """A resumed run may have lost its rows."""
    assert filled(0, 10, priorities=priorities).sample(0, 4).reward.shape == (0, 1, 4)


def everything(replay):
    """Every transition that can be drawn, by its observation: (reward, discount, next_obs, last) of seed 0."""
    rows = torch.arange(len(replay)).expand(1, len(replay.newest), -1)
    batch = replay.transitions(rows)
    columns = (batch.reward, batch.discount, batch.next_obs.squeeze(-1), batch.last)
    return {
        int(obs): tuple(float(column[0, 0, i]) for column in columns) for i, obs in enumerate(batch.obs[0, 0].flatten())
    }


def test_a_wrapped_ring_holds_the_newest_transitions():
    replay = filled(steps=13, capacity=5)
    assert len(replay) == 5
    assert everything(replay) == {t: (t, pytest.approx(GAMMA), t + 1, 0) for t in range(8, 13)}


def test_the_newest_slot_can_be_drawn_and_all_are_equally_likely():
    replay = filled(steps=7, capacity=5)
    drawn = replay.sample(20, 500).obs.flatten().int().tolist()
    counts = np.bincount(drawn, minlength=7)[2:]
    assert counts.sum() == 10_000 and (np.abs(counts - 2000) < 200).all()


def test_environments_and_seeds_do_not_mix():
    replay = filled(steps=9, capacity=12, seeds=2, envs=3, n_step=3)
    assert len(replay) == 12 and replay.steps == 4
    batch = replay.sample(4, 64)
    assert batch.obs.shape == (4, 2, 64, 1) and batch.reward.shape == (4, 2, 64)
    for s in range(2):
        assert (batch.obs[:, s].div(10_000, rounding_mode="floor") == s).all()
        assert set(batch.obs[:, s].flatten().int().tolist()) == {
            10_000 * s + 1000 * e + t for e in range(3) for t in range(5, 9)
        }
        lane = batch.obs[:, s].div(1000, rounding_mode="floor")
        assert torch.equal(batch.next_obs[:, s].div(1000, rounding_mode="floor"), lane), "n steps led into another lane"


def test_n_step_sums_stop_at_ends_and_at_the_newest_row():
    """Observations 4..11 of a ring that has wrapped; 6 is truncated, 9 terminal, 11 the newest."""
    replay = filled(steps=12, capacity=8, n_step=3, lasts=(6,), terminals=(9,))
    g = GAMMA
    want = {
        4: (4 + g * 5 + g * g * 6, g**3, 7, 1),
        5: (5 + g * 6, g**2, 7, 1),
        6: (6, g, 7, 1),
        7: (7 + g * 8 + g * g * 9, 0, 10, 1),
        8: (8 + g * 9, 0, 10, 1),
        9: (9, 0, 10, 1),
        10: (10 + g * 11, g**2, 12, 0),
        11: (11, g, 12, 0),
    }
    have = everything(replay)
    assert have.keys() == want.keys()
    for obs, values in want.items():
        assert have[obs] == pytest.approx(values), f"from observation {obs}"


def test_a_seed_draws_the_same_alone_or_stacked():
    stacked = Replay(SPEC, (3, 8), 50)
    alone = Replay(SPEC, (8,), 50)
    for t in range(30):
        stacked.add(step(t, seeds=2))
        alone.add(step(t))
    a, b = stacked.sample(2, 16), alone.sample(2, 16)
    assert torch.equal(a.obs[:, 1] - 10_000, b.obs[:, 0])


@pytest.mark.parametrize("priorities", [None, (0.6, 0.4)])
def test_a_seed_with_short_episodes_takes_no_images_from_the_others(priorities):
    """Episodes of two steps fill the observations first; beside them, a seed with long ones keeps all its steps."""
    spec = Spec((Leaf("", (2, 2, 1), "uint8"),), 1, (-1.0,), (1.0,))
    lasts = np.array([[True], [False]])  # of seeds 3 and 8, in every other step

    def ring(seeds):
        return Replay(spec, seeds, 60, priorities=priorities)

    def both(t):
        shown = np.full((2, 1, 2, 2, 1), t % 200, np.uint8)
        reward, over = np.full((2, 1), float(t)), np.zeros((2, 1), bool)
        return Transition(shown, np.zeros((2, 1, 1)), reward, over, shown + 1, lasts & (t % 2 == 1))

    together, alone = ring((3, 8)), [ring((3,)), ring((8,))]
    for t in range(100):
        together.add(both(t))
        for seed, own in enumerate(alone):
            own.add(tree_map(lambda x, s=seed: x[s : s + 1], both(t)))
        if t % 10 == 9:
            drawn = [replay.sample(2, 16) for replay in (together, *alone)]
            for seed in range(2):
                for a, b in zip(drawn[0], drawn[1 + seed], strict=True):
                    assert a is b is None or torch.equal(a[:, seed], b[:, 0])
            for replay, batch in zip((together, *alone), drawn, strict=True):
                if priorities:
                    replay.prioritize(batch.reward + 1)
    assert together.counts.tolist() == [len(own) for own in alone] and len(alone[0]) < len(alone[1]) == 60
    again = ring((3, 8))
    again.load_state_dict(together.state_dict())
    assert torch.equal(again.sample(1, 16).reward, together.sample(1, 16).reward)


@pytest.mark.parametrize("priorities", [None, (0.6, 0.4)])
@pytest.mark.parametrize(("steps", "before", "after"), [(7, 5, 5), (7, 9, 40), (7, 40, 9)])
def test_a_saved_ring_continues_as_if_never_stopped(steps, before, after, priorities):
    """Also in a ring of another size, if it is not full yet: the run may become longer or shorter."""
    ring = filled(steps, before, priorities=priorities)
    if priorities:
        ring.sample(1, 4)
        ring.prioritize(torch.rand(1, 1, 4))
    other = Replay(SPEC, (0,), after, gamma=GAMMA, priorities=priorities)
    other.load_state_dict(ring.state_dict())
    for replay in (ring, other):
        replay.add(step(steps))
    assert everything(ring) == everything(other)
    assert all(torch.equal(a, b) for a, b in zip(ring.sample(3, 9)[:6], other.sample(3, 9)[:6], strict=True))


@pytest.mark.parametrize("priorities", [None, (0.6, 0.4)])
def test_a_larger_ring_draws_no_frames_that_a_smaller_one_dropped(priorities):
    spec = Spec((Leaf("", (2, 2, 1), "uint8"),), 1, (-1.0,), (1.0,))

    def ring(capacity, state=None):
        replay = Replay(spec, (0,), capacity, priorities=priorities)
        if state is not None:
            replay.load_state_dict(state)
        return replay

    def add(replay, times):
        for t in times:  # episodes of two steps, of which three frames are kept
            shown = tree_map(lambda x: np.broadcast_to(x[..., None, None], (1, 1, 2, 2, 1)).astype(np.uint8), step(t))
            replay.add(step(t, lasts=range(1, 200, 2))._replace(obs=shown.obs + 1, next_obs=shown.next_obs + 1))

    first = ring(100)
    add(first, range(95))
    longer = ring(200, first.state_dict())
    assert len(longer) == len(first) == 75
    longer = ring(400, longer.state_dict())  # and extended once more
    add(longer, range(95, 120))
    batch = longer.transitions(torch.arange(len(longer)).view(1, 1, -1))
    assert batch.reward.flatten().tolist() == list(range(20, 120))
    assert torch.equal(batch.obs[0, 0, :, 0, 0, 0].float(), batch.reward[0, 0] + 1)


def test_a_ring_saved_empty_begins_like_a_new_one():
    ring, other = filled(0, 5, seeds=2, envs=2), Replay(SPEC, range(2), 5, 2, GAMMA)
    other.load_state_dict(ring.state_dict())
    for replay in (ring, other):
        replay.add(step(0, seeds=2, envs=2))
        replay.add(step(1, seeds=2, envs=2))
    assert everything(ring) == everything(other) and (ring.newest == other.newest).all()
    assert torch.equal(ring.numbers, other.numbers)


@pytest.mark.parametrize("steps", [7, 13])
def test_the_ring_of_a_former_version_is_continued(steps):
    """It held rows with their successors side by side, ``[S, places, E, obs action reward terminated next_obs last]``;
    one of 10 places that is not full yet, and one that has wrapped."""
    ring = filled(steps, 20, n_step=3, seeds=2, envs=2, lasts=(6, 9))
    packed = torch.zeros(2, min(steps, 10), 2, 6)
    for t in range(max(0, steps - 10), steps):
        obs, action, reward, over, next_obs, last = step(t, seeds=2, envs=2, lasts=(6, 9))
        columns = (obs, action, reward[..., None], over[..., None], next_obs, last[..., None])
        packed[:, t % 10] = torch.from_numpy(np.concatenate(columns, -1)).float()
    other = Replay(SPEC, range(2), 20, 2, GAMMA, 3)
    other.load_state_dict(dict(packed=packed, added=steps, streams=ring.streams.state_dict(), priorities=None))
    for replay in (ring, other):
        replay.add(step(steps, seeds=2, envs=2))
    assert everything(ring) == everything(other) and other.added == steps + 1
    for a, b in zip(ring.sample(3, 9)[:6], other.sample(3, 9)[:6], strict=True):
        assert torch.equal(a, b)


def test_priorities_give_proportional_probabilities_and_inverse_weights():
    """Against Schaul et al., equations 1 and 2, computed directly."""
    alpha, beta, rows = 0.7, 0.5, 11
    priorities, rng = Priorities(2, rows, alpha, beta), Streams((0, 1), "rows")
    priorities.add(torch.arange(rows))
    given = torch.rand(2, rows, generator=torch.Generator().manual_seed(0)) * 5
    priorities.update(torch.arange(rows).expand(1, 2, -1), given.unsqueeze(0))
    drawn, weight = priorities.sample(rng, rows, (1, 40_000))
    p = (given.double() + priorities.floor) ** alpha
    p = p / p.sum(-1, keepdim=True)
    for s in range(2):
        frequency = np.bincount(drawn[0, s].numpy(), minlength=rows) / 40_000
        assert np.abs(frequency - p[s].numpy()).max() < 0.01
        w = (rows * p[s]) ** -beta
        torch.testing.assert_close(weight[0, s], (w / w.max())[drawn[0, s]].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fine, row", [(0.25, 1), (0.75, 2)])
def test_a_small_priority_beside_large_ones_can_be_drawn(fine, row, monkeypatch):
    """Also if it is smaller than the steps of a random number in float32."""
    priorities, rng = Priorities(1, 3, 1.0, 0.5, floor=0.0), Streams((0,), "rows")
    priorities.add(torch.arange(3))
    priorities.update(torch.arange(3).expand(1, 1, -1), torch.tensor([[[0.5, 2**-25, 0.5 - 2**-25]]]))
    numbers = iter([0.5, fine])
    monkeypatch.setattr(rng, "uniform", lambda low, high, shape: torch.full((1, *shape), next(numbers)))
    assert priorities.sample(rng, 3, (1, 1))[0].item() == row


def test_a_full_ring_that_is_written_at_once_is_not_copied():
    partial, full = filled(5, 10), filled(60, 10)
    for replay, copied in ((partial, True), (full, False)):
        state = replay.state_dict(copy=False)
        for found, own in ((state["numbers"], replay.numbers), (state["lanes"][0], first_leaf(replay.observations))):
            assert (found.untyped_storage().data_ptr() != own.untyped_storage().data_ptr()) == copied
            assert found.untyped_storage().nbytes() == found.nbytes, "the rest would be written too"
    own = first_leaf(full.observations).untyped_storage().data_ptr()
    assert full.state_dict()["lanes"][0].untyped_storage().data_ptr() != own


def test_a_new_row_has_the_largest_priority_so_far():
    priorities = Priorities(1, 4, 1.0, 1.0)
    priorities.add(torch.arange(2))
    priorities.update(torch.tensor([[[0, 1]]]), torch.tensor([[[9.0, 1.0]]]))
    priorities.add(torch.tensor([2]))
    leaves = priorities.tree[0, priorities.leaves :]
    assert leaves.tolist() == pytest.approx([9, 1, 9, 0], abs=1e-5)
    assert priorities.tree[0, 1].item() == pytest.approx(19, abs=1e-4), "the root is not the sum"


def test_a_priority_that_is_not_finite_leaves_its_row_as_it_was():
    priorities = Priorities(1, 2, 0.6, 0.4)
    priorities.add(torch.arange(2))
    before = priorities.tree.clone()
    priorities.update(torch.tensor([[[0, 1]]]), torch.tensor([[[float("nan"), float("inf")]]]))
    assert torch.equal(priorities.tree, before)


def test_rows_not_yet_filled_are_never_drawn():
    replay = filled(steps=3, capacity=100, priorities=(1.0, 1.0))
    batch = replay.sample(10, 100)
    assert batch.weight is not None
    assert set(batch.obs.flatten().tolist()) == {0, 1, 2}
    assert batch.weight.max() == 1


def on_disk(folder, state=None, capacity=50, steps=()):
    """A ring with its observations in a folder, which continues from a state, if there is one, for some steps."""
    replay = Replay(SPEC, (0,), capacity, folder=folder)
    if state is not None:
        replay.load_state_dict(state)
    for t in steps:
        replay.add(step(t))
    return replay


def require_sound(replay, steps):
    """Check that the rows are exactly those of the given steps, and that their observations are the right ones."""
    assert everything(replay) == {t: (t, pytest.approx(0.99), t + 1, 0) for t in steps}


def test_a_run_killed_twice_draws_nothing_that_was_overwritten(tmp_path):
    first = on_disk(tmp_path, steps=range(200))
    state = first.state_dict()
    for t in range(200, 260):  # lost, except its observations, which overwrote those up to 159
        first.add(step(t))
    on_disk(tmp_path, state, steps=range(200, 201))
    require_sound(on_disk(tmp_path, state), range(160, 200))


def test_a_run_continues_with_an_empty_ring_if_all_rows_were_overwritten(tmp_path):
    first = on_disk(tmp_path, steps=range(200))
    state = first.state_dict()
    for t in range(200, 420):  # lost, and so are all earlier observations
        first.add(step(t))
    again = on_disk(tmp_path, state)
    assert len(again) == 0
    for t in range(200, 300):
        again.add(step(t))
        require_sound(again, range(max(200, t - 49), t + 1))


@pytest.mark.parametrize("more", [20, 60])
def test_rows_whose_observations_were_overwritten_lose_their_priorities(more, tmp_path):
    def ring():
        return Replay(SPEC, (0,), 50, priorities=(0.6, 0.4), folder=tmp_path)

    first, again = ring(), ring()
    for t in range(200):
        first.add(step(t))
    state = first.state_dict()
    for t in range(200, 200 + more):
        first.add(step(t))
    again.load_state_dict(state)
    gone = max(150, 99 + more)  # 101 observations are kept: one for each step since then
    assert set(again.sample(10, 100).obs.flatten().tolist()) == set(range(gone + 1 if more > 50 else gone, 200))


def test_an_observation_is_dropped_before_it_is_overwritten(tmp_path, monkeypatch):
    replay = Replay(SPEC, (0,), 50, folder=tmp_path)
    for t in range(60):  # episodes of one step, whose observations fill the files
        replay.add(step(t, lasts=range(60)))
    state, put = replay.state_dict(), iter((tree_map, killed))
    monkeypatch.setattr(ring, "tree_map", lambda *args: next(put)(*args))
    with pytest.raises(KeyboardInterrupt):
        replay.add(step(60))
    monkeypatch.undo()
    again = on_disk(tmp_path, state)
    assert everything(again) == {t: (t, pytest.approx(0.99), t + 1, 1) for t in range(11, 60)}


def killed(*args):
    tree_map(*args)
    raise KeyboardInterrupt


def test_a_larger_ring_killed_before_it_saves_can_be_made_again(tmp_path):
    state = on_disk(tmp_path, steps=range(40)).state_dict()
    for _ in range(2):
        require_sound(on_disk(tmp_path, state, capacity=100), range(40))


def test_a_larger_ring_skips_rows_overwritten_after_the_save(tmp_path):
    replay = on_disk(tmp_path, steps=range(40))
    state = replay.state_dict()
    for t in range(40, 120):  # its 101 observations wrapped: the first 20 are gone
        replay.add(step(t))
    for _ in range(2):
        require_sound(on_disk(tmp_path, state, capacity=100), range(20, 40))
    longer = on_disk(tmp_path, state, capacity=100, steps=range(40, 45))
    require_sound(longer, range(20, 45))
