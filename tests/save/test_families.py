"""The families table of docs/your_model.md: every cell is tried here. `PREHAB_REWRITE=1` writes the page anew."""

import os
from pathlib import Path

import pytest
import torch
import transformers

from prehab_lib.save import pretrained, same
from prehab_lib.save.models import recipe_of
from prehab_lib.save.rewrite import to_linear
from prehab_lib.surgery import compress, load, save
from tests.families import ASKED, IDS, distance

PAGE = Path(__file__).parents[2] / "docs" / "your_model.md"
BEGIN, END = "<!-- families: by tests/save/test_families.py -->\n", "<!-- end of families -->\n"
COLUMNS = ("family", "layers cut", "`load`", "opens with", "unmerged", "merged", "`save_pretrained`", "`generate`")


def said(model, inputs):
    """The floating outputs of a model, in one row."""
    with torch.no_grad():
        return torch.cat([each.flatten() for each in same._tensors(model.eval()(**inputs)) if each.ndim > 1])


def tokens(model):
    """What a model writes after six tokens."""
    return model.generate(IDS[:, :6], max_new_tokens=4, do_sample=False, pad_token_id=0)


def tried(work) -> str:
    """ "yes", or the sentence with which it is refused."""
    try:
        return "yes" if work() else "NO"
    except ValueError as problem:
        return f"refused: {problem}"


def row(make, folder) -> list[str]:
    """What is true of a family, in the order of COLUMNS."""
    model = make().eval()
    to_linear(model)
    ranks = compress(model, "svd", 0.4).ranks
    auto = pretrained.auto_of(recipe_of(model))
    inputs = next(same.small_inputs(model))
    before = said(model, inputs)

    def opens(name, write):
        write(folder / name)
        again, info = getattr(transformers, auto).from_pretrained(folder / name, output_loading_info=True)
        return not any(info.values()) and distance(said(again, inputs), before) < 1e-5

    experts = any(p.ndim == 3 and "expert" in name for name, p in model.named_parameters())
    unmerged = tried(lambda: opens("cut", lambda path: save(model, path)))
    writes = "—"
    if model.can_generate():
        twins = [load(folder / "cut"), getattr(transformers, auto).from_pretrained(folder / "cut")]
        writes = tried(lambda: all(torch.equal(tokens(twin), tokens(model)) for twin in twins))
    return [
        f"{sum(map(bool, ranks.values()))}{', experts stay' if experts else ''}",
        tried(lambda: distance(said(load(folder / "cut"), inputs), before) < 1e-5),
        f"`{auto}`",
        unmerged,
        tried(lambda: opens("merged", lambda path: save(model, path, merged=True))),
        tried(lambda: opens("theirs", model.save_pretrained)),
        writes,
    ]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rows = [[family, *row(make, tmp_path_factory.mktemp("family"))] for family, make in ASKED.items()]
    return [COLUMNS, ["---"] * len(COLUMNS), *rows]


def test_the_table_on_the_page_is_what_is_true(table):
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    printed, _, after = rest.partition(END)
    if os.environ.get("PREHAB_REWRITE"):
        PAGE.write_text(f"{before}{BEGIN}{lines}{END}{after}", encoding="utf-8")
        printed = lines
    assert printed == lines
    assert "NO" not in lines and len(table) == 2 + len(ASKED)
