"""Fills ``{{ help fit }}`` in a page with what ``offlinerl fit --help`` prints, so that no page is out of date."""

import os
import re
import subprocess
import sys


def on_page_markdown(markdown, **_):
    def text(match):
        argv = [sys.executable, "-m", "offlinerl", *match[1].split(), "--help"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "110"})
        return f"```text\n{done.stdout.rstrip()}\n```"

    return re.sub(r"^\{\{ help(.*) \}\}$", text, markdown, flags=re.M)
