import json
import os
import subprocess
import sys

import transformers

from prehab_lib.tasks.tokenizers import tokenizer_of, train_bpe, train_wordpiece
from tests.glue_files import WORDS
from tests.tasks.helpers import refuses
from tests.text_files import causal_model, sentence, tiny_tokenizer

TEXTS = [sentence(i) for i in range(60)]
SYLLABLES = [f"{a}{b} {b}{a}" for a in "abcdefgh" for b in "stuvwxyz"]  # all equally common: nothing but ties


def test_every_text_is_spelled_and_comes_back():
    tokenizer = tiny_tokenizer()
    for text in ("the red house", "  Größe\t≤ 5 \n\n¶ 漢字 🙂", "", "<b>"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer(" the the the the")["input_ids"]) == 5
    assert len(tokenizer) == 300 and (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)


def test_the_vocabularies_are_the_same_in_every_process():
    """Ties between merges are many in text so regular, and must not be broken by a hash."""
    script = """
import json, sys
from prehab_lib.tasks.tokenizers import train_bpe, train_wordpiece
texts, syllables = json.load(sys.stdin)
print(json.dumps([train_bpe(texts, 340).get_vocab(), train_wordpiece(syllables, 90).get_vocab()]))
"""
    own = os.environ | {"PYTHONHASHSEED": "5", "RAYON_NUM_THREADS": "1"}
    given = dict(input=json.dumps([TEXTS, SYLLABLES]), capture_output=True, text=True, check=True, env=own)
    done = subprocess.run([sys.executable, "-c", script], **given)
    found = [train_bpe(TEXTS, 340).get_vocab(), train_wordpiece(SYLLABLES, 90).get_vocab()]
    assert json.loads(done.stdout) == found and len(found[1]) > 60
    assert "zebra" not in str(found[0]) and "Ġhouse" in found[0]
    assert "zebra" in str(train_bpe(["zebra " * 9], 340).get_vocab())


def test_saved_and_opened_they_are_the_same(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "a red tree, and then\n\n  the river ¶"
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.decode(again(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<s>", "</s>", "</s>")
    assert tokenizer_of(str(tmp_path))(text)["input_ids"] == tokenizer(text)["input_ids"]
    tokenizer = train_wordpiece(WORDS, size=100, max_length=24)
    tokenizer.save_pretrained(tmp_path / "bert")
    again, pair = tokenizer_of(str(tmp_path / "bert")), ("The cat's mat", "two gardens!")
    assert again(*pair) == tokenizer(*pair) and again.model_max_length == 24
    assert "[UNK]" not in again.tokenize("gardens") and again.tokenize("a cat") == ["a", "cat"]


def test_a_checkpoint_without_a_tokenizer_is_named(tmp_path):
    """transformers builds an empty GPT-2 or OPT tokenizer there, without a word."""
    for family in ("llama", "gpt2", "opt"):
        said = f"{family}' has no tokenizer: copy the tokenizer files"
        refuses(said, tokenizer_of, causal_model(tmp_path / family, family), error=FileNotFoundError)


def test_what_cannot_be_opened_is_one_sentence(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    refuses("nowhere' is no folder: check the path", tokenizer_of, nowhere, error=FileNotFoundError)
    said = "the tokenizer of 'nobody/nothing' could not be fetched"
    refuses(said, tokenizer_of, "nobody/nothing", error=ConnectionError)
    (tmp_path / "tokenizer.json").write_text("{torn")
    refuses("the tokenizer of .* could not be read", tokenizer_of, str(tmp_path))
    refuses("vocabulary = 200: a byte-level tokenizer needs at least 258 tokens", train_bpe, TEXTS, 200)
