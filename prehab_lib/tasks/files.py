"""Files that people bring: text that is text, and Parquet that does not swell."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from prehab_lib.save.hub import explained, optional

LIMIT = 2**30  # bytes of text that are read at most
MARKED = ".json .jsonl .ndjson .csv .tsv .html .htm .xml .yaml .yml .ipynb .pdf .docx .pkl .arrow"
MARKED += " .gz .zip .bz2 .xz .zst .tar .pt .bin .safetensors .gguf"  # not to be read as they are
SWELLING, SMALL = 100, 2**26  # times its size, and bytes of a file that is unfolded to see


def read_texts(path: str | os.PathLike, what: str = "the file") -> list[str]:
    """The text of a UTF-8 file, or those of the column "text" of a Parquet file, without nulls.

    Raises FileNotFoundError, or ValueError for another format, damage, or more than `LIMIT` bytes.
    """
    path, what, kind = Path(path), f"{what} {path}", Path(path).suffix.lower()
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{what} is no file: give a text or a Parquet file")
    if kind in MARKED.split():
        remedy = "give a .txt, or a .parquet with a column 'text'"
        raise ValueError(f"{what} would be read with all the marks of a {kind}: {remedy}")
    with explained(what, "give UTF-8 text, or a Parquet file with a column 'text'"):
        if kind == ".parquet":
            check_parquet(path, ["text"], LIMIT)
            column = optional("pyarrow.parquet").read_table(path, columns=["text"])["text"]
            return check_texts(text for text in column.to_pylist() if text is not None)
        if path.stat().st_size > LIMIT:
            raise ValueError(f"it holds more than {LIMIT >> 20} MiB")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as problem:
            raise ValueError(f"it is no UTF-8 text, {problem.reason}") from problem
        if "\0" in text or re.match(r'\s*(\[\s*)?\{\s*"', text):
            raise ValueError("it holds JSON or zero bytes")
        return [text]


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list.  Raises ValueError for one string, which is a list of letters."""
    listed = [None] if isinstance(texts, str | bytes) else list(texts)
    if not all(isinstance(text, str) for text in listed):
        raise ValueError("texts are a list of strings, not one string, and of nothing else")
    return listed


def check_parquet(path: str | os.PathLike, names: list[str] | None = None, most=None) -> None:
    """Raises ValueError for a Parquet file whose columns would swell when they are read.

    names: columns that it must have, the only ones looked at.  most: bytes; None is `SWELLING`
    times a small file's own size.  What cannot be read raises as pyarrow does.
    """
    parquet, size = optional("pyarrow.parquet"), os.path.getsize(path)
    file, most = parquet.ParquetFile(path), most or max(LIMIT, SWELLING * size)
    for name in names or ():
        if name not in file.schema_arrow.names:
            has = ", ".join(file.schema_arrow.names)
            raise ValueError(f"it has no column {name!r}: it has {has}")
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    texts, others, held = [], [], 0
    for i in range(len(file.schema)):
        path_in, kind = file.schema.column(i).path, file.schema.column(i).physical_type
        if names is None or path_in in names:
            (texts if kind == "BYTE_ARRAY" and "." not in path_in else others).append(path_in)
            held += sum(group.column(i).total_uncompressed_size for group in groups)
    held += 4 * file.metadata.num_rows
    if held <= most and (names or size <= SMALL):
        rows, held = max(1, 2**28 // held), 0  # none is longer than all of it
        # Not looked up in its dictionary, a text counts as often as it is there and lies once.
        for column in parquet.ParquetFile(path, read_dictionary=texts).read(columns=texts).columns:
            held += sum(map(_bytes, column.chunks))
        for batch in file.iter_batches(rows, columns=others) if others else ():
            held += batch.nbytes
            if held > most:
                break
    if held > most:
        raise ValueError(f"its {size} bytes hold {held >> 20} MiB, at most {most >> 20} are read")


def _bytes(texts) -> int:
    compute = optional("pyarrow.compute")
    if not hasattr(texts, "dictionary"):
        return texts.nbytes
    lengths = compute.binary_length(texts.dictionary).cast("int64")
    return compute.sum(lengths.take(texts.indices)).as_py() or 0
