"""Trees: a leaf is an array or a tensor; dictionaries and tuples of trees are trees; None has no leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from offlinerl.util.errors import counted

Tree = Any


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply a function to the corresponding leaves of trees. Returns a tree of the same structure."""
    if isinstance(tree, Mapping):
        return {key: tree_map(function, tree[key], *(other[key] for other in others)) for key in tree}
    if isinstance(tree, tuple):
        found = (tree_map(function, *parts) for parts in zip(tree, *others, strict=True))
        return type(tree)(*found) if hasattr(tree, "_fields") else tuple(found)
    return None if tree is None else function(tree, *others)


def tree_leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """The paths and leaves of a tree, with paths such as ``outer/inner``; the path of a tree that is a leaf is ""."""
    if isinstance(tree, Mapping | tuple):
        if isinstance(tree, tuple):
            tree = tree._asdict() if hasattr(tree, "_asdict") else dict(enumerate(tree))
        for key, inner in tree.items():
            yield from tree_leaves(inner, f"{path}/{key}" if path else str(key))
    elif tree is not None:
        yield path, tree


def tree_like(model: Tree, tree: Tree) -> Tree:
    """A tree with the keys of its dictionaries in the order that a tree of the same structure has."""
    return tree_map(lambda _, leaf: leaf, model, tree)


def first_leaf(tree: Tree) -> Any:
    """The first leaf, to get properties that all leaves share."""
    return next(tree_leaves(tree))[1]


def observed_in_words(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The leaves of an observation, by their paths and shapes, for a message."""
    if list(shapes) == [""] and len(shapes[""]) == 1:
        return counted(shapes[""][0], "observation")
    return "observations of " + ", ".join(f"{path or 'images'} {'x'.join(map(str, s))}" for path, s in shapes.items())
