"""What the `compress` command is given, checked and read before any work: arguments, checkpoint,
device, text.
"""

import math
import os
from pathlib import Path


def check(a) -> None:
    """What the arguments alone can tell, before anything is read."""
    from prehab_lib.budget import check_removed
    from prehab_lib.inputs import check_positive, check_whole
    from prehab_lib.methods import method_named
    from prehab_lib.save.storage import check_target
    from prehab_lib.surrogates import surrogate_named

    check_removed(a.removed)
    method_named(a.method)
    check_whole(2, window=a.window)
    check_whole(1, samples=a.samples, batch=a.batch, scored=a.scored)
    check_whole(0, steps=a.steps)
    if a.steps:
        surrogate_named(a.surrogate)
        check_positive(lr=a.lr)
        if not (math.isfinite(a.lam) and a.lam >= 0):
            raise ValueError(
                f"lam = {a.lam}: the weight of the surrogate is a finite number, 0 (the control) or larger"
            )
    check_target(a.out)
    above = next(folder for folder in Path(a.out).resolve().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"--out {a.out} cannot be made: {above} is no folder one may write to")


def check_settings(config, a) -> None:
    """What the arguments ask of the model and its configuration does not allow."""
    import torch

    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and a.window > positions:
        raise ValueError(
            f"window = {a.window} is longer than the {positions} positions of the model: make it smaller"
        )
    if a.steps and dtype_of(config, a.dtype) == torch.float16:
        raise ValueError(
            "prehab cannot train in float16: add --dtype bfloat16 or float32, or leave out --steps"
        )


def check_vocabulary(config, highest: int) -> None:
    """highest: largest token id of the text."""
    known = getattr(config, "vocab_size", None)
    if known is not None and highest >= known:
        raise ValueError(
            f"token {highest} is outside the model's vocabulary of {known}: the tokenizer belongs to another model"
        )


def dtype_of(config, name: str):
    """The torch dtype of the weights as they will be loaded."""
    import torch

    return getattr(torch, name) if name != "auto" else config.dtype or torch.float32


def device_named(name: str) -> str:
    import torch

    if name == "auto":
        return (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        return str(torch.empty(0, device=name).device)
    except (
        RuntimeError,
        AssertionError,
    ) as problem:  # torch asserts where it was built without a device
        raise ValueError(f"--device {name}: this torch has no such device") from problem


def read_texts(file: str) -> list[str]:
    """The texts of a UTF-8 file, which is one, or of a Parquet file's column "text".

    Raises FileNotFoundError where there is none, ValueError where it cannot be read as text or
    holds none.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(
            f"--data {file} is no file: give a text file, or a Parquet file with a column 'text'"
        )
    if path.suffix == ".parquet":
        texts = _column(path)
    else:
        try:
            texts = [path.read_text(encoding="utf-8")]
        except UnicodeDecodeError as problem:
            raise ValueError(
                f"--data {file} is no UTF-8 text: convert it, or give a Parquet file"
            ) from problem
    if not any(text.strip() for text in texts):
        raise ValueError(f"--data {file} holds no text")
    return texts


def _column(path: Path) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(path).names
        if "text" not in names:
            raise ValueError(f"--data {path} has no column 'text': it has {', '.join(names)}")
        return [
            text
            for text in parquet.read_table(path, columns=["text"])["text"].to_pylist()
            if isinstance(text, str)
        ]
    except pyarrow.ArrowInvalid as problem:
        raise ValueError(
            f"--data {path} is no Parquet file that can be read: {problem}"
        ) from problem
