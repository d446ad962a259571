"""Tokenizers for language models: one trained on the spot, and those of real checkpoints."""

import os
from collections.abc import Iterable
from functools import cache

from prehab_lib.save.hub import explained

BOS, EOS = "<s>", "</s>"

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


def train_bpe(texts: Iterable[str], size: int = 1000):
    """A transformers fast tokenizer: byte-level BPE with at most `size` tokens learnt from `texts`,
    BOS in front of a text.

    The same texts give the same vocabulary in every process.  Any text can be spelled: the 256
    bytes are tokens.  Padding is EOS, masked.  Raises ValueError for a size that does not hold the
    bytes and the two special tokens.
    """
    import tokenizers
    import transformers
    from tokenizers import decoders, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if size < len(letters) + 2:
        raise ValueError(
            f"vocabulary = {size}: a byte-level tokenizer needs at least {len(letters) + 2} tokens"
        )
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=[BOS, EOS], initial_alphabet=letters, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    learner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, learner.token_to_id(BOS))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=learner,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
    )


@cache
def prose_bpe(size: int = 1000):
    """The tokenizer of the embedded corpus, learnt from its training part alone."""
    from prehab_lib.tasks.corpora import prose_corpus

    return train_bpe(prose_corpus().train, size)


def tokenizer_of(source: str):
    """The tokenizer of a causal language model, by hub name or folder, without remote code.

    Raises ConnectionError, PermissionError (gated), FileNotFoundError (no such folder, or no
    tokenizer in it) or ValueError (one that cannot be read), in one sentence.
    """
    import transformers

    if source.startswith((".", "/", "~")) and not os.path.isdir(source):
        raise FileNotFoundError(f"model = {source!r} is no folder: check the path")
    remedy = "give the folder of a local copy that has its tokenizer files"
    missing = f"{source!r} has no tokenizer: copy the tokenizer files of its model there (tokenizer.json, tokenizer_config.json)"
    if os.path.isdir(source) and not any(
        os.path.isfile(os.path.join(source, name)) for name in _FILES
    ):
        raise FileNotFoundError(missing)
    with explained(f"the tokenizer of {source!r}", remedy):
        found = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(found) <= len(
        found.all_special_tokens
    ):  # what some families build where the files are missing
        raise FileNotFoundError(missing)
    return found
