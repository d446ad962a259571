"""`python -m prehab_lib compress`, on tiny checkpoints with a tokenizer learnt on the spot."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
import torch
import transformers
from pyarrow import parquet

from prehab_lib.__main__ import main
from prehab_lib.factors import LowRankLinear
from prehab_lib.save import storage
from prehab_lib.scale import preflight
from prehab_lib.surgery import compress, load, save
from prehab_lib.tasks.files import read_texts
from prehab_lib.tasks.perplexity import perplexity
from prehab_lib.tasks.windows import cut, token_stream
from tests.text_files import causal_model, sentence, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
ROOT = Path(__file__).resolve().parents[2]
TEXT = [sentence(i) for i in range(200)]
TEXTS = [{"text": text} for text in TEXT]


@pytest.fixture
def base(tmp_path):
    return causal_model(tmp_path / "base", tokenizer=tiny_tokenizer())


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT), encoding="utf-8")
    return str(tmp_path / "text.txt")


def words(model, data, out, *more):
    small = ["--window", "16", "--samples", "8", "--batch", "4", "--device", "cpu"]
    return ["compress", str(model), "--data", str(data), "--out", str(out), *small, *map(str, more)]


def test_from_a_text_to_a_model_that_everybody_opens(base, text, tmp_path, capsys):
    out = tmp_path / "out"
    more = ["--steps", 3, "--less-memory", "--lr", "1e-3", "--lam", "0.1", "--license", "mit"]
    assert main(words(base, text, out, *more)) == 0
    printed = capsys.readouterr()
    said = dict(line.split(maxsplit=1) for line in printed.out.splitlines())
    steps = [line.split()[0] for line in printed.out.splitlines() if not line.startswith("note")]
    assert " ".join(steps) == "estimate folder model text before prehab statistics surgery after saved"
    assert printed.err == "" and "3 steps" in said["prehab"] and "asked 40%" in said["surgery"]
    ours, theirs = load(out), transformers.AutoModelForCausalLM.from_pretrained(out)
    stream = token_stream(["\n\n".join(TEXT)], transformers.AutoTokenizer.from_pretrained(out))
    held_out = cut(stream[-int(0.1 * len(stream)) :], 16, 64)
    about = json.loads((out / storage.DESCRIPTION).read_text())["about"]
    for model in (ours, theirs):
        assert perplexity(model, held_out) == pytest.approx(about["perplexity"]["after"], rel=1e-4)
    assert f"{about['perplexity']['after']:.4g}" in said["after"] and about["achieved"] > 0.4
    card = (out / "README.md").read_text()
    assert "license: mit" in card and "8 windows of 16 tokens of text.txt" in card
    everything = "".join(file.read_text() for file in out.iterdir() if file.suffix in (".json", ".md"))
    assert str(tmp_path) not in everything  # the folder may be given away


def test_the_surrogate_is_summed_as_in_equation_2_or_averaged_where_asked(base, text, tmp_path, capsys):
    steps, loaded = ["--steps", 3, "--lr", "1e-3", "--lam", "0.1"], {}
    for name, more in {"default": [], "sum": ["--reduction", "sum"], "mean": ["--reduction", "mean"]}.items():
        assert main(words(base, text, tmp_path / name, *steps, *more)) == 0
        said = f"{'mean' if name == 'mean' else 'sum'} over the layers, λ = 0.1"
        assert said in capsys.readouterr().out and said in (tmp_path / name / "README.md").read_text()
        loaded[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert loaded["default"] == loaded["sum"] != loaded["mean"]


def test_a_dose_in_the_place_of_lambda(base, text, tmp_path, capsys):
    assert main(words(base, text, tmp_path / "out", "--steps", 1, "--dose", "0.5")) == 0
    assert "(dose 0.5)" in capsys.readouterr().out and "(dose 0.5)" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SystemExit, match="2"):
        main(words(base, text, tmp_path / "both", "--lam", "0.1", "--dose", "1"))
    assert "not allowed with argument --lam" in capsys.readouterr().err


def test_a_merged_gpt2_from_parquet(tmp_path, capsys):
    gpt2 = causal_model(tmp_path / "gpt2", "gpt2", tokenizer=tiny_tokenizer())
    parquet.write_table(pyarrow.table({"text": [*TEXT, None], "id": range(201)}), tmp_path / "text.parquet")
    assert main(words(gpt2, tmp_path / "text.parquet", tmp_path / "out", "--merged", "--removed", 0.6)) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model) is transformers.GPT2LMHeadModel
    W = model.transformer.h[0].mlp.c_fc.weight
    assert W.shape == (16, 64) and int(torch.linalg.matrix_rank(W)) == int(0.4 * 16 * 64 / 80)
    assert "perplexity" in capsys.readouterr().out


def test_a_seed_fixes_the_bits_and_a_stop_leaves_the_earlier_model(base, text, tmp_path, capsys, monkeypatch):
    out, weights = tmp_path / "out", []
    for seed in (0, 0, 1):
        assert main(words(base, text, out, "--seed", seed)) == 0  # the earlier one is replaced
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def stop(tensors, path, **_):
        Path(path).write_bytes(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", stop)
    assert main(words(base, text, out, "--removed", 0.6)) == 130
    assert "stopped; " in capsys.readouterr().err
    assert main(words(base, text, tmp_path / "new")) == 130
    assert before == {file.name: file.read_bytes() for file in out.iterdir()}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base", "out", "text.txt"]


def test_a_method_that_needs_gradients_and_one_that_searches(base, text, tmp_path, capsys):
    for method in ("fwsvd", "asvd", "zs_svd_corrected", "io_svd"):
        assert main(words(base, text, tmp_path / method, "--method", method)) == 0
        assert any(isinstance(module, LowRankLinear) for module in load(tmp_path / method).modules())
    assert "fisher_in of 7 layers" in capsys.readouterr().out


BAD_WORDS = {
    **{f"removed = {float(bad)}": ["--removed", bad] for bad in ("1.5", "1.0", "0", "nan", "inf", "40", "-0.1")},
    "seed = 1000000000000000000000000000000": ["--seed", str(10**30)],
    "seed = -1": ["--seed", "-1"],
    "lam = nan": ["--lam", "nan"],
    "dose = nan": ["--steps", "1", "--dose", "nan"],
    "lr = inf": ["--steps", "1", "--lr", "inf"],
    "steps = -1": ["--steps", "-1"],
    **{f"{name} = {10**30}": [f"--{name}", str(10**30)] for name in ("steps", "samples", "window", "batch", "scored")},
    "'uniform' has an unknown entry 'floor': there is none to choose": ["--method-option", "floor=0.3"],
    "'zero_sum' has an unknown entry 'flor': choose from rule, floor, accounting, replan": [
        *("--method", "zs_svd", "--method-option", "flor=0.3")
    ],
    "and prehab all: leave out one": ["--blockwise", "--steps", "1"],
    "allocation 'zero_sum' looks at all layers": ["--blockwise", "--method", "zs_svd"],
    "not 'fisher_in': use surgery.compress": ["--blockwise", "--method", "fwsvd"],
    "floor = 1.5": ["--method", "zs_svd", "--method-option", "floor=1.5"],
    "alpha = 'much'": ["--method", "swift_svd", "--method-option", "alpha=much"],
    "method = 'magic' is not known": ["--method", "magic"],
    "'magic' is not known": ["--steps", "1", "--surrogate", "magic"],
    "lam = -1.0": ["--steps", "1", "--lam", "-1"],
    "--device abacus: this torch has no such device": ["--device", "abacus"],
    "window = 65 is longer than the 64 positions": ["--window", "65"],
    "samples = 0": ["--samples", "0"],
    "prehab cannot train in float16": ["--steps", "1", "--dtype", "float16"],
}
BAD_TEXTS = {"is no UTF-8 text": b"\xff\xfe\x00", "there is no text to tokenize": b" \n"}
BAD_TEXTS["has 5 tokens, fewer than one window of 16"] = b"the red house"


def test_bad_input_is_one_sentence_before_any_work(base, text, tmp_path, capsys, monkeypatch):
    def written(name: str, content: bytes) -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    known = transformers.AutoModelForCausalLM.from_pretrained(base)
    compress(known, "svd", 0.4)
    small, before = save(known, tmp_path / "small"), save(known, tmp_path / "before")
    (before / "config.json").unlink()
    less = causal_model(tmp_path / "less", vocabulary=200, tokenizer=tiny_tokenizer())
    half = causal_model(tmp_path / "half", tokenizer=tiny_tokenizer(), dtype="float16")
    shape = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.BertForMaskedLM(transformers.BertConfig(**shape)).save_pretrained(tmp_path / "bert")
    parquet.write_table(pyarrow.table({"body": ["a"], "id": [1]}), tmp_path / "other.parquet")
    thesis, file = written("home/thesis.tex", b"years"), written("file", b"")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    out = tmp_path / "out"
    calls = [
        ("model = './nowhere' is no folder", "./nowhere", text, out),
        ("small' is compressed already", small, text, out),
        ("before' is compressed already", before, text, out),
        ("has no tokenizer", causal_model(tmp_path / "bare"), text, out),
        ("outside the model's vocabulary of 200: the tokenizer belongs to another model", less, text, out),
        ("is a BertForMaskedLM: a causal language model is needed", tmp_path / "bert", text, out),
        ("prehab cannot train in float16", half, text, out, "--steps", "1"),
        ("nowhere.txt is no file", base, "nowhere.txt", out),
        ("could not be read", base, tmp_path / "other.parquet", out),
        ("torn.parquet could not be read", base, written("torn.parquet", b"PAR1"), out),
        ("holds other files than a saved model", "not looked at", text, thesis.parent),
        ("no folder one may write to", "not looked at", text, file / "out"),
        ("is a file: name a new folder", "not looked at", text, file),
        *(("lie in each other", base, text, place) for place in (base, Path(base, "deep", "er"), Path(base).parent)),
        ("is no file", base, tmp_path, out),
        ("is no file", base, "n" * 300, out),
        ("File name too long", base, text, tmp_path / ("n" * 300) / "out"),
        ("is no file", base, loop, out),
        ("no folder one may write to", base, text, loop / "out"),
    ]
    calls += [(says, base, written(f"{len(says)}.txt", content), out) for says, content in BAD_TEXTS.items()]
    calls += [(says, base, text, out, *more) for says, more in BAD_WORDS.items()]
    for work in ("save.models.text_model", "scale.preflight.estimate"):
        monkeypatch.setattr(f"prehab_lib.{work}", lambda *_, **__: pytest.fail("work was begun"))
    capsys.readouterr()
    for says, *call in calls:
        assert main(words(*call)) == 2, says
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and says in said[0], (says, said)
        assert not out.exists(), says


def test_a_disk_without_room_is_refused_before_the_work(base, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("prehab_lib.save.models.text_model", lambda *_, **__: pytest.fail("it was loaded"))
    parameters = transformers.AutoModelForCausalLM.from_pretrained(base).num_parameters()
    capsys.readouterr()
    for free, more in (
        (4 * parameters - 1, ["--merged"]),
        (2 * parameters, []),
        (2 * parameters, ["--method", "zs_svd"]),
    ):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert main(words(base, text, tmp_path / "out", *more)) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "will take about" in said and "GB are free there: free some" in said
    assert not (tmp_path / "out").exists()


def test_options_of_a_method_reach_it(base, text, tmp_path, capsys):
    for number, options in enumerate((["floor=0.5"], ["floor=0.5", "floor=0", "rule=magnitude"])):
        chosen = [word for option in options for word in ("--method-option", option)]
        out = tmp_path / str(number)
        assert main(words(base, text, out, "--method", "zs_svd", "--removed", "0.1", *chosen)) == 0
        about = json.loads((out / storage.DESCRIPTION).read_text())["about"]
        last = dict(option.split("=") for option in options)
        assert {name: str(value) for name, value in about["options of the method"].items()} == last
    with pytest.raises(SystemExit) as stop:
        main(words(base, text, tmp_path / "out", "--method-option", "floor"))
    assert stop.value.code == 2 and "write name=value, not 'floor'" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_no_terminal_loses_finished_prehab(base, text, tmp_path, encoding):
    """λ in a line, and a file's name that is no text in any encoding."""
    odd = tmp_path / os.fsdecode(b"odd \xff.txt")
    odd.write_bytes(Path(text).read_bytes())
    call = [sys.executable, "-m", "prehab_lib", *words(base, odd, tmp_path / "out", "--steps", "1", "--lr", "1e-4")]
    done = subprocess.run(call, env=os.environ | {"PYTHONIOENCODING": encoding}, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(encoding)
    assert "λ" if encoding == "utf-8" else "\\u03bb" in done.stdout.decode(encoding)
    assert "Encode" not in done.stderr.decode(encoding) and load(tmp_path / "out")


def test_a_closed_pipe_stops_nothing(base, text, tmp_path):
    call = [sys.executable, "-m", "prehab_lib", *words(base, text, tmp_path / "out")]
    with subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait() == 0, process.stderr.read()
    assert load(tmp_path / "out")


def test_what_is_gated_or_cannot_fit_is_refused_before_it_is_loaded(base, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("prehab_lib.scale.preflight.available_gib", lambda device: 1e-6)
    monkeypatch.setattr("prehab_lib.save.models.text_model", lambda *_, **__: pytest.fail("it was loaded"))
    assert main(words(base, text, tmp_path / "out")) == 2
    assert "needs about 0.0 GiB on cpu, where 0.0 GiB are free: add --less-memory" in capsys.readouterr().err

    def gated(*_, **__):
        raise type("GatedRepoError", (Exception,), {})("403")

    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", gated)
    assert main(words("org/model", text, tmp_path / "out")) == 2
    assert "'org/model' is gated: accept its terms" in capsys.readouterr().err


def lines(path, *rows) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def instruct(tmp_path):
    tokenizer = tiny_tokenizer()
    said = "{{ m['role'] }}: {{ m['content'] }}</s>{% if m['content'] == 'NO' %}{{ raise_exception('no!') }}{% endif %}"
    tokenizer.chat_template = f"<s>{{% for m in messages %}}{said}{{% endfor %}}"
    return causal_model(tmp_path / "instruct", tokenizer=tokenizer)


def test_chats_are_the_tokens_of_the_rendered_template(instruct, tmp_path, capsys):
    asked = [[{"role": "user", "content": text}] for text in TEXT]
    chats = [[*chat, {"role": "assistant", "content": "yes"}] for chat in asked[:150]] + asked[150:]
    pairs = [{"prompt": text, "completion": "yes"} for text in TEXT[99:150]]
    mixed = lines(tmp_path / "b.jsonl", *({"messages": chat} for chat in chats[:99]), *pairs, *TEXTS[150:])
    parquet.write_table(pyarrow.Table.from_pylist(TEXTS), tmp_path / "a.parquet")
    data = {mixed: chats, tmp_path / "a.parquet": asked, lines(tmp_path / "a.jsonl", *TEXTS): asked}
    tokenizer = transformers.AutoTokenizer.from_pretrained(instruct)
    for file, expected in data.items():
        more = ["--chat"] if expected is asked else []
        rendered = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in expected]
        tokens = torch.tensor([i for text in rendered for i in tokenizer(text, add_special_tokens=False)["input_ids"]])
        assert torch.equal(token_stream(read_texts(file), tokenizer, bool(more)), tokens)
        assert main(words(instruct, file, tmp_path / "out", *more)) == 0
        held_out = cut(tokens[-int(0.1 * len(tokens)) :], 16, 64)
        assert f"after      perplexity {perplexity(load(tmp_path / 'out'), held_out):.4g} on" in capsys.readouterr().out
    assert "| chats | each text one turn of a user |" in (tmp_path / "out" / "README.md").read_text()


def test_ranks_are_written_edited_and_given_back(base, text, tmp_path, capsys):
    assert main(words(base, text, tmp_path / "first")) == 0
    ranks = json.loads((tmp_path / "first" / "ranks.json").read_text())
    q, *_, up, down = ranks
    assert len(ranks) == 7 and ranks[down] == int(0.6 * 16 * 24 / 40)
    ranks |= {q: None, up: None, down: 9}
    mine = lines(tmp_path / "mine.json", {name: rank for name, rank in ranks.items() if name != q})
    held_out = cut(token_stream(TEXT, tiny_tokenizer())[-288:], 16, 64)  # of 2881 tokens
    for method, more in (("zs_svd", []), ("svd_llm_update", []), ("svd_llm", ["--blockwise"]), ("svd", ["--merged"])):
        out = tmp_path / method
        assert main(words(base, text, out, "--ranks", mine, "--method", method, *more)) == 0
        said, model = capsys.readouterr().out, load(out)
        assert "(ranks were given)" in said and f"after      perplexity {perplexity(model, held_out):.4g} on" in said
        assert "Their ranks were given. Removed" in (out / "README.md").read_text()
        found = {name: getattr(model.get_submodule(name), "rank", None) for name in ranks}
        assert found == (dict.fromkeys(ranks) if method == "svd" else ranks)
        assert json.loads((out / "ranks.json").read_text()) == ranks
    assert torch.linalg.matrix_rank(model.get_submodule(down).weight, atol=1e-5) == 9


def test_by_blocks_the_saved_tensors_are_the_same(text, tmp_path, monkeypatch):
    plans, plan, saved = [], preflight.Plan, []
    monkeypatch.setattr(preflight, "Plan", lambda **given: plans.append(given["streamed"]) or plan(**given))
    model = causal_model(tmp_path / "two", tokenizer=tiny_tokenizer(), num_hidden_layers=2)
    for more in ([], ["--blockwise"]):
        assert main(words(model, text, tmp_path / "out", "--merged", *more)) == 0
        saved.append(load(tmp_path / "out").state_dict())
    torch.testing.assert_close(*saved, rtol=1e-4, atol=1e-6)
    assert plans == [False, True]


def test_a_bad_chat_or_rank_is_named_before_the_weights(base, instruct, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("prehab_lib.save.models.text_model", lambda *_, **__: pytest.fail("it was loaded"))
    chat = lines(tmp_path / "chat.jsonl", {"text": "a"}, {"messages": [{"role": "user", "content": "NO"}]})
    calls = [("line 1 is refused: the tokenizer has no", base, chat), ("line 2 is refused: no!", instruct, chat)]
    calls += [("(line 1 has no 'text')", base, lines(tmp_path / "bad.jsonl", {})), ("text ends", base, text, "--chat")]
    up, out = "model.layers.0.mlp.up_proj", tmp_path / "out"
    bad = {"ranks could not be read": [up], "it gives no layer a rank": {up: None}, "'a' has a rank": {"a": 2}}
    bad |= {f"rank of {up} = 10: give a whole number, 9 at most": {up: 10}, "'given' has an unknown": {up: 9}}
    for says, ranks in bad.items():
        calls.append((says, base, text, "--ranks", lines(tmp_path / f"{len(calls)}.ranks", ranks)))
    calls[-1] += ("--method-option", "floor=0")
    for says, model, data, *more in calls:
        assert main(words(model, data, out, *more)) == 2 and not out.exists(), says
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and says in said, (says, said)
    with pytest.raises(SystemExit, match="2"):
        main(words(base, text, out, *more, "--removed", "0.4"))
    assert "--removed: not allowed with argument --ranks" in capsys.readouterr().err
