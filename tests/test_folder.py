from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.errors import BadImageError, DatasetError, OptionError
from featcache.images.catalogue import open_source
from featcache.images.dataset import Dataset
from featcache.images.folder import FolderSource
from featcache.images.source import slug
from tests.kit_datasets import check_dataset


def paint(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(file, "PNG")
    return path


def make(root: Path, *names: str) -> Path:
    for at, name in enumerate(names):
        paint(root / name, at % 256)
    return root


def opened(root: Path) -> Dataset:
    return FolderSource(str(root)).open()


def refused(root: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        opened(root)
    assert caught.value.hint
    return str(caught.value)


FULL = (
    "train/cat/b.png", "train/cat/a.png", "train/dog/deep/down/1.PNG", "valid/cat/z.jpg", "test/dog/0.jpeg",
)  # fmt: skip


def test_split_layout(tmp_path: Path) -> None:
    dataset = opened(make(tmp_path / "pets", *FULL))
    assert dataset.ids == [
        "train/cat/a.png", "train/cat/b.png", "train/dog/deep/down/1.PNG", "valid/cat/z.jpg",
        "test/dog/0.jpeg",
    ]  # fmt: skip
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 0, 1] and dataset.splits.tolist() == [0, 0, 0, 1, 2]
    assert dataset.image(0).tolist() == np.full((4, 5, 3), 1).tolist()
    check_dataset(dataset)


def test_flat_layout_is_all_train(tmp_path: Path) -> None:
    dataset = opened(make(tmp_path, "b/2.png", "b/1.png", "a c/x/9.png", "B/3.png"))
    assert dataset.classes == ("B", "a c", "b") and dataset.splits.tolist() == [0] * 4
    assert dataset.ids == ["B/3.png", "a c/x/9.png", "b/1.png", "b/2.png"]
    check_dataset(dataset)


def test_train_and_val_only(tmp_path: Path) -> None:
    dataset = opened(make(tmp_path, "Train/a/1.png", "Validation/a/1.png"))
    assert dataset.splits.tolist() == [0, 1]


def test_order_is_bytewise_not_by_folder(tmp_path: Path) -> None:
    dataset = opened(make(tmp_path, "a/1.png", "a b/1.png", "a-b/1.png", "é/1.png", "z/1.png", "Z/1.png"))
    assert dataset.ids == sorted(dataset.ids, key=os.fsencode)
    assert dataset.ids[0] == "Z/1.png" and dataset.ids[-1] == "é/1.png"
    assert dataset.ids.index("a b/1.png") < dataset.ids.index("a/1.png")


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "a/._1.png", ".git/x.png", "loose.png", "b.jpg/2.png", "a/.hidden/3.png")
    for name in ("a/notes.txt", "a/link.lnk", "a/noext", ".DS_Store", "a/photo.heic"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "a" / "pipe.png")
    dataset = opened(tmp_path)
    assert dataset.ids == ["a/1.png", "b.jpg/2.png"] and dataset.classes == ("a", "b.jpg")
    assert set(dataset.ignored) == {
        ".DS_Store", ".git/", "a/._1.png", "a/.hidden/", "a/link.lnk", "a/noext", "a/notes.txt",
        "a/photo.heic",
        "a/pipe.png", "empty/", "loose.png",
    }  # fmt: skip
    assert list(dataset.ignored) == sorted(dataset.ignored)


def test_links_are_followed_inside_only(tmp_path: Path) -> None:
    root = make(tmp_path / "in", "a/1.png", ".pool/x.png", ".pool/more/y.png")
    outside = make(tmp_path / "out", "secret.png", "sub/s.png")
    (root / "a" / "inside.png").symlink_to(root / ".pool" / "x.png")
    (root / "a" / "relative.png").symlink_to("../.pool/x.png")
    (root / "a" / "escape.png").symlink_to(outside / "secret.png")
    (root / "a" / "broken.png").symlink_to(root / "nowhere.png")
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "a" / "self.png").symlink_to("self.png")
    (root / "b").symlink_to(root / ".pool" / "more")
    (root / "c").symlink_to(outside / "sub")
    sibling = make(tmp_path / "in2", "x.png")
    (root / "a" / "sibling.png").symlink_to(sibling / "x.png")
    dataset = opened(root)
    assert dataset.ids == ["a/1.png", "a/inside.png", "a/relative.png", "b/y.png"]
    assert set(dataset.ignored) == {
        ".pool/", "a/escape.png", "a/broken.png", "a/loop/", "a/self.png", "c/", "a/sibling.png",
    }  # fmt: skip
    assert np.array_equal(dataset.content_hashes[1], dataset.content_hashes[2])


def test_a_folder_that_is_itself_a_link(tmp_path: Path) -> None:
    make(tmp_path / "there", "a/1.png")
    (tmp_path / "here").symlink_to(tmp_path / "there")
    dataset = opened(tmp_path / "here")
    assert dataset.ids == ["a/1.png"] and dataset.name == "folder-here"
    assert dataset.fingerprint == opened(tmp_path / "there").fingerprint


def test_ids_that_are_no_utf8(tmp_path: Path) -> None:
    paint(tmp_path / "a" / "1.png")
    odd = os.path.join(os.fsencode(tmp_path), b"a", b"caf\xe9.png")  # noqa: PTH118
    try:
        shutil.copy(os.fsencode(tmp_path / "a" / "1.png"), odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    dataset = opened(tmp_path)
    assert [os.fsencode(name) for name in dataset.ids] == [b"a/1.png", b"a/caf\xe9.png"]
    assert FolderSource(str(tmp_path)).stat_digest()
    check_dataset(dataset)


def test_wrong_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        FolderSource(str(tmp_path / "none"))
    with pytest.raises(DatasetError, match="is a file"):
        FolderSource(str(paint(tmp_path / "file.png")))
    with pytest.raises(DatasetError, match="''"):
        open_source("folder:", tmp_path)
    (tmp_path / "void").mkdir()
    assert "it is empty" in refused(tmp_path / "void")
    assert "lie in no class folder" in refused(make(tmp_path / "loose", "1.png", "2.png"))
    mixed = refused(make(tmp_path / "mixed", "train/a/1.png", "bus/1.png"))
    assert "'train' is a split" in mixed and "'bus' looks like a class" in mixed
    assert "both 'val' and 'valid'" in refused(
        make(tmp_path / "twice", "train/a/1.png", "val/a/1.png", "valid/a/1.png")
    )
    extra = refused(make(tmp_path / "extra", "train/a/1.png", "val/a/1.png", "val/new thing/1.png"))
    assert "val" in extra and "'new thing'" in extra
    assert "no train image" in refused(make(tmp_path / "tested", "test/a/1.png"))
    assert "'train/1.png'" in refused(make(tmp_path / "unclassed", "train/1.png"))
    link = tmp_path / "linked"
    link.mkdir()
    (link / "train").symlink_to(make(tmp_path / "elsewhere", "a/1.png"))
    assert "'train/'" in refused(link)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_no_empty_folder(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b").chmod(0)
    try:
        assert "Cannot list" in refused(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may reach every folder")
def test_what_may_not_be_reached_is_not_said_to_be_missing(tmp_path: Path) -> None:
    make(tmp_path / "closed" / "pets", "a/1.png")
    (tmp_path / "closed" / "list.csv").write_text("path,label\n")
    (tmp_path / "open.csv").write_text("path,label\nclosed/pets/a/1.png,a\n")
    (tmp_path / "closed").chmod(0)
    try:
        for spec in (f"folder:{tmp_path}/closed/pets", f"csv:{tmp_path}/closed/list.csv"):
            with pytest.raises(DatasetError, match="cannot be reached: Permission denied"):
                open_source(spec, tmp_path)
        with pytest.raises(DatasetError, match="cannot be reached: Permission denied"):
            open_source(f"csv:{tmp_path}/open.csv", tmp_path).open()
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_why_nothing_is_found_is_said(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DatasetError, match="cannot be reached: Too many levels of symbolic links"):
        FolderSource(str(tmp_path / "loop"))
    with pytest.raises(DatasetError, match="does not exist"):
        FolderSource(str(paint(tmp_path / "1.png") / "below"))
    with pytest.raises(DatasetError, match="is no path"):
        FolderSource("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="neither a file nor a folder"):
        FolderSource(str(tmp_path / "pipe"))


# --- folders of our own inside ---------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("train/a/1.png", "test/a/1.png"), ("cat/1.png", "dog/1.png")])
def test_caches_inside_the_folder_are_no_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """`cd photos; featcache extract --dataset folder:.` puts features/ and data/ into photos."""
    make(tmp_path / "photos", *names)
    monkeypatch.chdir(tmp_path / "photos")
    exclude = [Path("features"), Path("data")]

    def source() -> Any:
        return open_source("folder:.", Path("data"), exclude=exclude)

    before, digest, newest = source().open(), source().stat_digest(), source().newest_ns()
    make(Path(), "features/cache/heads/roc.png", "data/raw/cifar/1.png", "data/2.png")
    after = source().open()
    assert after.ids == before.ids and after.classes == before.classes
    assert after.fingerprint == before.fingerprint
    assert set(after.ignored) == {"features/", "data/"} and before.ignored == ()
    assert (source().stat_digest(), source().newest_ns()) == (digest, newest)
    make(Path(), f"{names[0]}.new.png")
    assert source().stat_digest() != digest


def test_excluded_is_what_a_folder_really_is(tmp_path: Path) -> None:
    root = make(tmp_path / "in", "a/1.png", "a/deep/features/2.png", "own/x/3.png", "own2/4.png")
    make(root, "own3/5.png")
    (root / "link").symlink_to(root / "own" / "x")
    (root / "a" / "linked.png").symlink_to(root / "own" / "x" / "3.png")
    (tmp_path / "elsewhere").symlink_to(root / "own2")
    exclude = [root / "a" / ".." / "own", tmp_path / "elsewhere"]
    dataset = FolderSource(str(root), exclude).open()
    assert dataset.ids == ["a/1.png", "a/deep/features/2.png", "own3/5.png"]
    assert set(dataset.ignored) == {"link/", "a/linked.png", "own/", "own2/"}
    (tmp_path / "root").symlink_to(root)
    assert FolderSource(str(tmp_path / "root"), exclude).open().ids == dataset.ids
    assert FolderSource(str(root), exclude).stat_digest() != FolderSource(str(root)).stat_digest()


def test_a_folder_inside_an_excluded_one_is_whole(tmp_path: Path) -> None:
    """Images may lie in data/, which is ours too; what is asked for by name is never left out."""
    root = make(tmp_path / "data" / "pets", "a/1.png", "b/1.png")
    for exclude in (tmp_path / "data", root):
        assert len(FolderSource(str(root), [exclude]).open()) == 2


def test_bad_files_get_rows_and_zero_hashes(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "a/2.png", "a/3.png")
    (tmp_path / "a" / "2.png").write_bytes(b"")
    dataset = opened(tmp_path)
    (tmp_path / "a" / "3.png").unlink()
    with pytest.raises(BadImageError, match="vanished"):
        dataset.image(2)
    with pytest.raises(BadImageError, match="empty"):
        dataset.image(1)
    assert not dataset.content_hashes[2].any() and dataset.content_hashes[1].any()
    (tmp_path / "a" / "3.png").mkdir()
    with pytest.raises(BadImageError, match="folder"):
        dataset.raw(2)
    (tmp_path / "a" / "3.png").rmdir()
    os.mkfifo(tmp_path / "a" / "3.png")
    with pytest.raises(BadImageError, match="no regular file"):
        dataset.raw(2)


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    dataset = FolderSource(str(make(tmp_path, *FULL))).open(lambda done, total: seen.append((done, total)))
    assert not seen
    assert dataset.fingerprint and seen == [(5, 5)]


def test_limit_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="at least 1"):
        opened(make(tmp_path, *FULL)).limited(0)


def test_spec_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "My photos!", "a/1.png")
    monkeypatch.chdir(tmp_path)
    source = open_source("folder:./My photos!//", tmp_path)
    assert (source.spec, source.name) == ("folder:My photos!", "folder-My-photos")
    dataset = source.open()
    monkeypatch.chdir("/")
    assert dataset.image(0).shape == (4, 5, 3)  # whatever the working folder has become
    assert slug("../..") == "images" and len(slug("x" * 99)) == 40


# --- the fingerprint ------------------------------------------------------------------------------------

NAMES = st.lists(
    st.tuples(st.sampled_from(["cat", "a dog", "ä"]), st.text("abXY 019é-", min_size=1, max_size=6)),
    min_size=1, max_size=8, unique=True,
).map(lambda pairs: [f"{folder}/{name.strip() or 'n'}.png" for folder, name in pairs])  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(NAMES, st.randoms(use_true_random=False))
def test_the_order_of_the_file_system_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], random: Any
) -> None:
    first, second = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    painted = [(name, at) for at, name in enumerate(dict.fromkeys(names))]
    for root in (first, second):
        for name, value in painted:
            paint(root / name, value)
        random.shuffle(painted)
    one, two = opened(first), opened(second)
    assert one.ids == two.ids and one.classes == two.classes
    assert one.labels.tolist() == two.labels.tolist() and one.fingerprint == two.fingerprint


CHANGES: dict[str, Callable[[Path], Any]] = {
    "id": lambda root: (root / "train/cat/a.png").rename(root / "train/cat/c.png"),
    "bytes": lambda root: paint(root / "train/cat/a.png", 99),
    "label": lambda root: (root / "train/cat/a.png").rename(root / "train/dog/a.png"),
    "more": lambda root: paint(root / "train/cat/new.png", 5),
    "fewer": lambda root: (root / "train/cat/a.png").unlink(),
    "class name": lambda root: [(root / s / "dog").rename(root / s / "wolf") for s in ("train", "test")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_changes_fingerprint_and_digest(tmp_path: Path, change: str) -> None:
    root = make(tmp_path, *FULL)
    before, digest = opened(root).fingerprint, FolderSource(str(root)).stat_digest()
    CHANGES[change](root)
    assert opened(root).fingerprint != before
    assert FolderSource(str(root)).stat_digest() != digest


def test_moving_an_image_to_another_split_changes_the_fingerprint(tmp_path: Path) -> None:
    root = make(tmp_path, *FULL)
    before = opened(root).fingerprint
    (root / "valid").rename(root / "held")
    (root / "test" / "cat").mkdir()
    (root / "held/cat/z.jpg").rename(root / "test/cat/z.jpg")
    shutil.rmtree(root / "held")
    assert opened(root).fingerprint != before


def test_the_order_of_the_classes_is_in_the_fingerprint(tmp_path: Path) -> None:
    dataset = opened(make(tmp_path, *FULL))
    turned = opened(tmp_path)
    turned.classes = turned.classes[::-1]
    assert turned.fingerprint != dataset.fingerprint


def test_names_do_not_run_together(tmp_path: Path) -> None:
    one, two = (
        opened(make(tmp_path / "1", "a/1.png", "b/1.png")),
        opened(make(tmp_path / "2", "a/1.png", "b/1.png")),
    )
    one.classes, two.classes = ("ab", "c"), ("a", "bc")
    assert one.fingerprint != two.fingerprint


def test_moving_and_touching_change_nothing_in_the_fingerprint(tmp_path: Path) -> None:
    root = make(tmp_path / "here", *FULL)
    before, digest = opened(root).fingerprint, FolderSource(str(root)).stat_digest()
    root = root.rename(tmp_path / "there")
    assert opened(root).fingerprint == before
    assert FolderSource(str(root)).stat_digest() == digest
    os.utime(root / "train/cat/a.png", (1, 1))
    assert opened(root).fingerprint == before
    assert FolderSource(str(root)).stat_digest() != digest


@pytest.mark.real
def test_real_imagenette(real_data: Path) -> None:
    dataset = opened(real_data / "imagenette160-subset")
    assert len(dataset.classes) == 10 and set(dataset.splits.tolist()) == {0, 1}
    assert not dataset.ignored
    check_dataset(dataset)


@pytest.mark.real
def test_real_cifar(real_data: Path) -> None:
    dataset = opened(real_data / "cifar10")
    assert np.bincount(dataset.splits).tolist() == [50_000, 0, 10_000]
    assert len(dataset.classes) == 10 and dataset.image(0).shape == (32, 32, 3)
