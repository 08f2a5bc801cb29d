"""
One reader of .txt, .jsonl, .csv, .tsv and .parquet files, row by row: the memory is bounded.

    for where, row in records("films.csv"):
        ...                                  # "films.csv, line 2", {"text": "A fine film.", "label": "1"}
"""

import csv
import json
import os
import re
import sys
from contextlib import nullcontext

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")  # have columns
FORMATS = (".txt", *TABLES)


def records(file, header=True, known=(), columns=None):
    """-> (where, {column: cell}) of every row; where is "a.csv, line 3", or "a.parquet, row 3".

    .txt      every line, blank ones too, as {"text": line}
    .jsonl    every object
    .csv      strings; of a row of several lines, which quotes allow, `where` is the first
    .tsv      strings, as in GLUE's files: a tab separates, and a quote is an ordinary character
    .parquet  Python's values; only those of `columns`, if the file has them all

    header: whether the first line of a .csv or .tsv names the columns; None: it does if one of the names, in
    lower case, is in `known`. Columns without names are "1", "2", ... FileNotFoundError, or ValueError in one
    line with the file and the line, for what is not UTF-8, not of its format, or of no rows.
    """
    check(file)
    if file.endswith(".txt"):
        rows = ((f"{file}, line {number}", {"text": line}) for number, line in lines(file))
    elif file.endswith(".jsonl"):
        rows = json_objects(file)
    elif file.endswith(".parquet"):
        rows = parquet_rows(file, columns)
    else:
        rows = table_rows(file, header, known)
    where = None
    for where, row in rows:
        yield where, row
    if where is None:
        raise ValueError(f"{file} has no rows")


def check(file):
    """FileNotFoundError, or ValueError for a file of another format or of no bytes."""
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such file")
    if not file.endswith(FORMATS):
        raise ValueError(f"{file}: not one of {', '.join(FORMATS)}")
    if os.path.getsize(file) == 0:
        raise ValueError(f"{file} is empty")


def lines(file):
    """-> (number, line without its end), strictly UTF-8; a byte order mark is dropped. -: standard input."""
    with nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb") as f:
        for number, line in enumerate(f, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                name = "standard input" if file == "-" else file
                raise ValueError(f"{name}, line {number}: not UTF-8 ({error.reason})") from error


def json_objects(file):
    for number, line in lines(file):
        if line.strip():
            where = f"{file}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # the latter: too deep a nesting
                raise ValueError(f"{where}: not JSON: {error}") from error
            if not isinstance(row, dict) or not row:
                raise ValueError(f'{where}: not a JSON object like {{"text": "..."}}')
            yield where, row


def table_rows(file, header, known):
    """The rows of a .csv or .tsv file, under the names of their columns."""
    is_csv = file.endswith(".csv")
    rows = csv_rows(file) if is_csv else ((number, line.split("\t")) for number, line in lines(file) if line)
    names = None
    for number, row in rows:
        where = f"{file}, line {number}"
        if names is None:
            names = [cell.strip() for cell in row]
            parts = re.split("[;\t|]", row[0].lower())
            if is_csv and len(row) == 1 < len(parts) and set(known) & set(map(str.strip, parts)):
                raise ValueError(f"{where}: one column; in a .csv a comma stands between columns")
            if header or header is None and any(name.lower() in known for name in names):
                # pandas leaves its index without a name; a second such column is called by its number
                names = [name or ("" if i == names.index("") else str(i + 1)) for i, name in enumerate(names)]
                check_names(names, where)
                continue
            names = [str(i + 1) for i in range(len(row))]
        if len(row) != len(names):
            raise ValueError(f"{where}: {len(row)} columns; the first line has {len(names)}"
                             + ("; a text with commas needs quotes" if is_csv else ""))
        yield where, dict(zip(names, row))


def check_names(names, where):
    """ValueError for two columns of one name: in a dict of a row one of them would be lost."""
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f"{where}: two columns are called {twice[0]!r}")


def csv_rows(file):
    """-> (number of the line where the row begins, cells)"""
    csv.field_size_limit(2**31 - 1)  # the default of 128 kB is less than a long article
    # strict: else a quote that is never closed makes one cell of the rest of the file, without an error
    reader = csv.reader((line + "\n" for _, line in lines(file)), strict=True)
    begins = 1
    try:
        for row in reader:
            if row:  # a blank line has no cells
                yield begins, row
            begins = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}, line {begins}: {error}; is a quote of this row not closed?") from error


def parquet_rows(file, columns):
    import pyarrow  # here, as only these files need it
    import pyarrow.parquet
    try:
        parquet = pyarrow.parquet.ParquetFile(file)
        names = parquet.schema_arrow.names
        check_names(names, file)
        columns = columns if set(columns or ()) <= set(names) else None
        batches = parquet.iter_batches(batch_size=1000, columns=columns)
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            yield f"{file}, row {number}", row
    except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {(str(error) or type(error).__name__).splitlines()[0]}") from error
