"""``offlinerl collect``: datasets from agents that learn, trained policies, random actions and scripts.

Every episode is written when it ends, to a journal that stays intact if the process is killed. At the end the journal
becomes a Minari dataset.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from offlinerl import agents
from offlinerl.agents import checkpoint
from offlinerl.agents.base import Agent
from offlinerl.data import episode_log, registry
from offlinerl.data.episode import Episode
from offlinerl.data.journal import COLLECTION, EPISODES, Journal
from offlinerl.data.minari_writer import metadata_of
from offlinerl.envs import checks, spaces
from offlinerl.envs.make import LIMITS, make, side_by_side, specification, without_stack
from offlinerl.envs.pixels import is_fast
from offlinerl.evaluation.evaluate import check_spec, evaluate, task_for
from offlinerl.evaluation.task import Task
from offlinerl.learning.rng import EnvStreams
from offlinerl.recipes.kitchen import demonstration
from offlinerl.rollout.actor_pool import ActorPool
from offlinerl.rollout.collector import Collector, mean_of, shares
from offlinerl.rollout.policy import Noisy, Policy, apart
from offlinerl.training import goals
from offlinerl.training.build import REPLAY, build
from offlinerl.training.config import merge, of_run, read
from offlinerl.training.loop import Companion, Run, checksum
from offlinerl.training.request import require_source, settings_for
from offlinerl.training.selection import source_of
from offlinerl.training.tasks import require_parts
from offlinerl.util.atomic import sweep
from offlinerl.util.device import pick_device
from offlinerl.util.display import FAST, Display, shown
from offlinerl.util.errors import UserError, command, counted, reading
from offlinerl.util.folder import find_checkpoint, numbered, require_free, versions, write_config
from offlinerl.util.given import counts, real_number, whole_number
from offlinerl.util.interrupt import Interrupted, Stop, on_interrupt
from offlinerl.util.settings import require_known
from offlinerl.util.threads import set_threads

REFERENCE_EPISODES, REFERENCE_LANES = 20, 4
"""Number of episodes to measure the reference returns of the score range with, and of environments side by side."""


def collect(
    source: str | Policy,
    env: str | Mapping[str, Any] | None,
    dataset_id: str,
    *,
    steps: int | None = None,
    episodes: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
    envs: int | None = None,
    file: Path | None = None,
    over: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: Path | None = None,
    resume: bool = False,
    append: bool = False,
    workers: int | None = None,
    ray_address: str | None = None,
    threads: int | None = None,
    obs_keys: Sequence[str] | None = None,
    limits: Mapping[str, Any] | None = None,
    agent_class: str | None = None,
) -> Path:
    """Collect episodes and write them as a Minari dataset.

    Args:
        source: an agent, which learns while it collects; a checkpoint, or a run's folder, whose last checkpoint is
            read; "random"; "scripted"; or a policy object.
        env: a Gymnasium id, a name in the registry, or what ``offlinerl.envs.make.make`` takes; None: a checkpoint's
            own environment.
        dataset_id: ``(namespace/)name-vN``.
        steps: environment steps to take; the current episodes are truncated at the end, except the episode of a script,
            which is finished.
        episodes: or episodes to finish, if nothing learns; every environment plays its share of them.
        noise: standard deviation of Gaussian noise on the actions of a policy or script, in units of half the action's
            range; for discrete actions, the probability of a random action.
        seed: of all random numbers.
        envs: number of environments side by side.
        file: settings of the agent; see ``offlinerl.api.fit``.
        over: settings that override those of the file.
        device: "auto", "cpu" or "cuda".
        out: the folder to work in; by default ``runs/<dataset id>``.
        resume: continue the unfinished collection in that folder, if there is one.
        append: add to a dataset that the same source collected.
        workers: number of Ray worker processes that act for a learning agent; by default this process acts.
        ray_address: of a Ray cluster to run the workers on; by default this machine.
        threads: number of CPU threads; by default the number of cores.
        obs_keys: the parts of the observations to use and store, in this order; by default those that the policy of a
            checkpoint was trained on, else all.
        limits: some of ``offlinerl.envs.make.LIMITS``, such as ``pixels=True``; see ``offlinerl.envs.make.make``.
        agent_class: ``module:Class`` of a checkpoint's agent that is neither built in nor installed.

    Returns:
        The dataset's folder.

    Raises:
        UserError: for anything that the user can fix.
        Interrupted: Ctrl-C; every finished episode is kept.
    """
    set_threads(threads)
    seed, noise = whole_number("seed", seed), real_number("noise", noise)
    steps, episodes, envs = counts(steps=steps, episodes=episodes, envs=envs)
    require_known(limits or {}, LIMITS, "limits have no entry")
    if not isinstance(dataset_id, str):
        raise UserError(f"dataset_id must be a name such as mine/some-v0, not {dataset_id!r}")
    require_source(
        source, env, file, over, steps=steps, episodes=episodes, workers=workers, ray_address=ray_address, noise=noise,
        envs=envs, agent_class=agent_class,
    )  # fmt: skip
    folder = Path(out) if out else folder_for(dataset_id, append)
    if not (folder / EPISODES).is_file():
        require_free(folder, "give --append to add to its dataset, or name another --out")
    elif not resume:
        raise UserError(
            f"{folder} holds an unfinished collection: resume it with --resume, or delete it to start again"
        )
    if isinstance(source, str) and agents.is_name(source):
        given = {k: v for k, v in dict(steps=steps, envs=envs, workers=workers).items() if v}
        over = merge(over or {}, dict(train=given))
        settings, entry = settings_for(source, None, env, [seed], file, over, obs_keys, limits, collecting=True)
        task = Task.of(entry)
        if goals.are_chosen(settings["train"]):  # before the run itself, because its episodes are recorded with them
            task, _ = goals.with_goals(task, entry.goal, settings["train"]["goal_radius"])
        collection = Collection(folder, task, dataset_id, append, source, seed, settings)
        settings["collect"] = dict(dataset=dataset_id, first=collection.first)
        if ray_address and not settings["train"]["workers"]:
            raise UserError("--ray-address needs workers: give their number with --workers")
        collection.learn(build(settings, entry, pick_device(device), folder, ray_address))
        return collection.seal()
    policy = policy_of(source, pick_device(device), agent_class)
    if env is None:
        if not (getattr(policy, "task", None) or {}).get("env"):
            raise UserError(f"{source} does not name an environment of its own: give --env")
        task = task_for(policy, limits=limits)
        task = replace(task, obs_keys=obs_keys or task.obs_keys)
    else:
        task = Task.of(registry.limited(registry.task(env, obs_keys), limits or {}))
        if isinstance(policy, Agent):
            task = observed_by(policy, task)
    config = dict(noise=noise) | (dict(weights=checksum(policy)) if isinstance(policy, Agent) else {})
    collection = Collection(folder, task, dataset_id, append, source, seed, config)
    unit, total = ("steps", steps) if steps is not None else ("episodes", episodes)
    with collection.opened():
        if source == "scripted":
            collection.demonstrate(noise, unit, total)
        else:
            collection.act(policy, noise, envs or 1, unit, total)
    return collection.seal()


def folder_for(dataset_id: str, append: bool) -> Path:
    """The default folder to work in: that of an interrupted collection of the dataset, else one named after the
    dataset; with ``append``, the first free one."""
    stem = Path("runs") / dataset_id.replace("/", "-")
    for folder in numbered(stem):
        if (folder / EPISODES).is_file():
            return folder
        if not folder.exists():
            return folder if append else stem


class Collection(Companion):
    """A folder with a journal of episodes, until it is sealed as a dataset. As the companion of a training run, it
    records all episodes of the run.

    Args:
        folder: to work in.
        task: to collect episodes in.
        dataset_id: of the dataset to write.
        append: whether to add to an existing dataset.
        source: what acts; see ``collect``.
        seed: of the collection.
        config: the settings of an agent that learns; or the noise, and a checksum of the policy's weights.

    Attributes:
        target: the dataset's folder.
        collector: steps the environments; None for a script.
        collected: number of episodes of the run so far, which may be fewer than the journal has.
        first: number of the first episode in every environment, so that no episode is collected twice: the number of
            episodes in the dataset when the collection began, since no environment has played more.

    Raises:
        UserError: the dataset exists and may not be written.
    """

    keeps_files = True

    def __init__(
        self,
        folder: Path,
        task: Task,
        dataset_id: str,
        append: bool,
        source: str | Policy,
        seed: int,
        config: Mapping[str, Any],
    ):
        self.folder, self.task, self.dataset_id, self.append = folder, task, dataset_id, append
        env = make(without_stack(task.env), task.obs_keys)  # single frames are stored, not stacks
        checks.close(env)
        require_parts(task, env, task.obs_keys)
        self.about = dict(
            dataset_id=dataset_id,
            env_spec=specification(env),
            observation_space=env.observation_space,
            action_space=env.action_space,
        )
        agent = described(source)
        self.target = registry.minari_root() / dataset_id
        sealed = (folder / EPISODES).is_file() and self.target.exists()
        if not sealed:  # if it was, seal() only finishes up or raises
            about = self.about["env_spec"], self.about["observation_space"], task.obs_keys
            episode_log.check_target(dataset_id, append, agent, *about)
        self.first = 0
        if (folder / COLLECTION).is_file():
            self.first = registry.minari_metadata(folder).get("provenance", {}).get("first", 0)
        elif self.target.exists():
            self.first = int(registry.minari_metadata(self.target / "data")["total_episodes"])
        self.metadata = metadata_of(
            f"{agent} in {task.env_id}{FAST if is_fast(task.env) else ''}, seed {seed}", agent.split()[0],
            dict(agent=agent, seed=seed, config=config, first=self.first, versions=versions()), seed=seed,
        )  # fmt: skip
        if task.obs_keys:
            self.metadata["obs_keys"] = list(task.obs_keys)
        if task.stack > 1:
            self.metadata["frame_stack"] = task.stack
        self.display, self.stop = Display(), Stop()
        self.collector: Collector | ActorPool | None = None
        self.collected = 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the journal for appending.

        Raises:
            UserError: the journal belongs to another dataset, or another process is writing to it.
        """
        folder, stated = self.folder, self.folder / COLLECTION
        with Journal(folder / EPISODES) as self.journal:
            sweep(folder)  # delete partial files of a killed process
            if stated.is_file():
                old, now = registry.minari_metadata(folder), self.metadata | self.about
                with reading(f"{stated}", "give another --out"):
                    old, now = (
                        of | dict(agent=of["provenance"]["agent"], noise=of["provenance"]["config"].get("noise"))
                        for of in (old, now)
                    )
                for key in ("agent", "seed", "noise", "dataset_id", "env_spec", "obs_keys", "frame_stack"):
                    if old.get(key) != now.get(key):
                        raise UserError(
                            f"{folder} was started with {key} {old.get(key)}, not {now.get(key)}; give the same"
                            " command as before, or another --out"
                        )
                weights = [of["provenance"]["config"].get("weights") for of in (old, now)]
                if None not in weights and weights[0] != weights[1]:  # older versions did not store them
                    raise UserError(
                        f"the {now['agent']} is not the policy with which {folder} was started: give that one, or"
                        " another --out"
                    )
            else:
                episode_log.write_collection(folder, **self.about, metadata=self.metadata)
            if len(self.journal):
                self.display.say(
                    f"{len(self.journal)} episodes, {self.journal.steps:,} steps have been collected already"
                )
            try:
                yield
            except BaseException as error:
                if not len(self.journal) and not (self.folder / "config.yaml").is_file():
                    self.clear()  # there is nothing to resume from
                elif not isinstance(error, Interrupted):  # whose message says it already
                    self.display.say(f"failed after {self.kept}")
                raise

    def until(self, unit: str, total: int, act: Callable[[], int]) -> None:
        """Call ``act``, which returns the steps taken so far, until ``total`` "steps" or "episodes" are reached.

        Raises:
            Interrupted: Ctrl-C.
        """
        done = self.journal.steps if unit == "steps" else len(self.journal)
        with on_interrupt(self.stop.set), self.display.bar("collecting", total, done, unit):
            while done < total and not self.stop.is_set():
                taken = act()
                done = taken if unit == "steps" else len(self.journal)
                self.display.advance(min(done, total), self.note())
        if self.stop.is_set():
            self.leave(self.stop.signal)

    def act(self, policy: Policy | None, noise: float, envs: int, unit: str, total: int) -> None:
        """Collect from a policy that does not learn, or from uniformly random actions."""
        seed, taken = self.metadata["seed"], self.journal.steps
        seeds, lanes = range(seed, seed + (len(policy.seeds) if policy else 1)), range(envs)
        collector = self.collector = Collector(self.task.env, seeds, lanes, self.task.obs_keys, self.first)
        acting, endless = collector.uniform, collector.pool.endless
        beyond = self.first + shares(total, collector.episodes.shape)  # [S, E] number of the first surplus episode

        def keep(s: int, e: int, episode: Episode) -> None:
            wanted = len(self.journal) < total and collector.episodes[s, e] < beyond[s, e]
            if unit == "steps" or wanted:
                self.journal.append(episode)

        def step() -> int:
            nonlocal taken
            collector.step(acting)
            taken += collector.began.size
            return taken

        with closing(collector):
            if endless:
                self.display.warn_of_endless(collector.pool.name)
            if policy:
                check_spec(policy, collector.pool)
                acting = Noisy(apart(policy, lanes), noise, collector.spec, EnvStreams(seeds, lanes, "noise"))
            collector.done.update(episode.seed for episode in self.journal)
            collector.on_episode = keep
            self.until(unit, total, step)
            if unit == "steps":
                collector.truncate()
        if policy and not endless:
            self.measure(lambda: float(evaluate(policy, self.task, REFERENCE_EPISODES).returns.mean()))

    def demonstrate(self, noise: float, unit: str, total: int) -> None:
        """Collect from the task's script."""

        def play() -> int:
            number = self.first + len(self.journal)
            self.journal.append(demonstration(self.task.env, self.metadata["seed"], number, noise))
            return self.journal.steps

        self.until(unit, total, play)

    def learn(self, run: Run) -> None:
        """Collect while an agent is trained.

        A killed run resumes from its latest checkpoint and repeats the steps since then, bitwise identical; the journal
        already has those episodes.
        """
        self.collector, self.display = run.acting.collector, run.display
        self.collector.on_episode = self.keep
        run.companion, run.checkpointer.go_on = self, "the same command and --resume"
        with run.resources, self.opened():
            if (self.folder / "config.yaml").is_file():
                self.require_same(run.settings, read(self.folder / "config.yaml"))
            run.restore()
            write_config(self.folder, run.settings)
            summary = run.train()
            if not run.pool.endless:
                self.measure(lambda: summary["last"]["mean_return"])

    def require_same(self, settings: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        """Raise a UserError if any setting has changed, except ``steps`` and ``save_every``."""
        about, kind = settings["fit"], agents.outline(settings["fit"]["agent"])
        before = of_run(before, kind, source_of(about["agent"], kind.kinds, None, about["env"]))
        for section in ("fit", "agent", "train"):
            for key, value in settings[section].items():
                known = before[section].get(key)
                if key not in ("steps", "save_every") and known != value:
                    raise UserError(
                        f"{self.folder} was started with {key} {known}, not {value}; give the same command as before,"
                        " or another --out"
                    )

    def keep(self, s: int, e: int, episode: Episode) -> None:
        """Append the next episode of a run to the journal, unless the journal has it from before a restart."""
        if not self.journal.append(episode, self.collected):
            self.display.say(f"episode {self.collected} was different this time; the first one is kept")
        self.collected += 1

    def state_dict(self) -> dict[str, Any]:
        return dict(collected=self.collected)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.collected = state["collected"]
        if self.collected > len(self.journal):
            raise UserError(
                f"{self.folder / EPISODES} has lost episodes: of the {self.collected:,} that the checkpoint counts,"
                f" {len(self.journal):,} are left, which can be read as a dataset; collect again with another --out"
            )

    def note(self) -> str:
        mean, count = mean_of(self.collector.returns if self.collector else ()), f"{len(self.journal):,} episodes"
        return count if mean is None else f"{count}, return {shown(mean)}"

    def finish(self) -> None:
        self.collector.truncate()  # not in the last checkpoint: a resumed collection truncates again

    def measure(self, expert: Callable[[], float]) -> None:
        """Add Minari's reference scores to the metadata: the mean return of random actions and of the policy without
        noise, which ``expert`` measures. They are left out if the policy is not better than random, since there is no
        score range then, or if the environment fails."""
        try:
            with on_interrupt(self.leave):
                high, low = expert(), random_return(self.task)
        except Interrupted:
            raise
        except UserError as error:
            self.display.say(f"the dataset gets no reference scores: {error}")
            return
        if high > low:
            scores = dict(ref_min_score=low, ref_max_score=high)
            self.metadata |= dict(scores, num_episodes_average_score=REFERENCE_EPISODES)

    def leave(self, number: int) -> NoReturn:
        """Stop because of a signal, at once or at the end of a step."""
        self.stop.set(number)
        raise Interrupted(f"interrupted after {self.kept}", self.stop.status)

    @property
    def kept(self) -> str:
        """A message about what is kept and how to resume."""
        return (
            f"{len(self.journal):,} episodes, which are kept in {self.folder}; resume with: the same command and"
            " --resume"
        )

    def seal(self) -> Path:
        """Write the dataset and delete the journal."""
        with Journal(self.folder / EPISODES) as journal:
            episode_log.seal(journal, self.target, **self.about, metadata=self.metadata, append=self.append)
            added = f"{counted(len(journal), 'episode')}, {counted(journal.steps, 'step')}"
            if self.append:
                found = registry.minari_metadata(self.target / "data")
                added += f" added to make {found['total_episodes']:,} and {found['total_steps']:,}"
            train = command("fit", "xql", "--dataset", self.dataset_id)
            self.display.say(f"{self.dataset_id}: {added} in {self.target}; train on it with: {train}")
            self.clear()
        return self.target

    def clear(self) -> None:
        """Delete the journal and the replay buffer, and the folder if it is empty then."""
        shutil.rmtree(self.folder / REPLAY, ignore_errors=True)
        for replay in self.folder.glob("replay-*.pt"):
            replay.unlink()
        for name in (COLLECTION, EPISODES):
            (self.folder / name).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def policy_of(source: str | Policy, device: torch.device, agent_class: str | None) -> Policy | None:
    """The policy of a source that does not learn; None for random actions and for scripts."""
    if not isinstance(source, str | Path):
        return source
    if source in ("random", "scripted"):
        return None
    return checkpoint.load_agent(Path(source), device, agent_class=agent_class)


def observed_by(agent: Agent, task: Task) -> Task:
    """The task with the parts of observations that the agent was trained on, if it has them and no others are asked
    for, and with its goals, if the agent observes goals that the environment does not show by itself."""
    keys, own = agent.task.get("obs_keys"), agent.task.get("env") or {}
    if "goal" in own:
        task = replace(task, env={**task.env, "goal": own["goal"]})
    if task.obs_keys or not keys:
        return task
    with checks.closing(make(task.env, observed=False)) as env, suppress(UserError):  # it may have other parts
        if any(spaces.parts(env.observation_space, keys)):
            return replace(task, obs_keys=keys)
    return task


def random_return(task: Task) -> float:
    """The mean return of uniformly random actions."""
    lanes, returns = range(side_by_side(task.env, REFERENCE_LANES)), []
    with closing(Collector(task.env, (0,), lanes, task.obs_keys)) as collector:
        wanted = shares(REFERENCE_EPISODES, collector.episodes.shape)

        def keep(s: int, e: int, episode: Episode) -> None:
            if collector.episodes[s, e] < wanted[s, e]:
                returns.append(float(episode.rewards.sum()))

        collector.on_episode = keep
        while len(returns) < REFERENCE_EPISODES:
            collector.step(collector.uniform)
    return float(np.mean(returns))


def described(source: str | Policy) -> str:
    """The name of a source in a dataset's provenance."""
    if not isinstance(source, str | Path):
        return f"{type(source).__module__}:{type(source).__qualname__}"
    named = source in ("random", "scripted") or agents.is_name(str(source))
    return source if named or not Path(source).exists() else f"checkpoint {find_checkpoint(source).resolve()}"
