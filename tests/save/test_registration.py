"""When transformers knows our model types: after `import prehab_lib.save`, and not before."""

import os
import subprocess
import sys

import pytest
import torch
import transformers
from torch import nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.save import pretrained
from prehab_lib.save.rewrite import split_qkv
from prehab_lib.surgery import save
from tests.families import IDS, gpt2, llama, logits
from tests.save.test_pretrained import cut

WITHOUT_US = """
import sys, torch, transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM
folder = sys.argv[1]
try:
    AutoModelForCausalLM.from_pretrained(f"{folder}/low_rank")
except ValueError as problem:
    print("refused:", "lowrank_llama" in str(problem))
_, info = LlamaForCausalLM.from_pretrained(f"{folder}/low_rank", output_loading_info=True)
print("missing:", sorted(info["missing_keys"]))
ids = torch.load(f"{folder}/ids.pt")
for name in ("llama", "gpt2"):
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/{name}")
    far = (model(ids).logits.detach() - torch.load(f"{folder}/{name}.pt")).abs().max()
    print(name, float(far) < 1e-4)
print("alone:", "prehab_lib" not in sys.modules)
import prehab_lib.save
print("registered:", type(AutoModelForCausalLM.from_pretrained(f"{folder}/low_rank")).__name__)
"""


def test_what_transformers_does_alone(tmp_path):
    model, other = cut(llama()), gpt2()
    split_qkv(other)
    cut(other, every=1)
    save(model, tmp_path / "low_rank")
    torch.save(IDS, tmp_path / "ids.pt")
    for name, each in (("llama", model), ("gpt2", other)):
        save(each, tmp_path / name, merged=True)
        torch.save(logits(each), tmp_path / f"{name}.pt")
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "warning"}
    command = [sys.executable, "-c", WITHOUT_US, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet, cwd=tmp_path)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said["refused:"] == said["alone:"] == said["llama"] == said["gpt2"] == "True", done.stderr
    missing = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, LowRankLinear)]
    assert said["missing:"] == str(sorted(missing))
    assert "MISSING" in done.stderr and "using a model of type `lowrank_llama`" in done.stderr  # not silent
    assert said["registered:"] == "LowRankLlamaForCausalLM"


def test_every_model_type_of_transformers_has_its_classes():
    for model_type in ("llama", "gpt_neox", "t5", "clip", "vit"):
        config = transformers.AutoConfig.for_model(f"lowrank_{model_type}")
        assert type(config) is getattr(pretrained, f"LowRank{type(config).__mro__[2].__name__}")
        (model,) = transformers.AutoModel._model_mapping[type(config)]
        assert model.config_class is type(config) and issubclass(model, pretrained.LowRankModel)
        assert model is getattr(pretrained, model.__name__) and issubclass(model, nn.Module)
    with pytest.raises(AttributeError, match="no attribute 'LowRankNothing'"):
        _ = pretrained.LowRankNothing
