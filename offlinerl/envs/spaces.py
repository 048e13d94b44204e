"""Observations of any space as agents see them, from files and from environments alike: images, and vectors as
``gymnasium.spaces.flatten`` makes them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from offlinerl.util.errors import UserError
from offlinerl.util.trees import Tree, tree_map


class Misfit(UserError):
    """A value lies outside its space.

    Attributes:
        row: of the first such value.
        what: the rest of the message, which the caller begins with the place.
    """

    def __init__(self, row: int, what: str):
        super().__init__(f"row {row} {what}")
        self.row, self.what = row, what


class Other(gym.Space[Any]):
    """A part of a kind that cannot become a vector, such as Text; see ``size``."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def __repr__(self) -> str:
        return f"of kind {self.kind}"


def from_json(node: Mapping[str, Any]) -> gym.Space | None:
    """The space that Minari's JSON describes, with its parts in the order written; None if it describes none. A part
    that cannot become a vector is an ``Other``, because it may not be among the requested parts.

    Raises:
        UserError: the whole space is of a kind that cannot become a vector.
    """
    space = _described(node)
    if isinstance(space, Other):
        raise UserError(f"a space {space} cannot be converted into a vector; leave it out of the dataset")
    return space


def _described(node: Mapping[str, Any]) -> gym.Space | None:
    kind, inner = node.get("type"), node.get("subspaces")
    if isinstance(inner, Mapping):  # an ordered dictionary, because Gymnasium sorts the keys of others
        return spaces.Dict(OrderedDict((key, _known(part)) for key, part in inner.items()))
    if inner is not None:
        return spaces.Tuple([_known(part) for part in inner])
    if kind == "Discrete":
        return spaces.Discrete(int(node["n"]), start=int(node.get("start", 0)))
    if kind == "MultiDiscrete":
        nvec = np.array(node["nvec"])
        return spaces.MultiDiscrete(nvec, start=np.array(node.get("start", np.zeros_like(nvec))))
    if kind == "MultiBinary":
        return spaces.MultiBinary(node["n"])
    if kind == "Box":
        dtype, shape = np.dtype(node["dtype"]), tuple(node["shape"])
        low, high = (np.broadcast_to(np.array(node[side], dtype), shape) for side in ("low", "high"))
        return spaces.Box(low, high, shape, dtype)
    return None if kind is None else Other(kind)


def to_json(leaf: gym.Space) -> dict[str, Any]:
    """What ``from_json`` reads, for a leaf that agents can see; a ``Box`` with the widest of its bounds only."""
    if isinstance(leaf, spaces.Discrete):
        return dict(type="Discrete", n=int(leaf.n), start=int(leaf.start))
    if isinstance(leaf, spaces.MultiDiscrete):
        return dict(type="MultiDiscrete", nvec=leaf.nvec.tolist(), start=leaf.start.tolist())
    if isinstance(leaf, spaces.MultiBinary):
        return dict(type="MultiBinary", n=list(leaf.shape))
    low, high = leaf.low.min(initial=0).item(), leaf.high.max(initial=0).item()
    return dict(type="Box", dtype=leaf.dtype.name, shape=list(leaf.shape), low=low, high=high)


def _known(node: Mapping[str, Any]) -> gym.Space:
    space = _described(node)
    if space is None:
        raise UserError("a space has no type; write the dataset again")
    return space


def parts(space: gym.Space | None, keys: Sequence[str] | None = None, source: str = "") -> dict[str, gym.Space | None]:
    """The leaves of a space by their paths, ``outer/inner``; the path is "" if the space is itself a leaf.

    Args:
        space: parts of a ``Tuple`` are named ``_index_0`` and so on, as in Minari; None is a leaf about which nothing
            is known.
        keys: the requested parts, in this order; one that has parts stands for all of them. By default all, in the
            order of ``gymnasium.spaces.flatten``. Ignored for a space without parts.
        source: what has the space, for the message.

    Raises:
        UserError: there is no such part.
    """

    def leaves(node: gym.Space | None, path: str) -> dict[str, gym.Space | None]:
        if isinstance(node, spaces.Dict):
            inner = node.spaces.items()
        elif isinstance(node, spaces.Tuple):
            inner = ((f"_index_{i}", part) for i, part in enumerate(node.spaces))
        else:
            return {path: node}
        return {leaf: s for key, part in inner for leaf, s in leaves(part, f"{path}/{key}" if path else key).items()}

    found = leaves(space, "")
    if not keys or "" in found:
        return found
    chosen = {}
    for key in keys:
        below = {leaf: part for leaf, part in found.items() if f"{leaf}/".startswith(f"{key}/")}
        if not below:
            raise no_part(source, key, found)
        chosen |= below
    return chosen


def no_part(source: str, key: str, known: Iterable[str]) -> UserError:
    """The error to raise if observations lack a requested part."""
    names = ", ".join(filter(None, known))
    if not names:
        return UserError(f"{source}: its observations are one vector without parts; leave out --obs-keys")
    return UserError(f"{source}: observations have no part {key!r}; they have {names}")


def name_of(env: gym.Env) -> str:
    """The name of an environment."""
    return env.spec.id if env.spec else type(env.unwrapped).__name__


def is_observed(space: gym.Space) -> bool:
    """Whether a space already is what agents see: vectors or images."""
    return isinstance(space, spaces.Box) and (len(space.shape) == 1 or is_image(space))


def is_image(space: gym.Space | None) -> bool:
    """Whether a leaf is an image, or any other array with three axes or more."""
    if not isinstance(space, spaces.Box):
        return False
    return len(space.shape) >= 3 or (space.dtype == np.uint8 and len(space.shape) == 2)


LEAST_SIDE = 16
"""If the first axis of an image is smaller than this and both others are not, it is taken to be the channel axis."""


def require_image_axes(shape: Sequence[int]) -> None:
    """Raises a UserError unless an image's shape can be ``(H, W, C)`` or ``(H, W)``."""
    height, width, channels = (*shape, 1)[:3]
    if len(shape) > 3 or height < LEAST_SIDE <= min(width, channels):
        raise UserError(
            f"images of shape {tuple(shape)} have other axes than height, width and channels: put them in this order,"
            " those of several frames as channels of one image"
        )


def size(space: gym.Space) -> int:
    """The number of entries in the vector of a leaf.

    Raises:
        UserError: it cannot become a vector.
    """
    if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return spaces.flatdim(space)
    raise UserError(
        f"a space {space} cannot be converted into a vector; leave it out, with --obs-keys of the other parts"
    )


def encode(space: gym.Space | None, column: np.ndarray) -> np.ndarray:
    """Values ``[T, ...]`` of a leaf as vectors ``[T, D]``: numbers flattened, discrete values one-hot.

    Raises:
        Misfit: a discrete value is not an integer, or is out of range.
    """
    column = np.asarray(column)
    flat = column.reshape(len(column), math.prod(column.shape[1:]))  # also where T is 0
    if isinstance(space, spaces.Discrete):
        counts, start = np.array([space.n]), np.array([space.start])
    elif isinstance(space, spaces.MultiDiscrete):
        counts, start = space.nvec.ravel(), space.start.ravel()
    else:
        return flat
    require_choices(flat, counts, start)
    hot = np.zeros((len(flat), counts.sum()), np.float32)
    hot[np.arange(len(flat))[:, None], np.r_[0, np.cumsum(counts)[:-1]] + (flat - start).astype(np.int64)] = 1
    return hot


def require_choices(flat: np.ndarray, counts: np.ndarray, start: np.ndarray) -> None:
    """Raises a Misfit unless ``flat`` ``[T, C]`` holds integers, in column c one of the ``counts[c]`` from ``start[c]``
    on; and a UserError if it does not have as many columns."""
    if flat.shape[1] != len(counts):
        raise UserError(f"there are {flat.shape[1]} numbers per row, but the space has {len(counts)} choices")
    with np.errstate(invalid="ignore"):
        wrong = ~((flat == np.floor(flat)) & (flat >= start) & (flat < start + counts))
    if wrong.any():
        row, c = np.argwhere(wrong)[0]
        low, high = start[c], start[c] + counts[c] - 1
        raise Misfit(int(row), f"holds {flat[row, c]:g} instead of a whole number from {low} to {high}")


def observe(leaves: Mapping[str, gym.Space | None], columns: Sequence[np.ndarray]) -> Tree:
    """What agents see of the leaves, whose columns are ``[T, ...]`` each: one vector ``[T, O]`` of all, see ``encode``;
    or, with images, ``[T, H, W, C]`` or ``[T, H, W]``, a dictionary of all leaves by path; an image alone stays as it
    is."""
    found = {
        path: column if is_image(space) else encode(space, column)
        for (path, space), column in zip(leaves.items(), columns, strict=True)
    }
    if len(found) == 1:
        return next(iter(found.values()))
    return found if any(map(is_image, leaves.values())) else np.concatenate(list(found.values()), axis=1)


def observed(leaves: Mapping[str, gym.Space]) -> spaces.Box | spaces.Dict:
    """The space of what ``observe`` makes."""

    def vector(*parts: gym.Space) -> spaces.Box:
        boxes = [spaces.flatten_space(space) for space in parts if size(space)]
        low, high = (np.concatenate([getattr(box, side).ravel() for box in boxes]) for side in ("low", "high"))
        dtype = np.result_type(*(np.float32 if box.dtype.kind != "f" else box.dtype for box in boxes))
        return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)

    if not any(map(is_image, leaves.values())):
        return vector(*leaves.values())
    found = [(path, space if is_image(space) else vector(space)) for path, space in leaves.items()]
    return found[0][1] if len(found) == 1 else spaces.Dict(OrderedDict(found))


def shapes(space: gym.Space) -> Tree:
    """The shapes of observations in a space made by ``observed``."""
    return {path: part.shape for path, part in space.items()} if isinstance(space, spaces.Dict) else space.shape


def child(node: Any, path: str) -> Any:
    """The value at a path in an observation."""
    for key in path.split("/") if path else ():
        node = node[int(key.removeprefix("_index_"))] if isinstance(node, (tuple, list)) else node[key]
    return node


def converted(leaves: Mapping[str, gym.Space], obs: Any) -> Tree | None:
    """What agents see, see ``observe``, of an environment's own observation with these leaves, or of a batch of them;
    None if it is something else.

    Raises:
        Misfit: a discrete value is not an integer, or is out of range.
    """
    try:
        columns = [np.asarray(child(obs, path)) for path in leaves]
    except (LookupError, TypeError, ValueError):
        return None
    if any(column.dtype.kind not in "biuf" for column in columns):
        return None
    shapes = [space.shape or () for space in leaves.values()]
    batched = columns[0].ndim > len(shapes[0])
    if any(column.shape[batched:] != shape for column, shape in zip(columns, shapes, strict=True)):
        return None
    if batched:
        return observe(leaves, columns) if len({*map(len, columns)}) == 1 else None
    return tree_map(lambda column: column[0], observe(leaves, [column[None] for column in columns]))


class Observed(gym.ObservationWrapper):
    """A wrapper whose observations are what agents see; see ``observe``.

    Args:
        env: with observations of any space.
        keys: the requested parts; see ``parts``.

    Raises:
        UserError: there is no such part, or it can become neither a vector nor an image.
    """

    def __init__(self, env: gym.Env, keys: Sequence[str] | None = None):
        super().__init__(env)
        self.name, self.own_space = name_of(env), env.observation_space
        self.leaves = parts(env.observation_space, keys, self.name)
        self.observation_space = observed(self.leaves)
        self.numbers = all(isinstance(leaf, spaces.Box) and not is_image(leaf) for leaf in self.leaves.values())

    def observation(self, observation: Any) -> Tree:
        columns = [np.asarray(child(observation, path)) for path in self.leaves]
        if self.numbers:  # the same as ``observe``, but faster
            return np.concatenate([column.ravel() for column in columns])
        columns = [column[None] for column in columns]
        try:
            return tree_map(lambda column: column[0], observe(self.leaves, columns))
        except Misfit as misfit:
            raise UserError(f"{self.name}: an observation {misfit.what}; fix the environment") from misfit
