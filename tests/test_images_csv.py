from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.errors import DatasetError
from featcache.images.catalogue import open_source
from featcache.images.csv_file import CsvSource
from featcache.images.dataset import Dataset
from tests.kit_datasets import check_dataset


def write(folder: Path, text: str, *images: str) -> Path:
    for at, name in enumerate(images):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5, 3), at, np.uint8)).save(path)
    (folder / "table.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder / "table.csv"


def opened(path: Path) -> Dataset:
    return CsvSource(str(path)).open()


def refused(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        opened(path)
    assert caught.value.hint
    return caught.value.message


IMAGES = ("x/1.png", "x/2.png", "y/a b.png", "z.png")


def test_splits_labels_and_order(tmp_path: Path) -> None:
    text = (
        "label,Path ,note,split\r\ncat,z.png,hi,Validation\ndog,x/2.png,,train\n\n"
        'cat,"y/a b.png","a,b",TRAIN\ndog,./x//1.png,,test\n'
    )
    path = write(tmp_path, "\ufeff" + text, *IMAGES)
    dataset = opened(path)
    assert dataset.ids == ["x/2.png", "y/a b.png", "z.png", "x/1.png"]
    assert dataset.classes == ("cat", "dog") and dataset.labels.tolist() == [1, 0, 0, 1]
    assert dataset.splits.tolist() == [0, 0, 1, 2]
    assert [int(dataset.image(i)[0, 0, 0]) for i in range(4)] == [1, 2, 3, 0]
    assert dataset.name == "csv-table"
    check_dataset(dataset)


def test_whole_numbers_sort_as_numbers(tmp_path: Path) -> None:
    text = "path,label\nx/1.png,10\nx/2.png,9\nz.png,-1\n"
    assert opened(write(tmp_path, text, *IMAGES)).classes == ("-1", "9", "10")
    text = text.replace("-1", "none")
    assert opened(write(tmp_path, text, *IMAGES)).classes == ("10", "9", "none")


def test_without_split_all_is_train(tmp_path: Path) -> None:
    assert opened(write(tmp_path, "path,label\nz.png,a\n", *IMAGES)).splits.tolist() == [0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column path and no column label"),
        ("file,label\nz.png,a\n", "no column path; its first line is 'file,label'"),
        ("path,label\n", "holds no train image"),
        ("path,label\nz.png,a\nx/1.png\n", "line 3: the label is empty"),
        ("path,label\n,a\n", "line 2: the path is empty"),
        ("path,label,split\nz.png,a,dev\n", "line 2: unknown split 'dev'"),
        ("path,label\nz.png,a\n\nx/../z.png,b\n", "line 4: 'z.png' was already listed in line 2"),
        ("path,label\nz.png,a\nno/1.png,a\nno/2.png,a\n", "line 3: 'no/1.png' is no file"),
        ("path,label\nx,a\n", "'x' is no file"),
        ("path,label,split\nz.png,a,train\nx/1.png,b,val\n", "classes train does not: 'b'"),
        ('path,label\nz.png,"a\n', "Cannot read the CSV file"),
        ("path,label\nz\0.png,a\n", "is no file"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(write(tmp_path, text, *IMAGES))


def test_missing_files_are_counted(tmp_path: Path) -> None:
    said = refused(write(tmp_path, "path,label\nz.png,a\nno/1.png,a\nno/2.png,a\n", *IMAGES))
    assert "2 are missing in all" in said


def test_a_missing_table_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        open_source(f"csv:{tmp_path / 'no.csv'}", tmp_path)
    with pytest.raises(DatasetError, match="is a folder"):
        open_source(f"csv:{tmp_path}", tmp_path)
    with pytest.raises(DatasetError, match="cannot be reached: File name too long"):
        open_source(f"csv:{tmp_path / ('x' * 300)}", tmp_path)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = "caf\udce9.png"
    try:
        path = write(tmp_path, f"path,label\n{name},a\nz.png,caf\udce9\n", *IMAGES)
        (tmp_path / name).write_bytes((tmp_path / "z.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    dataset = opened(path)
    assert dataset.ids == [name, "z.png"] and dataset.classes == ("a", "caf\udce9")
    assert CsvSource(str(path)).stat_digest()
    check_dataset(dataset)


def test_the_digest_covers_table_and_images(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label\nz.png,a\nx/1.png,a\n", *IMAGES)
    before = CsvSource(str(path)).stat_digest()
    assert CsvSource(str(path)).stat_digest() == before
    (tmp_path / "x" / "2.png").write_bytes(b"not listed")
    assert CsvSource(str(path)).stat_digest() == before
    (tmp_path / "x" / "1.png").write_bytes(b"changed")
    changed = CsvSource(str(path)).stat_digest()
    assert changed != before
    source = CsvSource(str(path))
    assert source.newest_ns() >= (tmp_path / "x" / "1.png").stat().st_mtime_ns
    path.write_text("path,label\nz.png,b\nx/1.png,a\n")
    assert CsvSource(str(path)).stat_digest() != changed
    assert source.spec == f"csv:{path}"


def test_paths_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    """A table may come from anyone; one that is trusted may name files anywhere."""
    inside = tmp_path / "inside"
    outside = write(tmp_path, "path,label\n", "there/1.png").parent / "there"
    path = write(inside, "path,label\n", *IMAGES)
    (inside / "far").symlink_to(outside)
    (inside / "link.png").symlink_to(outside / "1.png")
    (inside / "near.png").symlink_to(inside / "z.png")
    for name in (str(outside / "1.png"), "../there/1.png", "x/../../there/1.png", "far/1.png", "link.png"):
        text = f"path,label\nz.png,a\n{name},b\n"
        path.write_text(text)
        assert "line 3: the path" in refused(path) and "leads out of" in refused(path)
        with pytest.raises(DatasetError) as caught:
            opened(path)
        assert f"csv-anywhere:{path}" in caught.value.hint
        source = open_source(f"csv-anywhere:{path}", tmp_path)
        assert source.spec == f"csv-anywhere:{path}"
        assert len(source.open()) == 2
    path.write_text("path,label\nx/../z.png,a\nnear.png,b\n..odd.png,a\n")
    (inside / "..odd.png").write_bytes((inside / "z.png").read_bytes())
    assert len(opened(path)) == 3


def test_a_table_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "path,label\nz.png,a\n" + "\n" * 2000, *IMAGES)
    assert len(opened(path)) == 1
    monkeypatch.setenv("FEATCACHE_MAX_LIST_BYTES", "1K")
    assert "at most 1024 are read" in refused(path)
