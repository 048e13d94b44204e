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


def signature(tensors: Sequence[Tensor]) -> tuple:
    """What a compiled graph takes for granted of its inputs."""
    return tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)


def capture(step: Step, example: tuple, state: Sequence[Tensor]) -> Step:
    """Compile ``step``, a function of tensors that trains in place.

    Unlike ``torch.compile`` of a function that calls backward, which stops at every backward pass, the trace
    holds the whole step: forward, backward, optimiser and target update are fused across their borders.

    Args:
        step: reads trees of tensors, changes tensors it closes over in place, returns a tree of tensors.
            It may not look at values on the host.
        example: arguments of the shapes, strides and types it will be called with.
        state: every tensor ``step`` changes in place. Tracing runs the step once; they are put back after.

    Returns:
        A function to call as ``step``; ``step`` itself, with a warning, where compiling fails (no C++
        compiler, say).
    """
    leaves, tree = tree_flatten(example)
    shape_of_result = None

    def flat(*tensors: Tensor) -> list[Tensor]:
        nonlocal shape_of_result
        result, shape_of_result = tree_flatten(step(*tree_unflatten(list(tensors), tree)))
        return result

    before = [t.detach().clone() for t in state]
    try:
        graph, closed_over = _lift_constants(make_fx(flat)(*leaves))
        with torch.no_grad():
            compiled = torch._inductor.compile(graph, [*leaves, *closed_over])
    except Exception as error:
        warnings.warn(
            f"training runs uncompiled, since torch.compile failed here: {type(error).__name__}: "
            + (str(error).strip().splitlines() or ["no message"])[0],
            stacklevel=2,
        )
        return step
    finally:
        with torch.no_grad():
            for tensor, saved in zip(state, before, strict=True):
                tensor.copy_(saved)

    def run(*args: Any) -> Any:
        with torch.no_grad():
            return tree_unflatten(list(compiled(*tree_flatten(args)[0], *closed_over)), shape_of_result)

    return run


def _lift_constants(graph: torch.fx.GraphModule) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """Turn the tensors a trace closed over into inputs, which a compiler knows how to change in place."""
    placeholders: dict[Tensor, torch.fx.Node] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(graph, node.target).detach()
        key = next((t for t in placeholders if _same(t, tensor)), tensor)
        if key is tensor:
            with graph.graph.inserting_after(last):
                last = placeholders[tensor] = graph.graph.placeholder(f"state_{len(placeholders)}")
        node.replace_all_uses_with(placeholders[key])
        graph.graph.erase_node(node)
    # A new module, for the old one still owns the tensors and would pass each a second time.
    return torch.fx.GraphModule(torch.nn.Module(), graph.graph), list(placeholders)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
