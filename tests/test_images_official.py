"""torchvision's data sets, small, in their official formats, from a server on loopback."""

from __future__ import annotations

import bz2
import gc
import gzip
import hashlib
import io
import json
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from featcache.errors import DatasetError
from featcache.images.catalogue import known, open_source
from featcache.images.torchvision_sets import SETS
from tests.kit_datasets import check_dataset

RNG = np.random.default_rng(3)
DATASETS = torchvision.datasets


class Server:
    """Serves `files`; `broken` names are cut off after half of the length they announce."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.broken: set[str] = set()
        self.asked: list[str] = []
        self.refused = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                outer.asked.append(name)
                if name not in outer.files:
                    outer.refused = True
                    self.send_error(404)
                    return
                data = outer.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if name in outer.broken else data)

            def log_message(self, *args: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def add(self, name: str, data: bytes) -> tuple[str, str]:
        """Serve a file; return its URL and md5."""
        self.files[name] = data
        return self.url + name, md5(data)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()
    if running.refused:  # now, while the warning is ignored, not in a later test
        gc.collect()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def image(value: int, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(stream, kind)
    return stream.getvalue()


# --- one small set of each format; each returns what the pixels of row 0 must be, or None ------------------

Maker = Callable[[Server, pytest.MonkeyPatch], Any]


def cifar(server: Server, patch: pytest.MonkeyPatch) -> Any:
    pixels = RNG.integers(0, 256, (60, 3072), dtype=np.uint8)
    files, listed = {}, []
    for at in range(6):
        rows = slice(at * 10, at * 10 + 10)
        name = "test_batch" if at == 5 else f"data_batch_{at + 1}"
        data = pickle.dumps({"data": pixels[rows], "labels": list(range(10))}, 2)
        files[f"cifar-10-batches-py/{name}"] = data
        listed.append([name, md5(data)])
    meta = pickle.dumps({"label_names": [f"class {at}" for at in range(10)]}, 2)
    url, total = server.add("cifar.tar.gz", tar({**files, "cifar-10-batches-py/batches.meta": meta}))
    patch.setattr(DATASETS.CIFAR10, "url", url)
    patch.setattr(DATASETS.CIFAR10, "tgz_md5", total)
    patch.setattr(DATASETS.CIFAR10, "train_list", listed[:5])
    patch.setattr(DATASETS.CIFAR10, "test_list", listed[5:])
    patch.setattr(
        DATASETS.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5(meta)}
    )
    return pixels[0].reshape(3, 32, 32).transpose(1, 2, 0)


def idx(array: np.ndarray[Any, Any]) -> bytes:
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + shape + array.tobytes())


def mnist(server: Server, patch: pytest.MonkeyPatch) -> Any:
    pixels = RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = np.tile(np.arange(10, dtype=np.uint8), 3)
    resources = []
    for name, data in {
        "train-images-idx3-ubyte.gz": pixels[:20],
        "train-labels-idx1-ubyte.gz": labels[:20],
        "t10k-images-idx3-ubyte.gz": pixels[20:],
        "t10k-labels-idx1-ubyte.gz": labels[20:],
    }.items():
        resources.append((name, server.add(name, idx(data))[1]))
    patch.setattr(DATASETS.FashionMNIST, "mirrors", [server.url])
    patch.setattr(DATASETS.FashionMNIST, "resources", resources)
    return np.repeat(pixels[0][:, :, None], 3, axis=2)


def svhn(server: Server, patch: pytest.MonkeyPatch) -> Any:
    pixels = RNG.integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)
    listed = {}
    for split in ("train", "test"):
        stream = io.BytesIO()
        savemat(stream, {"X": pixels, "y": np.arange(1, 11, dtype=np.uint8)[:, None]})
        url, total = server.add(f"{split}_32x32.mat", stream.getvalue())
        listed[split] = [url, f"{split}_32x32.mat", total]
    patch.setattr(DATASETS.SVHN, "split_list", listed)
    return pixels[:, :, :, 0]


def stl10(server: Server, patch: pytest.MonkeyPatch) -> Any:
    pixels = RNG.integers(0, 256, (4, 3, 96, 96), dtype=np.uint8)  # channel, column, row
    labels = np.array([1, 2, 3, 1], dtype=np.uint8)
    files = {
        "train_X.bin": pixels.tobytes(), "train_y.bin": labels.tobytes(), "unlabeled_X.bin": b"",
        "test_X.bin": pixels[:3].tobytes(), "test_y.bin": labels[:3].tobytes(),
    }  # fmt: skip
    listed = [[name, md5(data)] for name, data in files.items()]
    every = {f"stl10_binary/{name}": data for name, data in files.items()}
    url, total = server.add(
        "stl10.tar.gz", tar({**every, "stl10_binary/class_names.txt": b"bird\ncar\ncat\n"})
    )
    for name, value in {
        "url": url,
        "tgz_md5": total,
        "train_list": listed[:3],
        "test_list": listed[3:],
    }.items():
        patch.setattr(DATASETS.STL10, name, value)
    return pixels[0].transpose(2, 1, 0)


def usps(server: Server, patch: pytest.MonkeyPatch) -> Any:
    values = " ".join(f"{at + 1}:{-1 + at / 128:.4f}" for at in range(256))
    data = bz2.compress("".join(f"{label} {values}\n" for label in range(1, 11)).encode())
    listed = {
        split: [server.add(name, data)[0], name, md5(data)]
        for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2"))
    }
    patch.setattr(DATASETS.USPS, "split_list", listed)
    return None


def flowers(server: Server, patch: pytest.MonkeyPatch) -> Any:
    files = {f"jpg/image_{at:05d}.jpg": image(at * 10) for at in range(1, 7)}
    labels, setid = io.BytesIO(), io.BytesIO()
    savemat(labels, {"labels": np.array([[1, 2, 1, 2, 1, 102]])})
    savemat(setid, {"trnid": np.array([[6, 2, 1]]), "valid": np.array([[4, 3]]), "tstid": np.array([[5, 5]])})
    listed = {
        "image": ("102flowers.tgz", server.add("102flowers.tgz", tar(files))[1]),
        "label": ("imagelabels.mat", server.add("imagelabels.mat", labels.getvalue())[1]),
        "setid": ("setid.mat", server.add("setid.mat", setid.getvalue())[1]),
    }
    patch.setattr(DATASETS.Flowers102, "_download_url_prefix", server.url)
    patch.setattr(DATASETS.Flowers102, "_file_dict", listed)
    return np.full((6, 8, 3), 60)


def dtd(server: Server, patch: pytest.MonkeyPatch) -> Any:
    files = {
        f"dtd/images/{kind}/{kind}_{at}.jpg": image(at) for kind in ("dotted", "lined") for at in range(3)
    }
    for at, split in enumerate(("train", "val", "test")):
        lines = [f"{kind}/{kind}_{at}.jpg\n" for kind in ("lined", "dotted")]
        files[f"dtd/labels/{split}1.txt"] = "".join(lines).encode()
    url, total = server.add("dtd.tar.gz", tar(files))
    patch.setattr(DATASETS.DTD, "_URL", url)
    patch.setattr(DATASETS.DTD, "_MD5", total)
    return np.zeros((6, 8, 3))


def pets(server: Server, patch: pytest.MonkeyPatch) -> Any:
    images = {f"images/{name}_{at}.jpg": image(at) for name in ("Abyssinian", "great_dane") for at in (1, 2)}
    lists = {
        f"annotations/{split}.txt": f"Abyssinian_{at} 1 1 1\ngreat_dane_{at} 2 2 1\n".encode()
        for at, split in ((1, "trainval"), (2, "test"))
    }
    resources = (server.add("images.tar.gz", tar(images)), server.add("annotations.tar.gz", tar(lists)))
    patch.setattr(DATASETS.OxfordIIITPet, "_RESOURCES", resources)
    return np.ones((6, 8, 3))


def food(server: Server, patch: pytest.MonkeyPatch) -> Any:
    files = {f"food-101/images/{kind}/{at}.jpg": image(at) for kind in ("pie", "tea") for at in (1, 2)}
    for at, split in ((1, "train"), (2, "test")):
        files[f"food-101/meta/{split}.json"] = json.dumps({k: [f"{k}/{at}"] for k in ("tea", "pie")}).encode()
    url, total = server.add("food-101.tar.gz", tar(files))
    patch.setattr(DATASETS.Food101, "_URL", url)
    patch.setattr(DATASETS.Food101, "_MD5", total)
    return np.ones((6, 8, 3))


def imagenette(server: Server, patch: pytest.MonkeyPatch) -> Any:
    files = {
        f"imagenette2-160/{split}/{kind}/{kind}_{at}.JPEG": image(at)
        for split in ("train", "val")
        for kind in ("n01440764", "n02102040")
        for at in (3, 4)
    }
    listed = {"160px": server.add("imagenette2-160.tgz", tar(files))}
    patch.setattr(DATASETS.Imagenette, "_ARCHIVES", listed)
    return np.full((6, 8, 3), 3)


def redirected(server: Server, patch: pytest.MonkeyPatch, module: str, files: dict[str, bytes]) -> None:
    """For classes whose URL is in their code: serve whatever they ask for, by its last part."""
    inner = torchvision.datasets.utils.download_and_extract_archive

    def fetch(url: str, *args: Any, md5: str | None = None, **options: Any) -> None:
        name = url.rpartition("/")[2]
        local, total = server.add(name, files[name])
        inner(local, *args, md5=total, **options)

    patch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", fetch)


def eurosat(server: Server, patch: pytest.MonkeyPatch) -> Any:
    files = {f"2750/{kind}/{kind}_{at}.jpg": image(at) for kind in ("River", "Forest") for at in (1, 2)}
    redirected(server, patch, "eurosat", {"EuroSAT.zip": zipped(files)})
    return np.ones((6, 8, 3))


def gtsrb(server: Server, patch: pytest.MonkeyPatch) -> Any:
    train = {f"GTSRB/Training/0000{at}/{at}.ppm": image(at, "PPM") for at in (0, 1)}
    test = {f"GTSRB/Final_Test/Images/0000{at}.ppm": image(at, "PPM") for at in (0, 1)}
    rows = "Filename;Width;ClassId\n00000.ppm;8;1\n00001.ppm;8;0\n"
    redirected(server, patch, "gtsrb", {
        "GTSRB-Training_fixed.zip": zipped(train),
        "GTSRB_Final_Test_Images.zip": zipped(test),
        "GTSRB_Final_Test_GT.zip": zipped({"GT-final_test.csv": rows.encode()}),
    })  # fmt: skip
    return np.zeros((6, 8, 3))


def caltech(server: Server, patch: pytest.MonkeyPatch) -> Any:
    names = ("BACKGROUND_Google", "anchor", "ant")
    files = {f"101_ObjectCategories/{name}/image_{at:04d}.jpg": image(at) for name in names for at in (1, 2)}
    inner = {"caltech-101/101_ObjectCategories.tar.gz": tar(files)}
    redirected(server, patch, "caltech", {"caltech-101.zip": zipped(inner)})
    return np.ones((6, 8, 3))


MAKERS: dict[str, tuple[Maker, dict[str, int], tuple[str, ...]]] = {
    "cifar10": (cifar, {"train": 50, "test": 10}, tuple(f"class {at}" for at in range(10))),
    "fashion-mnist": (mnist, {"train": 20, "test": 10}, tuple(DATASETS.FashionMNIST.classes)),
    "svhn": (svhn, {"train": 10, "test": 10}, tuple("0123456789")),
    "stl10": (stl10, {"train": 4, "test": 3}, ("bird", "car", "cat")),
    "usps": (usps, {"train": 10, "test": 10}, tuple("0123456789")),
    "flowers102": (flowers, {"train": 3, "val": 2, "test": 2}, tuple(DATASETS.Flowers102.classes)),
    "dtd": (dtd, {"train": 2, "val": 2, "test": 2}, ("dotted", "lined")),
    "oxford-pets": (pets, {"train": 2, "test": 2}, ("Abyssinian", "Great Dane")),
    "food101": (food, {"train": 2, "test": 2}, ("pie", "tea")),
    "imagenette-160": (imagenette, {"train": 4, "val": 4}, ("tench", "English springer")),
    "eurosat": (eurosat, {"train": 4}, ("Forest", "River")),
    "gtsrb": (gtsrb, {"train": 2, "test": 2}, ("0", "1")),
    "caltech101": (caltech, {"train": 4}, ("anchor", "ant")),
}


ARRAYS = {"cifar10", "fashion-mnist", "svhn", "stl10"}


@pytest.mark.parametrize("name", MAKERS)
def test_downloaded_read_and_not_asked_for_again(
    name: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make, splits, classes = MAKERS[name]
    first = make(server, monkeypatch)
    folder = tmp_path / "data"
    source = open_source(name, folder)
    absent = source.stat_digest()
    dataset = source.open()
    assert dataset.classes == classes and source.name == source.spec == dataset.name == name
    assert list(dataset.ids) == [f"{split}/{at:06d}" for split, n in splits.items() for at in range(n)]
    if first is not None:
        off = np.abs(dataset.image(0).astype(int) - first).max()
        assert off <= (0 if name in ARRAYS else 1)  # JPEG may be one off
    check_dataset(dataset)
    assert sorted(path.name for path in folder.iterdir()) == sorted(SETS[name].kept)  # no leftovers
    assert capfd.readouterr() == ("", "")  # no progress bar where there is no terminal
    asked = len(server.asked)
    again = open_source(name, folder, download=False)
    assert again.open().fingerprint == dataset.fingerprint and len(server.asked) == asked
    assert again.stat_digest() == source.stat_digest() != absent
    assert again.newest_ns() > 0


def test_labels_of_svhn_and_stl10(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    svhn(server, monkeypatch)
    stl10(server, monkeypatch)
    assert open_source("svhn", tmp_path).open().labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert open_source("stl10", tmp_path).open().labels.tolist() == [0, 1, 2, 0, 0, 1, 2]


# torchvision keeps the errors of mirrors that have no file, and their open sockets, in a cycle.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "flowers102"])
@pytest.mark.parametrize("fault", ["absent", "cut off", "other bytes"])
def test_a_download_that_fails_is_explained_and_leaves_nothing(
    name: str, fault: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    MAKERS[name][0](server, monkeypatch)
    file = {
        "cifar10": "cifar.tar.gz",
        "fashion-mnist": "t10k-labels-idx1-ubyte.gz",
        "flowers102": "102flowers.tgz",
    }[name]
    good = server.files[file]
    if fault == "absent":
        del server.files[file]
    elif fault == "cut off":
        server.broken.add(file)
    else:
        server.files[file] = bytes(len(good))
    with pytest.raises(DatasetError) as caught:
        open_source(name, tmp_path).open()
    assert f"data set {name} cannot be downloaded" in caught.value.message
    assert str(tmp_path) in caught.value.message and SETS[name].home in caught.value.hint
    assert "folder:DIR" in caught.value.hint
    assert not list(tmp_path.iterdir())
    server.files[file] = good
    server.broken.clear()
    assert len(open_source(name, tmp_path).open()) > 0  # and the next run simply works


def test_no_server_at_all(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cifar(server, monkeypatch)
    server.close()
    monkeypatch.setattr(server, "close", lambda: None)
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        open_source("cifar10", tmp_path).open()


def test_absent_and_downloads_switched_off(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="downloads are switched off") as caught:
        open_source("cifar10", tmp_path, download=False).open()
    assert "cifar-10-batches-py" in caught.value.message and str(tmp_path) in caught.value.message


def test_a_set_no_longer_offered(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="stanford-cars cannot be downloaded"):
        open_source("stanford-cars", tmp_path).open()


def test_a_data_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DatasetError, match="cannot be stored"):
        open_source("cifar10", tmp_path / "data").open()


class Hostile:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_with_another_md5_is_not_opened(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cifar(server, monkeypatch)
    data = tmp_path / "data"
    open_source("cifar10", data).open()
    target = data / "cifar-10-batches-py" / "data_batch_3"
    target.write_bytes(pickle.dumps(Hostile(tmp_path / "owned")))
    asked = len(server.asked)
    with pytest.raises(DatasetError, match="damaged or incomplete") as caught:
        open_source("cifar10", data).open()
    assert not (tmp_path / "owned").exists() and len(server.asked) == asked
    assert "Move cifar-10-batches-py" in caught.value.hint


def test_two_downloads_at_once(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one that comes second uses what the first has put in place."""
    dtd(server, monkeypatch)
    first = open_source("dtd", tmp_path).open()
    source = open_source("dtd", tmp_path)
    source._fetch()  # type: ignore[attr-defined]
    assert source.open().fingerprint == first.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]


def test_an_image_missing_from_a_set_is_a_bad_row(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dtd(server, monkeypatch)
    before = open_source("dtd", tmp_path).open().fingerprint
    (tmp_path / "dtd/dtd/images/lined/lined_0.jpg").unlink()
    again = open_source("dtd", tmp_path).open()
    assert not again.content_hashes[0].any() and again.fingerprint != before
    check_dataset(again)


def test_every_line_of_the_table_names_a_class_with_those_options() -> None:
    for entry in SETS.values():
        kind = getattr(DATASETS, entry.torchvision)
        allowed = set(kind.__init__.__code__.co_varnames)
        assert {"root", "download"} <= allowed and entry.kept and entry.home.startswith("http")
        assert next(iter(entry.splits)) == "train"
        for options in entry.splits.values():
            assert set(options) <= allowed
        assert len(entry.about) < 80


def test_unknown_names_list_the_known(tmp_path: Path) -> None:
    names = [name for name, _ in known()]
    assert len(set(names)) == len(names) and {"digits", "cifar10", "folder:DIR", "csv:FILE"} <= set(names)
    with pytest.raises(DatasetError) as caught:
        open_source("cifar", tmp_path)
    assert "Unknown dataset 'cifar'" in caught.value.message
    assert all(name in caught.value.hint for name in names)
    with pytest.raises(DatasetError, match="did you mean folder:"):
        open_source(str(tmp_path), tmp_path)


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    source = open_source("digits", tmp_path)
    dataset = source.open()
    bunch = load_digits()
    assert len(dataset) == 1797 and np.bincount(dataset.splits).tolist() == [1347, 0, 450]
    assert dataset.classes == tuple("0123456789") and dataset.ids[1347] == "test/000000"
    held_out = np.bincount(dataset.labels[dataset.splits == 2]) / np.bincount(bunch.target)
    assert held_out.min() > 0.24 and held_out.max() < 0.26
    every = sorted(np.asarray(dataset.raw(i)).tobytes() for i in range(len(dataset)))
    scaled = (bunch.images * 255 / 16 + 0.5).astype(np.uint8)
    assert every == sorted(pixels.tobytes() for pixels in scaled)
    assert dataset.fingerprint == source.open().fingerprint
    assert source.stat_digest() == open_source("digits", tmp_path / "other").stat_digest()
    check_dataset(dataset)
