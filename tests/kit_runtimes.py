"""The contract of a runtime: checks that every one has to pass, each a plain function of a name."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from featcache.backbones import catalogue, weights
from featcache.backbones.runtime import Extractor
from featcache.backbones.runtimes.base import Body, Work
from featcache.backbones.runtimes.catalogue import make
from featcache.backbones.runtimes.check import disagreement
from featcache.recipe import Preprocess

SIZE = 64
STEP = Preprocess("squash", SIZE, SIZE, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def extractor(
    backbone: str, precision: str = "fp32", layers: tuple[str, ...] = (), pool: str | None = None
) -> Extractor:
    network = weights.assemble(backbone, weights.load(backbone, weights.resolve(backbone, "random:0"))[0])
    return Extractor(network, catalogue.resolve_nodes(backbone, network, layers, pool), STEP, precision)


@lru_cache(maxsize=4)
def work(backbone: str, precision: str = "fp32", threads: int = 2, **options: object) -> Work:
    """The work of a backbone, as if so many threads were there; every runtime must leave it as it is."""
    made = extractor(backbone, precision, **options).work  # type: ignore[arg-type]
    return Work(made.exact, made.cast, precision, "cpu", SIZE, threads)


def images(count: int, seed: int = 0) -> Tensor:
    """Coarse random images, as photos are, normalised."""
    small = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    large = small.repeat_interleave(SIZE // 8, 2).repeat_interleave(SIZE // 8, 3)
    return large.contiguous(memory_format=torch.channels_last)


def exact(of: Work, x: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        return dict(of.exact()(x))


def run(body: Body, x: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        return body(x.to(body.dtype))


def agrees_with_eager_float32(name: str, of: Work) -> None:
    x = images(5)
    body, wanted = make(name, of), exact(of, x)
    rows = run(body, x)
    assert list(rows) == list(wanted)
    assert all(values.dtype == torch.float32 for values in rows.values())
    eager = run(make("torch", of), x) if of.precision != "fp32" else None
    assert disagreement(rows, wanted, of.precision, eager) == ""
    if of.precision != "fp32":
        assert any(not torch.equal(rows[node], wanted[node]) for node in wanted)


def takes_any_number_of_images(name: str, of: Work) -> None:
    body, x = make(name, of), images(2 * of.chunk + 3)
    whole = run(body, x)
    for first, stop in ((0, 1), (1, of.chunk), (of.chunk - 1, of.chunk + 2), (0, len(x) - 1)):
        part = run(body, x[first:stop])
        for node, rows in part.items():
            assert rows.shape == (stop - first, whole[node].shape[1])
            wanted = whole[node][first:stop]
            assert (rows - wanted).abs().max() <= 1e-5 * wanted.abs().max(), (first, stop)


def gives_the_same_bits_again(name: str, of: Work) -> None:
    x = images(of.chunk)
    first, again = make(name, of), make(name, of)
    for node, rows in run(first, x).items():
        assert torch.equal(rows, run(first, x)[node])
        assert torch.equal(rows, run(again, x)[node])


def works_in_several_threads_at_once(name: str, of: Work) -> None:
    body = make(name, of)
    batches = [images(of.chunk - n % 3, seed=n) for n in range(12)]
    wanted = [run(body, x) for x in batches]
    with ThreadPoolExecutor(
        of.streams, initializer=torch.set_num_threads, initargs=(of.threads_each,)
    ) as pool:
        got = list(pool.map(lambda x: run(body, x), batches))
    for a, b in zip(wanted, got, strict=True):
        assert all((a[node] - b[node]).abs().max() <= 1e-5 * a[node].abs().max() for node in a)


def gives_rows_of_their_own(name: str, of: Work) -> None:
    """Rows must outlive the next call, and writing to them must not reach the network."""
    body, x, y = make(name, of), images(of.chunk), images(of.chunk, seed=1)
    first = run(body, x)
    kept = {node: rows.clone() for node, rows in first.items()}
    run(body, y)
    assert all(torch.equal(first[node], kept[node]) for node in kept)
    with torch.inference_mode():
        for rows in first.values():
            rows.zero_()
    assert all(torch.equal(rows, kept[node]) for node, rows in run(body, x).items())


def leaves_its_input_and_the_network_alone(name: str, of: Work) -> None:
    x, state = images(of.chunk), copy.deepcopy(of.cast.state_dict())
    before = x.clone()
    run(make(name, of), x)
    assert torch.equal(x, before)
    after = of.cast.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())


CHECKS = [
    takes_any_number_of_images,
    gives_the_same_bits_again,
    works_in_several_threads_at_once,
    gives_rows_of_their_own,
    leaves_its_input_and_the_network_alone,
]
