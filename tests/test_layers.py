"""The house: arrows point down, names are plain, and nothing unpickles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "featcache"
# A package may import itself and those listed; L0 modules may be imported by everybody.
GROUND = {
    "errors",
    "atomic",
    "recipe",
    "stopping",
    "metrics",
    "progress",
    "selection",
    "version",
    "costs",
    "figures",
    "limits",
    "objects",
}
MAY_IMPORT = {
    "images": set(),
    "store": {"images"},
    "backbones": set(),
    "heads": set(),
    "extraction": {"images", "store", "backbones"},
    "training": {"store", "heads"},
    "inference": {"images", "store", "backbones", "heads"},
    "reporting": {"images", "store", "training"},
    "networks": set(),
    "live": set(),
    "finetuning": {"images", "store", "backbones", "heads", "networks"},
    "whole": {"training", "finetuning", "store", "heads", "images"},
    "studies": {"api", "whole", "finetuning", "reporting", "training", "store"},
    "api": {
        "live",
        "extraction",
        "training",
        "inference",
        "reporting",
        "finetuning",
        "whole",
        "store",
        "images",
    },
    "commands": {
        "api",
        "live",
        "reporting",
        "studies",
        "extraction",
        "finetuning",
        "inference",
        "training",
        "whole",
        "store",
        "images",
        "backbones",
        "heads",
    },
}
# What whole packages never load, wherever the import stands.
NEVER = {
    "store": {"torchvision", "sklearn", "PIL"},
    "heads": {"PIL", "torchvision", "h5py"},
    "training": {"PIL", "torchvision", "torch"},
    "images": {"h5py"},
}
TORCH_IN_STORE = {"torch_view.py"}
FILES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    top = _top(path)
    allowed = MAY_IMPORT.get(top, set()) | GROUND | {top}
    if top in ("__init__", "__main__"):
        allowed |= {"api", *MAY_IMPORT}
    if top in GROUND:
        allowed = {"errors", top}
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "featcache" and len(parts) > 1:
            assert parts[1] in allowed, f"{top} imports {name}"
        assert parts[0] not in NEVER.get(top, set()), f"{top} imports {name}"
        if top == "store" and path.name not in TORCH_IN_STORE:
            assert parts[0] != "torch", f"{path.name} imports torch"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_library_neither_prints_nor_exits_nor_asserts_nor_unpickles(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"assert at line {node.lineno}"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if _top(path) not in ("commands", "__main__"):
                assert name not in ("print", "sys.exit", "exit", "click.echo"), name
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load"), name
            if name in ("np.load", "numpy.load"):
                assert any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords)
            if name == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    assert not {"pickle", "joblib", "dill", "cloudpickle"} & {name.split(".")[0] for name in _imports(path)}


def test_modules_are_small_and_plainly_named() -> None:
    for path in FILES:
        assert path.read_text().count("\n") <= 300, path
        assert path.stem not in {"utils", "helpers", "manager", "processor", "handler", "misc", "common"}, (
            path
        )
