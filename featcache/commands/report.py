"""`featcache report`: runs compared and looked at closely, as a page, as figures, or as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.commands import options
from featcache.commands.output import progress_bar, say, show, show_json, show_table

if TYPE_CHECKING:
    from featcache.reporting.gathering import Entry
    from featcache.reporting.judging import Judged
    from featcache.reporting.report import Report
    from featcache.reporting.reported import Subject
    from featcache.reporting.tables import Column

FORMS = ("text", "csv", "markdown")


def _forms(function: Any) -> Any:
    about = {
        "text": "Print the comparison as text",
        "csv": "Print all numbers as CSV",
        "markdown": "Print it as Markdown",
    }
    for name in reversed(FORMS):
        function = click.option(f"--{name}", name, is_flag=True, help=f"{about[name]}.")(function)
    return function


@click.command(short_help="A page that compares runs and looks closely at each; also figures, text, CSV.")
@click.argument("names", metavar="[RUN|CACHE|STUDY.toml]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All runs of all caches.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The page.  [default: report.html]"
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write PNG and SVG there.",
)
@_forms
@click.option(
    "--split",
    type=click.Choice(["test", "val", "cv"]),
    help="Report on these rows [default: for each data set the first of them that all of its runs have].",
)
@click.option(
    "--details",
    type=click.IntRange(0),
    default=12,
    show_default=True,
    help="How many runs to look at closely, the most accurate first.",
)
@click.option("--dataset", help="Where the images are now, if they were moved; for the pictures.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the bootstrap and the examples drawn.",
)
@options.data_dir
@options.features_dir
@options.as_json
def report(
    names: tuple[str, ...],
    everything: bool,
    out: Path | None,
    figures: Path | None,
    split: str | None,
    details: int,
    dataset: str | None,
    seed: int,
    data_dir: Path,
    features_dir: Path,
    as_json: bool,
    **forms: bool,
) -> None:
    """Report on runs: which is best and how sure that is, what each costs, and where it errs.

    Without a name it is about the runs of the cache used last. A page is written, report.html, that needs
    no network and nothing else, unless only figures or one of --text, --csv, --markdown and --json is asked
    for. Runs are compared where they were evaluated on the very same rows, of several caches too; others
    are shown apart. Of a study's file, the runs that it came to last are shown under the names of its
    systems, beside the study's own figures. The page and the figures need: pip install "featcache[report]".
    """
    from featcache.reporting.gathering import gather
    from featcache.reporting.report import Asked, Report

    form = _one_form(forms, as_json)
    folders, named, subject = _asked_for(_names(names, everything, features_dir), features_dir)
    gathered = gather(folders, split, named=named, seed=seed, subject=subject)
    whole = Report(gathered, Asked(data_dir, dataset, details, seed))
    if out is None and not form and figures is None:
        out = Path("report.html")
    written = _write(whole, out, figures, quiet=as_json)
    if as_json:
        where = {"page": None if out is None else str(out), "figures": [str(path) for path in written]}
        show_json({**where, **whole.values()})
    elif form:
        _print(whole, form)
    else:
        _tell(whole, out, figures, written)


def _one_form(forms: dict[str, bool], as_json: bool) -> str:
    asked = [name for name in FORMS if forms[name]] + (["json"] if as_json else [])
    if len(asked) > 1:
        raise click.UsageError(f"--{asked[0]} and --{asked[1]} both print: ask for one.")
    return asked[0] if asked else ""


def _names(names: tuple[str, ...], everything: bool, features_dir: Path) -> tuple[str, ...]:
    from featcache.store.recent import last_used

    if names and everything:
        raise click.UsageError("--all is all runs: name none beside it.")
    if names or everything:
        return names
    last = last_used(features_dir)
    if last is None:
        return ()
    say(f"cache {last} (used last; all: --all)")
    return (last,)


def _asked_for(names: tuple[str, ...], features_dir: Path) -> tuple[list[Path], set[Path], Subject | None]:
    """Return the folders of the runs asked for, those of them that were named, and the study they are of."""
    from featcache.reporting.gathering import folders_of

    files = [name for name in names if name.endswith(".toml")]
    if not files:
        return *folders_of(features_dir, names), None
    if len(files) > 1:
        raise click.UsageError("A report is on one study at a time.")
    from featcache.studies.subject import subject_of

    subject, folders = subject_of(features_dir, Path(files[0]))
    others = [name for name in names if name not in files]
    more, named = folders_of(features_dir, others) if others else ([], set())
    return list(dict.fromkeys([*folders, *more])), {*folders, *named}, subject


def _write(whole: Report, out: Path | None, figures: Path | None, quiet: bool) -> list[Path]:
    from featcache import atomic

    written: list[Path] = []
    with progress_bar(quiet) as progress:
        if out is not None:
            text = whole.html(progress)
            atomic.make_folder(out.absolute().parent)
            atomic.write(out, text.encode("utf-8", "backslashreplace"))
        if figures is not None:
            atomic.make_folder(figures)
            for name, data in whole.figures():
                atomic.write(figures / name, data)
                written.append(figures / name)
    return written


def _print(whole: Report, form: str) -> None:
    from featcache.reporting import tables

    if form == "csv":
        show(tables.to_csv(whole.gathered.groups).removesuffix("\n"))
    elif form == "markdown":
        show(tables.to_markdown(whole.gathered.groups).removesuffix("\n"))
    else:
        for number, each in enumerate(whole.judged):
            _show(each, apart=number > 0)
        _say_study(whole)
        for why in whole.gathered.left_out:
            say(f"left out: {why}")


def _show(judged: Judged, apart: bool) -> None:
    from featcache.reporting import tables

    if apart:
        show("")
    show(tables.title(judged.group))
    entries = judged.group.entries
    _show_columns(tables.shown(entries), entries)
    if columns := tables.beside(entries):
        show("\nbeside the study's own figures")
        _show_columns(columns, entries)
    show("")
    for sentence in judged.sentences:
        show(sentence)
    for note in judged.notes:
        say(f"note: {note}")


def _show_columns(columns: Sequence[Column], entries: Sequence[Entry]) -> None:
    rows = [
        [str(rank), *(column.whole(entry) for column in columns)] for rank, entry in enumerate(entries, 1)
    ]
    right = ["#", *(column.title for column in columns if column.number)]
    show_table(["#", *(column.title for column in columns)], rows, right=right)


def _say_study(whole: Report) -> None:
    subject = whole.gathered.subject
    for note in () if subject is None else subject.notes:
        say(f"note: {note}")


def _tell(whole: Report, out: Path | None, figures: Path | None, written: list[Path]) -> None:
    for each in whole.judged:
        show(each.sentences[0])
    _say_study(whole)
    for why in whole.gathered.left_out[:5]:
        say(f"left out: {why}")
    if len(whole.gathered.left_out) > 5:
        say(f"left out: {len(whole.gathered.left_out) - 5} more")
    if out is not None:
        show(f"page: {out}")
    if figures is not None:
        show(f"figures: {len(written)} files in {figures}")
