"""Imports point downwards only."""

import ast
from pathlib import Path

import offlinerl

PACKAGE = Path(offlinerl.__file__).parent

LAYERS = [
    {"util", "types"}, {"tabular"}, {"envs"}, {"data"}, {"learning"}, {"nn"}, {"agents"}, {"rollout"}, {"experience"},
    {"recipes"}, {"evaluation"}, {"training"}, {"api", "dataset_commands", "benchmark"}, {"cli"}, {"__main__"},
]  # fmt: skip
"""From the bottom to the top. A package may import itself, if that makes no cycle."""

LATE = {"cli", "api"}
"""Modules that import within functions, so that they can report mistakes before torch is loaded."""


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(module: str) -> list[tuple[str, ast.AST, bool]]:
    """Our own modules that a module imports at run time, where, and whether within a function."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    typing = [inner for node in tree.body if isinstance(node, ast.If) for inner in node.body]
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "offlinerl":
            base = node.module.partition(".")[2]
            names = [f"{base}.{alias.name}".strip(".") for alias in node.names]
            names = [name if name in MODULES else base for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name.partition(".")[2] for alias in node.names if alias.name.split(".")[0] == "offlinerl"]
        if not any(node is inner for inner in typing):
            found += [(name, node, id(node) not in top) for name in names]
    return found


def layer(module: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if module.split(".")[0] in names)


def test_every_module_belongs_to_a_layer():
    assert {module.split(".")[0] for module in MODULES if module} == set().union(*LAYERS)


def test_imports_point_downwards():
    upwards = [
        f"{module}, line {node.lineno}: {name}"
        for module in MODULES
        if module
        for name, node, _ in imports(module)
        if name and layer(name) > layer(module)
    ]
    assert not upwards


def test_imports_of_modules_form_no_cycle():
    graph = {module: {name for name, _, _ in imports(module) if name != module} for module in MODULES}
    while graph:
        leaves = {module for module, names in graph.items() if not names & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {module: names for module, names in graph.items() if module not in leaves}


def test_functions_do_not_import_our_modules():
    hidden = [
        f"{module}, line {node.lineno}: {name}"
        for module in MODULES
        if module not in LATE
        for name, node, within in imports(module)
        if within
    ]
    assert not hidden
