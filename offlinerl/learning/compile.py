"""Trace a whole training step once, including backward passes and optimiser steps, and compile it as one graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_flatten, tree_unflatten

from offlinerl.util.errors import UserError, first_line

Step = Callable[..., Any]
Launch = Callable[..., Sequence[Tensor]]

OPTIONS = {
    "size_asserts": False,  # callers compare `signature` themselves; the asserts take 5% of a small update
    "cpp.min_chunk_size": 4096,  # elements per thread; for fewer, waking a thread does not pay
}


def signature(tensors: Sequence[Tensor]) -> tuple:
    """What a compiled graph assumes about its inputs: shapes, strides, dtypes and devices."""
    return tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)


def capture(steps: Sequence[Step], example: Sequence[Tensor], states: Sequence[Sequence[Tensor]]) -> list[Step]:
    """Compile ``steps``: the same training step, closed over different sets of tensors that it changes in place.

    ``torch.compile`` of a function that calls backward breaks the graph at every backward pass. Here the trace holds
    the whole step, so that forward, backward, optimiser and target update can be fused. The first step is traced, and
    the compiled graph is used for all of them. On a GPU it is also recorded as a CUDA graph. Compiled code is cached on
    disk for later processes.

    Args:
        steps: each reads tensors, changes tensors that it closes over in place, and returns a tree of tensors. They
            must not read tensor values on the host.
        example: arguments with the shapes, strides and dtypes that the steps will be called with.
        states: for each step, all tensors that it changes in place, in the same order. Tracing runs the first step,
            and recording runs every step; the tensors are restored afterwards.

    Returns:
        Functions to call instead of ``steps``; or ``steps`` themselves, with a warning, if compiling fails (without a
        C++ compiler, for example) or a CUDA graph gives other results than its step.
    """
    shape_of_result: Any = None
    on_gpu = example[0].device.type == "cuda"
    if on_gpu:  # a CUDA graph reads contiguous copies of its arguments
        example = [t.contiguous() for t in example]

    def flat(*tensors: Tensor) -> list[Tensor]:
        nonlocal shape_of_result
        result, shape_of_result = tree_flatten(steps[0](*tensors))
        return result

    try:
        with put_back(states[0]):
            graph, closed_over = _lift_constants(make_fx(flat)(*example))
        # The generated code depends on the number of threads, so the cache key must too.
        options = {**OPTIONS, "cpp.threads": torch.get_num_threads(), "cpp_wrapper": not on_gpu}
        static = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)  # required by the cache on disk
        with torch.no_grad(), tracing(TracingContext(static)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # our setting decides that
            compiled = torch._inductor.compile(graph, [*example, *closed_over], options=options)
    except UserError:  # the update itself is wrong, compiled or not
        raise
    except Exception as error:
        warnings.warn(
            f"training runs uncompiled, since torch.compile failed here: {type(error).__name__}: {first_line(error)}",
            stacklevel=2,
        )
        return list(steps)

    def bind(state: Sequence[Tensor]) -> Launch:
        tensors = [state[index[_place(t)]].detach() if _place(t) in index else t for t in closed_over]

        def launch(*args: Tensor) -> Sequence[Tensor]:
            with torch.no_grad():
                return compiled(*args, *tensors)

        return launch

    def in_its_shape(launch: Launch) -> Step:
        def run(*args: Tensor) -> Any:
            return tree_unflatten(launch(*args), shape_of_result)

        return run

    index = {_place(t): i for i, t in enumerate(states[0])}
    launches = [bind(state) for state in states]
    if on_gpu:
        launches = [Recorded(launch, example, state) for launch, state in zip(launches, states, strict=True)]
        for step, launch, state in zip(steps, launches, states, strict=True):
            if not _same_effect(lambda *args, step=step: tree_flatten(step(*args))[0], launch, example, state):
                warnings.warn(
                    "training runs uncompiled, since its recording on this GPU gives different results", stacklevel=2
                )
                return list(steps)
    return [in_its_shape(launch) for launch in launches]


class Recorded:
    """A function of tensors recorded once as a CUDA graph. A call copies its arguments to the graph's input buffers,
    launches all kernels at once, and copies the results, all of them float32 tensors, in one piece.

    Args:
        launch: reads and changes tensors on one GPU, without reading tensor values on the host.
        example: contiguous arguments with the shapes and dtypes that it will be called with.
        state: every tensor that it changes in place; they are restored after the recording.
    """

    WARM_UP = 3
    """Calls before the recording, in which libraries choose kernels and allocate workspaces."""

    @torch.no_grad()
    def __init__(self, launch: Launch, example: Sequence[Tensor], state: Sequence[Tensor]):
        self.launch = launch  # keeps the tensors alive that the recording reads
        self.given = [t.clone() for t in example]
        # One kernel launch copies all arguments of a dtype.
        self.of_type = [[i for i, t in enumerate(example) if t.dtype == dtype] for dtype in {t.dtype for t in example}]
        with put_back(state):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(self.WARM_UP):
                    found = launch(*self.given)
            torch.cuda.current_stream().wait_stream(stream)
            self.shapes = [t.shape for t in found]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.found = torch.cat([t.reshape(-1) for t in launch(*self.given)])

    @torch.no_grad()
    def __call__(self, *args: Tensor) -> list[Tensor]:
        for which in self.of_type:
            torch._foreach_copy_([self.given[i] for i in which], [args[i] for i in which])
        self.graph.replay()
        pieces = self.found.clone().split([shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]


@contextmanager
def put_back(state: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Restore tensors that are changed in place within the context; yields copies of their values before."""
    before = [t.detach().clone() for t in state]
    try:
        yield before
    finally:
        with torch.no_grad():
            for tensor, saved in zip(state, before, strict=True):
                tensor.copy_(saved)


def _same_effect(
    one: Launch, other: Launch, example: Sequence[Tensor], state: Sequence[Tensor], error: float = 0.1
) -> bool:
    """Whether two functions return and change the same, compared by the norm of every tensor rather than by entry: with
    Adam, an entry whose gradient is nearly zero may move in either direction."""
    found, moved = [], []
    for launch in (one, other):
        with put_back(state) as before:
            found.append([t.detach() for t in launch(*example)])
            moved.append([after.detach() - was for after, was in zip(state, before, strict=True)])
    return all(
        bool((a - b).norm() <= error * a.norm() + 1e-6)
        for pair in (found, moved)
        for a, b in zip(*([t.double() for t in of] for of in pair), strict=True)
    )


def _lift_constants(graph: torch.fx.GraphModule) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """Turn the tensors that a trace closed over into graph inputs, which the compiler can change in place."""
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
                last.meta["val"] = tensor
            placeholders[place] = tensor, last
        node.replace_all_uses_with(placeholders[place][1])
        graph.graph.erase_node(node)
    # A new module: the old one still owns the tensors and would pass each of them twice.
    return torch.fx.GraphModule(torch.nn.Module(), graph.graph), [tensor for tensor, _ in placeholders.values()]


def _place(tensor: Tensor) -> tuple:
    """A tensor's location in memory, equal for tensors that alias each other."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()
