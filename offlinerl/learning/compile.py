"""A training step traced once, with its backward passes and optimiser steps, and compiled as one graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

Step = Callable[..., Any]

OPTIONS = {
    "size_asserts": False,  # callers look at `signature` themselves; checks cost a twentieth of a small update
    "cpp.min_chunk_size": 4096,  # elements from which another thread is worth its waking
}


def signature(tensors: Sequence[Tensor]) -> tuple:
    """What a compiled graph takes for granted of its inputs."""
    return tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)


def capture(steps: Sequence[Step], example: Sequence[Tensor], states: Sequence[Sequence[Tensor]]) -> list[Step]:
    """Compile ``steps``: one function of tensors that trains in place, closed over several sets of tensors.

    Unlike ``torch.compile`` of a function that calls backward, which stops at every backward pass, the trace
    holds the whole step: forward, backward, optimiser and target update are fused across their borders. It
    is made of the first step and serves them all.

    Args:
        steps: each reads tensors, changes others that it closes over in place, returns a tree of
            tensors. They may not look at values on the host.
        example: arguments of the shapes, strides and types they will be called with.
        states: for each step every tensor it changes in place, in the same order. Tracing runs the first
            step once; its tensors are put back after.

    Returns:
        Functions to call as ``steps``; ``steps`` themselves, with a warning, where compiling fails (no C++
        compiler, say).
    """
    shape_of_result: Any = None

    def flat(*tensors: Tensor) -> list[Tensor]:
        nonlocal shape_of_result
        result, shape_of_result = tree_flatten(steps[0](*tensors))
        return result

    before = [t.detach().clone() for t in states[0]]
    try:
        graph, closed_over = _lift_constants(make_fx(flat)(*example))
        with torch.no_grad():
            compiled = torch._inductor.compile(graph, [*example, *closed_over], options=OPTIONS)
    except Exception as error:
        warnings.warn(
            f"training runs uncompiled, since torch.compile failed here: {type(error).__name__}: "
            + (str(error).strip().splitlines() or ["no message"])[0],
            stacklevel=2,
        )
        return list(steps)
    finally:
        with torch.no_grad():
            for tensor, saved in zip(states[0], before, strict=True):
                tensor.copy_(saved)

    def bind(tensors: Sequence[Tensor]) -> Step:
        def run(*args: Tensor) -> Any:
            with torch.no_grad():
                return tree_unflatten(compiled(*args, *tensors), shape_of_result)

        return run

    index = {_place(t): i for i, t in enumerate(states[0])}
    return [
        bind([state[index[_place(t)]].detach() if _place(t) in index else t for t in closed_over]) for state in states
    ]


def _lift_constants(graph: torch.fx.GraphModule) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """Turn the tensors a trace closed over into inputs, which a compiler knows how to change in place."""
    placeholders: dict[tuple, tuple[Tensor, torch.fx.Node]] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(graph, node.target).detach()
        place = _place(tensor)
        if place not in placeholders:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"state_{len(placeholders)}")
            placeholders[place] = tensor, last
        node.replace_all_uses_with(placeholders[place][1])
        graph.graph.erase_node(node)
    # A new module, for the old one still owns the tensors and would pass each a second time.
    return torch.fx.GraphModule(torch.nn.Module(), graph.graph), [tensor for tensor, _ in placeholders.values()]


def _place(tensor: Tensor) -> tuple:
    """Where a tensor lies in memory, which is the same for all that alias it."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()
