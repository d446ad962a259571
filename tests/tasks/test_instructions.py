import pytest

from prehab_lib.tasks import instructions
from prehab_lib.tasks.instructions import HELD_OUT, Instruction, encode, open_instructions, prompt_of
from tests.tasks.helpers import refuses
from tests.text_files import alpaca_folder, parquet, sentence, tiny_tokenizer

KEYS = ("input_ids", "attention_mask", "labels")
pytestmark = pytest.mark.usefixtures("own_folders")


tokenizer = pytest.fixture(tiny_tokenizer)


@pytest.fixture
def opened(tmp_path, tokenizer):
    root = str(alpaca_folder(tmp_path / "sets"))
    return lambda max_length=300: open_instructions("alpaca", tokenizer, 4, data_root=root, max_length=max_length)


def answers(batch, tokenizer):
    return [tokenizer.decode(row[keep != -100]) for row, keep in zip(batch["input_ids"], batch["labels"], strict=True)]


def test_the_prompt_is_alpacas():
    begins, asks = "Below is an instruction that describes a task", "Write a response that appropriately completes the"
    plain = f"{begins}. {asks} request.\n\n### Instruction:\nName it.\n\n### Response:\n"
    more = f"{begins}, paired with an input that provides further context. {asks} request.\n\n"
    assert prompt_of("Name it.") == prompt_of("Name it.", "  ") == plain
    told = "### Instruction:\nName it.\n\n### Input:\na tree\n\n### Response:\n"
    assert prompt_of("Name it.", "a tree") == more + told


def test_only_answers_and_their_end_are_scored(opened, tokenizer):
    outputs = {sentence(i).upper() + "</s>" for i in range(40)}
    for batch in opened().train(0, 5):
        assert tuple(batch) == KEYS and len({value.shape for value in batch.values()}) == 1
        for row, mask, label, said in zip(*batch.values(), answers(batch, tokenizer), strict=True):
            length = int(mask.sum())
            assert said in outputs and (mask[:length] == 1).all()  # padded on the right
            assert row[0] == tokenizer.bos_token_id and row[length - 1] == tokenizer.eos_token_id
            assert (label[length:] == -100).all() and label[label != -100].equal(row[label != -100])
            prompt = tokenizer.decode(row[:length][label[:length] == -100])
            assert prompt.startswith("<s>Below is an instruction") and prompt.endswith("### Response:\n")


def test_rows_without_a_scored_token_are_left_out_and_long_ones_cut_off(opened):
    """Row 1 has no answer, row 2 a prompt that fills any length."""
    whole, short = opened(), opened(160)
    assert len(whole.training) + len(whole.held_out) == 38
    assert all(row.prompt < len(row.ids) <= 300 for row in whole.training)
    by_prompt = {row.ids[: row.prompt]: row for row in whole.training}
    cut = [row for row in short.training if len(row.ids) == 160]
    assert cut and all(row.ids == by_prompt[row.ids[: row.prompt]].ids[:160] for row in cut)
    refuses("'alpaca' have no row whose answer begins within max_length = 8 tokens: raise", opened, 8)
    refuses("max_length = 2", opened, 2)


def test_the_order_is_seeded_a_pass_takes_every_row_once_and_the_split_stays(opened):
    data, again = opened(), opened()
    one, same, other = ([batch["input_ids"].tolist() for batch in data.train(seed, 3)] for seed in (0, 0, 1))
    assert one == same and one != other and len(data.train(0, 3)) == 3
    rows = []
    for batch in data.train(0, -(-len(data.training) // 4)):
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            rows.append(tuple(row[: int(mask.sum())].tolist()))
    distinct = {row.ids for row in data.training}
    assert set(rows) == set(rows[: len(data.training)]) == distinct
    assert 2 <= len(data.held_out) <= 4 and HELD_OUT == 2000
    assert not distinct & {row.ids for row in data.held_out} and again.held_out == data.held_out


def test_a_tokenizer_that_merges_over_the_border_or_ends_prompts(tokenizer):
    """ "ab" + "c" may be "a", "bc"; and an EOS that a tokenizer adds to every text is not part of what a prompt begins."""

    class Merging:
        eos_token_id = 9

        def __call__(self, texts, **options):
            spelled = {"ab": [1, 2, 9], "abc": [1, 3, 9]}
            return {"input_ids": [spelled[text] for text in texts]}

    (row,) = instructions._tokenized([("ab", "c")], Merging(), 8)
    assert row.ids == (1, 3, 9) and row.prompt == 1


def test_padding_is_what_it_is_told():
    rows = [Instruction((3, 4, 5, 6, 7, 8), 3), Instruction((3, 4, 5, 6, 7), 2)]
    batch = encode(rows, 9, [0, 1])
    assert batch["input_ids"][1].tolist() == [3, 4, 5, 6, 7, 9] and batch["attention_mask"].sum(1).tolist() == [6, 5]
    assert batch["labels"].tolist() == [[-100] * 3 + [6, 7, 8], [-100, -100, 5, 6, 7, -100]]


def test_bad_input_is_one_sentence(tmp_path, tokenizer):
    refuses("instructions = 'dolly' is not known: choose one of prose, alp", open_instructions, "dolly", tokenizer, 4)
    parquet(tmp_path / "alpaca", "train", instruction=["a"], input=[""])
    refuses("has no column 'output'", open_instructions, "alpaca", tokenizer, 4, data_root=str(tmp_path))


def test_embedded_questions(tokenizer):
    data = open_instructions("prose", tokenizer, 4, max_length=96)
    batch = next(iter(data.validation(0, 1)))
    assert len(data.training) > 1000 and set(said.removesuffix("</s>") for said in answers(batch, tokenizer))
