"""What README and the documentation show works: their Python runs, their commands parse, their files are there."""

import re
from pathlib import Path

import pendulum
import pytest
from test_layers import LAYERS

from offlinerl import agents
from offlinerl.cli import parser, take_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SMALLER = [
    (r"\bupdates(\W+)[\d_]+", r"updates\g<1>5"), (r"\bepisodes=\d+", "episodes=1"), (r"range\(20\)", "range(1)"),
    (r"epoch\([\d_]+\)", "epoch(50)"),
    (r'((?:fit|load_dataset)\(.*)"kitchen"', rf'\g<1>"{pendulum.ID}"'),
]  # fmt: skip
"""What is shown runs for minutes. It is tested with a few updates and episodes, and trainings with a small task."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


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
        if inline and "--" not in inline:
            continue  # a command's name, without all that it needs
        parsed = parser().parse_args(take_settings(words)[0])
        if parsed.command == "fit" and parsed.agent not in (None, "AGENT"):
            agents.require(parsed.agent)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_to_is_there(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        assert re.match("https?://", target) or (page.parent / target).exists(), target


def test_the_checks_run_the_tests_as_readme_says():
    script = (ROOT / ".ci/run").read_text("utf-8")
    (command,) = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.endswith("&& pytest")]
    assert command in script.splitlines()


def test_every_agent_is_in_the_documentation():
    text = (ROOT / "docs/algorithms.md").read_text("utf-8")
    reference = (ROOT / "docs/reference/agents.md").read_text("utf-8")
    for name in agents.names():
        assert f"`{name}`" in text and f"::: offlinerl.agents.{name}\n" in reference + "\n", name


def test_the_architecture_shows_the_layers_as_they_are():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/architecture.md").read_text("utf-8"), re.M)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == LAYERS[:-1]
