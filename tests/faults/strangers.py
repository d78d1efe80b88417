"""Files of strangers, made here and never stored: each is to be refused, nothing run, nothing outside read.

A maker gets a folder and the canary's folder, writes its file where `forge` says, and is known by its name.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featcache.heads import packing
from featcache.store import records, shard
from featcache.store.cache import Cache
from tests.faults import toys

Arrays = dict[str, Any]
Shards = dict[str, Callable[[h5py.File, Arrays, Path], None]]
ROWS = toys.ROWS_PER_SHARD


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def make_canaries(folder: Path) -> None:
    """Write what hostile files point to: valid content of every kind."""
    folder.mkdir()
    (folder / "secret").write_bytes(bytes(5000))
    with h5py.File(folder / "secret.h5", "w") as file:
        file["features"] = np.zeros((ROWS, toys.WIDTH), np.float16)
        file["label"] = np.arange(ROWS) % 3
    (folder / "shards").mkdir()


@contextmanager
def unread(folder: Path) -> Iterator[None]:
    """Fail if anything in a folder is opened, by Python or by a library, or anything is made in it."""
    libc, before = ctypes.CDLL(None, use_errno=True), sorted(folder.iterdir())
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0
    for path in before:
        if not path.is_dir():
            assert libc.inotify_add_watch(watch, str(path).encode(), 0x21) >= 0  # IN_ACCESS | IN_OPEN
    try:
        yield
        assert sorted(folder.iterdir()) == before, "something was run"
        try:
            raise AssertionError(f"something outside was opened: {os.read(watch, 4096)!r}")
        except BlockingIOError:
            pass
    finally:
        os.close(watch)


# --- shards ---


def _put(file: h5py.File, arrays: Arrays, **changes: Any) -> None:
    for name, array in {**arrays, **changes}.items():
        if array is not None:
            file[name] = array


def _features(**options: Any) -> Callable[[h5py.File, Arrays, Path], None]:
    def make(file: h5py.File, arrays: Arrays, outside: Path) -> None:
        _put(file, arrays, features=None)
        given = {name: value(outside) if callable(value) else value for name, value in options.items()}
        file.create_dataset("features", **{"data": arrays["features"], **given})

    return make


def _changed(**changes: Any) -> Callable[[h5py.File, Arrays, Path], None]:
    def make(file: h5py.File, arrays: Arrays, outside: Path) -> None:
        _put(
            file,
            arrays,
            **{name: value(outside) if callable(value) else value for name, value in changes.items()},
        )

    return make


def _external(file: h5py.File, arrays: Arrays, outside: Path) -> None:
    _put(file, arrays, features=None)
    raw = [(str(outside / "secret"), 0, ROWS * toys.WIDTH * 2)]
    file.create_dataset("features", (ROWS, toys.WIDTH), np.float16, external=raw)


def _enumeration() -> Any:
    kind = h5py.h5t.enum_create(h5py.h5t.STD_I64LE)
    kind.enum_insert(b"ape", 0)
    return kind


def _virtual(file: h5py.File, arrays: Arrays, outside: Path) -> None:
    _put(file, arrays, features=None)
    layout = h5py.VirtualLayout((ROWS, toys.WIDTH), np.float16)
    layout[:] = h5py.VirtualSource(str(outside / "secret.h5"), "features", (ROWS, toys.WIDTH))
    file.create_virtual_dataset("features", layout)


def _low_level(kind: Any, shape: tuple[int, ...] = (ROWS,), name: str = "label") -> Any:
    def make(file: h5py.File, arrays: Arrays, outside: Path) -> None:
        _put(file, arrays, **{name: None})
        h5py.h5d.create(file.id, name.encode(), kind(), h5py.h5s.create_simple(shape))

    return make


def _unknown_filter(file: h5py.File, arrays: Arrays, outside: Path) -> None:
    _put(file, arrays, features=None)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((1, toys.WIDTH))
    layout.set_filter(32_099, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    space = h5py.h5s.create_simple((ROWS, toys.WIDTH))
    h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F16LE, space, layout)


def _scaled(file: h5py.File, arrays: Arrays, outside: Path) -> None:
    _put(file, arrays, label=None)
    file.create_dataset("label", data=arrays["label"], scaleoffset=0)


def _compact(file: h5py.File, arrays: Arrays, outside: Path) -> None:
    _put(file, arrays, label=None)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file.id, b"label", h5py.h5t.STD_I64LE, h5py.h5s.create_simple((ROWS,)), layout)


def _loop(file: h5py.File, arrays: Arrays, outside: Path) -> None:
    _put(file, arrays, features=None)
    file.create_group("features")["features"] = file["/"]


def _same(file: h5py.File, arrays: Arrays, outside: Path) -> None:
    _put(file, arrays, row=None)
    file["row"] = file["label"]


def _many(file: h5py.File, arrays: Arrays, outside: Path) -> None:
    _put(file, arrays)
    for number in range(3000):
        file.create_group(f"g{number}")


def _bits(file: h5py.File, arrays: Arrays, outside: Path) -> None:
    """Bits, which h5py shows as whole numbers of the same size."""
    _put(file, arrays, status=None)
    kind, space = h5py.h5t.STD_B8LE, h5py.h5s.create_simple((ROWS,))
    made = h5py.h5d.create(file.id, b"status", kind, space)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, arrays["status"], mtype=kind)


def _named_type(file: h5py.File, arrays: Arrays, outside: Path) -> None:
    _put(file, arrays, features=None)
    file["features"] = np.dtype(np.float16)


def _big_name(file: h5py.File, arrays: Arrays, outside: Path) -> None:
    _put(file, arrays)
    file["x" * 60_000] = 1


_TEXT = h5py.string_dtype()
SHARDS: Shards = {
    "external link for features": _changed(
        features=lambda out: h5py.ExternalLink(out / "secret.h5", "/features")
    ),
    "external link for labels": _changed(label=lambda out: h5py.ExternalLink(out / "secret.h5", "/label")),
    "soft link": _changed(row=h5py.SoftLink("/label")),
    "soft link to nowhere": _changed(row=h5py.SoftLink("/nowhere")),
    "soft link to itself": _changed(row=h5py.SoftLink("/row")),
    "external raw data": _external,
    "virtual data set": _virtual,
    "gzip": _features(compression="gzip"),
    "lzf": _features(compression="lzf"),
    "shuffle": _features(shuffle=True, chunks=True),
    "fletcher32": _features(fletcher32=True),
    "scale-offset": _scaled,
    "unknown filter": _unknown_filter,
    "chunks": _features(chunks=(1, 4)),
    "resizable": _features(maxshape=(None, toys.WIDTH)),
    "compact": _compact,
    "never written": _low_level(lambda: h5py.h5t.STD_I64LE),
    "variable-length text": _changed(label=np.array(["a" * 1000] * ROWS, dtype=_TEXT)),
    "variable-length rows": _low_level(lambda: h5py.h5t.vlen_create(h5py.h5t.STD_I64LE)),
    "2**40 rows": _low_level(lambda: h5py.h5t.IEEE_F16LE, (2**40, toys.WIDTH), "features"),
    "2**62 rows": _low_level(lambda: h5py.h5t.STD_U8LE, (2**62,), "status"),
    "no rows": _changed(label=np.zeros(0, np.int64)),
    "one row more": _changed(status=np.zeros(ROWS + 1, np.uint8)),
    "three dimensions": _changed(features=np.zeros((ROWS, toys.WIDTH, 1), np.float16)),
    "32 dimensions": _changed(status=np.zeros((1,) * 31 + (ROWS,), np.uint8)),
    "no dimension": _changed(row=np.int64(3)),
    "null space": _changed(row=h5py.Empty("i8")),
    "compound": _changed(row=np.zeros(ROWS, [("a", "i4"), ("b", "i4")])),
    "enumeration": _low_level(_enumeration),
    "bit field": _low_level(lambda: h5py.h5t.STD_B64LE),
    "bits that were written": _bits,
    "time": _low_level(lambda: h5py.h5t.UNIX_D64LE),
    "opaque": _changed(row=np.zeros(ROWS, "V8")),
    "references": _low_level(lambda: h5py.h5t.STD_REF_OBJ),
    "region references": _low_level(lambda: h5py.h5t.STD_REF_DSETREG),
    "big-endian": _changed(label=np.zeros(ROWS, ">i8")),
    "float32 for float16": _changed(features=np.zeros((ROWS, toys.WIDTH), np.float32)),
    "unsigned": _changed(label=np.zeros(ROWS, np.uint64)),
    "a group for a data set": _changed(features=None, **{"features/x": np.zeros(1)}),
    "a group that holds itself": _loop,
    "a type for a data set": _named_type,
    "two names for one": _same,
    "one name more": _changed(more=np.zeros(3)),
    "3000 groups more": _many,
    "a name of 60 000 letters": _big_name,
    "one name less": _changed(status=None),
    "other rows": _changed(row=np.arange(ROWS) + 1),
    "other labels": _changed(label=np.zeros(ROWS, np.int64)),
    "labels of no class": _changed(label=np.arange(ROWS) + 10**9),
}


def shard_bytes(make: Callable[[h5py.File, Arrays, Path], None], arrays: Arrays, outside: Path) -> bytes:
    """Return a hostile HDF5 file."""
    with h5py.File("hostile", "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        make(file, arrays, outside)
        file.flush()
        return bytes(file.id.get_file_image())


def raw_shards(good: bytes) -> dict[str, bytes]:
    """Return files that are hardly HDF5."""
    return {
        "empty": b"",
        "a web page": b"<html>" * 100,
        "the signature alone": b"\x89HDF\r\n\x1a\n",
        "zeros": bytes(5000),
        "cut off": good[: len(good) // 2],
        "behind a user block": bytes(512) + good,
        "0xff behind the signature": good[:8] + b"\xff" * 2000 + good[2008:],
        "a pickle": pickle.dumps(list(range(100))),
    }


def forge(cache: Cache, data: bytes) -> None:
    """Put a file in place of the first shard, with commit record and seal as a stranger would write them."""
    first = cache.commits()["train-00000"]
    digest = shard.hash_of(data)
    file = f"{first.shard}-{digest[:16]}.h5"
    forged = records.Commit(**{**first.__dict__, "file": file, "size": len(data), "xxh3_128": digest})
    (cache.path / records.SHARDS / file).write_bytes(data)
    (cache.path / records.COMMITS / f"{first.shard}.json").write_bytes(forged.to_bytes())
    commits = list(records.read_commits(cache.path, cache.key))
    reseal(cache, commits=records.digest_of(commits))


def reseal(cache: Cache, **changes: Any) -> None:
    """Write the seal with changed fields."""
    resign(cache.path / records.SEAL, lambda seal: seal.update(changes))


def resign(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record and give it the checksum that fits."""
    record = json.loads(path.read_text())
    record.pop("sha256")
    change(record)
    path.write_bytes(signed(record))


def signed(record: dict[str, Any]) -> bytes:
    """Return a record's bytes with its checksum, without any of our own checks."""
    import hashlib

    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return json.dumps({**record, "sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()


# --- plans ---


def plans(cache: Cache, outside: Path) -> dict[str, bytes]:
    """Return hostile plans."""
    with zipfile.ZipFile(cache.path / records.PLAN) as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    rows = len(cache.plan)

    def of(compression: int = zipfile.ZIP_STORED, **changes: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, data in {**good, **{f"{key}.npy": value for key, value in changes.items()}}.items():
                archive.writestr(name, data)
        return buffer.getvalue()

    def npy(array: Any, **options: Any) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array, **options)
        return buffer.getvalue()

    def header(text: str, data: bytes = b"") -> bytes:
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + data

    label = good["label.npy"]
    bomb = np.array([Canary(outside / "ran")], dtype=object)
    return {
        "a pickle in an array": of(label=npy(bomb, allow_pickle=True)),
        "a bare pickle": pickle.dumps(Canary(outside / "ran")),
        "30 MB of zeros, deflated": of(zipfile.ZIP_DEFLATED, id_bytes=npy(np.zeros(3 * 10**7, np.uint8))),
        "30 MB of zeros, bzip2": of(zipfile.ZIP_BZIP2, id_bytes=npy(np.zeros(3 * 10**7, np.uint8))),
        "a header of 2**60 rows": of(
            label=header("{'descr': '<i8', 'fortran_order': False, 'shape': (1152921504606846976,), }")
        ),
        "a header that is code": of(label=header("__import__('os').mkdir('x')")),
        "a header of 60 000 brackets": of(label=header("(" * 60_000)),
        "dates": of(label=npy(np.zeros(rows, "M8[s]"))),
        "complex labels": of(label=npy(np.zeros(rows, complex))),
        "text labels": of(label=npy(np.array(["x"] * rows))),
        "labels of no class": of(label=npy(np.full(rows, 10**9))),
        "negative labels": of(label=npy(np.full(rows, -7))),
        "splits that there are not": of(split=npy(np.full(rows, 9, np.uint8))),
        "splits out of order": of(split=npy((np.arange(rows) % 3).astype(np.uint8))),
        "names that overlap": of(id_ends=npy(np.array([100, 0] * (rows // 2)))),
        "names beyond the end": of(id_ends=npy(np.arange(rows) + 10**12)),
        "names that are not numbered": of(id_ends=npy(np.zeros(rows, np.float64))),
        "hashes of another shape": of(content_hash=npy(np.zeros((rows, 15), np.uint8))),
        "two entries of one name": _twice(of(), label),
        "an entry less": b"".join(of().split(b"split.npy")),
        "no archive": b"PK\x03\x04" + bytes(100),
        "a directory of 2**32 entries": of()[:-10] + b"\xff" * 10,
    }


def _twice(data: bytes, label: bytes) -> bytes:
    import warnings

    buffer = io.BytesIO(data)
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("label.npy", label)
    return buffer.getvalue()


# --- records ---


def json_bombs() -> dict[str, bytes]:
    """Return what is no record, whatever file it stands in."""
    return {
        "nothing": b"",
        "100 000 brackets": b"[" * 100_000,
        "100 000 objects in each other": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "a number of 100 000 digits": b'{"format": ' + b"9" * 100_000 + b"}",
        "1e999": b'{"format": 1, "x": 1e999, "sha256": "x"}',
        "NaN": b'{"format": 1, "x": NaN, "sha256": "x"}',
        "a list": b"[1]",
        "no UTF-8": b'{"format": 1, "x": "\xff\xfe"}',
        "20 MB of blanks": b" " * 20_000_000 + b"{}",
        "a pickle": pickle.dumps({"format": 1}),
        "half a record": b'{"format": 1, "key',
    }


# --- heads ---


def heads(good: bytes) -> dict[str, bytes]:
    """Return hostile heads."""
    meta = packing.meta_of(good, 1)

    def of(header: Any, data: bytes = b"") -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    def array(shape: list[int], offsets: list[int], dtype: str = "F64") -> dict[str, Any]:
        described = {"__metadata__": {"featcache": json.dumps(meta)}}
        return {**described, "coef_": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}

    def changed(**changes: Any) -> bytes:
        arrays = packing.arrays_of(good)
        return packing.pack(arrays, {**meta, **changes})

    return {
        "a pickle": pickle.dumps([1, 2]),
        "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
        "a header of 99 MB that is not there": struct.pack("<Q", 99_000_000) + b"{}",
        "a header of brackets": of(b"[" * 200_000),
        "an array of 2**62 numbers": of(array([2**31, 2**31], [0, 8])),
        "an array of -1 numbers": of(array([-1], [0, 8])),
        "offsets beyond the end": of(array([3, 16], [0, 10**15])),
        "offsets backwards": of(array([1], [8, 0]), bytes(8)),
        "an unknown dtype": of(array([1], [0, 8], "F65"), bytes(8)),
        "two keys of one name": of(
            b'{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},' * 2 + b'"b":1}', bytes(8)
        ),
        "metadata of brackets": of({"__metadata__": {"featcache": "[" * 200_000}}),
        "a kind that is a path": changed(kind="../../os"),
        "an option that is code": changed(params={"alpha": "__import__('os')"}),
        "10**12 columns": changed(columns=10**12),
        "columns that are text": changed(columns="16"),
        "a million classes": changed(classes={"dtype": "int64", "values": list(range(10**6))}),
        "objects as classes": changed(classes={"dtype": "object", "values": [[], {}, None]}),
        "a class type of 10**9 letters": changed(classes={"dtype": "<U999999999", "values": ["a", "b", "c"]}),
        "NaN in the description": good.replace(b"0.5", b"NaN", 1),
        "an attribute more": changed(attributes={**meta["attributes"], "__class__": "x"}),
        "a context that is a list": changed(context=[]),
    }


# --- images ---


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def images() -> dict[str, bytes]:
    """Return hostile images."""
    deflated = zlib.compress(bytes(3 * 10**7))
    return {
        "PNG of 3.6 gigapixels": _png(60_000, 60_000, _chunk(b"IDAT", zlib.compress(b"\0"))),
        "PNG of 2**31 - 1 columns": _png(2**31 - 1, 1, _chunk(b"IDAT", zlib.compress(b"\0"))),
        "PNG with 30 MB in a text": _png(
            4, 4, _chunk(b"zTXt", b"a\0\0" + deflated), _chunk(b"IDAT", zlib.compress(bytes(52)))
        ),
        "PNG with 30 MB in a profile": _png(4, 4, _chunk(b"iCCP", b"a\0\0" + deflated)),
        "PNG without pixels": _png(4, 4),
        "PNG chunk of 2 GB": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR",
        "JPEG header alone": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
        "JPEG of 65 500 squared": bytes.fromhex("ffd8ffc0001108ffdcffdc03012200021101031101"),
        "TIFF whose directory is itself": b"II*\0\x08\0\0\0\x01\0\xfe\x00\x04\0\x01\0\0\0\0\0\0\0\x08\0\0\0",
        "TIFF of 2**32 tags": b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 64,
        "GIF of 65 535 squared": b"GIF89a" + bytes.fromhex("ffffffff0000002c00000000ffffffff0002024401003b"),
        "BMP of -2**31 rows": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 10, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
        "PPM of 10**9 columns": b"P6\n1000000000 1000000000\n255\n",
        "PPM of 10**4000 columns": b"P6\n" + b"9" * 4000 + b" 1\n255\n",
        "WebP of nothing": b"RIFF\x10\0\0\0WEBPVP8 \x04\0\0\0\0\0\0\0",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "SVG that includes a file": b'<svg><image href="file:///etc/passwd"/></svg>',
        "PDF": b"%PDF-1.7\n",
        "an icon": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\0\0\0\0",
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
        "FITS": b"SIMPLE  =                    T",
        "a pickle": pickle.dumps([1, 2]),
        "an ELF program": b"\x7fELF" + bytes(60),
    }
