"""The examples of the README and the documentation work: Python runs, commands are valid, linked files exist."""

import re
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pendulum
import pytest
from test_formats import episode, robomimic
from test_layers import LAYERS

from offlinerl import agents
from offlinerl.cli import main, parser, take_settings
from offlinerl.data import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SMALLER = [
    (r"\bupdates(\W+)[\d_]+", r"updates\g<1>5"), (r"\bepisodes=\d+", "episodes=1"), (r"range\(20\)", "range(1)"),
    (r"epoch\([\d_]+\)", "epoch(50)"),
    (r'((?:fit|load_dataset)\(.*)"kitchen"', rf'\g<1>"{pendulum.ID}"'),
]  # fmt: skip
"""The examples take minutes. The tests use fewer updates and episodes, and a small task for trainings."""


def blocks(page: Path, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    return [code for named, code in found if named == language]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page, tmp_path):
    """The blocks of a page one after another, as a reader would run them."""
    names = {"__name__": "a_page"}
    with pendulum.workplace(tmp_path):
        for code in blocks(page, "python"):
            for long, short in SMALLER:
                code = re.sub(long, short, code)
            code = code.replace('"updates": 5}', '"updates": 5, "eval_episodes": 1, "final_episodes": 1}')
            exec(compile(code, page.name, "exec"), names)


COMMAND = re.compile(r"^(?:\$ )?(?:.*&& )?(offlinerl (?!COMMAND)[^#\n]*)|`(offlinerl [^`]+)`", re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_known(page):
    for in_block, inline in COMMAND.findall(page.read_text("utf-8")):
        words = re.sub(r"\[--.*?\]", "", in_block or inline).replace('"', "").split()[1:]
        words = ["3" if word == "N" else word for word in words]
        if {"--help", "..."} & {*words} or (inline and "--" not in inline):
            continue  # only the name of a command, without its required arguments
        parsed = parser().parse_args(take_settings(words)[0])
        if parsed.command == "fit" and parsed.agent not in (None, "AGENT"):
            agents.require(parsed.agent)


ELSEWHERE = {
    "benchmark": "test_benchmark", "sweep": "test_ray", "generate": "test_generate", "--pixels": "test_pixels",
    "ALE/Breakout-v5": "test_atari", "MinAtar/Breakout-v1": "test_atari", "CarRacing-v3": "test_vae",
    "driving/random-v0": "test_vae", "pixels/cartpole-balance-drqv2-v0": "test_drqv2",
    "runs/xql-pixels-cartpole-balance-drqv2-v0": "test_drqv2", "hopper-medium": "test_generate",
    "antmaze-umaze": "test_antmaze", "kitchen-partial": "test_generate",
    "kitchen-complete-v0.hdf5": "test_data", "door-human-demos.hdf5": "test_data",
    "runs/hopper-medium": "test_shipped",
}  # fmt: skip
"""Words of commands that take long even at a small size, and the tests that run such commands."""

EVALUATED = ["--eval-episodes", "1", "--final-episodes", "1", "--compile", "false"]


def at_a_small_size(words: list[str]) -> list[str]:
    """A command of the documentation, changed so that it takes seconds."""
    words = ["Pendulum-v1" if word == "ID" else word for word in words]
    command, given = words[0], set(words)
    of = dict(zip(words, words[1:], strict=False))

    def put(flag: str, value: str) -> None:
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words.extend([flag, value])

    if command == "fit" and "--resume" in given:
        put("--updates", "8")
    elif command == "fit" and "--dataset" in given:
        words += EVALUATED
        for flag, value in (("--updates", "4"), ("--eval-every", "4"), ("--batch", "8")):
            put(flag, value)
        if of.get("--seeds"):
            put("--seeds", "0,1")
        if "--online-steps" in given:
            put("--online-steps", "8")
            put("--train.online_eval_every", "8")
    elif command == "fit":
        words += [*EVALUATED, "--max-episode-steps", "10", "--eval-every", "16", "--batch", "16"]
        put("--steps", "16")
    elif command == "collect":
        learns = agents.is_name(words[1])
        put("--steps" if learns else "--episodes", "40" if learns else "1")
        words += ["--compile", "false", "--batch", "8", "--eval-every", "40"] if learns else []
    elif command == "evaluate" or "--safetensors" in given:
        put("--episodes", "1")
    elif command == "select" and "wis" not in words:
        put(*(("--episodes", "6") if "--episodes" in given else ("--updates", "3")))
    return words


def commands_of(page: Path) -> list[list[str]]:
    """The commands in its blocks, without those of ``ELSEWHERE`` and those that contain placeholders."""
    lines = (line.split("&& ")[-1] for block in blocks(page) for line in block.splitlines())
    words = (shlex.split(re.sub(r"\[--.*?\]", "", line), comments=True) for line in lines if line[:10] == "offlinerl ")
    found = [["bc" if word == "AGENT" else word for word in of[1:]] for of in words]
    return [of for of in found if not {"RUN", "NAME", "N", *ELSEWHERE} & {*of}]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The files that a reader of the pages has: data of a robot (here Pendulum), some logs, and trained policies. The
    name ``kitchen`` stands for Pendulum too."""
    with pendulum.workplace(tmp_path) as folder:
        task = registry.resolve(pendulum.ID)
        monkeypatch.setitem(registry._load(), "kitchen", replace(task, name="kitchen"))
        assert main(["datasets", "export", pendulum.ID, "my-robot.hdf5"]) == 0
        log = [f"{run},{x},{x},{x},{-x},{x},{x}" for run in range(4) for x in range(8)]
        Path("log.csv").write_text("\n".join(["run,x,y,angle,throttle,wheel,r", *log]))
        # some episodes are long and good enough to pass the filters that the page shows
        many = [dict(episode(n, 12), reward=np.full(12, 50.0 * (n % 2) / 12, np.float32) * 1.01) for n in range(6)]
        for name, some in dict(monday=many[:3], tuesday=many[3:], lift=many).items():
            robomimic(folder / f"{name}.hdf5", some)
        yield folder


def trained(data: str, *agents_: str, seeds: str = "0") -> None:
    folder = "my-robot" if data == "my-robot.hdf5" else data
    for agent in agents_:
        run = ["fit", agent, "--dataset", data, "--out", f"runs/{agent}-{folder}"]
        assert main([*at_a_small_size(run), "--seeds", seeds]) == 0


BEFORE = {
    "choosing": lambda: (trained("my-robot.hdf5", "bc", "xql", "iql"), trained("kitchen", "bc", "xql")),
    "deploying": partial(trained, "my-robot.hdf5", "bc", seeds="0,3"),
    "command-line": partial(trained, "kitchen", "bc"), "report": partial(trained, "kitchen", "bc", "xql"),
}  # fmt: skip
"""What has to be done before the commands of a page."""


MANY = ("quickstart", "your-own-data", "command-line", *agents.names())
"""Pages that take long together, because they have many commands or there are many of them."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in MANY else (), id=page.stem)
     for page in PAGES if commands_of(page)],
)  # fmt: skip
def test_the_commands_of_a_page_run(page, desk, monkeypatch):
    """One after another, as a reader would type them."""
    monkeypatch.syspath_prepend(desk)
    if page.stem == "your-own-agent":
        (desk / "my_agents.py").write_text(blocks(page, "python")[0])
    BEFORE.get(page.stem, list)()
    for words in commands_of(page):
        assert main(at_a_small_size(words)) == 0, words


def test_commands_that_are_skipped_here_have_their_own_tests():
    words = {word for page in PAGES for block in blocks(page) for word in re.split(r"\s+", block)}
    for word, test in ELSEWHERE.items():
        assert word in words and (ROOT / f"tests/{test}.py").is_file(), word


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_to_existing_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        assert re.match("https?://", target) or (page.parent / target).exists(), target


def test_the_checks_run_the_test_command_of_the_readme():
    script = (ROOT / ".ci/run").read_text("utf-8")
    (command,) = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.endswith("&& pytest")]
    assert command in script.splitlines()


def test_every_agent_is_in_the_documentation():
    text = (ROOT / "docs/algorithms.md").read_text("utf-8")
    reference = (ROOT / "docs/reference/agents.md").read_text("utf-8")
    for name in agents.names():
        assert f"[`{name}`](algorithms/{name}.md)" in text, name
        assert f"::: offlinerl.agents.{name}\n" in reference + "\n", name
        page = (ROOT / f"docs/algorithms/{name}.md").read_text("utf-8")
        assert f"{{{{ settings {name} }}}}" in page and f"\nofflinerl fit {name} " in page, name
        assert f"algorithms/{name}.md\n" in (ROOT / "mkdocs.yml").read_text("utf-8"), name


def test_the_architecture_shows_the_layers_as_they_are():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/architecture.md").read_text("utf-8"), re.M)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == LAYERS[:-1]
