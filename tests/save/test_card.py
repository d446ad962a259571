"""The model card: what the hub reads in front, and sentences that are true of the model."""

import re

import pytest
import yaml

from prehab_lib.save import card
from prehab_lib.surgery import compress
from tests.families import llama

ABOUT = {
    "base_model": "org/base-7b",
    "method": "svd_llm",
    "removed": 0.4,
    "achieved": 0.4321,
    "calibration": "256 windows of 2048 tokens of WikiText-2",
    "commit": "0a1b2c",
    "license": "llama2",
    "perplexity": {"before": 5.6789, "after": 7.9},
    "seed": 3,
    "note": "a | b\nc",
}


@pytest.fixture(scope="module")
def model():
    model = llama()
    compress(model, "svd", 0.4, layers=[n for n, _ in model.named_modules() if n.endswith(("q_proj", "down_proj"))])
    compress(model, "svd", 0.7, layers=["model.layers.1.self_attn.k_proj"])
    compress(model, "svd", 0.2, layers=["model.layers.0.mlp.up_proj"])
    compress(model, "svd", 0.6, layers=["model.layers.1.mlp.up_proj"])
    return model


def made(model, auto="AutoModelForCausalLM", merged=False, **about):
    """The text, the front matter, and the lines of Python in it."""
    text = str(card.text(model, auto, merged, about))
    head = re.fullmatch(r"---\n(.*?)\n---\n\n# .*", text, re.DOTALL)
    (block,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    return text, yaml.safe_load(head[1]), block.splitlines()


def test_it_says_what_was_done_with_what_and_how_to_open_it(model):
    text, head, lines = made(model, **ABOUT)
    kind = {"library_name": "transformers", "pipeline_tag": "text-generation", "license": "llama2"}
    assert head == kind | {"base_model": "org/base-7b", "tags": ["low-rank", "svd", "compression"]}
    assert len(lines) == 3 and lines[0].startswith("import prehab_lib.save")
    for part in (
        "# base-7b, compressed\n",
        "`org/base-7b`, cut down to low rank by `svd_llm`",
        "40% asked, 43.2% achieved",
        "| `self_attn.q_proj` | 32 × 32 | 2 | 9 |",
        "| `mlp.down_proj` | 32 × 48 | 2 | 11 |",
        "| `self_attn.k_proj` | 16 × 32 | 1 | 3 |",
        "| `mlp.up_proj` | 48 × 32 | 2 | 7 to 15 |",
        "| calibration | 256 windows of 2048 tokens of WikiText-2 |",
        "| commit of prehab_lib | 0a1b2c |",
        "| perplexity | before 5.679, after 7.9 |\n| seed | 3 |\n| note | a \\| b c |\n",
        "`llama2`, as told",
        "reports them as MISSING",
        "so its licence\nand terms apply",
    ):
        assert part in text, part
    assert re.search(r"\| versions \| prehab_lib \d.*torch 2.*transformers 5", text)
    assert re.search(r"\| written \| 20\d\d-", text)


def test_a_merged_copy_needs_no_library_and_saves_nothing(model):
    text, head, lines = made(model, "AutoModelForSequenceClassification", merged=True, **ABOUT)
    assert len(lines) == 2 and "prehab_lib" not in str(lines) and "AutoModelForSequenceClassification" in lines[0]
    assert head["pipeline_tag"] == "text-classification" and "saves no memory" in text and "MISSING" not in text


def test_what_nobody_told_is_not_made_up(model, tmp_path):
    text, head, _ = made(model)
    assert "base_model" not in head and "license" not in head
    assert "| calibration | not told |" in text and "asked" not in text and "a model, cut down" in text
    text, head, _ = made(model, base_model=str(tmp_path / "my-llama"))  # a local base is named without its place
    assert "base_model" not in head and "`my-llama`" in text and str(tmp_path) not in text
