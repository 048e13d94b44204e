"""``offlinerl select``: rank the policies of several runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.data import load, registry
from offlinerl.data.dataset import Dataset
from offlinerl.data.edit import made_of
from offlinerl.data.fingerprint import checksums_of, contents_of, is_of
from offlinerl.envs import spaces
from offlinerl.evaluation import plots
from offlinerl.evaluation.evaluate import evaluate, make_pool, task_for
from offlinerl.evaluation.fqe import choice_of, fitted_q_evaluation, has_diverged
from offlinerl.evaluation.off_policy import discounted_returns
from offlinerl.evaluation.statistics import CAUTION, confidence_bounds, next_to_play, student
from offlinerl.evaluation.task import Task
from offlinerl.evaluation.weighing import require_log_probs, weighted_doubly_robust, weighted_importance_sampling
from offlinerl.rollout.deployed import DeployedPolicy
from offlinerl.rollout.loop import Diverged, diverged_in_words
from offlinerl.training import config
from offlinerl.training.request import entry_of, is_missing, require_dataset, takes_columns
from offlinerl.training.tasks import in_one_vector
from offlinerl.util.atomic import require_place, write_json
from offlinerl.util.device import pick_device
from offlinerl.util.display import Display, between, places, shown, table, unit_of
from offlinerl.util.errors import UserError, command, counted, either
from offlinerl.util.folder import find_checkpoint
from offlinerl.util.given import counts, real_number, whole_number
from offlinerl.util.settings import columns_of, named, values_of

SEED = 2_000_000
"""Reset seed of the first episode, far from the seeds of training and its evaluations."""

FROM_DATA = dict(fqe="fitted Q evaluation", wis="weighted importance sampling", dr="weighted doubly robust")
"""Methods to evaluate policies on a dataset."""

FEW = 20
"""With fewer effective episodes than this, importance weighting says little."""

LEAST = 2
"""Minimum number of episodes per policy."""


@dataclass(frozen=True)
class Candidate:
    """A policy to be ranked: that of one member of a run."""

    run: Path
    agent: Agent
    env: str | Mapping[str, Any] | None = None  # where to act instead of where it was trained

    @cached_property
    def task(self) -> Task:
        return Task(**self.agent.task) if self.env is None else task_for(self.agent, self.env)

    @cached_property
    def about(self) -> dict[str, Any]:
        """The section ``fit`` of the run's ``config.yaml``; empty if there is none."""
        file = (self.run if self.run.is_dir() else self.run.parent) / "config.yaml"
        return config.read(file).get("fit", {}) if file.is_file() else {}

    @property
    def facts(self) -> dict[str, Any]:
        [member] = self.agent.members
        values = values_of(member)
        return dict(run=str(self.run), seed=member["seed"], **(dict(values=values) if values else {}))


def select(
    runs: Sequence[Path],
    *,
    by: str = "fqe",
    episodes: int | None = None,
    env: str | Mapping[str, Any] | None = None,
    dataset: str | Path | Dataset | None = None,
    updates: int = 10_000,
    critics: int = 5,
    gamma: float = 0.99,
    terminal_ends: bool = False,
    seed: int = 0,
    png: Path | None = None,
    json_file: Path | None = None,
    device: str = "auto",
    agent_class: type[Agent] | str | Sequence[type[Agent] | str] | None = None,
) -> dict[str, Any]:
    """Rank the policies of all seeds of some runs, by their estimated value on a dataset or by episodes in their
    environment.

    Policies are ranked by their estimate on a dataset, and by the lower confidence bound of their return in an
    environment. There, episodes are allocated by ``statistics.next_to_play``, between the policy that leads so far and
    the one that is most likely better, so that bad policies soon get no more. Diverged policies come last.

    Args:
        runs: folders of runs, or checkpoints, all of one task.
        by: how to evaluate on the dataset: "fqe", fitted Q evaluation; or, if the dataset holds the behaviour policy's
            probabilities and the policies are distributions, "wis", weighted per-decision importance sampling, or
            "dr", weighted doubly robust with the values of fitted Q evaluation.
        episodes: number of episodes in the environment, for all policies together; None: evaluate on the dataset.
        env: where to act, see ``offlinerl.evaluation.evaluate.evaluate_checkpoint``; by default where the runs were
            trained.
        dataset: the dataset to evaluate on instead of the first run's own: a name, a Minari id, a file, or what
            ``offlinerl.load_dataset`` returns.
        updates: gradient steps of fitted Q evaluation.
        critics: number of critics, whose spread gives the interval.
        gamma: discount factor of the estimates.
        terminal_ends: whether to treat truncated episodes of the dataset as terminated, so that fitted Q evaluation
            does not bootstrap after them.
        seed: of the first critic, or added to the reset seeds of episodes.
        png: where to draw the expected performance by the number of policies tried.
        json_file: where to write the returned dictionary.
        device: "auto", "cpu" or "cuda".
        agent_class: of agents that are neither built in nor installed, see ``checkpoint.load_agent``; or several, of
            which each run takes the one that its checkpoint names.

    Returns:
        A dictionary: ``method``; ``unit`` of the estimates; ``tried``, the number of policies ranked; and ``policies``,
        the best one first, with ``rank``, ``run``, ``seed``, ``estimate`` and ``ci95``, for "wis" and "dr" also the
        ``effective`` number of the dataset's episodes, and in an environment also ``lower_bound`` and ``episodes``.

    Raises:
        UserError: a run cannot be read, the runs are of different tasks, or there is no dataset, no environment, or too
            few episodes.
    """
    require_place(png)
    require_place(json_file)
    display = Display()
    if by not in FROM_DATA:
        raise UserError(f"there is no evaluation {by!r}: choose {either(*FROM_DATA)}")
    seed, gamma = whole_number("seed", seed), real_number("gamma", gamma, 1)
    episodes, updates, critics = counts(episodes=episodes, updates=updates, critics=critics)
    candidates = candidates_of(runs, device, agent_class, env)
    if episodes is None:
        fitting = {} if by == "wis" else dict(updates=updates, critics=critics)
        method = dict(name=by, **fitting, gamma=gamma, **(dict(terminal_ends=True) if terminal_ends else {}))
        rows = offline(candidates, dataset, by, gamma, display, terminal_ends, **fitting, seed=seed)
        unit = "discounted return"
    else:
        rows = by_acting(candidates, episodes, seed, display)
        unit = unit_of("success" if judged_by_success(candidates) else "return")
        method = dict(name="ttei", episodes=episodes)
    known = [np.isfinite(row["estimate"]) for row in rows]  # False if it diverged
    order = sorted(range(len(rows)), key=lambda i: (not known[i], -rows[i].get("lower_bound", rows[i]["estimate"])))
    policies = [dict(rank=rank, **candidates[i].facts, **rows[i]) for rank, i in enumerate(order, 1)]
    results = dict(method=method, unit=unit, tried=len(policies), policies=policies)
    show(results, display, candidates[order[0]].agent)
    if json_file is not None:
        write_json(json_file, results)
    if png is not None and not any(known):
        display.say(f"no estimate is a number, so that there is nothing to draw into {png}")
    elif png is not None:
        estimates = np.array([row["estimate"] for row in policies if np.isfinite(row["estimate"])])
        plots.online_performance(estimates, unit, FROM_DATA[by] if episodes is None else "episodes", png)
        display.say(f"expected performance by the number of policies tried in {png}")
    return results


def candidates_of(
    runs: Sequence[Path],
    device: str,
    agent_class: type[Agent] | str | Sequence[type[Agent] | str] | None,
    env: str | Mapping[str, Any] | None = None,
) -> list[Candidate]:
    """The policies of all seeds of the runs, to act in ``env``.

    Raises:
        UserError: a run is given twice, or has other observations or actions than the first one.
    """
    candidates: list[Candidate] = []
    classes = [*agent_class] if isinstance(agent_class, list | tuple) else [agent_class] if agent_class else []
    paths = [find_checkpoint(Path(run)) for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"{run} is given twice")
        agent = checkpoint.load_agent(path, pick_device(device), agent_class=own_class(path, classes))
        first = candidates[0].agent.spec if candidates else agent.spec
        if (agent.spec.obs, agent.spec.action_dim, agent.spec.num_actions) != (
            first.obs, first.action_dim, first.num_actions,
        ):  # fmt: skip
            raise UserError(
                f"{run} observes or acts otherwise than {runs[0]}: policies can be ranked that are of one task"
            )
        candidates += [Candidate(Path(run), DeployedPolicy(agent, **member).agent, env) for member in agent.members]
    return candidates


def own_class(path: Path, classes: Sequence[type[Agent] | str]) -> type[Agent] | str | None:
    """The one of the given classes that a checkpoint names, or the only one; None if the checkpoint's class is known,
    or none of several.

    Raises:
        UserError: something else than classes is given.
    """
    for of in classes:
        if not isinstance(of, type | str):
            raise UserError(f"agent_class must be a class or module:Class, or a list of them, not {of!r}")
    if not classes or checkpoint.known_class(stated := checkpoint.stated_class(path)):
        return None
    named = {of if isinstance(of, str) else f"{of.__module__}:{of.__name__}": of for of in classes}
    return named.get(stated, classes[0] if len(classes) == 1 else None)


def offline(
    candidates: Sequence[Candidate],
    dataset: str | Path | Dataset | None,
    by: str,
    gamma: float,
    display: Display,
    terminal_ends: bool = False,
    updates: int = 0,
    **fitting: Any,
) -> list[dict[str, Any]]:
    """Evaluate every candidate on one dataset with its stored rewards, by a method of ``FROM_DATA``.

    Raises:
        UserError: a policy cannot be evaluated on it, or a reward rule was already applied to its rewards.
    """
    data = dataset_for(candidates, dataset, display)
    if terminal_ends:
        data = data.with_terminal_ends()
    returns = discounted_returns(data, gamma)
    display.say(
        f"{data.name}: {counted(len(returns), 'episode')}, their mean discounted return {shown(returns.mean())}"
    )
    if not data.reward.any():
        display.say(f"{data.name}: all rewards are 0, so that no policy is worth more than another")
    lost = without_estimate(candidates, data, by, display)
    rows: list[dict[str, Any]] = []
    fitting |= dict(updates=updates, progress=display.add)
    with display.bar("evaluating", max(updates, 1) * len(candidates)):
        for number, candidate in enumerate(candidates):
            known = number not in lost
            rows.append(estimated(candidate, data, by, gamma, display, **fitting) if known else unknown())
    say_of_doubts(rows, returns, display)
    return rows


def dataset_for(candidates: Sequence[Candidate], dataset: str | Path | Dataset | None, display: Display) -> Dataset:
    """The dataset to rank on, by default the one that the first run learned from, as policies see it.

    Raises:
        UserError: the policies cannot be ranked on it, or a reward rule was already applied to its rewards.
    """
    require_one_meaning(candidates)
    entry, source = entry_for(candidates, dataset)
    data = load.load(entry, reward="none", store_columns=False)
    rule = data.provenance.get("reward", "none")
    if entry.kind == "object" and rule != "none":
        raise UserError(
            f"the rewards of {data.name} follow the rule {rule} already, and policies are ranked by those that are"
            ' stored: load it with reward="none"'
        )
    require_data_in_order(candidates, data)
    data = seen_by(candidates[0], data)
    warn_of_change(candidates, data, source, display)
    return data


def entry_for(
    candidates: Sequence[Candidate], dataset: str | Path | Dataset | None
) -> tuple[registry.Entry, str | Dataset]:
    """The dataset to rank on, read as the runs read it, and what the runs that learned from it call it."""
    about = candidates[0].about
    if dataset is None:
        return entry_of_run(candidates[0]), about["dataset"]
    source = str(dataset) if isinstance(dataset, Path) else dataset
    entry = registry.resolve(source)
    if not isinstance(source, str):
        return entry, source
    if entry.kind == "file":
        source = str(entry.path.resolve())
        if is_missing(about.get("dataset")):  # so this is its new place
            return entry_of(about | dict(dataset=source)), about["dataset"]
    owner = next((candidate for candidate in candidates if candidate.about.get("dataset") == source), None)
    if owner:
        return entry_of_run(owner), source
    if about.get("columns") and takes_columns(about, source):
        entry = registry.limited(entry, dict(columns=about["columns"]))
    return entry, source


def without_estimate(candidates: Sequence[Candidate], data: Dataset, by: str, display: Display) -> set[int]:
    """The numbers of the policies that have diverged.

    Raises:
        UserError: another one cannot be evaluated by this method; nothing was trained yet.
    """
    lost = set()
    for number, candidate in enumerate(candidates):
        if has_diverged(candidate.agent):
            display.say_once(f"{candidate.run}: {diverged_in_words(candidate.agent, 0)}; it comes last")
            lost.add(number)
        elif by == "fqe":
            choice_of(candidate.agent)
        else:
            require_log_probs(candidate.agent, data, stack=candidate.task.stack)
    return lost


def estimated(
    candidate: Candidate, data: Dataset, by: str, gamma: float, display: Display, **fitting: Any
) -> dict[str, Any]:
    """The estimate of a policy's return, its interval and, by importance sampling, the effective sample size."""
    agent, stack = candidate.agent, candidate.task.stack
    normalize = getattr(agent.config, "normalize", False)
    if by == "wis":
        found = weighted_importance_sampling(agent, data, gamma, stack=stack)
        display.add()
    elif by == "dr":
        found = weighted_doubly_robust(agent, data, gamma, stack=stack, normalize=normalize, **fitting)
    else:
        found = fitted_q_evaluation(
            choice_of(agent), data, agent.spec, gamma=gamma, device=agent.device, stack=stack, normalize=normalize,
            **fitting,
        )  # fmt: skip
    row = dict(estimate=found.value, ci95=list(found.interval))
    if found.effective is None:
        return row
    if not found.effective:  # no action of the dataset is likely under the policy
        row = unknown()
    return row | dict(effective=found.effective)


def unknown() -> dict[str, Any]:
    """The row of a policy without an estimate."""
    return dict(estimate=np.nan, ci95=[np.nan, np.nan])


def say_of_doubts(rows: Sequence[Mapping[str, Any]], returns: np.ndarray, display: Display) -> None:
    """Report estimates that rest on few episodes, or that no episode of the data, with these ``returns``, reached."""
    few = [row["effective"] for row in rows if row.get("effective", FEW) < FEW]
    if few:
        are = "policies are" if len(rows) > 1 else "policy is"
        so = f"so unlike the behaviour that fewer than {FEW} episodes still count, as few as {min(few):.1f}"
        if len(returns) < FEW:
            so = f"weighed by fewer than {FEW} episodes, as few as {min(few):.1f}, for the data has {len(returns)}"
        display.say(
            f"{len(few)} of {len(rows)} {are} {so}: do not rely on their estimates or intervals, and take fqe or more"
            " data" + ("; where it is 0, no episode could be of the policy, and nothing is estimated" * (0 in few))
        )
    low, high = returns.min(), returns.max()
    beyond = sum(row["estimate"] < low or row["estimate"] > high for row in rows)
    if beyond and low < high:
        lie, span = "lies" if beyond == 1 else "lie", between([low, high], places(low, high))
        display.say(
            f"{beyond} of {counted(len(rows), 'estimate')} {lie} beyond what any episode of the data returned,"
            f" {span}: a guess, of a policy that leaves the data or by critics that have not converged; give more"
            " --updates, or see such policies act before you rely on them"
        )


def seen_by(candidate: Candidate, data: Dataset) -> Dataset:
    """The dataset with its observations as a policy sees them.

    Raises:
        UserError: the policy observes a goal, and the rows have none; or see ``in_one_vector``.
    """
    task, spec = candidate.task, candidate.agent.spec
    leaves = {path: spaces.from_json(leaf) for path, leaf in (task.leaves or {}).items()}
    data = in_one_vector(data, leaves or None if spec.is_vector else None, task.env_id)
    lack = spec.is_vector and not isinstance(data.observations, Mapping) and task.stack == 1
    if lack and "goal" in (task.env or {}) and data.observations.shape[1] == spec.obs_dim - task.env["goal"]:
        raise UserError(
            f"the policy of {candidate.run} observes a goal, which the rows of {data.name} do not have: give --episodes"
            " N to rank by acting"
        )
    return data


def require_one_meaning(candidates: Sequence[Candidate]) -> None:
    """Raise a UserError if the numbers that policies see or return are known to have different meanings."""
    first = candidates[0]
    source = first.about.get("dataset")
    for candidate in candidates:
        one_source = isinstance(source, str) and source == candidate.about.get("dataset")
        if differs := candidate.task.difference(first.task, first.agent.spec, one_source):
            what, own, its = differs
            raise UserError(
                f"the {what} of {candidate.run} are {', '.join(own)}, and those of {first.run} {', '.join(its)}:"
                " policies can be ranked together that have the same in one order"
            )


def require_data_in_order(candidates: Sequence[Candidate], data: Dataset) -> None:
    """Raise a UserError if a policy has the parts or columns of the dataset in another order."""
    of_data = Task(None, parts=made_of(data), actions=data.provenance.get("actions"))
    for candidate in candidates:
        if differs := candidate.task.difference(of_data, candidate.agent.spec):
            what, own, its = differs
            raise UserError(
                f"the {what} of {candidate.run} are {', '.join(own)}, and those of the dataset {data.name}"
                f" {', '.join(its)}: give the dataset in the order of the run"
            )


def warn_of_change(candidates: Sequence[Candidate], data: Dataset, source: str | Dataset, display: Display) -> None:
    """Report the runs that were trained on other contents of the dataset, which they call ``source``."""
    abouts = {str(candidate.run): candidate.about for candidate in candidates}
    of_source = {run: about for run, about in abouts.items() if about.get("dataset") == source}
    checksums = checksums_of(data, contents_of(data)) if of_source else {}
    if changed := [run for run, about in of_source.items() if not is_of(about, checksums)]:
        were = "was" if len(changed) == 1 else "were"
        display.say(
            f"{data.name}: its contents are not those that {', '.join(changed)} {were} trained on: the file has changed"
            " since, or is read otherwise"
        )


def entry_of_run(candidate: Candidate) -> registry.Entry:
    """The dataset that a candidate's run learned from.

    Raises:
        UserError: the run does not name one, or it is missing.
    """
    about = candidate.about
    if not isinstance(about.get("dataset"), str):
        raise UserError(
            f"{candidate.run} names no dataset that it learned from: name one with --dataset, or give --episodes N to"
            " rank by acting"
        )
    require_dataset(candidate.run, about)
    return entry_of(dict(about))


def by_acting(candidates: Sequence[Candidate], episodes: int, seed: int, display: Display) -> list[dict[str, Any]]:
    """Evaluate all candidates in the first one's environment, with ``episodes`` episodes in total."""
    tasks = [candidate.task for candidate in candidates]
    task, by_success = tasks[0], judged_by_success(candidates)
    for candidate, own in zip(candidates, tasks, strict=True):
        if own.env is None:
            raise UserError(
                f"{candidate.run} names no environment to act in; name one with --env, or leave out --episodes to rank"
                " on a dataset"
            )
        if "factory" in own.env and own.env["factory"] is None:
            raise UserError(
                f"{candidate.run} was trained in an environment that was given as an object, which no file holds: pass"
                " it again, in Python, as env=, or leave out --episodes to rank on a dataset"
            )
        if {**own.facts, "score": None} != {**task.facts, "score": None}:  # returns can be compared whatever the score
            raise UserError(
                f"{candidate.run} is for {own.env_id} and {candidates[0].run} for {task.env_id}, or for another version"
                " of it: policies can be ranked that are of one task"
            )
    with closing(make_pool(task, 1, 1)) as pool, display.bar("evaluating", episodes, unit="episodes"):

        def play(number: int, episode: int) -> float:
            try:
                found = evaluate(candidates[number].agent, task, 1, SEED + seed + episode, pool)
            except Diverged as error:
                display.say_once(f"{candidates[number].run}: {error}; it comes last")
                return np.nan
            display.advance(sum(map(len, returns)) + 1)
            return float((found.scores if by_success else found.returns)[0, 0])

        returns: list[list[float]] = [[] for _ in candidates]
        share_out(play, episodes, returns)
    rows, lower = [], confidence_bounds(*sums_of(returns), CAUTION)
    for of_one, bound in zip(returns, lower, strict=True):
        values = np.array(of_one)
        mean, half = float(values.mean()), np.nan  # one episode gives no interval
        if len(values) > 1:
            half = float(student(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        interval = [mean - half, mean + half]
        rows.append(dict(estimate=mean, ci95=interval, lower_bound=float(bound), episodes=len(values)))
    return rows


def judged_by_success(candidates: Sequence[Candidate]) -> bool:
    """Whether policies are ranked by the share of episodes that reach the goal, instead of by the return: if that was
    the score of all of them."""
    return all(candidate.task.score_kind == "success" for candidate in candidates)


def share_out(play: Callable[[int, int], float], episodes: int, returns: list[list[float]]) -> None:
    """Play one episode of every policy, and then those that ``statistics.next_to_play`` chooses.

    Args:
        play: returns the return of a policy in an episode, both by number; an episode is the same for all policies.
        episodes: total number of episodes of all policies.
        returns: a list for each policy, to which its returns are appended.

    Raises:
        UserError: there are fewer than ``LEAST`` episodes per policy.
    """
    least = LEAST * len(returns)
    if episodes < least:
        raise UserError(f"{len(returns)} policies need at least {least} episodes, not {episodes}: give more --episodes")
    for number, of_one in enumerate(returns):
        of_one.append(play(number, 0))
    for _ in range(episodes - len(returns)):
        number = int(next_to_play(*sums_of(returns)))
        returns[number].append(play(number, len(returns[number])))


def sums_of(returns: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every policy the number of its returns, their sum and the sum of their squares."""
    count, total, squares = (np.array([sum(x**p for x in of_one) for of_one in returns], float) for p in (0, 1, 2))
    return count, total, squares


def show(results: Mapping[str, Any], display: Display, best: Agent) -> None:
    """Print the table of the policies, and the command that exports the first one, which is ``best``."""
    policies, method = results["policies"], results["method"]["name"]
    acted, weighed = method == "ttei", method in ("wis", "dr")
    intervals = [row["ci95"] for row in policies]
    decimals = max((places(*of) for of in intervals if np.isfinite(of).all()), default=1)
    members = [", ".join([str(row["seed"]), *([named(row["values"])] if "values" in row else [])]) for row in policies]
    several = len(set(members)) > 1
    more = [*["episodes"] * acted, *["effective"] * weighed]
    columns = ["run", "rank", *["seed"] * several, "estimate", "95% interval", *more]
    rows = [
        [
            row["run"], str(row["rank"]), *[member] * several,
            shown(row["estimate"], decimals), "-" if row.get("episodes") == 1 else between(row["ci95"], decimals),
            *[str(row.get("episodes"))] * acted, *[f"{row.get('effective', 0):.1f}"] * weighed,
        ]
        for row, member in zip(policies, members, strict=True)
    ]  # fmt: skip
    how = "episodes in the environment" if acted else f"{FROM_DATA[method]} on the dataset"
    table(display.console, f"{counted(results['tried'], 'policy')} tried, by {how}: {results['unit']}", columns, rows)
    first = policies[0]
    if np.isfinite(first["estimate"]):
        member = columns_of(dict(seed=first["seed"], **first.get("values", {})))
        flags = [word for key, value in member.items() for word in (f"--{key}", value)]
        agent_class = f"{type(best).__module__}:{type(best).__name__}"
        if checkpoint.known_class(agent_class) is None:
            flags += ["--agent-class", agent_class]
        display.say(f"to deploy the first: {command('export', first['run'], *flags, '--onnx', 'policy.onnx')}")
