"""Files that people bring: text that is text."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from prehab_lib.save.hub import explained, optional

LIMIT = 2**30  # bytes of text that are read at most
MARKED = ".json .jsonl .ndjson .csv .tsv .html .htm .xml .yaml .yml .ipynb .pdf .docx .pkl .arrow"
MARKED += " .gz .zip .bz2 .xz .zst .tar .pt .bin .safetensors .gguf"  # not to be read as they are


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
            parquet = optional("pyarrow.parquet")
            known = parquet.read_metadata(path)
            groups = [known.row_group(i).total_byte_size for i in range(known.num_row_groups)]
            if sum(groups) > LIMIT:
                raise ValueError(f"it holds more than {LIMIT >> 20} MiB")
            column = parquet.read_table(path, columns=["text"])["text"]
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
