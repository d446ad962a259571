"""The README's lines from a checkpoint to a compressed one that generates, run on a tiny checkpoint and a short text."""

import re
from pathlib import Path

import pytest

from tests.text_files import causal_model, sentence, tiny_tokenizer

README = Path(__file__).resolve().parents[1] / "README.md"
SMALLER = {r'name = "[^"]+"': 'name = "base"', r"window=\d+": "window=16", r"count=\d+": "count=8"}


@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
def test_the_block_with_surgery_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    code = next(block for block in blocks if "surgery.compress" in block)
    assert len(code.strip().splitlines()) <= 14
    for long, short in SMALLER.items():
        code, count = re.subn(long, short, code)
        assert count == 1, f"{long} is in the block {count} times"
    monkeypatch.chdir(tmp_path)
    causal_model(Path("base"), tokenizer=tiny_tokenizer())
    Path("my_text.txt").write_text("\n\n".join(sentence(i) for i in range(40)), encoding="utf-8")
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"removed 4\d\.\d% of 7 layers' weights \(asked 40%\)", printed)
    assert re.search(r"<s>The.{5,}", printed, re.DOTALL)
    assert {"config.json", "tokenizer.json", "README.md"} <= {file.name for file in Path("compressed").iterdir()}
