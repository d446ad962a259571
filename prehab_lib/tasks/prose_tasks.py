"""Four small sentence tasks, one a metric of GLUE; each row is of one part of the prose alone."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from prehab_lib.inputs import check_choice
from prehab_lib.tasks import prose
from prehab_lib.tasks.drawn import Rows

SEED = 0  # the edits belong to the data set, not to the experiment
COPIES = {"train": 2, "validation": 1, "test": 1}  # differently edited rows of one sentence
KEPT = 0.5  # chance of a word to stay where words are left out

Part = tuple[tuple[str, tuple[str, ...]], ...]  # module, sentences of each documentation of a part
Row = tuple[tuple[str, ...], int | float]  # texts, label


@dataclass(frozen=True)
class ProseTask:
    metric: str  # a key of `metrics.METRICS`
    labels: tuple[str, ...]  # class names; empty for a regression
    rows: Callable[[Part, random.Random], Iterator[Row]]  # called once for every copy
    lr: float  # what the small model needs at 32 rows a step; found on the validation part
    steps: int
    beta2: float = 0.98  # of AdamW: its memory must be shorter than a short training


def acceptability(part: Part, draw: random.Random) -> Iterator[Row]:
    """Are the words in their own order?  Each sentence, and the same words in another order."""
    for sentence in _sentences(part):
        words = sentence.split()
        shuffled = words[:]
        while shuffled == words:
            draw.shuffle(shuffled)
        yield (sentence,), 1
        yield (" ".join(shuffled),), 0


def belonging(part: Part, draw: random.Random) -> Iterator[Row]:
    """Is it of this documentation?  One or two sentences of it, and part of one, of it or not."""
    for sentences, others in _with_others(part):
        for i in range(len(sentences)):
            passage = sentences[max(0, i - 1) : i + 1]
            for source, label in ((passage, 1), (others, 0)):
                yield (" ".join(passage), " ".join(_some(draw.choice(source), draw))), label


def paraphrase(part: Part, draw: random.Random) -> Iterator[Row]:
    """Is it this sentence, edited?  A sentence, and the rest of it, or of one much like it."""
    for sentences, others in _with_others(part):
        for sentence in sentences:
            words = set(sentence.split())
            yield (sentence, _swapped(_some(sentence, draw))), 1
            for _ in range(2):
                few = draw.choices(others, k=4)
                alike = max(few, key=lambda other: len(words.intersection(other.split())))
                yield (sentence, _swapped(_some(alike, draw))), 0


def similarity(part: Part, draw: random.Random) -> Iterator[Row]:
    """What share of the words stayed?  A sentence, and the same with some words replaced."""
    pool = [word for _, own in part for sentence in own for word in sentence.split()]
    for sentence in _sentences(part):
        words, stay = sentence.split(), draw.random()
        edited = [word if draw.random() < stay else draw.choice(pool) for word in words]
        stayed = sum(word == other for word, other in zip(words, edited, strict=True))
        yield (sentence, " ".join(edited)), stayed / len(words)


_ORDER = ("shuffled", "as written")
# Notebooks and rules read the keys out of this source: write them as they are.
PROSE = {
    "acceptability": ProseTask("matthews", _ORDER, acceptability, 1e-3, 400, beta2=0.999),
    "belonging": ProseTask("accuracy", ("of another", "of this one"), belonging, 2e-3, 280),
    "paraphrase": ProseTask("f1", ("another sentence", "this one"), paraphrase, 2.5e-3, 220),
    "similarity": ProseTask("spearman", (), similarity, 2e-3, 280),
}


@cache
def rows(name: str, part: str) -> Rows:
    """All rows of one part of a task.  Raises ValueError for an unknown task or part."""
    check_choice("task", name, PROSE)
    documentation = prose.documentation(part)
    draw = random.Random(f"{name} {part} {SEED}")
    every = [row for _ in range(COPIES[part]) for row in PROSE[name].rows(documentation, draw)]
    texts, labels = zip(*every, strict=True)
    return Rows(tuple(zip(*texts, strict=True)), labels)


def _sentences(part: Part) -> dict[str, None]:
    """Distinct ones, in order of appearance."""
    return dict.fromkeys(sentence for _, own in part for sentence in own)


def _with_others(part: Part) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """The sentences of each documentation, and its module's others, where there are any."""
    modules: dict[str, list[str]] = {}
    for module, own in part:
        modules.setdefault(module, []).extend(own)
    for module, own in part:
        others = [sentence for sentence in modules[module] if sentence not in own]
        if others:
            yield own, others


def _some(sentence: str, draw: random.Random) -> list[str]:
    """About half of the words in their order, three at least."""
    words = sentence.split()
    kept = sorted(draw.sample(range(len(words)), max(3, round(KEPT * len(words)))))
    return [words[i] for i in kept]


def _swapped(words: list[str]) -> str:
    half = len(words) // 2
    return " ".join(words[half:] + words[:half])
