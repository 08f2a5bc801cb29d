"""files.py: one reader of five formats, and what it refuses."""

import json

import pyarrow
import pyarrow.parquet
import pytest

import files

ROWS = [("good, very good", "pos"), ('he said "no"', "neg"), ("two\nlines", "pos"), ("größe", "neg")]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows(file, *args, **options):
    return [row for _, row in files.records(str(file), *args, **options)]


def test_every_format_gives_the_same_rows(tmp_path):
    table = ('text,label\r\n"good, very good",pos\r\n"he said ""no""",neg\r\n'
             '"two\nlines",pos\r\ngröße,neg\r\n')
    write(tmp_path / "a.csv", table)
    write(tmp_path / "b.csv", "\ufeff" + table)
    write(tmp_path / "c.jsonl", "\n".join(json.dumps({"text": a, "label": b}) for a, b in ROWS))
    columns = {"text": [a for a, _ in ROWS], "label": [b for _, b in ROWS]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    for name in ("a.csv", "b.csv", "c.jsonl", "d.parquet"):
        assert rows(tmp_path / name) == [{"text": a, "label": b} for a, b in ROWS], name
    single = [(a.replace("\n", " "), b) for a, b in ROWS]  # a line end cannot stand in a .tsv
    write(tmp_path / "e.tsv", "text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in single))
    assert rows(tmp_path / "e.tsv") == [{"text": a, "label": b} for a, b in single]


def test_where_a_row_is(tmp_path):
    file = write(tmp_path / "a.csv", 'text,label\n\n"two\nlines",1\nx,2\n')
    assert [where for where, _ in files.records(file)] == [f"{file}, line 3", f"{file}, line 5"]
    file = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert [where for where, _ in files.records(file)] == [f"{file}, line 1", f"{file}, line 3"]
    table = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"a": [5, 6]}), table)
    assert list(files.records(table)) == [(f"{table}, row 1", {"a": 5}), (f"{table}, row 2", {"a": 6})]


def test_lines_of_a_txt(tmp_path):
    file = write(tmp_path / "a.txt", "\ufeffone\r\n\n  two ")
    assert list(files.lines(file)) == [(1, "one"), (2, ""), (3, "  two ")]
    assert rows(file) == [{"text": "one"}, {"text": ""}, {"text": "  two "}]


def test_a_quote_in_a_tsv_is_an_ordinary_character(tmp_path):
    file = write(tmp_path / "a.tsv", 'a\tb\nHe said "no\tNo "\n')
    assert rows(file) == [{"a": 'He said "no', "b": 'No "'}]


def test_the_header_is_given_or_found(tmp_path):
    file = write(tmp_path / "a.csv", " Text ,n\nx,1\n")
    named, numbered = [{"Text": "x", "n": "1"}], [{"1": " Text ", "2": "n"}, {"1": "x", "2": "1"}]
    assert rows(file) == rows(file, None, {"text"}) == named
    assert rows(file, False) == rows(file, None, {"label"}) == rows(file, None) == numbered


def test_a_csv_with_semicolons_is_refused(tmp_path):
    """As Excel writes it where the comma is the decimal point."""
    file = write(tmp_path / "a.csv", "text;label\nfine;1\n")
    with pytest.raises(ValueError, match="line 1: one column; in a .csv a comma stands between"):
        rows(file, None, {"text"})


def test_columns_without_a_name_are_told_apart(tmp_path):
    file = write(tmp_path / "a.csv", ",text,,\n0,x,y,z\n")
    assert rows(file) == [{"": "0", "text": "x", "3": "y", "4": "z"}]


def test_of_a_parquet_only_the_named_columns_are_read(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"], "image": [b"\0" * 9]}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet", columns=["text"]) == [{"text": "x"}]
    assert list(rows(tmp_path / "a.parquet", columns=["body"])[0]) == ["text", "image"]  # for the error


def test_files_are_read_as_a_stream(tmp_path):
    """What is wrong further on shows when it is reached; so what stands before has not waited for it."""
    for name, content in (("a.txt", b"fine\n\xff\n"), ("a.jsonl", b'{"text": "fine"}\n{\n'),
                          ("a.csv", b'text,n\nfine,1\n"x,2\n'), ("a.tsv", b"text\tn\nfine\t1\n2\n")):
        records = files.records(write(tmp_path / name, content))
        assert next(records)[1]["text"] == "fine"
        with pytest.raises(ValueError, match=r"line [23]: "):
            next(records)


def test_long_cells_of_a_csv(tmp_path):
    file = write(tmp_path / "a.csv", f'text\n"{"word " * 100_000}"\n')
    assert len(rows(file)[0]["text"]) == 500_000


BAD = [
    ("a.txt", "", "a.txt is empty"),
    ("a.txt", b"fine\n\xff\xfe\n", "a.txt, line 2: not UTF-8"),
    ("a.csv", "text,label\ncafé,1\n".encode("latin-1"), "a.csv, line 2: not UTF-8"),
    ("a.jsonl", '{"text": "x"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
    ("a.jsonl", '{"text": "x"}\nnot json\n', "a.jsonl, line 2: not JSON"),
    ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: not JSON"),
    ("a.jsonl", '{"text": "x"}\n\n["x"]\n', "a.jsonl, line 3: not a JSON object"),
    ("a.jsonl", '{}\n{"text": "x"}\n', "a.jsonl, line 1: not a JSON object"),
    ("a.jsonl", "\n\n", "a.jsonl has no rows"),
    ("a.csv", "", "a.csv is empty"),
    ("a.csv", "\n\n", "a.csv has no rows"),
    ("a.csv", "text,label\n", "a.csv has no rows"),
    ("a.tsv", "text\tlabel\n", "a.tsv has no rows"),
    ("a.csv", "text,label\na,1\nb\n", "a.csv, line 3: 1 columns; the first line has 2; a text with commas"),
    ("a.csv", "text,label\na, b,1\n", "a.csv, line 2: 3 columns; the first line has 2; a text with commas"),
    ("a.tsv", "text\tlabel\na\tb\t1\n", "a.tsv, line 2: 3 columns; the first line has 2$"),
    ("a.csv", 'text,label\n\n"a,1\nb,0\n', "a.csv, line 3: unexpected end of data; is a quote"),
    ("a.csv", 'text,label\na,1\n"a,1\n"b",0\n', "a.csv, line 3: .* is a quote of this row not closed"),
    ("a.csv", "text,label,text\na,1,b\n", "a.csv, line 1: two columns are called 'text'"),
    ("a.tsv", "\nid\ttext\tid\n1\ta\t2\n", "a.tsv, line 2: two columns are called 'id'"),
    ("a.csv", ",,2\nx,y,z\n", "a.csv, line 1: two columns are called '2'"),
    ("a.parquet", "not parquet at all", "a.parquet: "),
    ("a.doc", "x", "a.doc: not one of .txt, .csv, .tsv, .jsonl, .parquet"),
]

@pytest.mark.parametrize("name, content, message", BAD)
def test_bad_files_are_named_with_the_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as error:
        rows(write(tmp_path / name, content))
    assert "\n" not in str(error.value)


def test_a_parquet_with_text_that_is_not_utf8(tmp_path):
    offsets, text = (pyarrow.py_buffer(content) for content in (b"\0\0\0\0\4\0\0\0", b"ok\xff\xfe"))
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, offsets, text])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet: 'utf-8' codec can't decode"):
        rows(tmp_path / "a.parquet")


def test_a_parquet_with_a_date_that_python_lacks(tmp_path):
    times = pyarrow.array([2**62], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "time": times}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet: date value out of range"):
        rows(tmp_path / "a.parquet")


def test_a_parquet_with_two_columns_without_a_name(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array([text]) for text in "xyz"], names=["", "", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet: two columns are called ''"):
        rows(tmp_path / "a.parquet")


def test_a_parquet_without_rows(tmp_path):
    table = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet has no rows"):
        rows(tmp_path / "a.parquet")


def test_a_missing_file(tmp_path):
    for name in ("nowhere.csv", "nowhere.doc"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
            rows(tmp_path / name)
