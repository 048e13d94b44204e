"""An installed wheel has everything that a checkout has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="building a wheel needs hatchling")

ROOT = Path(__file__).parents[1]


def python(*argv, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *argv], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package installed from a wheel, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    name = python("-c", build, str(folder), cwd=ROOT).splitlines()[-1]
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder / "site"))
    python(*install, str(folder / name), cwd=folder)
    return folder / "site"


def test_a_wheel_finds_its_files(installed, tmp_path):
    code = """
import offlinerl, pathlib
from offlinerl.util import paths
print(pathlib.Path(offlinerl.__file__).parents[1])
for path in sorted(paths.share(".").rglob("*")):
    if path.is_file():
        print(path.relative_to(paths.share(".")))
"""
    where, *shared = python("-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert Path(where) == installed
    tracked = [path for folder in ("configs", "datasets") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert set(shared) == {str(path.relative_to(ROOT)) for path in tracked}
    assert {"configs/xql/kitchen.yaml", "datasets/registry.yaml", "datasets/recipes/kitchen.yaml"} <= set(shared)


def test_a_wheel_lists_its_datasets(installed, tmp_path):
    out = python("-m", "offlinerl", "datasets", "list", cwd=tmp_path, PYTHONPATH=str(installed))
    listed = {line.split("\t")[0]: line.split("\t")[2] for line in out.splitlines()}
    assert "kitchen-complete-v0" in listed
    assert listed["kitchen"] == ("yes" if (ROOT / "datasets/kitchen").is_dir() else "")
