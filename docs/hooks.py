"""What pages take from the code, so that none is out of date, and formulas as MathML, which browsers draw themselves.

``{{ help fit }}`` becomes what ``offlinerl fit --help`` prints, ``{{ settings xql }}`` tables of an agent's settings.
"""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml
from latex2mathml.converter import convert

from offlinerl import agents
from offlinerl.agents.base import Config
from offlinerl.util.settings import settings_of

CONFIGS = Path(__file__).parents[1] / "configs"


def on_page_markdown(markdown, **_):
    markdown = re.sub(r"^\{\{ help(.*) \}\}$", lambda match: help_of(match[1].split()), markdown, flags=re.M)
    return re.sub(r"^\{\{ settings (\w+) \}\}$", lambda match: tables_of(match[1]), markdown, flags=re.M)


def on_page_content(content, **_):
    """Formulas in what pymdownx.arithmatex has marked."""
    inline, block = r'(<span class="arithmatex">)\\\((.*?)\\\)', r'(<div class="arithmatex">)\s*\\\[(.*?)\\\]'
    content = re.sub(inline, lambda match: match[1] + convert(html.unescape(match[2])), content, flags=re.S)
    return re.sub(
        block, lambda match: match[1] + convert(html.unescape(match[2]), display="block"), content, flags=re.S
    )


def help_of(command):
    argv = [sys.executable, "-m", "offlinerl", *command, "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "110"})
    return f"```text\n{done.stdout.rstrip()}\n```"


def tables_of(agent):
    """An agent's settings, of those that all have the ones that it or its configs change, and below them what the
    files of configs have instead of the defaults."""
    settings, common = settings_of(agents.get(agent).config_class), settings_of(Config)
    files = sorted((CONFIGS / agent).glob("*.yaml"))
    configs = {file.stem: yaml.safe_load(file.read_text("utf-8")).get("agent", {}) for file in files}
    rows, differing = [], []
    for name, field in settings.items():
        values = [of.get(name, field.default) for of in configs.values()]
        differs = any(shown(value) != shown(field.default) for value in values)
        if differs or name not in common or field.default != common[name].default:
            rows.append([name, field.default, field.metadata["help"]])
        if differs:
            differing.append([name, *values])
    text = table(["setting", "default", "what"], rows)
    if differing:
        text += "\n\n" + table([f"`configs/{agent}`", *configs], differing)
    return text


def table(head, rows):
    rows = [head, ["---"] * len(head), *([f"`{name}`", *map(shown, rest)] for name, *rest in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shown(value):
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
