"""The documents' own code runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.kit_caches import empty_cache, fill

ROOT = Path(__file__).parents[1]


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_a_stranger_reads_a_shard_with_five_lines_of_h5py(tmp_path: Path) -> None:
    cache = fill(empty_cache(tmp_path, {"train": 10}, rows_per_shard=10), bad={4: "truncated"})
    (code,) = _blocks("docs/format.md", "python")
    assert "featcache" not in code and len([line for line in code.splitlines() if line.strip()]) <= 5
    names: dict[str, object] = {"shard": next((cache.path / "shards").iterdir())}
    exec(code, names)
    table = cache.table("train", val_fraction=0)
    good = names["good"]
    assert np.array_equal(names["features"][good], table.X)  # type: ignore[index]
    assert np.array_equal(names["labels"][good], table.y)  # type: ignore[index]
    assert np.array_equal(names["rows"][good], table.rows)  # type: ignore[index]


def test_the_page_on_heads_knows_them_all() -> None:
    from featcache.commands.sweep import sweep
    from featcache.heads.catalogue import KINDS, options

    page = (ROOT / "docs/heads.md").read_text()
    table = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in table for name in re.findall(r"`([\w-]+)", row)}
    assert named == set(KINDS)
    kernels = options("svm")["kernel"].expected.removeprefix("one of ").split(", ")
    assert {f"`svm --kernel {name}`" for name in kernels if name != "linear"} < set(table)
    flags = {flag for parameter in sweep.params for flag in parameter.opts}
    for flag in re.findall(r"--[a-z][a-z-]*", page):
        assert flag in flags | {"--solver", "--best-by"}, flag


def test_links_in_the_documents_lead_somewhere() -> None:
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").glob("*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)


def test_the_readme_s_python_uses_what_there_is() -> None:
    import featcache

    (code,) = _blocks("README.md", "python")
    for name in re.findall(r"featcache\.(\w+)", code):
        assert hasattr(featcache, name), name
