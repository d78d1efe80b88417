"""From what a source lists to rows: their order, and that ids are packed as they come."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import DatasetError
from featcache.images import listing
from featcache.images.dataset import id_bytes
from featcache.images.folder import by_bytes
from featcache.images.listing import Entry, Origin, rows_of
from featcache.images.names import Names

ids = st.text(
    st.characters(codec="utf-8", categories=["L", "N", "P"]) | st.just("\udcff"), min_size=1, max_size=8
)
entries = st.lists(
    st.tuples(ids, st.sampled_from("abc"), st.sampled_from([0, 0, 1, 2])),
    unique_by=lambda one: one[0],
    max_size=40,
)


@given(entries, st.booleans(), st.booleans())
def test_rows_are_in_order_however_they_come(
    found: list[tuple[str, str, int]], in_order: bool, packed: bool
) -> None:
    """By split and then by the bytes of the id, each with its own class, as a list of texts or packed."""
    images = [Entry(f"train/{label}", label, 0) for label in "abc"] + [Entry(*one) for one in found]
    wanted = sorted(images, key=lambda entry: (entry.split, id_bytes(entry.id)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "MANY", 1 if packed else 1000)
        rows = rows_of(
            iter(wanted if in_order else images), by_bytes, Origin("name", "path", ["x.txt"], None)
        )
    assert isinstance(rows.ids, Names) == packed and rows.ignored == ("x.txt",)
    got = zip(rows.ids, [rows.classes[label] for label in rows.labels], rows.splits.tolist(), strict=True)
    assert list(got) == [tuple(entry) for entry in wanted] and rows.classes == ("a", "b", "c")


def test_what_was_ignored_is_read_when_all_entries_have_come() -> None:
    ignored: list[str] = []

    def images() -> Iterator[Entry]:
        yield Entry("a/1.png", "a", 0)
        ignored.append("a/notes.txt")

    assert rows_of(images(), by_bytes, Origin("name", "path", ignored, None)).ignored == ("a/notes.txt",)


def test_a_class_without_images_to_train_on_is_refused() -> None:
    origin = Origin("name", "path", (), None)
    with pytest.raises(DatasetError, match="path holds no train image"):
        rows_of([Entry("1", "a", 2)], by_bytes, origin)
    with pytest.raises(DatasetError, match="the test split holds 1 classes train does not: 'b'"):
        rows_of([Entry("1", "a", 0), Entry("2", "b", 2)], by_bytes, origin)
