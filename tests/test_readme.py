"""The README and the pages of docs/: their code runs, their links lead somewhere, their commands exist."""

import re
from pathlib import Path

import pytest
import torch

from tests.text_files import causal_model, sentence, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BOTH = README + (ROOT / "docs/your_model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", BOTH, re.DOTALL)
SMALLER = {r'name = "[^"]+"': 'name = "base"', r"window=\d+": "window=16", r"count=\d+": "count=8"}


def block_with(text: str) -> str:
    return next(block for block in BLOCKS if text in block)


@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
def test_the_block_with_prehab_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block_with("prehab("), "README.md", "exec"), {})
    said = r"removed 4\d\.\d% of 49 layers' weights \(asked 40%\).*torch\.Size\(\[64, 10\]\)"
    assert re.search(said, capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
def test_the_block_with_a_language_model_leaves_what_generates(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    code = block_with("surgery.save(")
    for long, short in SMALLER.items():
        code, count = re.subn(long, short, code)
        assert count == 1, f"{long} is in the block {count} times"
    monkeypatch.chdir(tmp_path)
    causal_model(Path("base"), tokenizer=tiny_tokenizer())
    Path("my_text.txt").write_text("\n\n".join(sentence(i) for i in range(40)), encoding="utf-8")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert re.search(r"removed 4\d\.\d% of 7 layers' weights \(asked 40%\)", str(names["report"]))
    prompt = names["tokenizer"]("The", return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained("compressed")
    assert model.generate(prompt, max_new_tokens=5).shape == (1, prompt.shape[1] + 5)
    assert {"config.json", "tokenizer.json", "README.md"} <= {file.name for file in Path("compressed").iterdir()}


@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
def test_the_command_for_a_language_model_leaves_what_generates(tmp_path, monkeypatch, capsys):
    from prehab_lib.__main__ import main
    from prehab_lib.surgery import load

    words = re.search(r"python -m prehab_lib (compress .*)", README)[1]
    for long, short in {r" smollm2-135m ": " ./base ", r"window \d+": "window 16", r"samples \d+": "samples 8"}.items():
        words, count = re.subn(long, short, words)
        assert count == 1, f"{long} is in the command {count} times"
    monkeypatch.chdir(tmp_path)
    causal_model(Path("base"), tokenizer=tiny_tokenizer())
    Path("my_text.txt").write_text("\n\n".join(sentence(i) for i in range(200)), encoding="utf-8")
    assert main(words.split()) == 0 and capsys.readouterr().out.count("perplexity") == 2
    names = {}
    exec(compile(block_with('from_pretrained("small")'), "README.md", "exec"), names)
    assert "The house" in capsys.readouterr().out and type(names["model"]) is type(load("small"))


def test_the_ruler_of_the_readme_is_one(monkeypatch):
    from prehab_lib import methods, weightings
    from prehab_lib.stats import LayerStats

    for module, table in ((weightings, "WEIGHTINGS"), (methods, "METHODS")):
        monkeypatch.setattr(module, table, dict(getattr(module, table)))
    names = {name: getattr(weightings, name) for name in ("LayerStats", "Weighting", "WEIGHTINGS", "_diagonal")}
    names |= {"METHODS": methods.METHODS, "Method": methods.Method}
    exec(block_with('WEIGHTINGS["mine"]'), names)
    loud = LayerStats(mean_abs=torch.tensor([4.0, 1.0, 1.0, 2.0]), max_abs=torch.tensor([9.0, 1.0, 3.0, 1.0]))
    W = torch.randn(6, 4)
    cut = weightings.decompose(W, loud, "mine").truncate(1).dense()
    expected = (torch.tensor([36.0, 1.0, 3.0, 2.0]) * (W - cut) ** 2).sum()
    assert abs(weightings.error(W, cut, loud, "mine") - float(expected)) < 1e-4


def test_every_link_leads_somewhere():
    for page in PAGES:
        links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", page.read_text(encoding="utf-8"))
        missing = [link for link in links if not (page.parent / link).exists()]
        assert not missing, f"{page.name}: {missing}"


def test_every_make_target_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in set(re.findall(r"\bmake ([a-z]+)\b(?=[\s`]|$)", page.read_text(encoding="utf-8"), re.MULTILINE)):
            assert re.search(rf"^(?:[a-z% -]+ )?{target}\b[a-z% -]*:", makefile, re.MULTILINE), (page.name, target)


def test_every_command_named_exists():
    from prehab_lib.__main__ import parser

    commands = next(action for action in parser()._actions if action.dest == "command").choices
    for page in PAGES:
        for command in re.findall(r"python -m prehab_lib (\w+)", page.read_text(encoding="utf-8")):
            assert command in commands, f"{page.name}: python -m prehab_lib {command}"
