"""Object stores for tests: a server that speaks S3 on this machine's loopback, and fsspec's own in memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from featcache.store import keeping, opening

_numbers = itertools.count()
KEYS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def serving() -> Iterator[str]:
    """Run a server on loopback; yield its address."""
    pytest.importorskip("s3fs", reason="the extra featcache[s3] is not installed")
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    finally:
        server.stop()


def use_server(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


def new_bucket() -> str:
    """Make a bucket with a name that was not there before; return its URL."""
    import fsspec

    name = f"bucket-{os.getpid()}-{next(_numbers)}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    return f"s3://{name}"


def new_memory() -> str:
    return f"memory://store-{next(_numbers)}"


def other_machine(url: str, place: Path) -> Path:
    """Open a URL as a machine would that has a mirror of its own."""
    return keeping.local(url, place)


def forget() -> None:
    """Forget every open mirror, as a new process would."""
    for root in list(opening._open):
        keeping.register(root, None)
    opening._open.clear()


def names(url: str) -> list[str]:
    """Return the names of all objects below a URL."""
    from featcache.objects import Objects

    return sorted(Objects(url).list())
