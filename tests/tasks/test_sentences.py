import math

import numpy as np
import pytest
import torch
import transformers

from prehab_lib.evaluate import logits_and_labels
from prehab_lib.stats import collect
from prehab_lib.tasks import sentences
from prehab_lib.tasks.finetune import small_bert
from prehab_lib.tasks.glue import GLUE
from prehab_lib.tasks.metrics import Score
from prehab_lib.tasks.prose_tasks import PROSE
from prehab_lib.tasks.rows import Rows, count_longer, drawn_rows_of, encode, every_row
from prehab_lib.tasks.sentences import open_task, sentence_loss
from prehab_lib.tasks.tokenizers import train_wordpiece
from tests.glue_files import WORDS, glue_folder


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(WORDS * 3, size=120, max_length=32)


@pytest.fixture
def sets(tmp_path, own_folders):
    return tmp_path / "sets"


def short(lengths, labels=None):
    """One column of sentences of so many words."""
    return Rows((tuple(" ".join(WORDS[:n]) for n in lengths),), tuple(labels or [0] * len(lengths)))


def whole(rows, tokenizer, max_length=32):
    return encode(rows, tokenizer, max_length, range(len(rows)))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_is_padded_to_its_longest_and_cut_at_the_limit(tokenizer):
    batch = whole(short([3, 5]), tokenizer)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == (2, 7) and batch["attention_mask"].sum(1).tolist() == [5, 7]
    assert whole(short([3, 12]), tokenizer, 8)["input_ids"].shape == (2, 8)
    assert [count_longer(short([3, 6, 7, 12]), tokenizer, 8)] == [2]


def test_pairs_have_token_types_and_regressions_real_labels(tokenizer):
    batch = whole(Rows((("the cat",), ("sat on a mat",)), (0.25,)), tokenizer)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1]]
    assert batch["labels"].dtype == torch.float32 and whole(short([2]), tokenizer)["labels"].dtype == torch.int64


def test_batches_are_those_of_the_tokenizer(tokenizer, monkeypatch):
    texts = ("the cat", "the cat sat on a mat and sat on it", "sat"), ("on a mat", "the dog", "a cat sat")
    rows = Rows(texts, (0, 1, 1))
    for side in ("right", "left"):
        monkeypatch.setattr(tokenizer, "padding_side", side)
        expected = tokenizer(*map(list, texts), padding=True, truncation=True, max_length=10, return_tensors="pt")
        batch = whole(rows, tokenizer, 10)
        assert set(batch) == {*expected, "labels"} and all(torch.equal(batch[key], expected[key]) for key in expected)
    assert torch.equal(encode(rows, tokenizer, 10, [2, 0])["labels"], torch.tensor([1, 0]))


def test_a_tokenizer_without_token_types_gives_none(tokenizer):
    tokenizer = train_wordpiece(WORDS, size=120)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert set(whole(short([2]), tokenizer)) == {"input_ids", "attention_mask", "labels"}


def test_a_seed_is_a_sequence_of_full_batches_drawn_as_ever(tokenizer):
    """The numbers of the notebooks rest on this order: one shuffled pass after another."""
    generator = torch.Generator().manual_seed(3)
    passes = torch.cat([torch.randperm(10, generator=generator) for _ in range(3)])
    batches = drawn_rows_of(Rows((tuple(WORDS[:10]),), tuple(range(10))), tokenizer, 4, 32, seed=3, count=6)
    first, again = list(batches), list(batches)
    assert len(batches) == len(first) == 6 and all(map(equal, first, again))
    assert torch.cat([batch["labels"] for batch in first]).equal(passes[:24])


def test_scored_rows_come_once_and_shortest_first(tokenizer):
    batches = every_row(short([9, 2, 5, 3, 7], labels=[0, 1, 2, 3, 4]), tokenizer, 2, 32)
    assert [batch["labels"].tolist() for batch in batches] == [[1, 3], [2, 4], [0]]


@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
def test_padding_changes_neither_logits_nor_statistics(tokenizer):
    model = small_bert(len(tokenizer), 2, depth=1, width=16, heads=2, positions=32).eval()
    short_one, both = whole(short([3]), tokenizer), whole(short([3, 12]), tokenizer)
    with torch.no_grad():
        alone, padded = logits_and_labels(model, short_one)[0], logits_and_labels(model, both)[0][:1]
    assert torch.allclose(alone, padded, atol=1e-5)
    apart = collect(model, [short_one, whole(short([12]), tokenizer)])
    together = collect(model, [both])
    for name, found in together.items():
        assert found.tokens == apart[name].tokens == 5 + 14
        assert torch.allclose(found.gram, apart[name].gram, atol=1e-5)


def test_losses_by_hand(tokenizer):
    class Fixed(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor(logits))

        def forward(self, input_ids):
            return transformers.modeling_outputs.SequenceClassifierOutput(logits=self.logits)

    ids = torch.zeros(2, 3, dtype=torch.int64)
    classes = {"input_ids": ids, "labels": torch.tensor([0, 2])}
    assert sentence_loss(Fixed([[0.0] * 3] * 2), classes).item() == pytest.approx(math.log(3))
    reals = {"input_ids": ids, "labels": torch.tensor([1.0, 0.0])}
    assert sentence_loss(Fixed([[3.0], [1.0]]), reals).item() == pytest.approx((4 + 1) / 2)
    predictions, labels = sentences.predict(Fixed([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]), [classes])
    assert predictions.tolist() == [1, 0] and labels.tolist() == [0, 2]
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        sentences.predict(Fixed([[float("nan")], [1.0]]), [reals])
    with pytest.raises(ValueError, match="nothing to evaluate"):
        sentences.predict(Fixed([[1.0]]), [])


@pytest.mark.parametrize("name", GLUE)
def test_every_glue_task_opens_from_a_data_root(name, sets, tokenizer):
    glue_folder(sets, name)
    task = open_task(name, 4, tokenizer, data_root=str(sets), max_length=32)
    batch = next(iter(task.train(0, 1)))
    assert ("token_type_ids" in batch) and batch["token_type_ids"].any() == (len(GLUE[name].columns) == 2)
    assert batch["labels"].dtype == (torch.float32 if name == "stsb" else torch.int64)
    model = small_bert(len(tokenizer), task.outputs, depth=1, width=16, heads=2, positions=32)
    assert model(**batch).loss.isfinite() and sentence_loss(model, batch).isfinite()
    scores = task.scores(model)
    assert list(scores) == list(GLUE[name].scored) and all(-1 <= float(score) <= 1 for score in scores.values())
    assert task.score(model) == pytest.approx(np.mean([float(score) for score in scores.values()]))
    assert len(list(task.test())) == len(scores) and task.epoch == 5
    for text in (GLUE[name].metric, "32 tokens", *scores):
        assert text in task.protocol
    assert task.recipe == {"lr": 5e-5 if name == "cola" else 2e-5, "epochs": 3}


def test_a_cap_draws_the_same_rows_always_and_says_so(sets, tokenizer):
    glue_folder(sets, "mnli")
    options = dict(data_root=str(sets), max_length=32, test_rows=7)
    task, other = (open_task("mnli", 4, tokenizer, **options) for _ in range(2))
    assert task.scored == other.scored and [len(rows) for rows in task.scored.values()] == [7, 7]
    for name, rows in task.splits.items():
        assert task.scored[name] != rows.take(range(7))  # drawn, not the first ones
    assert "MNLI-m 7 of 12 rows, MNLI-mm 7 of 12 rows" in task.protocol
    with pytest.raises(ValueError, match="test_rows = -3"):
        open_task("mnli", 4, tokenizer, **options | {"test_rows": -3})


def test_baselines_by_hand(sets, tokenizer):
    glue_folder(sets, "qqp", label=lambda split, i: int(i % 4 == 0))
    task = open_task("qqp", 4, tokenizer, data_root=str(sets), max_length=32)
    assert task.baselines()["constant"]["QQP"].value == pytest.approx(2 * 0.25 / 1.25)  # all 1: all 0 would score 0
    glue_folder(sets, "mrpc", label=lambda split, i: int(i % 4 > 0))
    task = open_task("mrpc", 4, tokenizer, data_root=str(sets), max_length=32)
    baselines = task.baselines()
    assert baselines["constant"]["MRPC"].value == pytest.approx(2 * 0.75 / 1.75)
    assert "same to every row" in baselines["constant"]["MRPC"].note
    assert 0.5 < baselines["random"]["MRPC"].value < 0.85
    glue_folder(sets, "stsb")
    regression = open_task("stsb", 4, tokenizer, data_root=str(sets), max_length=32).baselines()
    assert regression["constant"]["STS-B"].value == 0 and "undefined" in regression["constant"]["STS-B"].note
    assert regression["random"]["STS-B"].note == "" and abs(regression["random"]["STS-B"].value) < 0.5


def test_hidden_and_foreign_labels_are_refused(sets, tokenizer):
    for name, label, said in (
        ("cola", lambda split, i: -1 if split == "validation" else 1, "'validation' has labels of -1, which hide"),
        ("stsb", lambda split, i: -1.0 if split == "validation" else 1.0, "labels of -1"),
        ("rte", lambda split, i: 2, "has the label 2: its task wants classes 0 to 1"),
        ("stsb", lambda split, i: float("nan"), "has the label nan: its task wants a finite number"),
    ):
        glue_folder(sets, name, label=label)
        with pytest.raises(ValueError, match=said):
            open_task(name, 4, tokenizer, data_root=str(sets), max_length=32)


def test_whole_numbers_are_real_labels_of_a_regression(sets, tokenizer):
    glue_folder(sets, "stsb", label=lambda split, i: i % 6)
    task = open_task("stsb", 4, tokenizer, data_root=str(sets), max_length=32)
    assert next(iter(task.train(0, 1)))["labels"].dtype == torch.float32


def test_missing_splits_columns_and_texts_are_named(sets, tokenizer):
    options = dict(data_root=str(sets), max_length=32)
    glue_folder(sets, "mnli")
    (sets / "glue" / "mnli" / "validation_mismatched.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no part 'validation_mismatched': it needs validation_mism.*\*"):
        open_task("mnli", 4, tokenizer, **options)
    glue_folder(sets, "qnli", columns=("question", "text"))
    with pytest.raises(ValueError, match="'glue/qnli' has no column 'sentence': it has question, text, label"):
        open_task("qnli", 4, tokenizer, **options)
    glue_folder(sets, "sst2", text=lambda i: None)
    with pytest.raises(ValueError, match="has a row without text"):
        open_task("sst2", 4, tokenizer, **options)
    with pytest.raises(FileNotFoundError, match="'glue/qqp' is not at"):
        open_task("qqp", 4, tokenizer, **options)
    with pytest.raises(ConnectionError, match=r"'nyu-mll/glue' could not be fetched.*data_root .or PREHAB_DATA."):
        open_task("cola", 4, tokenizer)


def test_unknown_tasks_and_bad_settings_are_named(sets, tokenizer):
    with pytest.raises(ValueError, match="batch = 0"):
        open_task("cola", 0)
    with pytest.raises(ValueError, match="task = 'wnli' is not known: choose one of acceptability, .*, mnli"):
        open_task("wnli", 4)
    glue_folder(sets, "cola")
    with pytest.raises(ValueError, match="task 'cola' needs a tokenizer: pass tokenizers.tokenizer_of"):
        open_task("cola", 4, None, data_root=str(sets))
    for wrong, named in ((64, "max_length = 64: the tokenizer's model takes at most 32"), (2, "max_length = 2")):
        with pytest.raises(ValueError, match=named):
            open_task("cola", 4, tokenizer, data_root=str(sets), max_length=wrong)


@pytest.mark.parametrize("name", PROSE)
def test_embedded_tasks_have_the_same_shape(name):
    task = open_task(name, 8, test_rows=50, data_root="ignored")
    batch = next(iter(task.train(0, 1)))
    assert batch["input_ids"].shape[0] == 8 and batch["input_ids"].max() < len(task.tokenizer)
    assert sum(len(batch["labels"]) for batch in task.test()) == 50 and "checksum" in task.protocol
    drawn = [next(iter(draw(0, 1))) for draw in (task.train, task.calibration, task.validation)]
    assert not equal(drawn[0], drawn[1]) and not equal(drawn[1], drawn[2])
    constant = task.baselines()["constant"][name]
    assert isinstance(constant, Score) and (task.metric != "accuracy" or abs(constant.value - 0.5) < 0.2)


def test_the_small_model_starts_from_its_seed_and_looks_for_likes():
    state = torch.get_rng_state()
    one, other, third = (small_bert(50, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.classifier.weight, other.classifier.weight)
    assert not torch.equal(one.classifier.weight, third.classifier.weight)
    attention = one.bert.encoder.layer[0].attention.self
    assert torch.equal(attention.query.weight[:32], attention.key.weight[:32])
    assert not torch.equal(attention.query.weight[32:], attention.key.weight[32:])
    assert open_task("similarity", 4, test_rows=10).outputs == 1
