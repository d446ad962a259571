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
    return model


def made(model, auto="AutoModelForCausalLM", merged=False, **about):
    text = str(card.text(model, auto, merged, about))
    head = re.fullmatch(r"---\n(.*?)\n---\n\n# .*", text, re.DOTALL)
    return text, yaml.safe_load(head[1])


def test_the_front_matter_is_what_the_hub_expects(model):
    text, head = made(model, **ABOUT)
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/base-7b",
        "license": "llama2",
        "tags": ["low-rank", "svd", "compression"],
    }
    assert "# base-7b, compressed" in text


def test_it_says_what_was_done_with_what(model):
    text, _ = made(model, **ABOUT)
    assert "`org/base-7b`, cut down to low rank by `svd_llm`" in text
    assert "40% asked, 43.2% achieved" in text
    for row in (
        "| `self_attn.q_proj` | 32 × 32 | 2 | 9 |",
        "| `mlp.down_proj` | 32 × 48 | 2 | 11 |",
        "| `self_attn.k_proj` | 16 × 32 | 1 | 3 |",
        "| calibration | 256 windows of 2048 tokens of WikiText-2 |",
        "| perplexity | before 5.679, after 7.9 |",
        "| seed | 3 |",
        r"| note | a \| b c |",
    ):
        assert row in text
    assert re.search(r"\| versions \| prehab_lib \d.*torch 2.*transformers 5", text)
    assert "| commit of prehab_lib | 0a1b2c |" in text and re.search(r"\| written \| 20\d\d-", text)
    assert "`llama2`, as told" in text and "its licence and terms apply" in text


def test_ranks_that_differ_are_a_span():
    model = llama()
    for removed, name in ((0.2, "model.layers.0.mlp.up_proj"), (0.6, "model.layers.1.mlp.up_proj")):
        compress(model, "svd", removed, layers=[name])
    assert "| `mlp.up_proj` | 48 × 32 | 2 | 7 to 15 |" in made(model)[0]


def test_it_is_opened_in_three_lines(model):
    text, _ = made(model, **ABOUT)
    (block,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    lines = block.splitlines()
    assert len(lines) == 3 and lines[0].startswith("import prehab_lib")
    text, head = made(model, "AutoModelForSequenceClassification", merged=True, **ABOUT)
    (block,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert "prehab_lib" not in block and "AutoModelForSequenceClassification" in block
    assert head["pipeline_tag"] == "text-classification" and "saves no memory" in text


def test_what_nobody_told_is_not_made_up(model):
    text, head = made(model)
    assert "base_model" not in head and "license" not in head
    assert "| calibration | not told |" in text and "asked" not in text and "a model, cut down" in text


def test_a_local_base_is_named_without_its_place(model, tmp_path):
    text, head = made(model, base_model=str(tmp_path / "my-llama"))
    assert "base_model" not in head and "`my-llama`" in text and str(tmp_path) not in text
