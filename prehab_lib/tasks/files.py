"""Files that people bring: text that is text."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from prehab_lib.save.hub import explained, optional

JSON_LINES = (".jsonl", ".ndjson")
LIMIT = 2**30  # bytes of text that are read at most
MARKED = ".json .csv .tsv .html .htm .xml .yaml .yml .ipynb .pdf .docx .pkl .arrow"
MARKED += " .gz .zip .bz2 .xz .zst .tar .pt .bin .safetensors .gguf"  # not to be read as they are


def read_texts(path: str | os.PathLike, what: str = "the file") -> list[str | list[dict]]:
    """The text of a UTF-8 file, those of a Parquet's column "text" but nulls, or all of JSON lines.

    Raises FileNotFoundError, or ValueError for another format, damage, or more than `LIMIT` bytes.
    """
    path, what, kind = Path(path), f"{what} {path}", Path(path).suffix.lower()
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{what} is no file: give a text, JSON lines or a Parquet file")
    if kind in MARKED.split():
        remedy = "give a .txt, a .jsonl, or a .parquet with a column 'text'"
        raise ValueError(f"{what} would be read with all the marks of a {kind}: {remedy}")
    with explained(what, "give UTF-8 text, JSON lines, or a Parquet file with a column 'text'"):
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
        if kind in JSON_LINES:
            lines = text.rstrip("\n").split("\n")
            return [_document(line, f"line {number}") for number, line in enumerate(lines, 1)]
        if "\0" in text or re.match(r'\s*(\[\s*)?\{\s*"', text):
            raise ValueError("it holds JSON or zero bytes")
        return [text]


def _document(line: str, place: str) -> str | list[dict]:
    """Its "text", or its chat of "messages" or "prompt" and "completion"; ValueError for others."""
    try:
        row = json.loads(line)
        kind = next((key for key in ("messages", "completion") if key in row), "text")
        found = row[kind]
        if kind == "completion":
            turns = ("user", row.get("prompt")), ("assistant", found)
            found = [{"role": role, "content": content} for role, content in turns]
        texts = [found] if kind == "text" else [turn["role"] + turn["content"] for turn in found]
        "".join(texts).encode()  # raises for what is no text: a number, half a surrogate
        return found
    except KeyError as problem:
        raise ValueError(f"{place} has no {problem}") from problem
    except Exception as problem:
        raise ValueError(f"{place} is no JSON object of texts or chats") from problem


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list.  Raises ValueError for one string, which is a list of letters."""
    listed = [None] if isinstance(texts, str | bytes) else list(texts)
    if not all(isinstance(text, str) for text in listed):
        raise ValueError("texts are a list of strings, not one string, and of nothing else")
    return listed
