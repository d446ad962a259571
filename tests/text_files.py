"""Small text data sets in the hub's layout, and tiny causal language models with a tokenizer, as save_pretrained leaves them."""

from pathlib import Path

import datasets
import torch
import transformers

from prehab_lib.tasks.tokenizers import train_bpe

WORDS = "the a red green old new house river bird tree sees likes near under holds and then".split()  # noqa: SIM905
SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
VOCABULARY = 300


def sentence(i: int) -> str:
    """One of 17² sentences of eight words."""
    return " ".join(WORDS[(i * k + k * k + i // 17 * (k // 4)) % len(WORDS)] for k in range(3, 11)) + "."


def parquet(folder: Path, split: str, **columns: list) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")


def text_folder(root: Path, rows: int = 40, name: str = "wikitext-2-raw-v1") -> Path:
    """root/<name> with train, validation and test, and root/c4 with heldout; blank rows between, as in WikiText."""
    for k, split in enumerate(("train", "validation", "test")):
        texts = [text for i in range(rows) for text in (sentence(1000 * k + i) + "\n", "")]
        parquet(root / name, split, text=texts)
    parquet(root / "c4", "heldout", text=[sentence(9000 + i) for i in range(rows)])
    return root


def alpaca_folder(root: Path, rows: int = 40) -> Path:
    """root/alpaca: every second row has an input; row 1 has no answer, and row 2 a prompt that fills any length."""
    instruction = [f"Say {sentence(i)}" for i in range(rows)]
    instruction[2] *= 100
    output = [sentence(i).upper() for i in range(rows)]
    output[1] = ""
    parquet(root / "alpaca", "train", instruction=instruction, input=["", sentence(7)] * (rows // 2), output=output)
    return root


def tiny_tokenizer():
    return train_bpe([sentence(i) for i in range(60)], VOCABULARY)


def causal_model(folder: Path, family: str = "llama", vocabulary: int = VOCABULARY, tokenizer=None, **more) -> str:
    """A folder with a tiny checkpoint of the family, random weights; its path."""
    sizes = SIZES | dict(vocab_size=vocabulary, bos_token_id=0, eos_token_id=1)
    gated = dict(intermediate_size=24, num_key_value_heads=1, max_position_embeddings=64)
    special = dict.fromkeys(("llama", "mistral", "qwen2"), gated) | {"gpt2": dict(n_positions=64)}
    special |= {"opt": dict(ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=64)}
    config = transformers.AutoConfig.for_model(family, **(sizes | special[family] | more))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)
