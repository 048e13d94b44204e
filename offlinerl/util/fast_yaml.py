"""Reads YAML in C, where PyYAML has been built with libyaml, which takes an eighth of the time."""

from __future__ import annotations

from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse(text: str) -> Any:
    """As ``yaml.safe_load``."""
    try:
        return yaml.load(text, _LOADER)
    except yaml.YAMLError:  # libyaml takes no escapes of bytes in a file's name that are not UTF-8
        return yaml.safe_load(text)
