import math

import datasets
import numpy as np
import pytest
import torch
import transformers

from prehab_lib.evaluate import logits_and_labels
from prehab_lib.tasks import sentences
from prehab_lib.tasks.drawn import Rows, encode
from prehab_lib.tasks.finetune import small_bert
from prehab_lib.tasks.glue import GLUE
from prehab_lib.tasks.metrics import Score
from prehab_lib.tasks.prose_tasks import PROSE
from prehab_lib.tasks.sentences import open_task, predict, sentence_loss
from prehab_lib.tasks.tokenizers import train_wordpiece
from tests.glue_files import WORDS, glue_folder
from tests.tasks.helpers import refuses


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(WORDS * 3, size=120, max_length=32)


@pytest.fixture
def opened(tmp_path, own_folders, tokenizer):
    """Open a GLUE task whose rows lie in a folder, which is written first where it is to be."""
    sets = tmp_path / "sets"

    def open_glue(name, batch=4, write=True, tokenizer=tokenizer, files=None, **options):
        if write:
            glue_folder(sets, name, **(files or {}))
        return open_task(name, batch, tokenizer, **{"data_root": str(sets), "max_length": 32} | options)

    return open_glue


def short(lengths, labels=None):
    """One column of sentences of so many words."""
    return Rows((tuple(" ".join(WORDS[:n]) for n in lengths),), tuple(labels or [0] * len(lengths)))


def whole(rows, tokenizer, max_length=32):
    return encode(rows, tokenizer, max_length, range(len(rows)))


def test_batches_are_those_of_the_tokenizer(tokenizer, monkeypatch):
    texts = ("the cat", "the cat sat on a mat and sat on it", "sat"), ("on a mat", "the dog", "a cat sat")
    rows = Rows(texts, (0, 1, 1))
    assert whole(short([3, 5]), tokenizer)["attention_mask"].sum(1).tolist() == [5, 7]
    for side in ("right", "left"):
        monkeypatch.setattr(tokenizer, "padding_side", side)
        expected = tokenizer(*map(list, texts), padding=True, truncation=True, max_length=10, return_tensors="pt")
        batch = whole(rows, tokenizer, 10)
        assert set(batch) == {*expected, "labels"} and all(torch.equal(batch[key], expected[key]) for key in expected)
    assert torch.equal(encode(rows, tokenizer, 10, [2, 0])["labels"], torch.tensor([1, 0]))

    without = train_wordpiece(WORDS, size=120)
    without.model_input_names = ["input_ids", "attention_mask"]  # no token types
    assert set(whole(short([2]), without)) == {"input_ids", "attention_mask", "labels"}


def test_scored_rows_come_once_and_shortest_first(opened, monkeypatch):
    monkeypatch.setattr(sentences, "SCORED_BATCH", 2)
    batches = opened("sst2").once(short([9, 2, 5, 3, 7], labels=[0, 1, 2, 3, 4]))
    assert [batch["labels"].tolist() for batch in batches] == [[1, 3], [2, 4], [0]]


def test_padding_changes_no_logits(tokenizer):
    model = small_bert(len(tokenizer), 2, depth=1, width=16, heads=2, positions=32).eval()
    alone, padded = (logits_and_labels(model, whole(short(words), tokenizer))[0][0] for words in ([3], [3, 12]))
    torch.testing.assert_close(alone, padded, rtol=0, atol=1e-5)


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
    predictions, labels = predict(Fixed([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]), [classes])
    assert predictions.tolist() == [1, 0] and labels.tolist() == [0, 2]
    refuses("logits are NaN or infinite", predict, Fixed([[float("nan")], [1.0]]), [reals])
    refuses("nothing to evaluate", predict, Fixed([[1.0]]), [])


def test_every_glue_task_opens_from_a_data_root(opened, tokenizer):
    for name, glue in GLUE.items():
        task = opened(name)
        batch = next(iter(task.train(0, 1)))
        assert batch["token_type_ids"].any() == (len(glue.columns) == 2), name
        assert batch["labels"].dtype == (torch.float32 if name == "stsb" else torch.int64), name
        model = small_bert(len(tokenizer), task.outputs, depth=1, width=16, heads=2, positions=32)
        assert model(**batch).loss.isfinite() and sentence_loss(model, batch).isfinite(), name
        scores = task.scores(model)
        assert list(scores) == list(glue.scored) and all(abs(float(score)) <= 1 for score in scores.values()), name
        assert task.score(model) == pytest.approx(np.mean([float(score) for score in scores.values()])), name
        assert task.epoch == 5 and task.recipe == {"lr": 5e-5 if name == "cola" else 2e-5, "epochs": 3}, name
        assert all(text in task.protocol for text in (glue.metric, "32 tokens", *scores)), name


def test_a_cap_draws_the_same_rows_always_and_the_protocol_says_what_is_cut(opened):
    every = opened("mnli")
    task, other = (opened("mnli", write=False, test_rows=7) for _ in range(2))
    assert task.scored == other.scored and [len(rows) for rows in task.scored.values()] == [7, 7]
    for name, rows in every.scored.items():
        assert task.scored[name] != rows.take(range(7))  # drawn, not the first ones
    assert "MNLI-m 7 of 12 rows, MNLI-mm 7 of 12 rows" in task.protocol
    words = {100: 3, 101: 6, 102: 7, 103: 12}
    files = dict(text=lambda i: " ".join(WORDS[: words.get(i, 2)]))
    assert "at most 8 tokens a row, 2 rows are longer" in opened("sst2", files=files, max_length=8).protocol


def test_baselines_by_hand(opened):
    task = opened("qqp", files=dict(label=lambda split, i: int(i % 4 == 0)))
    assert task.baselines()["constant"]["QQP"].value == pytest.approx(2 * 0.25 / 1.25)  # all 1: all 0 would score 0
    baselines = opened("mrpc", files=dict(label=lambda split, i: int(i % 4 > 0))).baselines()
    assert baselines["constant"]["MRPC"].value == pytest.approx(2 * 0.75 / 1.75)
    assert "same to every row" in baselines["constant"]["MRPC"].note
    assert 0.5 < baselines["random"]["MRPC"].value < 0.85
    regression = opened("stsb").baselines()
    assert regression["constant"]["STS-B"].value == 0 and "undefined" in regression["constant"]["STS-B"].note
    assert regression["random"]["STS-B"].note == "" and abs(regression["random"]["STS-B"].value) < 0.5


def test_hidden_and_foreign_labels_are_refused(opened):
    for name, label, said in (
        ("cola", lambda split, i: -1 if split == "validation" else 1, "'validation' has labels of -1, which hide"),
        ("stsb", lambda split, i: -1.0 if split == "validation" else 1.0, "labels of -1"),
        ("rte", lambda split, i: 2, "has the label 2: its task wants classes 0 to 1"),
        ("stsb", lambda split, i: float("nan"), "has the label nan: its task wants a finite number"),
    ):
        refuses(said, opened, name, files=dict(label=label))
    task = opened("stsb", files=dict(label=lambda split, i: i % 6))  # whole numbers of a regression are real ones
    assert next(iter(task.train(0, 1)))["labels"].dtype == torch.float32


def test_missing_splits_columns_and_texts_are_named(opened, tmp_path):
    opened("mnli")
    (tmp_path / "sets" / "glue" / "mnli" / "validation_mismatched.parquet").unlink()
    part = r"has no part 'validation_mismatched': it needs validation_mism.*\*"
    refuses(part, opened, "mnli", write=False, error=FileNotFoundError)
    said = "'glue/qnli' has no column 'sentence': it has question, text, label"
    refuses(said, opened, "qnli", files=dict(columns=("question", "text")))
    refuses("has a row without text", opened, "sst2", files=dict(text=lambda i: None))
    refuses("'glue/qqp' is not at", opened, "qqp", write=False, error=FileNotFoundError)


def test_unknown_tasks_and_bad_settings_are_named(opened):
    refuses("task = 'wnli' is not known: choose one of acceptability, .*, mnli", opened, "wnli", write=False)
    for wrong, said in (
        ({"batch": 0}, "batch = 0"),
        ({"test_rows": -3}, "test_rows = -3"),
        ({"tokenizer": None}, "task 'cola' needs a tokenizer: pass tokenizers.tokenizer_of"),
        ({"max_length": 64}, "max_length = 64: the tokenizer's model takes at most 32"),
        ({"max_length": 2}, "max_length = 2"),
    ):
        refuses(said, opened, "cola", **wrong)


def test_embedded_tasks_have_the_same_shape():
    for name in PROSE:
        task = open_task(name, 8, test_rows=50, data_root="ignored")
        drawn = [next(iter(draw(0, 1)))["input_ids"] for draw in (task.train, task.calibration, task.validation)]
        assert drawn[0].shape[0] == 8 and drawn[0].max() < len(task.tokenizer), name
        assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2]), name
        assert len(task.scored[name]) == 50 and "checksum" in task.protocol, name
        constant = task.baselines()["constant"][name]
        assert isinstance(constant, Score) and (task.metric != "accuracy" or abs(constant.value - 0.5) < 0.2), name
    assert open_task("similarity", 4, test_rows=10).outputs == 1


def test_the_small_model_starts_from_its_seed_and_looks_for_likes():
    state = torch.get_rng_state()
    one, other, third = (small_bert(50, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.classifier.weight, other.classifier.weight)
    assert not torch.equal(one.classifier.weight, third.classifier.weight)
    attention = one.bert.encoder.layer[0].attention.self
    assert torch.equal(attention.query.weight[:32], attention.key.weight[:32])
    assert not torch.equal(attention.query.weight[32:], attention.key.weight[32:])


def test_labels_that_a_file_numbers_in_another_order_are_refused(opened, tmp_path):
    opened("rte")
    file = tmp_path / "sets" / "glue" / "rte" / "train.parquet"
    for order in (["entailment", "not_entailment"], ["not_entailment", "entailment"]):
        rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / order[0]))
        rows.cast_column("label", datasets.ClassLabel(names=order)).to_parquet(file)
        if order[0] == "entailment":
            opened("rte", write=False)
    refuses("numbers its classes not_entailment, entailment, and the task", opened, "rte", write=False)
