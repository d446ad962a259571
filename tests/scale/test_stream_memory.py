"""What streamed surgery allocates: the block, its largest Gram, its largest decomposition, and nothing of their size beside."""

import pytest
import torch
import transformers

from prehab_lib.scale import lean, stream
from prehab_lib.statistics import inputs
from tests.helpers import peak_gib

HIDDEN, MLP, TOKENS, BATCH, VOCAB = 128, 344, 1408, 16, 2000  # of LLaMA-7B: 4096, 11008
CHUNK = 16  # columns or rows of a product at a time: as few, beside these sizes, as there are for a 7B


@pytest.mark.parametrize("removed", [0.2, 0.6])
def test_peak_is_block_gram_and_decomposition(removed, monkeypatch):
    for module, name in ((lean, "COLUMNS"), (inputs, "ROWS")):
        assert getattr(module, name) > CHUNK
        monkeypatch.setattr(module, name, CHUNK)
    sizes = dict(hidden_size=HIDDEN, intermediate_size=MLP, vocab_size=VOCAB, max_position_embeddings=BATCH)
    config = transformers.LlamaConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)
    batches = [{"input_ids": ids} for ids in torch.randint(0, VOCAB, (TOKENS // BATCH, 1, BATCH))]

    def run():
        model = transformers.LlamaForCausalLM(config)
        held = sum(p.nbytes for p in model.parameters())
        assert stream.compress(model, "svd_llm", removed, batches).achieved >= removed
        return held

    run()  # what libraries keep from their first use
    model, peak, _ = peak_gib(run)
    states, gram, most = 4 * TOKENS * HIDDEN, 8 * MLP**2, 8 * HIDDEN * (HIDDEN + MLP)
    others = 5 * 8 * HIDDEN**2  # Grams that query, gate and output read; a root, and a weight in float64 beside it
    held = model + states + gram + others
    assert held < peak * 2**30 <= held + most
