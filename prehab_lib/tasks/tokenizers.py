"""Tokenizers: two learnt on the spot, the same in every process, and those of real checkpoints."""

import os
from collections.abc import Iterable
from pathlib import Path

from prehab_lib.save.hub import explained, optional
from prehab_lib.save.packaged import local
from prehab_lib.tasks.files import check_texts

BOS, EOS = "<s>", "</s>"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORD_START = "▁"
_FILES = ("tokenizer.json", "tekken.json", "vocab.*", "*.model")


def train_bpe(texts: Iterable[str], size: int = 1000):
    """A byte-level BPE of 258 to `size` tokens: 0 is BOS, 1 EOS and padding; or ValueError."""
    import tokenizers
    import transformers
    from tokenizers import decoders, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if size < 258:  # the 256 bytes, BOS and EOS
        raise ValueError(f"vocabulary = {size}: a byte-level tokenizer needs at least 258 tokens")
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    fixed = dict(special_tokens=[BOS, EOS], initial_alphabet=letters, show_progress=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, **fixed)
    learner.train_from_iterator(check_texts(texts), trainer)
    template = dict(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)])
    learner.post_processor = processors.TemplateProcessing(**template)
    options = dict(bos_token=BOS, eos_token=EOS, pad_token=EOS, clean_up_tokenization_spaces=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=learner, **options)


def train_wordpiece(texts: Iterable[str], size: int = 2000, max_length: int = 64):
    """A lower-casing BERT tokenizer of about `size` pieces."""
    # Learnt by a BPE trainer and respelled: the WordPiece trainer breaks ties by a random hash.
    import tokenizers
    import transformers
    from tokenizers import normalizers, pre_tokenizers

    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.normalizer = normalizers.BertNormalizer()
    words = pre_tokenizers.Metaspace(_WORD_START, prepend_scheme="always")
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), words])
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size - len(SPECIAL), show_progress=False)
    learner.train_from_iterator(check_texts(texts), trainer)
    numbers = learner.get_vocab()
    pieces = [piece for piece in sorted(numbers, key=numbers.get) if piece != _WORD_START]
    letters = [piece for piece in pieces if len(piece) == 1]
    spelled = [p[1:] if p.startswith(_WORD_START) else f"##{p}" for p in pieces]
    distinct = dict.fromkeys((*SPECIAL, *letters, *spelled))
    vocabulary = {piece: number for number, piece in enumerate(distinct)}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=max_length)


def tokenizer_of(source: str):
    """The tokenizer of a transformers checkpoint, as `packaged.local` takes it, no remote code.

    Raises as `local` and `hub.explained` do, and FileNotFoundError for no tokenizer in a folder.
    """
    place = local(source)
    transformers, folder = optional("transformers"), Path(place)
    files = "the tokenizer files of its model there (tokenizer.json, tokenizer_config.json)"
    missing = FileNotFoundError(f"{source!r} has no tokenizer: copy {files}")
    if os.path.isdir(folder) and not any(any(folder.glob(pattern)) for pattern in _FILES):
        raise missing
    remedy = "give the folder of a local copy that has its tokenizer files"
    with explained(f"the tokenizer of {source!r}", remedy):
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise missing  # some families build an empty one where the files are missing
    return tokenizer
