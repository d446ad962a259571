"""A BERT small enough to be trained on the spot, its tokenizer, and tokenizers of real checkpoints."""

from collections.abc import Iterable
from functools import cache

import torch
from torch import nn

from prehab_lib.save.hub import explained
from prehab_lib.tasks import prose

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORD_START = "▁"


def train_tokenizer(texts: Iterable[str], size: int = 2000, max_length: int = 64):
    """A lower-casing BERT tokenizer with a WordPiece vocabulary of about `size` pieces learnt from
    `texts`.

    The same texts give the same vocabulary in every process.  The pieces are learnt by the BPE
    trainer of `tokenizers` and respelled: its WordPiece trainer does the same merges, but breaks
    ties by a hash that changes from run to run.
    """
    import tokenizers
    import transformers
    from tokenizers import normalizers, pre_tokenizers

    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.normalizer = normalizers.BertNormalizer()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Metaspace(_WORD_START, prepend_scheme="always"),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size - len(SPECIAL), show_progress=False)
    learner.train_from_iterator(texts, trainer)
    pieces = sorted(learner.get_vocab().items(), key=lambda entry: entry[1])
    letters = [piece for piece, _ in pieces if len(piece) == 1 and piece != _WORD_START]
    spelled = [
        p[1:] if p.startswith(_WORD_START) else f"##{p}" for p, _ in pieces if p != _WORD_START
    ]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys((*SPECIAL, *letters, *spelled)))}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=max_length)


@cache
def prose_tokenizer():
    """The tokenizer of the embedded tasks: learnt from the training part alone."""
    return train_tokenizer(prose.sentences("train"))


def tokenizer(source: str):
    """The tokenizer of a transformers checkpoint, by hub name or folder.  Raises as
    `models.text_model` does.
    """
    import transformers

    with explained(
        f"the tokenizer of {source!r}", remedy="give the folder of a local copy instead"
    ):
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def small_bert(
    vocabulary: int,
    outputs: int,
    depth: int = 2,
    width: int = 64,
    heads: int = 4,
    seed: int = 0,
    *,
    positions: int = 64,
    dropout: float = 0.0,
    spread: float = 1.4,
) -> nn.Module:
    """transformers' `BertForSequenceClassification`, random weights from `seed`, with `outputs`
    classes (1: a regression).

    width: even, a multiple of heads.  Places start as sinusoids, and in half of the heads the keys
    as copies of the queries, so that a word looks for its like from the first step on; else the
    tasks on pairs stay at chance for hundreds of steps. spread: size of the starting weights in
    1/√width.  What is learnt then stands beside random directions of its own size, and truncation
    costs something; at 1 or less the single-sentence task loses next to nothing at 60 % removed.
    """
    import transformers

    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=positions,
        num_labels=outputs,
        initializer_range=spread * width**-0.5,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.BertForSequenceClassification(config)
        half = width // heads * (heads // 2)
        for layer in model.bert.encoder.layer:
            query, key = layer.attention.self.query.weight, layer.attention.self.key.weight
            key[:half] = query[:half].mul_(1.2)  # sharp enough to tell words apart
        place = model.bert.embeddings.position_embeddings.weight  # (positions, width)
        angle = torch.arange(positions)[:, None] * 10000 ** (
            -torch.arange(0, width, 2) / width
        )  # (positions, width/2)
        place.copy_(torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1) * width**-0.5)
    return model
