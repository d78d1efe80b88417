"""Reports: what they gather, compare and say, and that a page is whole, safe and the same every time."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache import atomic, metrics
from featcache.costs import Costs
from featcache.errors import DamagedError, OptionError, RunError
from featcache.reporting import charts, drawing, tables, words
from featcache.reporting.details import confusions, reliability
from featcache.reporting.gathering import Gathered, folders_of, gather
from featcache.reporting.judging import Judged, judge, pareto
from featcache.reporting.labels import labelled
from featcache.reporting.report import Asked, Report
from featcache.reporting.stored import predictions_of
from featcache.store import records
from featcache.store.cache import Cache
from featcache.training import runs
from featcache.training.compare import compare
from featcache.training.fit import Training
from featcache.training.grid import parse
from featcache.training.sweep import Sweep, sweep
from tests.kit_caches import empty_cache, separable_cache
from tests.kit_images import make_folder
from tests.kit_reports import HOSTILE, cache_of, drawn, filled, run_of

QUICK = {"epochs": 3, "patience": None}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A features folder with three runs of a cache whose classes have names that try to break out."""
    folder = tmp_path_factory.mktemp("report")
    photos = make_folder(folder / "photos", train=20, test=12)
    cache = cache_of(photos, folder / "features", (HOSTILE, "$\\frac{", 'b" onload="x'))
    run_of(cache, "ridge")
    run_of(cache, "knn")
    run_of(cache, "mlp", hidden=(4,), **QUICK)
    return folder / "features"


@pytest.fixture(scope="module")
def page(hostile: Path) -> str:
    return _report(hostile).html()


def _report(features_dir: Path, *names: str, **asked: Any) -> Report:
    folders, named = folders_of(features_dir, names)
    return Report(gather(folders, named=named), Asked(**asked))


def _change(folder: Path, **facts: Any) -> None:
    """Change what a run's record says; None leaves a field out."""
    record = {**runs.read_run(folder), **facts}
    whole = {name: value for name, value in record.items() if value is not None or name in ("val", "test")}
    atomic.write(folder / runs.RUN, records.to_bytes(whole))


# --- gathering ---


def test_runs_on_the_same_rows_are_one_group_and_others_stand_apart(tmp_path: Path) -> None:
    easy = separable_cache(tmp_path)
    other = separable_cache(tmp_path, name="other", n=120)
    first, second = run_of(easy), run_of(easy, "knn")
    third = run_of(other)
    found = gather(folders_of(tmp_path, [])[0])
    assert [(g.dataset, g.split, g.rows, len(g.entries)) for g in found.groups] == [
        ("easy", "test", 60, 2), ("other", "test", 60, 1),
    ]  # fmt: skip
    assert {entry.folder for entry in found.groups[0].entries} == {first, second}
    assert found.groups[1].entries[0].folder == third and not found.left_out


def test_the_split_is_one_that_all_runs_of_a_data_set_have(tmp_path: Path) -> None:
    cache = separable_cache(tmp_path)
    tested, only_val = run_of(cache), run_of(cache, "knn", test=False)
    assert [g.split for g in gather([tested, only_val]).groups] == ["val"]
    assert [g.split for g in gather([tested]).groups] == ["test"]
    found = gather([tested, only_val], "test")
    assert [e.folder for e in found.entries] == [tested]
    assert len(found.left_out) == 1 and only_val.name in found.left_out[0]
    with pytest.raises(RunError, match=f"{only_val.name} has no predictions on test"):
        gather([tested, only_val], "test", named=[only_val])
    with pytest.raises(OptionError, match="Unknown split 'train'"):
        gather([tested], "train")


def test_a_damaged_run_is_left_out_and_named_unless_it_was_asked_for(tmp_path: Path) -> None:
    cache = separable_cache(tmp_path)
    good, bad = run_of(cache), run_of(cache, "knn")
    path = bad / runs.PREDICTIONS
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = gather([good, bad])
    assert [e.folder for e in found.entries] == [good] and bad.name in found.left_out[0]
    with pytest.raises(DamagedError):
        gather([good, bad], named=[bad])
    with pytest.raises(RunError, match="There is no run to report on"):
        gather([bad])


def test_a_stranger_s_metrics_are_checked(tmp_path: Path) -> None:
    cache = separable_cache(tmp_path)
    good, strange = run_of(cache), run_of(cache, "knn")
    test, whole = runs.read_run(strange)["test"], (strange / runs.RUN).read_bytes()
    for wrong in ({"worst_class": "ape"}, {"worst_class": None}, {"ece": "small"}, {"top5": True}):
        _change(strange, test={**test, **wrong})
        found = gather([good, strange])
        assert [entry.folder for entry in found.entries] == [good]
        assert f"{strange.name}: " in found.left_out[0] and "its field 'test' is" in found.left_out[0]
        (strange / runs.RUN).write_bytes(whole)
    for wrong in ({"subset": "all of them"}, {"notes": ["<b>", 3]}):
        _change(strange, **wrong)
        assert [entry.folder for entry in gather([good, strange]).entries] == [good]
        (strange / runs.RUN).write_bytes(whole)
    _change(strange, notes=["<b>"], created=None, versions=None)
    assert len(gather([good, strange]).entries) == 2


def test_names_may_be_runs_or_caches(tmp_path: Path) -> None:
    cache, other = separable_cache(tmp_path), separable_cache(tmp_path, name="other")
    first, second, third = run_of(cache), run_of(cache), run_of(other, "knn")
    assert folders_of(tmp_path, [first.name]) == ([first], {first})
    assert folders_of(tmp_path, ["knn"]) == ([third], {third})
    assert folders_of(tmp_path, ["easy"]) == (sorted([first, second]), set())
    assert set(folders_of(tmp_path, [])[0]) == {first, second, third}
    assert folders_of(tmp_path, [first.name, "easy"])[0].count(first) == 1
    for name, message in {
        "ridge": "names 2 runs",
        "resnet18": "names 2 caches",
        "nothing": "neither a run nor a cache",
    }.items():
        with pytest.raises(Exception, match=message):
            folders_of(tmp_path, [name])
    with pytest.raises(RunError, match="There are no runs"):
        folders_of(tmp_path / "none", [])


def test_single_folds_are_left_out(tmp_path: Path) -> None:
    cache = separable_cache(tmp_path, n=60)
    sweep(cache, Sweep(Training("ridge"), {}, folds=3))
    found = gather(folders_of(tmp_path, [])[0])
    assert [entry.split for entry in found.entries] == ["cv"] and len(found.left_out) == 3


# --- numbers ---


def test_values_are_those_that_compare_and_the_records_have(hostile: Path) -> None:
    report = _report(hostile)
    (group,) = report.values()["groups"]
    compared = compare([entry.folder for entry in report.gathered.entries])
    for line, each in zip(group["runs"], compared["runs"], strict=True):
        assert {k: line[k] for k in ("run", "accuracy", "low", "high")} == {
            k: each[k] for k in ("run", "accuracy", "low", "high")
        }
        record = runs.read_run(runs.find_run(hostile, line["run"]))
        assert line["macro_f1"] == record["test"]["macro_f1"] and line["rows"] == 36
        assert line["fit_seconds"] == record["costs"]["fit_seconds"]
    assert [line["rank"] for line in group["runs"]] == [1, 2, 3]
    pairs = {(p["a"], p["b"]): p for p in compared["pairs"]}
    for pair in group["against"]:
        assert pair["difference"] == pytest.approx(-pairs[group["runs"][0]["run"], pair["run"]]["difference"])


@drawn
def test_unknown_stays_unknown_everywhere(tmp_path: Path) -> None:
    cache = separable_cache(tmp_path)
    known, old = run_of(cache), run_of(cache, "knn")
    _change(old, costs=Costs().to_record())
    report = Report(gather([known, old]))
    line = next(line for line in report.values()["groups"][0]["runs"] if line["run"] == old.name)
    assert line["fit_seconds"] is None and line["peak_ram_bytes"] is None
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(report.gathered.groups))))
    assert {row["run"]: row["fit_seconds"] == "" for row in rows} == {known.name: False, old.name: True}
    assert tables.to_markdown(report.gathered.groups).count("unknown") >= 4
    assert any("unknown for" in note for note in report.judged[0].notes)
    text = report.html()
    cells = re.findall(r'<td class="number unknown" data-sort="">unknown</td>', text)
    assert len(cells) >= 4 and old.name not in report.judged[0].front


def test_markdown_and_csv_hold_what_names_cannot_break(hostile: Path) -> None:
    groups = _report(hostile).gathered.groups
    markdown = tables.to_markdown(groups)
    assert "<script" not in markdown and markdown.count("\n| ") == 5
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(groups))))
    assert {row["worst_class"] for row in rows} <= {HOSTILE, "$\\frac{", 'b" onload="x'}
    assert tables._harmless("=cmd()") == "'=cmd()" and tables._harmless(-1.5) == -1.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.seconds(0.00042), "0.42 ms"),
        (words.seconds(0.35), "350 ms"),
        (words.seconds(4.26), "4.3 s"),
        (words.seconds(200), "3 min 20 s"),
        (words.seconds(7500), "2 h 5 min"),
        (words.seconds(None), "unknown"),
        (words.size(61_400_000), "61.4 MB"),
        (words.size(999_960), "1.0 MB"),
        (words.size(12), "12 B"),
        (words.size(None), "unknown"),
        (words.count(40000), "40 000"),
        (words.percent(None), "unknown"),
        (words.decimal(None), "unknown"),
        (words.short("a" * 9, 5), "aaaa…"),
        (words.plain("a\x1b[2J\u202eb"), "a\\x1b[2J\\u202eb"),
    ],
)
def test_numbers_in_words(text: str, expected: str) -> None:
    assert text == expected


POINT = st.tuples(st.none() | st.integers(0, 5).map(float), st.integers(0, 5).map(float))


@given(st.lists(POINT, max_size=12))
def test_the_front_holds_what_nothing_beats(points: list[tuple[float | None, float]]) -> None:
    def beaten(a: int) -> bool:
        cost, accuracy = points[a]
        return cost is None or any(
            c is not None and c <= cost and y >= accuracy and (c < cost or y > accuracy) for c, y in points
        )

    front = pareto(points)
    assert set(front) == {a for a in range(len(points)) if not beaten(a)}
    assert [points[a][0] for a in front] == sorted(points[a][0] or 0.0 for a in front)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 80))
def test_the_bins_are_those_of_the_calibration_error(seed: int, classes: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    proba = rng.dirichlet(np.ones(classes) * 0.4, n).astype(np.float32)
    labels = rng.integers(0, classes, n)
    bins = reliability(labels, proba)
    assert sum(each.rows for each in bins) == n
    error = sum(each.rows * abs(each.confidence - each.accuracy) for each in bins) / n
    assert error == pytest.approx(metrics.expected_calibration_error(labels, proba), abs=1e-9)


def test_confusions_are_the_largest_fields_beside_the_diagonal() -> None:
    found = confusions(np.array([[9, 1, 0], [4, 0, 0], [0, 3, 5]]), ("a", "b", "c"))
    assert [(c.true, c.predicted, c.rows) for c in found] == [("b", "a", 4), ("c", "b", 3), ("a", "b", 1)]
    assert found[1].share == 3 / 8


def _record(head: str, **facts: Any) -> dict[str, Any]:
    params = facts.pop("params", {})
    return {"run": f"{head}-0000000{len(params)}", "head": head, "params": params, **facts}


def test_labels_name_what_differs_and_no_two_are_the_same() -> None:
    lr = [_record("mlp", params={"hidden": [50, 20], "lr": value, "seed": 0}) for value in (0.1, 0.2)]
    assert labelled(lr) == ["mlp 50-20 lr=0.1", "mlp 50-20 lr=0.2"]
    nodes = [_record("knn", backbone="a", node=node) for node in ("x", "y")]
    nodes.append(_record("knn", backbone="b", node="z"))
    assert labelled(nodes) == ["knn · a · x", "knn · a · y", "knn · b"]
    apart = [_record("knn", dataset="a"), _record("knn", dataset="b")]
    assert labelled(apart) == ["knn", "knn"]
    alike = [{**_record("ridge"), "run": f"ridge-{n}"} for n in "ab"]
    assert labelled(alike) == ["ridge (a)", "ridge (b)"]
    few = {"per_class": 5, "fraction": None, "trial": 0, "seed": 0}
    views = [_record("mlp", views={"mode": "random", "count": 5}), _record("mlp", views=None)]
    assert labelled(views) == ["mlp 5 views, random", "mlp"]
    shown = [{**_record("knn"), "test": {"views": count}} for count in (None, 2)]
    assert labelled(shown) == ["knn", "knn, averaged"]
    kinds = [
        _record("mlp", backbone=name, params={"lr": lr, "seed": 0}) for name, lr in (("a", 0.1), ("b", 1))
    ]
    assert labelled(kinds) == ["mlp · a", "mlp · b"], "options differ, but among the heads of none"
    some = [_record("ridge", subset=few), _record("ridge", subset={"strange": 1}), _record("ridge")]
    assert labelled(some) == ["ridge on 5 per class, trial 0", "ridge on some rows", "ridge"]


# --- words ---


def _judged(tmp_path: Path, *rights: np.ndarray, seconds: tuple[float, ...] = ()) -> Judged:
    """Judge runs whose predictions are right where `rights` say so."""
    cache = separable_cache(tmp_path, test=300)
    folders = []
    for number, right in enumerate(rights):
        folder = run_of(cache, "ridge", alpha=1.0 + number)
        record = runs.read_run(folder)
        rows, labels, _ = predictions_of(folder, record, "test")
        proba = np.eye(3, dtype=np.float32)[np.where(right, labels, (labels + 1) % 3)]
        stored = {"test__row": rows, "test__label": labels, "test__proba": proba}
        buffer = io.BytesIO()
        np.savez(buffer, **stored)
        atomic.write(folder / runs.PREDICTIONS, buffer.getvalue())
        hashed = runs.xxhash.xxh3_128_hexdigest(buffer.getvalue())
        costs = Costs(fit_seconds=seconds[number] if seconds else 1.0, reads="features").to_record()
        _change(folder, files={**record["files"], runs.PREDICTIONS: hashed}, costs=costs)
        folders.append(folder)
    (group,) = gather(folders).groups
    return judge(group)


def test_the_verdict_names_the_best_and_what_cannot_be_told_apart(tmp_path: Path) -> None:
    at = np.arange(300)
    judged = _judged(tmp_path, at < 270, at < 268, at < 150, seconds=(9.0, 3.0, 1.0))
    best, near, far = judged.group.entries
    assert "90.0 %" in judged.sentences[0] and best.label in judged.sentences[0]
    assert near.label in judged.sentences[1] and "the other is worse" in judged.sentences[1]
    assert f"{near.label} fits fastest, in 3.0 s: 3.0 times as fast as {best.label}" in judged.sentences[2]
    assert judged.against is not None and [each.worse for each in judged.against] == [False, True]
    assert judged.front == (far.run, near.run, best.run)
    assert any("picked on these very rows" in note for note in judged.notes)


def test_the_verdict_says_when_the_best_is_better_for_sure(tmp_path: Path) -> None:
    at = np.arange(300)
    judged = _judged(tmp_path, at < 290, at < 150)
    assert "better than every other run" in judged.sentences[1]


# --- the page ---


class Page(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@drawn
def test_what_strangers_named_stays_text(page: str) -> None:
    found = Page(page)
    assert [tag for tag, _ in found.elements].count("script") == 1
    assert not any(name.startswith("on") for _, attrs in found.elements for name in attrs)
    assert found.text.count(HOSTILE) > 10 and 'b" onload="x' in found.text and "$\\frac{" in found.text


@drawn
def test_the_page_needs_nothing_else_and_lets_only_its_own_script_run(page: str) -> None:
    found = Page(page)
    links = [attrs[name] or "" for _, attrs in found.elements for name in ("src", "href") if name in attrs]
    links += [attrs["xlink:href"] or "" for _, attrs in found.elements if "xlink:href" in attrs]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"@import|url\((?!#)", page)
    (policy,) = (a["content"] or "" for _, a in found.elements if a.get("http-equiv"))
    script = page[page.index("<script>") + 8 : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    ids = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


@drawn
def test_the_page_is_the_same_every_time_and_has_every_part(page: str, hostile: Path) -> None:
    assert _report(hostile).html() == page
    for part in ("Comparison", "Accuracy against time to fit", "Memory", "Worst class.", "Reliability",
                 "Confusion", "Class by class", "Most confident mistakes", "Recipe, and how to run it again",
                 "Test split", "Epochs", "featcache train-head --head mlp"):  # fmt: skip
        assert part in page, part
    assert 'lang="en"' in page and "fe01" not in page, "a colour was not given its name"
    assert Page(page).elements.count(("caption", {})) >= 10


@drawn
def test_pictures_are_of_the_images_embedded_or_it_is_said_why_not(hostile: Path, tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", train=6, test=3)
    cache = cache_of(photos, tmp_path / "features")
    folder = run_of(cache)
    asked = Report(gather([folder]))
    closeup = asked._closeup(asked.gathered.entries[0])
    rows = {row.row for row in (*closeup.detail.mistakes, *closeup.detail.examples)}
    assert set(closeup.pictures.by_row) == rows and len(rows) == 9 and closeup.pictures.missing == ""
    url = closeup.pictures.by_row[min(rows)]
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    with Image.open(photos / cache.plan.ids[min(rows)]) as original:
        shape = original.size
    assert max(picture.size) <= 96
    assert picture.size[0] / picture.size[1] == pytest.approx(shape[0] / shape[1], rel=0.1)
    changed = photos / cache.plan.ids[min(rows)]
    Image.new("RGB", (30, 30)).save(changed)
    assert "1 of 9 images are no longer there" in asked.html()
    moved = photos.rename(tmp_path / "moved")
    assert "The images are not there" in asked.html()
    again = Report(gather([folder]), Asked(dataset=f"folder:{moved}"))
    assert "The images are not there" not in again.html()


@drawn
def test_a_hundred_classes_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"species number {number:03d}" for number in range(100)]
    cache = _many_classes(tmp_path, names)
    text = _report(tmp_path, run_of(cache).name).html()
    svg = text[text.index('aria-label="confusion of') :]
    svg = svg[: svg.index("</svg>")]
    assert all(svg.count(f">{name}<") == 2 for name in names) and "data:image/png" in svg
    assert '<table class="matrix">' not in text and len(text) < 500_000


def _many_classes(folder: Path, names: list[str]) -> Cache:
    import tests.kit_caches as kit

    plan = kit.plan({"train": 2000, "test": 400}, classes=len(names))
    made = kit.recipe()
    key = kit.cache_key(made.fingerprint, "0" * 64)
    dataset = {"name": "many", "fingerprint": "0" * 64, "classes": names, "rows": plan.counts(),
               "ignored": {"count": 0, "first": []}}  # fmt: skip
    record = {"key": key, "recipe": made.to_dict(), "dataset": dataset, "columns": {"flatten": 16},
              "rows_per_shard": 2000, "request": {}, "versions": {}}  # fmt: skip
    return filled(Cache.create(folder / f"many--resnet18--{key[:10]}", record, plan))


@drawn
def test_of_many_runs_the_best_are_looked_at_and_the_page_stays_small(tmp_path: Path) -> None:
    cache = empty_cache(tmp_path, {"train": 90, "test": 30}, {"flatten": 4})
    filled(cache)
    alphas = ",".join(str(n + 1) for n in range(60))
    sweep(cache, Sweep(Training("ridge"), parse("ridge", [f"alpha={alphas}"])))
    report = _report(tmp_path, details=2)
    text = report.html()
    assert len(report.gathered.entries) == 60 and text.count('<details class="run card"') == 2
    assert "The charts show 30 of the 60 runs" in text and "Here are the 2 most accurate" in text
    assert len(text) < 600_000
    labels = [entry.label for entry in report.gathered.entries]
    assert len(set(labels)) == 60 and "ridge alpha=7" in labels
    assert any("fitted together" in note for note in report.judged[0].notes)


@drawn
def test_figures_are_sound_files_that_hold_strange_names(hostile: Path) -> None:
    report = _report(hostile, details=1)
    found = dict(report.figures())
    assert {"accuracy.png", "memory.svg", "accuracy-against-time-to-fit.svg"} < set(found)
    assert len(found) == 2 * (6 + 2 + (report.looked_at()[0].record["head"] == "mlp"))
    for name, data in found.items():
        if name.endswith(".svg"):
            root = ElementTree.fromstring(data)
            assert root.tag.endswith("svg") and b"fe01" not in data
        else:
            assert Image.open(io.BytesIO(data)).size[0] > 800
    assert dict(report.figures()) == found
    with pytest.raises(OptionError, match="Unknown format 'gif'"):
        next(report.figures(("gif",)))


@drawn
def test_every_axis_has_its_unit(hostile: Path) -> None:
    found: Gathered = _report(hostile).gathered
    for name, draw in charts.overview(found.entries, drawing.PAPER).items():
        (axes,) = draw().axes
        assert re.search(r"\(%|\(s|\(MB\)|^s to", axes.get_xlabel()), name
        assert axes.get_ylabel() == "" or "(%)" in axes.get_ylabel(), name


@drawn
def test_without_what_draws_it_is_said_what_to_install(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = _report(hostile)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match="matplotlib, which is not installed") as error:
        report.html()
    assert 'pip install "featcache[report]"' in error.value.hint
    assert report.values()["groups"] and tables.to_csv(report.gathered.groups)


@drawn
def test_a_run_that_lies_in_no_cache_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    cache = separable_cache(tmp_path)
    folder = run_of(cache, "mlp", hidden=(4,), **QUICK)
    lone = tmp_path / "elsewhere" / "heads" / folder.name
    lone.parent.mkdir(parents=True)
    folder.rename(lone)
    _change(lone, classes=["ape", "bee", "cat"])
    text = Report(gather([lone])).html()
    assert "lies in no cache" in text and ">ape<" in text
