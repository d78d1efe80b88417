from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featcache.errors import DatasetError
from featcache.images import scan


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for at in range(60):
        path = tmp_path / f"d{at % 6}" / f"e{at % 4}" / f"{at}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * at)
    return tmp_path


def forking(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make every scan fork, and count the children."""
    count: list[int] = []
    monkeypatch.setattr(scan, "_may_fork", lambda: True)
    monkeypatch.setattr(scan, "cores", lambda: 3)
    monkeypatch.setattr(scan, "FORK_ABOVE", 5)
    monkeypatch.setattr(scan, "CHUNK", 7)
    child = scan._child

    def counted(*args: object) -> tuple[int, int]:
        count.append(1)
        return child(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(scan, "_child", counted)
    return count


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forks_change_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"d{at % 6}/e{at % 4}/{at}.bin" for at in range(60)]
    monkeypatch.setattr(scan, "CHUNK", 7)
    alone = scan.scan_trees(str(tree), [""]), scan.scan_files(str(tree), names)
    assert alone[0].files == alone[1].files == 60
    count = forking(monkeypatch)
    assert (scan.scan_trees(str(tree), [""]), scan.scan_files(str(tree), names)) == alone
    assert len(count) == 4


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_excluded_folders_are_as_if_absent(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, exclude = scan.scan_trees(str(tree), [""]), {"d1", "d2/e2", "d9"}
    without = scan.scan_trees(str(tree), [""], exclude)
    assert without.digest != whole.digest and without.files == 60 - 10 - 5
    with monkeypatch.context() as patch:
        forking(patch)
        assert scan.scan_trees(str(tree), [""], exclude) == without
    for folder in ("d1", "d2/e2"):
        shutil.rmtree(tree / folder)
    assert scan.scan_trees(str(tree), [""]) == scan.scan_trees(str(tree), [""], exclude) == without


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_dies_costs_nothing_but_time(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = scan.scan_trees(str(tree), [""])
    forking(monkeypatch)
    parent, folders = os.getpid(), scan._folders

    def dying(*args: object) -> object:
        if os.getpid() != parent:
            os._exit(9)
        return folders(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(scan, "_folders", dying)
    assert scan.scan_trees(str(tree), [""]) == alone


def test_the_digest_sees_every_change_of_a_file(tree: Path) -> None:
    seen = {scan.scan_trees(str(tree), [""]).digest}
    path = tree / "d1" / "e1" / "1.bin"

    def look() -> None:
        digest = scan.scan_trees(str(tree), [""]).digest
        assert digest not in seen
        seen.add(digest)

    path.write_bytes(b"longer than before")
    look()
    os.utime(path, ns=(1, 1))
    look()
    path.rename(path.with_name("renamed"))
    look()
    path.with_name("renamed").unlink()
    look()
    (tree / "link").symlink_to("d1")
    look()
    (tree / "d2" / "e2" / "2.bin").replace(tree / "d3" / "e3" / "3.bin")
    look()


def test_same_size_and_time_but_another_file(tree: Path) -> None:
    path, other = tree / "d5" / "e1" / "5.bin", tree / "swap"
    os.utime(path, ns=(10**18, 10**18))
    before = scan.scan_trees(str(tree), [""]).digest
    other.write_bytes(b"y" * 5)
    os.utime(other, ns=(10**18, 10**18))
    other.replace(path)
    assert scan.scan_trees(str(tree), [""]).digest != before


def test_the_newest_time(tree: Path) -> None:
    at = 2**62
    os.utime(tree / "d0" / "e0" / "0.bin", ns=(at, at))
    assert scan.scan_trees(str(tree), [""]).newest_ns == at
    assert scan.scan_trees(str(tree), ["nothing"]).newest_ns == 0


def test_absent_names_are_noted(tree: Path) -> None:
    one = scan.scan_trees(str(tree), ["d0", "later"])
    (tree / "later").write_bytes(b"")
    assert scan.scan_trees(str(tree), ["d0", "later"]).digest != one.digest
    assert scan.scan_files(str(tree), ["a\0b"]).newest_ns == 0


def test_links_round_in_circles_end(tree: Path) -> None:
    (tree / "d0" / "loop").symlink_to(tree)
    assert scan.scan_trees(str(tree), [""]).files == 61


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_locked_folder_is_an_error(tree: Path) -> None:
    (tree / "d0").chmod(0)
    try:
        with pytest.raises(DatasetError, match="Cannot list"):
            scan.scan_trees(str(tree), [""])
    finally:
        (tree / "d0").chmod(0o700)


def test_huge_inodes_have_a_digest() -> None:
    assert (
        scan._packed("", ["a"], [1, 2, 3, 2**64 - 1])[1] != scan._packed("", ["a"], [1, 2, 3, 2**64 - 2])[1]
    )


def test_a_warm_hit_loads_nothing_heavy(tree: Path) -> None:
    """Naming a source of any kind and taking its digest must stay in the standard library."""
    (tree / "t.csv").write_text("path,label\nd0/e0/0.bin,a\n")
    code = f"""
import sys
from pathlib import Path
from featcache.images.catalogue import known, open_source
for spec in ("folder:{tree}", "csv:{tree}/t.csv", "cifar10", "svhn", "digits"):
    source = open_source(spec, Path({str(tree)!r}))
    assert len(source.stat_digest()) == 64 and source.newest_ns() >= 0 and source.name
assert known()
loaded = {{"numpy", "torch", "torchvision", "PIL", "sklearn", "xxhash", "h5py"}} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
