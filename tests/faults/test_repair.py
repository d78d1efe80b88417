"""verify finds all damage, and --repair computes that again and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from featcache.errors import FeatcacheError
from featcache.extraction import repair as repairing
from featcache.extraction.request import Request, Settings
from featcache.store import records
from featcache.store.cache import Cache
from tests.faults import damage, hashing
from tests.faults.trials import draw, numbers, tally
from tests.kit_images import tree

REPAIR = "verify finds all damage, --repair recomputes only that"


@pytest.mark.timeout(1200)
def test_any_damage_is_found_and_repaired(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = hashing.photos(place / "photos", 120, 6)
    data = hashing.dataset(place / "photos")
    cache = hashing.cache(place / "features", data, rows_per_shard=16)
    asked = Request(f"folder:{place / 'photos'}", "resnet18", "random:0")
    recipe = cache.path / records.RECIPE
    whole = {**cache.record, "request": asked.to_dict()}
    recipe.write_bytes(records.to_bytes(whole))
    hashing.run(Cache(cache.path), data)
    before = tree(cache.path)
    files = {path: content for path, content in damage.snapshot(cache.path).items() if path != recipe}
    plan = Cache(cache.path).plan
    job = SimpleNamespace(
        request=asked,
        dataset=data,
        key=cache.key,
        plan=lambda: plan,
        extractor=lambda device: Backbone(),
    )
    monkeypatch.setattr(repairing, "open_job", lambda *arguments: job)
    settings = Settings(place / "features", place / "data", "cpu", batch_size=8, decode_in="threads")
    with tally(REPAIR, "1 to 4 files of a cache damaged, then repaired") as found:
        for trial in numbers(50, 1000):
            rng = draw("repair", trial)
            Backbone.images = 0
            hit = rng.sample(sorted(files), rng.randint(1, 4))
            for path in hit:
                rng.choice(damage.HARMS)(path, files[path], rng)
            assert tree(cache.path) == before or _damaged(cache.path) or _blank(cache.path, before)
            done = repairing.repair(cache.path, settings)
            hashing.check(Cache(cache.path), truth)
            assert not _damaged(cache.path)
            spoilt = {path.name.rpartition("-")[0] for path in hit if path.parent.name == records.SHARDS}
            spoilt |= {path.stem for path in hit if path.parent.name == records.COMMITS}
            assert set(done) <= spoilt, "more was computed than was damaged"
            assert Backbone.images == sum(len(p) for p in cache.shards() if p.name in done)
            ours = {name: content for name, content in tree(cache.path).items() if "elsewhere-" not in name}
            assert _same(ours, before)
            damage.restore(cache.path, {**files, recipe: recipe.read_bytes()})
            found.add("found, and only it computed again, to the same bytes")


class Backbone(hashing.HashBackbone):
    """Counts the images it is given."""

    images = 0

    def __call__(self, batch: Any) -> Any:
        Backbone.images += len(batch)
        return super().__call__(batch)


def _damaged(path: Path) -> bool:
    """Whether anything is wrong with a cache, as `featcache verify` sees it."""
    try:
        cache = Cache(path)
        return bool([why for _, why in cache.verify() if why]) or cache.sealed() is None
    except FeatcacheError:
        return True


def _blank(path: Path, before: dict[str, bytes]) -> bool:
    """Whether only blanks of records differ, which say nothing."""
    return _same(tree(path), before)


def _same(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    def text(name: str, content: bytes) -> bytes:
        return b"".join(content.split()) if name.endswith(".json") else content

    return {n: text(n, c) for n, c in one.items()} == {n: text(n, c) for n, c in other.items()}
