"""Views are drawn from seed, sample id and number alone, whoever draws them; policies are checked."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from featcache.backbones.preprocess import fit
from featcache.errors import BadImageError, FormatError, OptionError
from featcache.extraction import reader as reading
from featcache.extraction.pixels import by_view
from featcache.extraction.reader import Reader, Reading
from featcache.extraction.views import Wanted, pixels_of
from featcache.images.augment import Augmenter, Draws, region, seed_of
from featcache.images.catalogue import open_source
from featcache.images.dataset import Dataset
from featcache.images.policies import NAMED, STEPS, checked, draws, policy_of, text_of
from featcache.images.transforms import OwnRandom
from featcache.recipe import Preprocess, Recipe, Views
from featcache.store.plan import ShardPlan
from tests.kit_caches import recipe
from tests.kit_images import make_folder

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (37, 52, 3), dtype=np.uint8)
STEP = Preprocess("auto", 40, 32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = make_folder(tmp_path_factory.mktemp("views") / "photos", train=4, test=1)
    return open_source(f"folder:{folder}", folder).open()


def with_views(views: Views) -> Recipe:
    plain = recipe()
    return Recipe(plain.backbone, plain.weights, plain.nodes, STEP, format=3, views=views)


@pytest.mark.parametrize("name", [*STEPS, *NAMED])
def test_a_view_is_the_same_again_and_nothing_global_is_drawn_from(name: str) -> None:
    policy = policy_of(name) if name in NAMED else checked([{"name": name}])
    make, again = Augmenter(policy, 7), Augmenter(policy, 7)
    python, before, kept = np.random.get_state()[1].copy(), torch.get_rng_state(), IMAGE.copy()
    views = [make(IMAGE, b"a", view) for view in range(1, 13)]
    torch.manual_seed(5)
    later = [again(IMAGE, b"a", view) for view in reversed(range(1, 13))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(views, later, strict=True))
    assert all(view.dtype == np.uint8 and view.shape[2] == 3 for view in views)
    assert (len({view.tobytes() for view in views}) > 1) == draws(policy)
    torch.set_rng_state(before)
    make(IMAGE, b"b", 1)
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(np.random.get_state()[1], python)
    assert np.array_equal(IMAGE, kept), "the image itself is left alone"
    assert make(IMAGE, b"a", 0) is IMAGE


def test_seed_id_and_number_each_make_another_view() -> None:
    make = Augmenter(policy_of("jitter"), 0)
    first = make(IMAGE, b"a", 1)
    others = [make(IMAGE, b"a", 2), make(IMAGE, b"b", 1), Augmenter(policy_of("jitter"), 1)(IMAGE, b"a", 1)]
    assert all(not np.array_equal(first, other) for other in others)
    assert len({seed_of(s, n, v) for s in (1, 11) for n in (b"", b"1", b"1 ") for v in (1, 11)}) == 12


def test_threads_draw_for_themselves() -> None:
    make = Augmenter(policy_of("randaugment"), 0)
    wanted = [make(IMAGE, b"%d" % row, 1) for row in range(40)]
    got: list[Any] = [None] * 40

    def work(rows: range) -> None:
        for row in rows:
            torch.rand(3)  # somebody else who draws from the global generator
            got[row] = make(IMAGE, b"%d" % row, 1)

    threads = [threading.Thread(target=work, args=(range(first, 40, 4),)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(wanted, got, strict=True))


@settings(max_examples=12, deadline=None)
@given(
    policy=st.sampled_from(["flip", "crop", "jitter", "trivialaugment"]),
    batch=st.integers(1, 9),
    workers=st.integers(1, 3),
    first=st.integers(0, 11),
    views=st.tuples(st.integers(0, 9), st.integers(1, 11)),
    own=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)
def test_view_i_v_hangs_on_nothing_else(
    dataset: Dataset,
    policy: str,
    batch: int,
    workers: int,
    first: int,
    views: tuple[int, int],
    own: bool,
    seed: int,
) -> None:
    """However rows come together, in any threads, whichever views are wanted: the pixels are one image's."""
    new, of = range(views[0], views[0] + views[1]), Views(20, policy_of(policy), seed)
    how = Reading(batch, workers, 10**6, own_size=own, after=2)
    made, seen = Reader(dataset, STEP, how, of, lambda part: [Wanted(part.rows, new)]), []
    try:
        for one in made.batches(iter([ShardPlan("train-00000", first, 12)])):
            for view, pixels in one.each_view():
                for row, image in zip(one.rows.tolist(), pixels, strict=True):
                    assert np.array_equal(image, pixels_of(dataset, row, view, with_views(of)))
                    seen.append((row, view))
            made.give(one)
    finally:
        made.close()
    assert sorted(seen) == [(row, view) for row in range(first, 12) for view in new]


def test_processes_draw_the_same(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MANY", 1)
    of = Views(3, policy_of("crop"), 3)
    how = Reading(5, 2, 10**6, processes=True)
    made = Reader(dataset, STEP, how, of, lambda part: [Wanted(part.rows, range(3))])
    try:
        (batch,) = made.batches(iter([ShardPlan("train-00000", 1, 6)]))
        for view, pixels in batch.each_view():
            for row, image in zip(range(1, 6), pixels, strict=True):
                assert np.array_equal(image, pixels_of(dataset, row, view, with_views(of)))
    finally:
        made.close()


def test_a_region_is_squashed_and_other_views_are_fitted_like_the_image(dataset: Dataset) -> None:
    step = Preprocess("weights", 40, 32)
    flipped = fit(dataset.image(0)[:, ::-1], step)
    plain = recipe()
    for policy, exact in (("flip", True), ("crop", False)):
        made = Recipe(
            plain.backbone, plain.weights, plain.nodes, step, format=3, views=Views(2, policy_of(policy), 0)
        )
        view = pixels_of(dataset, 0, 1, made)
        assert view.shape == (32, 32, 3) and np.array_equal(view, flipped) == exact
    whole = ({"name": "crop", "scale": [1.0, 1.0], "ratio": [52 / 37, 52 / 37]},)
    region = Augmenter(checked(whole), 0)(IMAGE, b"a", 1)
    assert np.array_equal(region, IMAGE), "a region as large as the image is the image"


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
    seed=st.integers(0, 2**64),
)
def test_regions_lie_in_the_image(
    size: tuple[int, int], scale: list[float], ratio: list[float], seed: int
) -> None:
    rows, columns = region(*size, {"scale": scale, "ratio": ratio}, Draws(seed))
    assert 0 <= rows.start < rows.stop <= size[0] and 0 <= columns.start < columns.stop <= size[1]


def test_regions_are_drawn_as_by_torchvision() -> None:
    """Their sizes and places have the same distribution: means and deviations of many agree."""
    options = {"scale": [0.3, 0.9], "ratio": [0.6, 1.5]}
    transform = v2.RandomResizedCrop(1, (0.3, 0.9), (0.6, 1.5))
    theirs, image = [], torch.zeros(3, 90, 120)
    with OwnRandom(torch.Generator().manual_seed(0)):
        for _ in range(4000):
            one = transform.make_params([image])
            theirs.append([one["top"], one["left"], one["height"], one["width"]])
    ours = []
    for seed in range(4000):
        rows, columns = region(90, 120, options, Draws(seed))
        ours.append([rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start])
    a, b = np.array(theirs, float), np.array(ours, float)
    error = np.sqrt(a.var(axis=0) / 4000)
    assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 6 * error).all()
    assert np.allclose(a.std(axis=0), b.std(axis=0), rtol=0.06)
    assert np.allclose(np.corrcoef(a.T), np.corrcoef(b.T), atol=0.08)


def test_draws_are_what_they_always_were() -> None:
    # If these change, views that are added to a cache no longer fit those that are there.
    assert seed_of(0, b"train/cat/1.jpg", 1) == 179351172448694449469230649521527988240
    draws = Draws(7)
    assert [draws.whole(), draws.below(1000)] == [11530976094092348043, 897]
    assert draws.between(2, 3) == 2.7756856902451936


def test_flips_and_regions_need_no_torch() -> None:
    code = (
        "import sys; from featcache.extraction import processes, views; from featcache.recipe import Views; "
        "from featcache.images.policies import policy_of; views.augmenter(Views(2, policy_of('crop'), 0)); "
        "sys.exit('torch' in sys.modules or 'h5py' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_cannot_be_augmented_is_a_bad_image() -> None:
    tiny = IMAGE[:1, :1]
    with pytest.raises(BadImageError, match="cannot be augmented"):
        Augmenter(checked([{"name": "blur", "kernel": 9}]), 0)(tiny, b"a", 1)


def test_a_policy_from_a_file(tmp_path: Path) -> None:
    toml, plain = tmp_path / "mine.toml", tmp_path / "mine.json"
    toml.write_text('[[step]]\nname = "crop"\nscale = [0.3, 1.0]\n[[step]]\nname = "flip"\n')
    plain.write_text(json.dumps([{"name": "crop", "scale": [0.3, 1.0]}, {"name": "flip", "p": 0.5}]))
    assert text_of(str(toml)) == text_of(str(plain))
    assert policy_of(text_of(str(toml))) == (
        {"name": "crop", "scale": [0.3, 1.0], "ratio": [0.75, 4 / 3]},
        {"name": "flip", "p": 0.5},
    )
    assert text_of("crop") == "crop"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[[step]]\nname = "crops"', r"Unknown step of an augmentation: 'crops'.*"),
        ('[[step]]\nname = "crop"\nsize = 3', "Unknown parameter of the step 'crop': 'size'"),
        ('[[step]]\nname = "crop"\nscale = [1.0, 0.5]', r"scale of the step 'crop' cannot be \[1.0, 0.5\]"),
        (
            '[[step]]\nname = "flip"\np = true',
            "p of the step 'flip' cannot be True: expected a number from 0",
        ),
        ('[[step]]\nname = "blur"\nkernel = 4', "must be odd, got 4"),
        ("step = 3", "a list of 1 to 20 steps"),
        ('[[steps]]\nname = "crop"', r"holds \['steps'\], expected steps"),
        ('[[step]\nname = "crop"', "cannot be read"),
        ("#" * 70_000, "larger than"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=why):
        text_of(str(path))


def test_names_and_files_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Unknown augmentation 'crap'") as error:
        text_of("crap")
    assert "trivialaugment" in error.value.hint
    with pytest.raises(OptionError, match=r"Cannot read the augmentation .*: No such file"):
        text_of(str(tmp_path / "none.toml"))


def test_recipes_with_and_without_views() -> None:
    plain, views = recipe(), Views(5, policy_of("crop"), 1, "all")
    assert "views" not in plain.to_dict()
    # As it was before there were views: no cache without them has moved.
    assert plain.fingerprint == "365cd98ec0f828579c5c1765ee47235f1dbfd0f19d4c3928c722775d0ba8f48b"
    made = with_views(views)
    assert Recipe.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert [made.views_in(split) for split in ("train", "val", "test")] == [5, 5, 5]
    assert with_views(Views(5, views.policy)).views_in("test") == 1
    for wrong in ({"count": 1}, {"count": True}, {"of": "some"}, {"policy": []}, {"extra": 1}):
        stored = made.to_dict()
        stored["views"] |= wrong
        with pytest.raises(FormatError):
            Recipe.from_dict(stored)
    with pytest.raises(FormatError, match="format 1 cannot store 'float16' with views"):
        Recipe.from_dict({**made.to_dict(), "format": 1})


def test_pixels_of_a_batch_by_view() -> None:
    pixels = np.arange(2 * 3 * 1 * 1 * 3, dtype=np.uint8).reshape(6, 1, 1, 3)
    assert np.array_equal(by_view(pixels, 2)[1, 0], pixels[3])
