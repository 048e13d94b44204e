"""Exports a policy as a graph for other programs: TorchScript or ONNX."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offlinerl.envs import spaces
from offlinerl.rollout.deployed import DeployedPolicy
from offlinerl.rollout.loop import Diverged, diverged_in_words
from offlinerl.util.atomic import atomic_write
from offlinerl.util.errors import UserError
from offlinerl.util.trees import tree_map

ALIKE = 1e-5
"""Largest difference between an exported policy's actions and the policy's, in units of half their range."""


class Portable(nn.Module):
    """One seed's policy as a function of tensors: from the leaves of a batch of observations ``[B, ...]``, in the order
    of its ``names``, to actions ``[B, A]`` float32 within their bounds, or ``[B]`` int64 if they are discrete. It
    includes the normalisation of observations and the scaling of actions.

    Raises:
        UserError: the policy depends on earlier steps, which a function cannot.
    """

    def __init__(self, policy: DeployedPolicy):
        super().__init__()
        self.names = [leaf.path.replace("/", ".") or "obs" for leaf in policy.spec.obs]
        policy = copy.copy(policy)
        policy.agent = policy.agent.part(slice(0, 1))
        for parameter in policy.agent.parameters():
            parameter.requires_grad_(False)
            parameter.data = parameter.data.clone()  # a file would include the memory shared with other policies
        self.policy = [policy]  # in a list, because a LightningModule within another module cannot be traced
        self.register_buffer("low", torch.from_numpy(policy.low), persistent=False)
        self.register_buffer("high", torch.from_numpy(policy.high), persistent=False)
        with torch.inference_mode():
            if not self.act(*self.example(4)).isfinite().all():
                raise Diverged(diverged_in_words(policy.agent, 0))
            first, second = self(*self.example(4)), self(*self.example(4))
        if not torch.equal(first, second):
            raise UserError(
                f"{type(policy.agent).__name__} acts by what it remembers of the episode, but a graph remembers"
                " nothing; deploy it with offlinerl.load_policy instead"
            )

    def act(self, *leaves: Tensor) -> Tensor:
        """The agent's own actions, ``[B, A]``."""
        agent = self.policy[0].agent
        obs = dict(zip((leaf.path for leaf in agent.spec.obs), leaves, strict=True))
        return agent.act(tree_map(lambda x: x.unsqueeze(0), obs.get("", obs)))[0]

    def forward(self, *leaves: Tensor) -> Tensor:
        policy, action = self.policy[0], self.act(*leaves)
        if policy.spec.num_actions:
            return action[:, 0].long() + policy.spec.first_action
        action = torch.minimum(torch.maximum(action, self.low), self.high)
        return action.round() if policy.spec.whole else action

    def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Random observations of the right shapes, ``[B, ...]``."""
        rng, device = np.random.default_rng(seed), self.low.device
        drawn = [
            rng.integers(256, size=(batch, *leaf.shape), dtype=np.uint8) if leaf.dtype == "uint8" else
            rng.normal(size=(batch, *leaf.shape)).astype(np.float32)
            for leaf in self.policy[0].spec.obs
        ]  # fmt: skip
        return tuple(torch.from_numpy(of).to(device) for of in drawn)

    def facts(self) -> dict[str, Any]:
        """What a program must know about its inputs and its output: with the names of the numbers in them, if the
        dataset was a table."""
        policy, spec, task = self.policy[0], self.policy[0].spec, self.policy[0].agent.task or {}
        inputs: list[dict[str, Any]] = [
            dict(name=name, shape=["batch", *leaf.shape], dtype=leaf.dtype)
            for name, leaf in zip(self.names, spec.obs, strict=True)
        ]
        parts = task.get("parts") or {}
        for given, leaf in zip(inputs, spec.obs, strict=True):
            columns = parts.get(leaf.path, []) if leaf.path else [name for part in parts.values() for name in part]
            if (len(columns),) == leaf.shape:
                given["columns"] = columns
            if not leaf.path and policy.own:
                given["parts"] = {path: spaces.size(space) for path, space in policy.own.items() if path}
        action: dict[str, Any] = dict(dtype="float32", low=policy.low.tolist(), high=policy.high.tolist())
        if spec.num_actions:
            action = dict(dtype="int64", first=spec.first_action, count=spec.num_actions)
        if task.get("actions"):
            action["columns"] = task["actions"]
        return dict(agent=type(policy.agent).__name__, seed=policy.seed, inputs=inputs, action=action)


def write_torchscript(policy: DeployedPolicy, file: Path, overwrite: bool = False) -> dict[str, Any]:
    """Writes a policy for ``torch.jit.load``, in Python or C++. Returns the description of its inputs and output, which
    the file holds as ``policy.json``.

    Raises:
        UserError: the policy depends on earlier steps, or the file exists.
    """
    module = Portable(policy)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, but its successor cannot be loaded in C++
        traced = torch.jit.trace(module, module.example(4), check_trace=False)
    _require_alike(module, lambda *leaves: traced(*leaves).numpy(), file)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={"policy.json": json.dumps(module.facts())})
    with atomic_write(file, overwrite) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return module.facts()


def write_onnx(policy: DeployedPolicy, file: Path, overwrite: bool = False) -> dict[str, Any]:
    """Writes a policy for ONNX Runtime and similar programs. Returns the description of its inputs and output, which
    the file holds as metadata.

    Raises:
        UserError: the policy depends on earlier steps, the file exists, or the extra ``onnx`` is not installed.
    """
    if missing := [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"ONNX needs the extra onnx, because {missing[0]} is not installed: pip install 'offlinerl[onnx]'"
        )
    import onnx
    import onnxruntime

    module, buffer = Portable(policy), io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # it prints what it cannot export
        warnings.simplefilter("ignore")  # the newer exporter takes half a minute, this one a second
        try:
            torch.onnx.export(
                module, module.example(4), buffer, dynamo=False, input_names=module.names, output_names=["action"],
                dynamic_axes={name: {0: "batch"} for name in (*module.names, "action")},
            )  # fmt: skip
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            said, agent = str(error).splitlines()[0], type(policy.agent).__name__
            raise UserError(
                f"{file}: ONNX cannot hold the policy of {agent} ({said}): export it with --torchscript"
            ) from error
    graph = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(graph, {"policy": json.dumps(module.facts())})
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    taken = {given.name for given in session.get_inputs()}  # a policy may ignore some of them

    def run(*leaves: Tensor) -> np.ndarray:
        fed = zip(module.names, leaves, strict=True)
        return session.run(None, {name: leaf.numpy() for name, leaf in fed if name in taken})[0]

    _require_alike(module, run, file)
    with atomic_write(file, overwrite) as temporary:
        temporary.write_bytes(graph.SerializeToString())
    return module.facts()


def _require_alike(module: Portable, exported: Any, file: Path) -> None:
    """Raises a UserError unless an exported policy acts like the original, in batches of several sizes."""
    half = ((module.high - module.low) / 2).clamp(min=1e-6).numpy()
    for batch in (1, 3, 64):
        given = module.example(batch, seed=batch)
        with torch.inference_mode():
            due, have = module(*given).numpy(), exported(*given)
        apart = np.abs(due - have) / (1 if due.dtype == np.int64 else half)
        if have.shape != due.shape or have.dtype != due.dtype or not apart.max() <= ALIKE:
            raise UserError(
                f"{file} would not act like the policy: actions differ by {apart.max():.2g} of half their"
                " range; export it in the other format"
            )
