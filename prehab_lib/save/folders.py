"""The folder of a saved model: complete or not there, and only what `save` wrote is ever replaced."""

import fnmatch
import glob
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DESCRIPTION = "prehab.json"
# What `storage.save` and tokenizers write: for folders from before prehab.json listed its files.
KNOWN = (
    "model.safetensors model-*-of-*.safetensors model.safetensors.index.json buffers.safetensors config.json "
    "generation_config.json README.md tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json "
    "vocab.json vocab.txt merges.txt tokenizer.model sentencepiece.bpe.model spiece.model chat_template.jinja "
    "additional_chat_templates/*.jinja"
)


def check_target(folder: str | Path) -> None:
    """Raises ValueError where `folder` holds anything but a saved model: not even one file of
    somebody else's.
    """
    folder = Path(folder)
    saved = (folder / DESCRIPTION).is_file()
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not saved:
        raise ValueError(f"{folder} holds other files than a saved model: name a new folder")
    ours = [DESCRIPTION, *_listed(folder)]
    for name in files_in(folder):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ours):
            raise ValueError(
                f"{folder} holds {name!r}, which is no file of the saved model that would be replaced: move it away, or "
                "name a new folder"
            )


def files_in(folder: Path) -> list[str]:
    """Names of all files below a folder, with "/" between, sorted."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _listed(folder: Path) -> list[str]:
    """Patterns of the files that were written with a model."""
    try:
        names = json.loads((folder / DESCRIPTION).read_text())["files"]
        return [glob.escape(name) for name in names]
    except (ValueError, KeyError, TypeError):  # of an earlier version, or damaged
        return KNOWN.split()


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, which takes the place of `folder` when the block ends without an
    error.

    Whatever stops it, Ctrl-C between the two moves as well, `folder` is as it was.  After a kill
    there `left_at` finds it.
    """
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    new, old = beside / "new", beside / "old"
    try:
        new.mkdir()  # mkdtemp's own is closed to others
        yield new
        check_target(folder)  # again: writing may have taken minutes
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(beside, ignore_errors=True)  # not reached where that failed


def left_at(folder: Path) -> Path | None:
    """Where a save that was killed between its two moves left the model of `folder`; None where
    that did not happen.
    """
    folder = folder.resolve()
    found = sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.part/old/{DESCRIPTION}"))
    return found[-1].parent if found and not folder.exists() else None
