"""`csv:FILE`: a table with columns path, label and perhaps split; paths are relative to the file's folder.

A table may come from anyone, so its paths must stay below that folder, links included, as those of
`folder:DIR` do.
`csv-anywhere:FILE` is for a table that is trusted: its paths may lead anywhere.
"""

# A Path object for each of a million files would cost more than listing them.
# ruff: noqa: PTH100, PTH111, PTH112, PTH113, PTH114, PTH117, PTH118, PTH119, PTH120, PTH122, PTH206

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from featcache import limits
from featcache.errors import DatasetError
from featcache.images.listing import SPLIT_NAMES, Entry, Origin, rows_of
from featcache.images.scan import Scan, scan_files
from featcache.images.source import not_there, slug

if TYPE_CHECKING:
    from featcache.images.dataset import Dataset
    from featcache.images.source import Advance

ANYWHERE = "csv-anywhere"
_COLUMNS = "Its first line must be path,label or path,label,split; other columns are ignored."


class CsvSource:
    """Images named in a CSV file (UTF-8).

    Args:
        path: of the file.
        anywhere: whether images may lie outside its folder.

    Raises:
        DatasetError: the file is missing or cannot be reached.
    """

    def __init__(self, path: str, anywhere: bool = False) -> None:
        self._anywhere = anywhere
        self._path = os.path.normpath(os.path.expanduser(path)) if path else ""
        if not path or not os.path.isfile(self._path):
            folder = path and os.path.isdir(self._path)
            what = "is a folder, not a file" if folder else not_there(self._path)
            raise DatasetError(f"The CSV file {path!r} {what}.", _COLUMNS)
        self._folder = os.path.dirname(self._path) or "."
        self._scan: Scan | None = None

    @property
    def spec(self) -> str:
        """The path as given, without detours: "csv:photos.csv"."""
        return f"{ANYWHERE if self._anywhere else 'csv'}:{self._path}"

    @property
    def name(self) -> str:
        """The file's name without its suffix: "csv-photos"."""
        return f"csv-{slug(os.path.splitext(os.path.basename(self._path))[0])}"

    @property
    def root(self) -> str:
        """The folder that ids are paths below."""
        return os.path.abspath(self._folder)

    def stat_digest(self) -> str:
        """Return the digest over the CSV file and the images it names.

        Raises:
            DatasetError: the CSV file cannot be read as one.
        """
        return self._scanned().digest

    def newest_ns(self) -> int:
        """Return the newest time of a file, in ns since the epoch."""
        return self._scanned().newest_ns

    def _scanned(self) -> Scan:
        if self._scan is None:
            names = [entry.id for _, entry in self._entries()]
            self._scan = scan_files(self._folder, [os.path.basename(self._path), *names])
        return self._scan

    def open(self, progress: Advance | None = None) -> Dataset:
        """Read the file; classes are the labels, sorted, as numbers where all are whole numbers.

        Raises:
            DatasetError: a column is missing, a line has no path or label, an unknown split, a path listed
                before or one that leads out of the folder; files are missing (the first and their number are
                named); a class has no train image.
        """
        from featcache.images.stored import FileDataset

        entries: list[Entry] = []
        lines: dict[str, int] = {}
        for line, entry in self._entries():
            first = lines.setdefault(entry.id, line)
            if first != line:
                raise self._wrong(line, f"{entry.id!r} was already listed in line {first}")
            entries.append(entry)
        if not self._anywhere:
            self._check_inside(lines)
        self._check_present(lines)
        rows = rows_of(entries, _sorted_labels, Origin(self.name, self._path, (), progress))
        return FileDataset(rows, self.root)

    def _entries(self) -> Iterator[tuple[int, Entry]]:
        """Yield (line number, entry) for each line."""
        try:
            with open(self._path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                if (size := os.fstat(file.fileno()).st_size) > (most := limits.LIST_BYTES()):
                    raise DatasetError(
                        f"The CSV file {self._path} has {size} bytes, at most {most} are read.",
                        f"{limits.LIST_BYTES.variable} sets the limit.",
                    )
                reader = csv.reader(file, strict=True)
                columns = self._columns(next(reader, []))
                for cells in reader:
                    if cells:
                        yield reader.line_num, self._entry(reader.line_num, cells, columns)
        except (OSError, csv.Error) as error:
            raise DatasetError(f"Cannot read the CSV file {self._path}: {error}.", _COLUMNS) from error

    def _columns(self, header: list[str]) -> dict[str, int]:
        found = {name.strip().lower(): at for at, name in enumerate(header)}
        missing = [name for name in ("path", "label") if name not in found]
        if missing:
            raise DatasetError(
                f"The CSV file {self._path} has no column {' and no column '.join(missing)}; "
                f"its first line is {','.join(header)[:80]!r}.",
                _COLUMNS,
            )
        return found

    def _entry(self, line: int, cells: list[str], columns: dict[str, int]) -> Entry:
        def cell(name: str) -> str:
            at = columns[name]
            return cells[at].strip() if at < len(cells) else ""

        for name in ("path", "label"):
            if not cell(name):
                raise self._wrong(line, f"the {name} is empty")
        split = cell("split").lower() if "split" in columns else "train"
        if split not in SPLIT_NAMES:
            raise self._wrong(line, f"unknown split {cell('split')!r}; known: {', '.join(SPLIT_NAMES)}")
        path = os.path.normpath(cell("path"))
        if not self._anywhere and (os.path.isabs(path) or path.split(os.sep)[0] == os.pardir):
            raise self._outside(line, path)
        return Entry(path.replace(os.sep, "/"), cell("label"), SPLIT_NAMES[split])

    def _check_inside(self, lines: dict[str, int]) -> None:
        """Refuse links that lead out of the folder."""
        home = os.path.join(os.path.realpath(self._folder), "")
        folders: dict[str, bool] = {}
        for name, line in lines.items():
            path = os.path.join(self._folder, name)
            folder = os.path.dirname(path)
            if folder not in folders:
                folders[folder] = os.path.join(os.path.realpath(folder), "").startswith(home)
            inside = folders[folder]
            if not inside or (os.path.islink(path) and not os.path.realpath(path).startswith(home)):
                raise self._outside(line, name)

    def _check_present(self, lines: dict[str, int]) -> None:
        missing = [name for name in lines if not os.path.isfile(os.path.join(self._folder, name))]
        if missing:
            first = missing[0]
            why = not_there(os.path.join(self._folder, first))
            said = f"{first!r} is no file in {self._folder}" + (f" ({why})" if "reached" in why else "")
            raise self._wrong(lines[first], f"{said}; {len(missing)} are missing in all")

    def _wrong(self, line: int, what: str) -> DatasetError:
        return DatasetError(f"{self._path}, line {line}: {what}.", "Correct the file and run again.")

    def _outside(self, line: int, path: str) -> DatasetError:
        return DatasetError(
            f"{self._path}, line {line}: the path {path!r} leads out of the file's folder.",
            f"If you trust the file: {ANYWHERE}:{self._path}.",
        )


def _sorted_labels(labels: set[str]) -> list[str]:
    try:
        return sorted(labels, key=lambda label: (int(label), label))
    except ValueError:
        return sorted(labels, key=os.fsencode)
