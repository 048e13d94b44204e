"""The command line. Each command is a thin function without parsing, and has a parser that only parses.

Commands import the modules they need themselves, so that ``offlinerl --help`` is fast.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from offlinerl import __version__, agents
from offlinerl.util.errors import DISK_FULL, UserError, WrongUsage, either
from offlinerl.util.given import EMPTY, numbers_in, seeds_in, whole_in
from offlinerl.util.interrupt import TERMINATED, AtOnce, Interrupted, leave, on_interrupt
from offlinerl.util.synonyms import SYNONYMS

# Commands


def fit(args: argparse.Namespace) -> None:
    from offlinerl import api

    train = given(
        args, "updates", "steps", "online_steps", "batch", "eval_every", "eval_episodes", "final_episodes",
        "save_every", "log_every", "logger", "compile", "devices",
    )  # fmt: skip
    if args.resume is None and args.config is None:
        if args.agent is None:
            raise WrongUsage("fit needs an agent, as in: offlinerl fit xql --dataset kitchen")
        if args.dataset is None and args.env is None:
            raise WrongUsage(
                "fit needs --dataset, a name or a file, or --env to learn by acting; `offlinerl datasets list` shows"
                " the names"
            )
    over = dict(train=args.settings["train"] | train, agent=args.settings["agent"])
    api.fit(
        args.agent, args.dataset, env=args.env, seeds=args.seeds, file=args.config, over=over, device=args.device,
        out=args.out, resume=args.resume, threads=args.threads, obs_keys=args.obs_keys, limits=limits_of(args),
        init=args.init, actions=args.actions, columns=args.columns, subset=args.subset, score_range=args.score_range,
    )  # fmt: skip


def collect(args: argparse.Namespace) -> None:
    from offlinerl.training import request

    own = given(args, "batch", "eval_every", "eval_episodes", "final_episodes", "save_every", "compile")
    train = args.settings["train"] | own
    over = dict(train=train, agent=args.settings["agent"])
    length = dict(steps=args.steps, episodes=args.episodes, workers=args.workers, ray_address=args.ray_address)
    how = dict(noise=args.noise, envs=args.envs, agent_class=args.agent_class)
    request.require_source(args.source, args.env, args.config, over, **length, **how)
    from offlinerl.training import collection

    collection.collect(
        args.source, args.env, args.dataset, **length, **how, seed=args.seed, file=args.config, over=over,
        device=args.device, out=args.out, resume=args.resume, append=args.append, threads=args.threads,
        obs_keys=args.obs_keys, limits=limits_of(args),
    )  # fmt: skip


def evaluate(args: argparse.Namespace) -> None:
    from offlinerl.data import registry
    from offlinerl.util.folder import find_checkpoint

    find_checkpoint(args.checkpoint)
    if args.env is not None:
        registry.task(args.env)
    from offlinerl.evaluation import evaluate
    from offlinerl.util.threads import set_threads

    set_threads(args.threads)
    evaluate.evaluate_checkpoint(
        args.checkpoint, env=args.env, episodes=args.episodes, seed=args.seed, video=args.video, json_file=args.json,
        device=args.device, limits=limits_of(args), agent_class=args.agent_class, score_range=args.score_range,
    )  # fmt: skip


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The values of those of the named flags that were given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def limits_of(args: argparse.Namespace) -> dict[str, Any]:
    limits = given(args, "max_episode_steps", "action_range", "stack")
    how = {name: value for name, value in dict(size=args.frame_size, repeat=args.action_repeat).items() if value}
    if args.pixels or args.fast_scene or how:
        limits["pixels"] = dict(how, fast=args.fast_scene)
    return limits


def reading_of(args: argparse.Namespace) -> dict[str, Any]:
    return given(args, "obs_keys", "columns", "subset")


def datasets_list(args: argparse.Namespace) -> None:
    from offlinerl.data import listing

    listing.list_datasets()


def datasets_show(args: argparse.Namespace) -> None:
    from offlinerl.data import registry

    registry.resolve(args.name)  # raises for an unknown name before heavy modules are imported, as below
    from offlinerl import dataset_commands

    png = args.png or dataset_commands.picture_of(args.name)
    dataset_commands.show(args.name, png, args.obs_keys, args.json, **given(args, "columns", "subset"))


def datasets_validate(args: argparse.Namespace) -> int:
    from offlinerl import dataset_commands

    reading = given(args, "columns", "subset")
    return dataset_commands.validate(args.name, args.env, args.obs_keys, args.action_range, **reading)


def datasets_generate(args: argparse.Namespace) -> None:
    from offlinerl.training import generation

    generation.generate_dataset(
        args.name, size=args.size, episodes=args.episodes, split=args.split, workers=args.workers, out=args.out,
        resume=args.resume, overwrite=args.overwrite,
    )  # fmt: skip


def datasets_import(args: argparse.Namespace) -> None:
    from offlinerl import dataset_commands

    dataset_commands.import_file(
        args.file, args.id, args.env, args.overwrite, obs_keys=args.obs_keys, score_range=args.score_range,
        **given(args, "columns", "subset"),
    )  # fmt: skip


def datasets_export(args: argparse.Namespace) -> None:
    from offlinerl.data import registry

    registry.resolve(args.name)
    from offlinerl import dataset_commands

    dataset_commands.export(args.name, args.file, args.overwrite, args.format, args.fps, **reading_of(args))


def datasets_merge(args: argparse.Namespace) -> None:
    from offlinerl import dataset_commands

    dataset_commands.merge(args.names, args.out, args.overwrite, **reading_of(args))


def datasets_split(args: argparse.Namespace) -> None:
    from offlinerl import dataset_commands

    dataset_commands.split(args.name, args.out, args.share, args.seed, args.overwrite, **reading_of(args))


def datasets_filter(args: argparse.Namespace) -> None:
    asked = given(args, "min_return", "max_return", "top", "min_length", "max_length", "success", "episodes")
    if not asked:
        raise WrongUsage("filter needs a criterion, such as --min-return or --episodes")
    from offlinerl import dataset_commands

    dataset_commands.some(args.name, args.out, asked, args.overwrite, **reading_of(args))


def select(args: argparse.Namespace) -> None:
    from offlinerl import api

    if args.threads is not None:  # else torch is loaded after the request is checked
        from offlinerl.util.threads import set_threads

        set_threads(args.threads)
    api.select(
        args.runs, **given(args, "episodes", "env", "by", "dataset", "updates", "critics", "gamma", "terminal_ends"),
        seed=args.seed, png=args.png, json_file=args.json, device=args.device, agent_class=args.agent_class,
    )  # fmt: skip


def report(args: argparse.Namespace) -> None:
    from offlinerl.evaluation import report

    report.report(args.runs, args.out)


def export(args: argparse.Namespace) -> None:
    from offlinerl.util.folder import find_checkpoint

    if args.safetensors is None and (args.episodes or args.device == "cuda"):
        raise WrongUsage("--episodes and --device measure the return of a --safetensors policy: leave them out here")
    find_checkpoint(args.checkpoint)
    from offlinerl.rollout import portable
    from offlinerl.training import export

    writers = dict(onnx=portable.write_onnx, torchscript=portable.write_torchscript)
    for kind, file in given(args, *writers).items():
        export.export_graph(
            args.checkpoint, file, writers[kind], seed=args.seed, values=args.settings["agent"],
            overwrite=args.overwrite, agent_class=args.agent_class,
        )  # fmt: skip
        return
    export.export_policy(
        args.checkpoint, args.safetensors, seed=args.seed, values=args.settings["agent"], **given(args, "episodes"),
        overwrite=args.overwrite, device=args.device, agent_class=args.agent_class,
    )  # fmt: skip


def sweep(args: argparse.Namespace) -> int:
    from offlinerl.training import sweep

    return sweep.sweep(args.file, args.ray_address)


def benchmark(args: argparse.Namespace) -> None:
    agents.require(args.agent)
    from offlinerl import benchmark

    benchmark.benchmark(args.agent, args.batch, args.seeds, args.device, args.threads, args.json)


# The parser


def word(text: str) -> str:
    """A string that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError(EMPTY)
    return text


def flag(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Adapt a function that reads a text to argparse, which expects errors of its own type."""

    def parsed(*given: Any) -> Any:
        try:
            return parse(*given)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


whole, numbers, seed_list = map(flag, (whole_in, numbers_in, seeds_in))


def count(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, 1)


def share(text: str) -> float:
    """A finite number of at least 0."""
    with suppress(ValueError):
        if 0 <= (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")


def fraction(text: str) -> float:
    """A number above 0 and below 1."""
    if 0 < (value := share(text)) < 1:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")


def discount(text: str) -> float:
    """A number from 0 to 1."""
    if (value := share(text)) <= 1:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")


def names(text: str) -> list[str]:
    """``state,goal`` as names."""
    found = [part.strip() for part in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different names, such as state,goal")
    return found


def span(text: str) -> list[float]:
    """``-1,1`` as two numbers, the lower one first."""
    with suppress(ValueError):
        low, high = map(float, text.split(","))
        if float("-inf") < low < high < float("inf"):
            return [low, high]
    raise argparse.ArgumentTypeError(f"{text!r} is not two numbers, the lower one first, such as -1,1")


def spans(text: str) -> list[Any]:
    """``-1,1`` as lower and upper bounds of all dimensions; ``-1,1:0,5`` as lists of them, one for each dimension."""
    pairs = [span(pair) for pair in text.split(":")]
    return pairs[0] if len(pairs) == 1 else [*map(list, zip(*pairs, strict=True))]


def on_off(text: str) -> bool | str:
    known = {"auto": "auto", "true": True, "false": False}
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, true or false")
    return known[text]


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without printing the usage."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=partial(argparse.HelpFormatter, max_help_position=28), **options)

    def add_shared(self, *flags: str) -> None:
        """Add arguments that several commands share."""
        for flag in flags:
            self.add_argument(flag, **SHARED[flag])

    def parse_known_args(self, *given: Any) -> Any:
        args, unknown = super().parse_known_args(*given)
        if unknown:  # reported by this subparser, so that the message names the command
            flags = self._option_string_actions
            if unknown[0].startswith("-"):
                flag = unknown[0].partition("=")[0]
                called = SYNONYMS.get(flag.removeprefix("--").replace("-", "_"), ())
                near = [f"--{name.replace('_', '-')}" for name in called]
                near = [name for name in near if name in flags] or difflib.get_close_matches(flag, flags, 1, 0.75)
                instead = f"; here that setting is called {either(*called)}" if called else ""
                self.error(f"there is no {flag}{f', but there is {near[0]}' if near else instead}")
            how = "name a dataset with --dataset" if "--dataset" in flags else "quote a name that contains spaces"
            self.error(f"unexpected argument {unknown[0]!r}; {how}")
        return args, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


SHARED: dict[str, dict[str, Any]] = {
    "name": dict(help="a name, a Minari id, a file or a folder"),
    "--env": dict(metavar="ID", help="the environment it was collected in: a Gymnasium id or a name"),
    "--seed": dict(type=whole, default=0, metavar="N", help="seed of all random numbers (default: 0)"),
    "--save-every": dict(type=share, metavar="MINUTES", help="save at least this often (default: 5)"),
    "--agent-class": dict(metavar="MODULE:CLASS", help="the class of a checkpoint's agent, if it is your own"),
    "--eval-episodes": dict(type=count, metavar="N", help="episodes per evaluation during training"),
    "--final-episodes": dict(type=count, metavar="N", help="episodes of the evaluation of the last policy"),
    "--max-episode-steps": dict(type=count, metavar="N", help="steps after which episodes are truncated"),
    "--action-range": dict(
        type=spans, metavar="LOW,HIGH", help="bounds for actions that have none, as in -1,1, or -1,1:0,5 by dimension"
    ),
    "--score-range": dict(type=span, metavar="LOW,HIGH", help="returns that count as scores 0 and 100"),
    "--pixels": dict(action="store_true", help="observe a task as 84x84 images, each action repeated for two steps"),
    "--fast-scene": dict(
        action="store_true", help="like --pixels, without shadows, reflections and multisampling: faster, other images"
    ),
    "--frame-size": dict(type=count, metavar="N", help="like --pixels, with images of NxN pixels"),
    "--action-repeat": dict(type=count, metavar="N", help="like --pixels, with each action repeated for N steps"),
    "--stack": dict(type=count, metavar="N", help="frames per observation (default: 3 with --pixels)"),
    "--obs-keys": dict(
        type=names, metavar="A,B", help="parts of the observations to use, as in state,goal (default: all)"
    ),
    "--columns": dict(
        nargs="+", metavar="FIELD=A,B", help="meaning of a table's columns, as in obs=x,y action=u reward=r episode=run"
    ),
    "--subset": dict(metavar="NAME", help="a robomimic filter key or a LeRobot split, such as train"),
    "--batch": dict(
        type=count, metavar="N", help="transitions per gradient step; for on-policy agents, steps per rollout"
    ),
    "--threads": dict(type=count, metavar="N", help="CPU threads per process (default: one per core)"),
    "--compile": dict(type=on_off, metavar="WHEN", help="compile the update: auto (default), true or false"),
    "--device": dict(choices=("auto", "cpu", "cuda"), default="auto", help="device to compute on (default: auto)"),
    "--json": dict(type=Path, metavar="FILE", help="write the results to a file"),
    "--overwrite": dict(action="store_true", help="replace an existing file or dataset"),
}  # fmt: skip
"""Arguments that several commands have, and mean the same by."""

LIMITS = (
    "--max-episode-steps", "--action-range", "--pixels", "--fast-scene", "--frame-size", "--action-repeat", "--stack",
)  # fmt: skip
"""Flags about the environment; see ``limits_of``."""

READING = ("--obs-keys", "--columns", "--subset")
"""Flags about how a dataset is read; see ``reading_of``."""

TARGET = "an HDF5 file to write, or a Minari id"


class AgentHelp(argparse.Action):
    """The help of a command, including the settings of the agent if one is named before ``--help``."""

    def __call__(self, parser: argparse.ArgumentParser, args: argparse.Namespace, *_: Any) -> NoReturn:
        from offlinerl.training.config import BY_SOURCE
        from offlinerl.training.selection import sources_of
        from offlinerl.util.settings import described

        name = getattr(args, "agent", None) or getattr(args, "source", None)
        if name is not None and agents.is_name(name):
            agent, parser.usage = agents.outline(name), parser.format_usage().removeprefix("usage: ").replace("%", "%%")
            group = parser.add_argument_group(
                f"settings of {name}",
                "can also be set in the section `agent` of a --config file; some tasks have other defaults",
            )
            for key, kind, help in described(agent.config_class):
                group.add_argument(f"--agent.{key}", metavar=kind, help=help)
            for source, how in sources_of(agent.kinds).items():
                training = parser.add_argument_group(
                    f"settings of training {name} {how}",
                    "set with --train.KEY VALUE, or in the section `train` of a --config file; some have own flags",
                )
                for key, kind, help in described(BY_SOURCE[source]):
                    training.add_argument(f"{key}: {kind}", help=help)
        parser.print_help()
        parser.exit()


def command(commands: Any, name: str, function: Any, help: str, learner: str | None = None) -> Parser:
    """Add a command. For one that may train an agent, ``learner`` is how the help refers to the agent."""
    epilog = learner and (
        f"--agent.KEY VALUE sets any setting of {learner}, and --train.KEY VALUE any setting of the training;"
        f" see `offlinerl {name} AGENT --help`."
    )
    description = help[0].upper() + help[1:] + "."
    p = commands.add_parser(name, help=help, description=description, epilog=epilog, add_help=learner is None)
    p.register("type", None, word)  # an empty path would be the current folder
    p.register("type", Path, lambda text: Path(word(text)))
    if learner:
        about = "show this help, and the settings of AGENT if one is named"
        p.add_argument("-h", "--help", action=AgentHelp, nargs=0, help=about)
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    p.set_defaults(function=function)
    return p


def add_fit(commands: Any) -> None:
    p = command(commands, "fit", fit, "train an agent on a dataset or in an environment", learner="the agent")
    p.add_argument("agent", nargs="?", help=f"{', '.join(agents.names())}; or your own as module:Class")
    p.add_argument("--dataset", metavar="NAME", help="a name of `datasets list`, a Minari id, a file or a folder")
    p.add_argument("--env", metavar="ID", help="where to act: a Gymnasium id, a dataset's name, or none")
    p.add_shared(*LIMITS, "--score-range", *READING)
    p.add_argument(
        "--actions", choices=("discrete", "continuous"),
        help="kind of the dataset's actions, if no environment defines it",
    )  # fmt: skip
    p.add_argument(
        "--seeds", type=seed_list, metavar="N,N", help="seeds to train at once, as in 0,1,2 or 0-4 (default: 0)"
    )
    p.add_argument("--updates", type=count, metavar="N", help="gradient steps, when training on a dataset")
    p.add_argument("--steps", type=count, metavar="N", help="environment steps, when training without a dataset")
    p.add_argument("--online-steps", type=count, metavar="N", help="then fine-tune in the environment for N steps")
    p.add_argument(
        "--config", type=Path, metavar="FILE",
        help="settings that override the built-in ones, as in a run's config.yaml",
    )  # fmt: skip
    p.add_shared("--batch")
    p.add_argument("--eval-every", type=count, metavar="N", help="updates or steps between evaluations")
    p.add_shared("--eval-episodes", "--final-episodes", "--save-every")
    p.add_argument(
        "--log-every", type=count, metavar="N", help="updates or steps between rows of metrics (default: 500)"
    )
    p.add_argument(
        "--logger", metavar="A,B", help="some of csv, tensorboard, wandb and mlflow (default: csv,tensorboard)"
    )
    p.add_argument("--init", type=Path, metavar="CKPT", help="start from the weights of a checkpoint or a run")
    p.add_shared("--threads", "--compile", "--device")
    p.add_argument(
        "--devices", type=count, metavar="N", help="processes that share every batch, each on its own GPU (default: 1)"
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: a new one below runs/)")
    p.add_argument("--resume", type=Path, metavar="DIR", help="resume the run in this folder")


def add_collect(commands: Any) -> None:
    about = "collect a dataset with an agent, a checkpoint, random or scripted"
    p = command(commands, "collect", collect, about, learner="a learning agent")
    p.add_argument(
        "source", help="an agent, which learns while it collects; a checkpoint or a run; random; or scripted"
    )
    p.add_shared("--agent-class")
    p.add_argument(
        "--env", metavar="ID", help="where to act: a Gymnasium id or a dataset's name (default: a checkpoint's own)"
    )
    p.add_shared(*LIMITS)
    p.add_argument("--dataset", required=True, metavar="ID", help="id of the new dataset, (namespace/)name-vN")
    p.add_shared("--obs-keys")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--steps", type=count, metavar="N", help="environment steps to take")
    length.add_argument("--episodes", type=count, metavar="N", help="episodes to collect, if the source does not learn")
    p.add_argument(
        "--noise", type=share, default=0.0, metavar="SIGMA",
        help="standard deviation of noise added to a checkpoint's or script's actions",
    )  # fmt: skip
    p.add_shared("--seed")
    p.add_argument("--envs", type=count, metavar="E", help="number of parallel environments")
    p.add_argument("--workers", type=count, metavar="N", help="Ray processes that act for a learning agent")
    p.add_argument(
        "--ray-address", metavar="ADDRESS", help="run the workers on a cluster: auto or HOST:PORT (default: here)"
    )
    p.add_argument("--append", action="store_true", help="add to a dataset that the same source collected")
    p.add_argument("--resume", action="store_true", help="resume an interrupted collection")
    p.add_argument("--config", type=Path, metavar="FILE", help="settings of the agent that override the built-in ones")
    p.add_shared("--batch")
    p.add_argument("--eval-every", type=count, metavar="N", help="steps between evaluations of the agent")
    p.add_shared("--eval-episodes", "--final-episodes", "--save-every", "--threads", "--compile", "--device")
    p.add_argument("--out", type=Path, metavar="DIR", help="working folder (default: below runs/)")


def add_evaluate(commands: Any) -> None:
    p = command(commands, "evaluate", evaluate, "evaluate the policies in a checkpoint")
    p.add_argument("checkpoint", type=Path, help="a checkpoint, such as runs/xql-kitchen/last.ckpt, or a run's folder")
    p.add_shared("--agent-class")
    p.add_argument("--env", metavar="ID", help="an environment other than the checkpoint's own")
    p.add_shared(*LIMITS, "--score-range")
    p.add_argument("--episodes", type=count, default=50, metavar="N", help="episodes per policy (default: 50)")
    p.add_argument("--seed", type=whole, default=0, metavar="N", help="reset seed of the first episode (default: 0)")
    p.add_argument(
        "--video", type=Path, metavar="DIR", help="record a video of an episode of every policy: GIF, or MP4 with PyAV"
    )
    p.add_shared("--json", "--threads", "--device")


def add_datasets(commands: Any) -> None:
    nested = commands.add_parser("datasets", help="list, show, validate and make datasets")
    within = nested.add_subparsers(dest="action", required=True, metavar="ACTION")
    command(within, "list", datasets_list, "list the datasets by name")
    for add in (
        add_datasets_show, add_datasets_validate, add_datasets_generate, add_datasets_import,
        add_datasets_export, add_datasets_merge, add_datasets_split, add_datasets_filter,
    ):  # fmt: skip
        add(within)


def add_datasets_show(commands: Any) -> None:
    p = command(commands, "show", datasets_show, "describe a dataset and draw a picture of it")
    p.add_shared("name", *READING)
    drawn = "file of the picture, also .pdf or .svg (default: NAME.png, or NAME-2.png ... if that is another picture)"
    p.add_argument("--png", type=Path, metavar="FILE", help=drawn)
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file, or - to print them")


def add_datasets_validate(commands: Any) -> None:
    p = command(commands, "validate", datasets_validate, "check a dataset for faults; exit status 1 if it has any")
    p.add_shared("name", "--env", "--action-range", *READING)


def add_datasets_generate(commands: Any) -> None:
    p = command(commands, "generate", datasets_generate, "make a dataset from its recipe")
    p.add_argument("name", help="a recipe, such as kitchen or hopper-medium")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--size", type=count, metavar="N", help="number of transitions (default: the recipe's)")
    length.add_argument("--episodes", type=count, metavar="N", help="only the first N demonstrations")
    p.add_argument(
        "--split", choices=("train", "heldout"), default="train",
        help="training or held-out episodes, a tenth as many (default: train)",
    )  # fmt: skip
    p.add_argument("--workers", type=count, metavar="N", help="worker processes (default: one per core)")
    p.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: the cache)")
    p.add_argument("--resume", action="store_true", help="resume an interrupted generation")
    p.add_shared("--overwrite")


def add_datasets_import(commands: Any) -> None:
    p = command(commands, "import", datasets_import, "install a file as a Minari dataset")
    p.add_argument("file", type=Path, help="a file or a folder in any supported format")
    p.add_argument("id", help="id of the new dataset, (namespace/)name-vN")
    p.add_shared("--env", *READING, "--score-range", "--overwrite")


def add_datasets_export(commands: Any) -> None:
    p = command(commands, "export", datasets_export, "write a dataset in the format of D4RL, robomimic or LeRobot")
    p.add_shared("name")
    p.add_argument("file", type=Path, help="the HDF5 file to write, or a folder for LeRobot")
    p.add_argument("--format", choices=("d4rl", "robomimic", "lerobot"), default="d4rl", help="(default: d4rl)")
    p.add_argument("--fps", type=share, metavar="N", help="steps per second for LeRobot (default: the dataset's own)")
    p.add_shared(*READING, "--overwrite")


def add_datasets_merge(commands: Any) -> None:
    p = command(commands, "merge", datasets_merge, "merge the episodes of several datasets")
    p.add_argument("names", nargs="+", metavar="NAME", help="names, Minari ids, files or folders")
    p.add_argument("--out", required=True, metavar="TARGET", help=TARGET)
    p.add_shared(*READING, "--overwrite")


def add_datasets_split(commands: Any) -> None:
    p = command(commands, "split", datasets_split, "split the episodes of a dataset at random")
    p.add_shared("name")
    p.add_argument("--out", required=True, nargs=2, metavar="TARGET", help=f"for each part, {TARGET}")
    p.add_argument(
        "--share", type=fraction, default=0.9, metavar="X",
        help="fraction of the episodes in the first part (default: 0.9)",
    )  # fmt: skip
    p.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the random split (default: 0)")
    p.add_shared(*READING, "--overwrite")


def add_datasets_filter(commands: Any) -> None:
    p = command(commands, "filter", datasets_filter, "keep some of the episodes of a dataset")
    p.add_shared("name")
    p.add_argument("--out", required=True, metavar="TARGET", help=TARGET)
    p.add_argument("--min-return", type=float, metavar="R", help="minimum return")
    p.add_argument("--max-return", type=float, metavar="R", help="maximum return")
    p.add_argument(
        "--top", type=fraction, metavar="X",
        help="fraction with the highest returns, of the episodes that pass the other filters",
    )  # fmt: skip
    p.add_argument("--min-length", type=count, metavar="N", help="minimum length, in steps")
    p.add_argument("--max-length", type=count, metavar="N", help="maximum length, in steps")
    p.add_argument(
        "--success", action=argparse.BooleanOptionalAction, help="episodes that received the higher of two rewards"
    )
    p.add_argument("--episodes", type=numbers, metavar="N-N,N", help="episode numbers, counted from 0, as in 0-9,12")
    p.add_shared(*READING, "--overwrite")


def add_select(commands: Any) -> None:
    p = command(commands, "select", select, "rank the policies of runs, on their dataset or by a few episodes")
    p.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="runs, folders of runs or checkpoints, all of one task"
    )
    how = p.add_mutually_exclusive_group()
    how.add_argument("--offline", action="store_true", help="rank on the dataset (the default)")
    how.add_argument(
        "--episodes", type=count, metavar="N", help="rank by acting: N episodes, shared among all policies"
    )
    p.add_argument("--env", metavar="ID", help="where to act (default: the runs' environment)")
    p.add_argument(
        "--by", choices=("fqe", "wis", "dr"),
        help="fitted Q evaluation; or, if the dataset has the behaviour's log_prob, weighted importance sampling or"
        " doubly robust estimation (default: fqe)",
    )  # fmt: skip
    p.add_argument("--dataset", metavar="NAME", help="dataset to evaluate on (default: the first run's)")
    p.add_argument("--updates", type=count, metavar="N", help="gradient steps per evaluation (default: 10000)")
    p.add_argument(
        "--critics", type=count, metavar="N", help="number of critics, whose spread gives the interval (default: 5)"
    )
    p.add_argument("--gamma", type=discount, metavar="X", help="discount factor of the estimates (default: 0.99)")
    p.add_argument(
        "--terminal-ends", action="store_true", default=None,
        help="treat every end of an episode as terminal: no value is bootstrapped after it",
    )  # fmt: skip
    p.add_shared("--seed")
    p.add_argument(
        "--png", type=Path, metavar="FILE", help="plot the expected performance by the number of policies tried"
    )
    p.add_shared("--json", "--threads", "--device")
    p.add_argument(
        "--agent-class", type=names, metavar="MODULE:CLASS,...", help="the classes of the agents that are your own"
    )


def add_report(commands: Any) -> None:
    p = command(commands, "report", report, "compare runs: which agent is best, and how certain that is")
    p.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs, or folders that contain some"
    )
    p.add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder for report.html, report.md, pictures (PNG, PDF, SVG) and tables (CSV, LaTeX) (default: none)",
    )  # fmt: skip


def add_export(commands: Any) -> None:
    about = "export a policy for other programs, or as a file with only what acting needs"
    p = command(commands, "export", export, about)
    p.add_argument(
        "checkpoint", type=Path, help="a checkpoint, such as runs/sac-Hopper-v5/last.ckpt, or a run's folder"
    )
    kinds = p.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--onnx", type=Path, metavar="FILE", help="a graph that ONNX Runtime runs")
    kinds.add_argument(
        "--torchscript", type=Path, metavar="FILE", help="a graph that torch.jit.load reads, also in C++"
    )
    kinds.add_argument(
        "--safetensors", type=Path, metavar="FILE",
        help="a file for evaluate and collect that records how the policy was trained",
    )  # fmt: skip
    p.add_argument(
        "--seed", type=whole, metavar="N",
        help="seed of the policy (default: the first); if a setting has several values, also --agent.KEY X",
    )  # fmt: skip
    p.add_argument(
        "--episodes", type=count, metavar="N",
        help="episodes to measure the return of a --safetensors policy (default: 100)",
    )  # fmt: skip
    p.add_shared("--agent-class", "--device", "--overwrite")


def add_sweep(commands: Any) -> None:
    p = command(commands, "sweep", sweep, "train every combination of agents, datasets and settings in parallel")
    p.add_argument(
        "file", type=Path,
        help="YAML file with agents, datasets, env, seeds, each, together, agent, train, cpus, gpus, out",
    )  # fmt: skip
    p.add_argument(
        "--ray-address", metavar="ADDRESS", help="run the trainings on a cluster: auto or HOST:PORT (default: here)"
    )


def add_benchmark(commands: Any) -> None:
    p = command(commands, "benchmark", benchmark, "measure updates/s, their limit, Lightning's overhead and loading")
    p.add_argument("agent", nargs="?", default="xql", help="xql, iql, bc ... (default: xql)")
    p.add_argument("--batch", type=count, default=256, metavar="N", help="transitions per gradient step (default: 256)")
    p.add_argument(
        "--seeds", type=seed_list, metavar="N,N",
        help="seeds to train at once, as in 0,1,2 (default: 0; on a GPU also 5 and 20 seeds)",
    )  # fmt: skip
    p.add_shared("--device", "--threads", "--json")


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="offlinerl", description="Offline reinforcement learning.")
    top.add_argument("--version", action="version", version=f"offlinerl {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        add_fit, add_collect, add_evaluate, add_datasets, add_select, add_report, add_export, add_sweep,
        add_benchmark,
    ):  # fmt: skip
        add(commands)
    return top


def take_settings(words: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Split a command line into the settings, given as ``--agent.KEY VALUE``, ``--train.KEY=VALUE`` and the like, and
    the remaining words. Returns the words, and the settings by section.

    Raises:
        WrongUsage: a value is missing.
    """
    rest, settings, words = [], dict(agent={}, train={}), list(words)
    while words:
        word = words.pop(0)
        if word in ("--action-range", "--score-range") and words:
            word = f"{word}={words.pop(0)}"  # argparse would read -1,1 as a flag
        section, dot, key = word.removeprefix("--").partition(".")
        if not (word.startswith("--") and dot and section in settings):
            rest.append(word)
            continue
        key, equals, value = key.partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise WrongUsage(f"{word} needs a value")
            value = words.pop(0)
        from offlinerl.training.config import parse_value

        settings[section][key.replace("-", "_")] = parse_value(value)
    return rest, settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. The exit status is 0, 1 for errors that the user can fix, 2 for wrong usage and 143 after SIGTERM;
    a command may return a status of its own."""
    args = argparse.Namespace(command="fit")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may contain characters that it cannot encode
    if argv is None:
        sys.path.append(os.getcwd())  # so that `--env module:Id` finds modules here, as with python -m
    try:
        rest, settings = take_settings(sys.argv[1:] if argv is None else argv)
        args = parser().parse_args(rest)
        args.settings = settings
        taken = {fit: ("agent", "train"), collect: ("agent", "train"), export: ("agent",)}.get(args.function, ())
        if any(given and section not in taken for section, given in settings.items()):
            raise WrongUsage(f"{args.command} takes no --{'agent' if settings['agent'] else 'train'} settings")
        with on_interrupt(leave, [signal.SIGTERM]):
            status = args.function(args) or 0
        sys.stdout.flush()  # within the try, so that errors of a full disk or a closed pipe are handled
        return status
    except UserError as error:
        return fail(args, error)
    except KeyboardInterrupt:
        return fail(args, Interrupted("interrupted"))
    except AtOnce:
        return fail(args, Interrupted("stopped by SIGTERM", TERMINATED))
    except BrokenPipeError:
        drop_output()  # the reader, such as `head`, has exited
        return 0
    except OSError as error:
        if error.errno not in (*DISK_FULL, *PATH_TROUBLE):
            raise
        full = error.errno in DISK_FULL
        try:
            sys.stdout.flush()
        except OSError:
            drop_output()
        trouble = "the disk is full: free some space" if full else os.strerror(error.errno).lower()
        return fail(args, UserError(f"{error.filename}: {trouble}" if error.filename else trouble))


PATH_TROUBLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip


def drop_output() -> None:
    """Redirect standard output to nothing, since Python flushes it once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(args: argparse.Namespace, error: UserError) -> int:
    """Print the error's message to standard error and return its status; with --debug, raise it for the traceback."""
    if getattr(args, "debug", False):
        raise error
    print(f"offlinerl {args.command}: {error}", file=sys.stderr)
    return error.status


if __name__ == "__main__":
    sys.exit(main())
