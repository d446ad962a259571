import copy
from dataclasses import replace

import pytest
import tokenizers
import torch
import transformers

from prehab_lib import surgery
from prehab_lib.evaluate import logits_and_labels
from prehab_lib.methods import METHODS
from prehab_lib.prehab import prehab
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.tasks import finetune
from prehab_lib.tasks.finetune import base_model, classifier, fine_tune, small_bert
from prehab_lib.tasks.sentences import open_task, sentence_loss
from prehab_lib.tasks.tokenizers import tokenizer_of, train_wordpiece
from tests.glue_files import WORDS, glue_folder
from tests.stack import same
from tests.tasks.helpers import adamw_steps, refuses

TINY = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
RECIPE = dict(lr=1e-2, steps=30, warmup=0.2)

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny pretrained encoder with its tokenizer, as `save_pretrained` leaves them."""
    tokenizer = train_wordpiece(WORDS * 3, size=120, max_length=32)
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **TINY)
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def opened(tmp_path, checkpoint, name="sst2"):
    glue_folder(tmp_path / "sets", name)
    return open_task(name, 8, tokenizer_of(checkpoint), data_root=str(tmp_path / "sets"), max_length=32)


@pytest.fixture
def task(tmp_path, checkpoint):
    return opened(tmp_path, checkpoint)


def tiny(task):
    return small_bert(len(task.tokenizer), 2, 1, 16, 2, positions=32)


def test_fine_tuning_learns_repeats_itself_and_leaves_the_random_state(task):
    one, other = tiny(task), tiny(task)
    state = torch.get_rng_state()
    losses = fine_tune(one, task, seed=0, **RECIPE)
    assert torch.equal(state, torch.get_rng_state())
    assert losses == fine_tune(other, task, seed=0, **RECIPE) and same(one, other)
    assert len(losses) == 30 and sum(losses[-5:]) < 0.5 * sum(losses[:5]) and task.score(one) > 0.9


def test_the_learning_rate_is_the_papers_cosine_or_rises_first(task, monkeypatch):
    taken, model = adamw_steps(monkeypatch), tiny(task)
    fine_tune(model, task, seed=0, lr=1.0e-3, epochs=4 / 3)  # 20 rows, batch 8: 3 steps a pass
    assert [step["lr"] for step in taken] == pytest.approx([1e-3, 8.5355e-4, 5e-4, 1.4645e-4], rel=1e-4)
    assert taken[0]["betas"] == (0.9, 0.999)
    taken.clear()
    fine_tune(model, task, seed=0, lr=1.0e-3, steps=6, warmup=0.5, beta2=0.98)
    assert [step["lr"] for step in taken] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 7.5e-4, 2.5e-4])
    assert taken[0]["betas"] == (0.9, 0.98) and fine_tune(model, task, seed=0, lr=1e-3, steps=0) == []


def test_bad_numbers_and_a_loss_that_explodes_are_named(task):
    model = tiny(task)
    with torch.autocast("cpu", torch.bfloat16):  # it keeps the first casts of the weights
        refuses("nothing would train under torch.autocast", fine_tune, model, task, seed=0, lr=1e-3, steps=2)
    for name, wrong in dict(lr=0, epochs=-1, steps=1.5, warmup=1.0, beta2=1).items():
        refuses(f"{name} = {wrong}", fine_tune, model, task, seed=0, **{"lr": 1, name: wrong})
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    said = "the loss is nan at fine-tuning step 0: lower lr = 0.001"
    refuses(said, fine_tune, model, task, seed=0, lr=1e-3, steps=2)


def test_an_encoder_is_fine_tuned_once_then_cached(tmp_path, task, checkpoint, capfd):
    first, how = base_model(task, checkpoint, seed=0, **RECIPE)
    again, how_again = base_model(task, checkpoint, seed=0, **RECIPE)
    assert (how, how_again) == ("trained", "cached") and same(first, again)
    assert not first.training and not again.training and task.score(first) > 0.9
    for change in ({"seed": 1}, {"seed": 0, "lr": 2e-2}):
        assert base_model(task, checkpoint, **RECIPE | change)[1] == "trained", change
    upper = copy.deepcopy(task.tokenizer)
    upper.backend_tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    fewer = task.training.take(range(len(task.training) - 1))
    changes = (dict(batch=9), dict(max_length=31), dict(training=fewer), dict(tokenizer=upper))
    for fed in (*(replace(task, **change) for change in changes), opened(tmp_path, checkpoint, "rte")):
        assert base_model(fed, checkpoint, seed=0, **RECIPE)[1] == "trained"
    assert capfd.readouterr().err == ""


def test_a_half_precision_checkpoint_is_trained_in_float32(tmp_path, task, checkpoint):
    transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float16).save_pretrained(tmp_path / "half")
    model, _ = base_model(task, str(tmp_path / "half"), seed=0, **RECIPE)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32} and task.score(model) > 0.9


def test_the_small_model_goes_through_the_same_door(tmp_path, checkpoint):
    task, small = opened(tmp_path, checkpoint, "stsb"), dict(depth=1, width=16, heads=2, positions=32)

    def base(**changed):
        return base_model(task, "small", seed=0, small=small | changed, lr=1e-3, steps=2)

    model, how = base()
    assert how == "trained" and model.config.num_labels == 1
    assert base()[1] == "cached" and base(width=24)[1] == "trained"
    refuses("small has an unknown entry 'wdth': choose from vocabulary", base, wdth=3)
    refuses("max_length = 32 is longer than the 8 positions of the model", base, positions=8)


def test_a_fine_tuned_checkpoint_is_used_as_it_is(tmp_path, checkpoint, monkeypatch):
    task = opened(tmp_path, checkpoint, "mnli")
    trained, _ = base_model(task, checkpoint, seed=0, **RECIPE)
    trained.save_pretrained(tmp_path / "tuned")
    monkeypatch.setattr(finetune, "fine_tune", None)  # it would fail
    given, how = base_model(task, str(tmp_path / "tuned"), seed=0, **RECIPE)
    assert how == "given" and same(given, trained) and task.scores(given) == task.scores(trained)
    assert given.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}


def test_heads_that_do_not_fit_the_task_are_refused(tmp_path, checkpoint):
    def saved(name, id2label=None):
        trained, _ = classifier(checkpoint, opened(tmp_path, checkpoint, name))
        trained.config.id2label = id2label or trained.config.id2label
        trained.save_pretrained(tmp_path / "head")
        return str(tmp_path / "head")

    reverse = {0: "Contradiction", 1: "Neutral", 2: "Entailment"}
    inference = "a classifier of entailment, neutral, contradiction, and task 'rte' needs entailment, not_"
    backwards = "of contradiction, neutral, entailment, and .* entailment, neutral, .*, in this order"
    for name, labels, task, said in (
        ("mnli", None, "rte", inference),
        ("sst2", None, "rte", "a classifier of negative, positive, and task 'rte' needs .* give an encoder"),
        ("mnli", reverse, "mnli", backwards),
        ("rte", None, "stsb", "task 'stsb' needs one real number"),
    ):
        refuses(said, classifier, saved(name, labels), opened(tmp_path, checkpoint, task))
    assert classifier(saved("sst2", {0: "LABEL_0", 1: "LABEL_1"}), opened(tmp_path, checkpoint, "rte"))[1]


def test_a_new_head_comes_from_its_seed_and_missing_checkpoints_are_named(tmp_path, task, checkpoint):
    state = torch.get_rng_state()
    heads = [classifier(checkpoint, task, seed)[0].classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    refuses("is no folder", classifier, str(tmp_path / "nowhere"), task, error=FileNotFoundError)
    (tmp_path / "empty").mkdir()
    refuses("is no model folder", classifier, str(tmp_path / "empty"), task, error=FileNotFoundError)


@pytest.mark.parametrize("name", ["stsb", "mnli"])
def test_the_real_path_offline_from_checkpoint_to_saved_model(tmp_path, checkpoint, name):
    """Data by data_root, fine-tune, prehab, every method, save, load: the same scores, and the same logits to the last bit."""
    task = opened(tmp_path, checkpoint, name)
    base, how = base_model(task, checkpoint, seed=0, **RECIPE)
    assert how == "trained"
    calibration = list(task.calibration(0, 4))
    stats = collect(base, calibration)
    settings = dict(surrogate="stable_rank", lam=0.1, steps=3, lr=1e-3)
    history = prehab(base, sentence_loss, task.train(500, 3), stats, **settings)
    assert len(history.rows) == 3 and history.rows[-1]["entropy_rank"] > 1
    # A regression has no softmax.
    methods = [key for key in METHODS if task.labels or "logit_gram" not in METHODS[key].needs]
    needs = {"gram"}.union(*(METHODS[method].needs for method in methods))
    stats = collect(base, calibration, needs=needs, task_loss=sentence_loss)
    for method in methods:
        model = copy.deepcopy(base)
        data = dict(task_loss=sentence_loss, batches=calibration, validation=list(task.validation(0, 2)))
        report = compress(model, method, 0.4, stats, **data)
        assert report.achieved > 0.3 and len(report.ranks) == 6
        surgery.save(model, tmp_path / method)
        loaded = surgery.load(tmp_path / method)
        assert task.scores(loaded) == task.scores(model)
        batch = next(iter(task.train(0, 1)))
        assert torch.equal(logits_and_labels(loaded, batch)[0], logits_and_labels(model, batch)[0]), method
