"""folder:s3://…: the images, splits, classes and errors of the same folder on a disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import objects
from featcache.errors import BadImageError, DatasetError
from featcache.extraction.memory import sight
from featcache.extraction.request import Request
from featcache.images.catalogue import open_source
from featcache.images.dataset import Dataset
from featcache.images.folder import FolderSource
from featcache.images.remote import RemoteSource
from tests import kit_objects
from tests.kit_datasets import check_dataset
from tests.kit_images import make_folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with kit_objects.serving() as address:
        yield address


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "memory":
        return f"{kit_objects.new_memory()}/my photos"
    kit_objects.use_server(monkeypatch, request.getfixturevalue("server"))
    return f"{kit_objects.new_bucket()}/my photos"


def put(url: str, files: dict[str, bytes]) -> None:
    fs = fsspec.filesystem(url.partition(":")[0], skip_instance_cache=True)
    for name, data in files.items():
        fs.pipe_file(f"{url}/{name}", data)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def opened(url: str) -> Dataset:
    return open_source(f"folder:{url}", Path("data")).open()


def test_objects_are_the_data_set_that_the_folder_is(url: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "my photos", train=5, test=2)
    odd = ["train/bee/deep/down/x.PNG", "train/cat/[1] 50% #a?.png", "train/cat/ü.png", "train/.hidden/a.png"]
    for name in (*odd, "train/bee/.b.png", "notes.txt", "train/loose.png", "train/empty/readme.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((folder / "train/bee/000.png").read_bytes() + b" ")
    put(url, files_of(folder))
    here, there = FolderSource(str(folder)).open(), opened(url)
    check_dataset(there)
    assert there.ids == here.ids and there.classes == here.classes
    assert there.labels.tolist() == here.labels.tolist() and there.splits.tolist() == here.splits.tolist()
    assert there.ignored == here.ignored and there.name == here.name == "folder-my-photos"
    assert there.fingerprint == here.fingerprint, "the same cache, wherever the images are"
    given_ahead = there.begin([4, 0, 2])
    assert [given_ahead(place) for place in (2, 0, 1)] == [here.raw(row) for row in (2, 4, 0)]


_PARTS = st.sampled_from(["train", "val", "test", "Valid", "cat", "dog", ".x", "a.png", "b.jpg", "c.txt"])


@settings(max_examples=40, deadline=None)
@given(names=st.sets(st.lists(_PARTS, min_size=1, max_size=4).map("/".join), max_size=8))
def test_any_names_are_taken_or_refused_as_in_a_folder(
    names: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = {name for name in names if not any(other.startswith(f"{name}/") for other in names)}
    folder = tmp_path_factory.mktemp("any") / "photos"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    url = f"{kit_objects.new_memory()}/photos"
    put(url, files_of(folder))

    def said(source: FolderSource | RemoteSource, where: str) -> object:
        try:
            found = source.open()
        except DatasetError as error:
            return str(error).replace(where, "…")
        return found.ids, found.classes, found.labels.tolist(), found.splits.tolist(), found.ignored

    assert said(RemoteSource(url), url) == said(FolderSource(str(folder)), str(folder))


def test_what_changes_changes_the_digest(url: str) -> None:
    put(url, {"train/a/1.png": b"one", "train/b/1.png": b"two"})
    first = RemoteSource(url)
    assert first.stat_digest() == RemoteSource(url).stat_digest()
    assert first.newest_ns() > 0
    before = sight(Request(dataset=f"folder:{url}"), first)
    put(url, {"train/b/1.png": b"owt"})
    assert RemoteSource(url).stat_digest() != first.stat_digest()
    assert sight(Request(dataset=f"folder:{url}"), RemoteSource(url)).request_id != before.request_id


def test_our_own_caches_below_the_images_are_no_part_of_them(url: str) -> None:
    put(url, {"train/a/1.png": b"one", "train/b/1.png": b"two"})
    alone = RemoteSource(url).stat_digest()
    put(url, {"features/x/1.png": b"three"})
    assert RemoteSource(url).stat_digest() != alone
    with pytest.raises(DatasetError, match="mixes two layouts"):
        opened(url)
    left = RemoteSource(url, [f"{url}/features", "/elsewhere", Path("data")])
    assert left.stat_digest() == alone and left.open().ids == ["train/a/1.png", "train/b/1.png"]
    assert RemoteSource(url, [f"{url}/feat"]).stat_digest() != alone


def test_an_object_that_vanished_is_a_bad_image_and_one_that_cannot_be_had_an_error(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(url, {"train/a/1.png": b"one", "train/b/1.png": b"two"})
    dataset = opened(url)
    fs = fsspec.filesystem(url.partition(":")[0], skip_instance_cache=True)
    fs.rm_file(f"{url}/train/a/1.png")
    with pytest.raises(BadImageError, match="vanished"):
        dataset.raw(0)
    assert not dataset.content_hashes[0].any() and dataset.content_hashes[1].any()

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("Access Denied")

    again = opened(url)
    monkeypatch.setattr(again._objects.fs, "cat_file", refuse)  # type: ignore[attr-defined]
    with pytest.raises(DatasetError, match=r"Cannot read .*train/b/1.png: no permission \(Access Denied\)"):
        again.content_hashes  # noqa: B018


def test_one_sentence_for_each_thing_that_can_be_wrong(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kit_objects.use_server(monkeypatch, server)
    bucket = kit_objects.new_bucket()
    for spec, said in {
        f"folder:{bucket}/nothing": "holds no images of a class: it is empty",
        "folder:s3://no-such-bucket/x": "Cannot list s3://no-such-bucket/x: there is no such bucket",
        "folder:nonsense://x/y": "Cannot open nonsense://x/y: Protocol not known",
        "folder:gs://x/y": "its library is not installed",
        "csv:s3://x/y.csv": "csv: reads a file of this machine",
    }.items():
        with pytest.raises(DatasetError) as caught:
            open_source(spec, Path("data")).open()
        assert said in caught.value.message and caught.value.hint, caught.value
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DatasetError, match="Could not connect to the endpoint") as caught:
        open_source(f"folder:{bucket}/x", Path("data")).open()
    assert "network" in caught.value.hint


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(objects, "_systems", {})
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # type: ignore[attr-defined]
    with pytest.raises(DatasetError, match=r'pip install "featcache\[s3\]"'):
        open_source("folder:s3://bucket/x", Path("data"))
