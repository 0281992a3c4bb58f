"""Files as people have them, and what is wrong with one, by the number of its row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bert_lora.train.findings import BadData
from bert_lora.train.table import LONGEST_LINE, read_table


def _file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_csv_has_rows_by_column_with_the_line_each_begins_at(tmp_path: Path) -> None:
    table = read_table(_file(tmp_path, "a.csv", 'text,label\n"two\nlines, here",a\nb,c\n'))
    assert table.columns == ["text", "label"]
    assert table.rows == [{"text": "two\nlines, here", "label": "a"}, {"text": "b", "label": "c"}]
    assert table.numbers == [2, 4]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text;label\nx, y;a\nz;b\n"),
        ("a.tsv", 'text\tlabel\nx, y\ta\nz\t"b"\n'),
        ("a.jsonl", '{"text": "x, y", "label": "a"}\n\n{"text": "z", "label": "b"}\n'),
        ("a.csv", '\ufefftext,label\n"x, y",a\nz,b\n'),
        ("a.csv", 'text,label\n"x, y",a\nz,b\n'.encode("utf-16")),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, content: str | bytes) -> None:
    rows = read_table(_file(tmp_path, name, content)).rows
    assert rows == [{"text": "x, y", "label": "a"}, {"text": "z", "label": "b"}]


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "x", "tags": ["a", "b"]}, {"text": "z", "tags": []}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet").rows == rows


def test_a_file_without_names_of_columns_is_seen_and_said(tmp_path: Path) -> None:
    spam = "ham\tOk lar... Joking wif u oni...\nspam\tFree entry now!\nham\tU dun say so early\n"
    table = read_table(_file(tmp_path, "SMSSpamCollection.tsv", spam))
    assert (table.columns, len(table.rows)) == (["1", "2"], 3)
    assert any("first row is data" in words for words in table.assumed)


def test_a_spreadsheets_columns_without_a_name_are_called_by_their_places(tmp_path: Path) -> None:
    table = read_table(_file(tmp_path, "spam.csv", "v1,v2,,\nham,Ok lar,,\nspam,Free,x,\n"))
    assert table.columns == ["v1", "v2", "3", "4"]
    assert len(table.rows) == 2


def test_words_with_their_tags_are_read_text_by_text(tmp_path: Path) -> None:
    lines = "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n"
    table = read_table(_file(tmp_path, "train.conll", lines))
    assert table.rows == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["Peter"], "tags": ["B-PER"]},
    ]
    assert table.numbers == [3, 6]


@pytest.mark.parametrize(
    ("name", "content", "row", "words"),
    [
        ("a.csv", "text,label\na,b\nc\n", 3, "another number of columns"),
        ("a.csv", b"text,label\na,b\ncaf\xe9,b\n", 3, "--encoding"),
        ("a.csv", b"text,label\na,b\nc\x00,b\n", 3, "NUL"),
        ("a.csv", "text,label\na,b\n" + "x" * (LONGEST_LINE + 1) + ",b\n", 3, "longer than"),
        ("a.csv", 'text,label\na,b\n"open,b\n' + "c,d\n" * (LONGEST_LINE // 4 + 9), 3, "quote"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', 2, "not JSON"),
        ("a.jsonl", '{"text": "a"}\n["a"]\n', 2, "not a JSON object"),
        ("a.jsonl", '{"text": "a"}\n' + "[" * 100_000 + "\n", 2, "not JSON"),
        ("a.conll", "EU B-ORG\nrejects\n", 2, "a word and its tag"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: str | bytes, row: int, words: str
) -> None:
    with pytest.raises(BadData) as refused:
        read_table(_file(tmp_path, name, content))
    assert f"row {row}: " in str(refused.value) or f"rows {row}, " in str(refused.value)
    assert words in str(refused.value)


def test_a_line_of_100_mb_is_told_without_being_kept(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w") as file:
        file.write(json.dumps({"text": "a"}) + "\n" + '{"text": "')
        for _ in range(100):
            file.write("x" * 1_000_000)
        file.write('"}\n{"text": "b"}\n')
    with pytest.raises(BadData, match=r"row 2: longer than 1,000,000 characters"):
        read_table(tmp_path / "a.jsonl")


STS = 'main\tMSR\t2012\t{i}\t3.2\tA man, he said.\t"A man said\n'


@pytest.mark.parametrize(
    ("name", "content", "rows", "first"),
    [
        ("train_5500.label", b"DESC:manner How did caf\xe9s begin ?\nENTY:animal What flies ?\n", 2,
         {"label": "DESC:manner", "text": "How did cafés begin ?"}),
        ("a.ft", "__label__x some text\n__label__y more\n", 2, {"label": "x", "text": "some text"}),
        ("SMSSpamCollection", 'ham\tGo "until jurong\nspam\tFree "entry" in 2\nham\tok lar\n', 3,
         {"1": "ham", "2": 'Go "until jurong'}),
        ("rows", '{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n', 2,
         {"text": "a", "label": "b"}),
        ("rows.json", '[{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]', 2,
         {"text": "a", "label": "b"}),
        ("eng.testa", "-DOCSTART- -X- O\n\nEU NNP B-ORG\nok VB O\n\nPeter NNP B-PER\n", 2,
         {"tokens": ["EU", "ok"], "tags": ["B-ORG", "O"]}),
        ("ner.csv", "Sentence #,Word,POS,Tag\nSentence: 1,EU,NNP,B-ORG\n,ok,VB,O\nSentence: 2,Hi,X,O\n",
         2, {"tokens": ["EU", "ok"], "tags": ["B-ORG", "O"]}),
        ("sts-train.csv", STS * 3, 3, {"5": "3.2", "6": "A man, he said.", "7": '"A man said'}),
    ],
)  # fmt: skip
def test_a_public_data_sets_file_is_read_as_it_is(
    tmp_path: Path, name: str, content: str | bytes, rows: int, first: dict[str, object]
) -> None:
    encoding = "latin-1" if isinstance(content, bytes) else None
    table = read_table(_file(tmp_path, name, content), encoding)
    assert len(table.rows) == rows
    assert {k: table.rows[0][k] for k in first} == first


def test_an_open_quote_takes_no_other_row_in(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="quote"):
        read_table(_file(tmp_path, "a.csv", 'text,label\n"open,a\nsays "no",b\nlast,b\n'))


def test_a_spreadsheet_is_told_from_a_text(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="save it as CSV"):
        read_table(_file(tmp_path, "a.xlsx", b"PK\3\4\0\0"))


@pytest.mark.parametrize(
    ("text", "encoding", "told"),
    [("这家酒店很好，我很喜欢。" * 20, "gb18030", "gb18030"), ("café £", "cp1252", "as cp1252")],
)
def test_another_encoding_is_told_with_a_name_for_it(
    tmp_path: Path, text: str, encoding: str, told: str
) -> None:
    content = f"text,label\n{text},a\nx,b\n".encode(encoding)
    with pytest.raises(BadData, match=f"row 2: is not utf-8.*{told}"):
        read_table(_file(tmp_path, "a.csv", content))


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.csv", "a.parquet"])
def test_an_ending_that_is_none_and_an_empty_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadData):
        read_table(_file(tmp_path, name, ""))


def test_another_encoding_is_read_where_it_is_named(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.csv", "text,label\ncafé £,b\n".encode("cp1252"))
    assert read_table(path, "cp1252").rows[0]["text"] == "café £"
    with pytest.raises(BadData, match="no encoding"):
        read_table(path, "latin-17")


def test_lists_that_pandas_wrote_as_text_are_lists(tmp_path: Path) -> None:
    content = "text,labels\na,\"['x', 'y, z']\"\nb,[]\n[c],\"['x']\"\n"
    table = read_table(_file(tmp_path, "a.csv", content))
    assert [row["labels"] for row in table.rows] == [["x", "y, z"], [], ["x"]]
    assert [row["text"] for row in table.rows] == ["a", "b", "[c]"]
    assert any("labels" in told for told in table.assumed)
