import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
def test_the_python_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "prehab(" in b)
    exec(compile(block, "README.md", "exec"), {})
    assert re.search(
        r"removed 4\d\.\d% of 49 layers' weights \(asked 40%\).*torch\.Size\(\[64, 10\]\)", capsys.readouterr().out
    )


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README)
    assert len(links) > 5 and [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^\s*(?:PREHAB_DATA=\S+ )?make ([a-z]+)", README, re.MULTILINE)):
        assert re.search(rf"^(?:[a-z -]+ )?{target}\b[a-z ]*:", makefile, re.MULTILINE), target
