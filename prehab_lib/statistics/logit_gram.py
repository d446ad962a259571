"""The output side of a layer: which directions of its output move what the model says.

The Hessian of the KL divergence between the model's answer and a nearby one is, in the logits, H =
diag(p) − p pᵀ.  Pulled back to a layer's output it is Jᵀ H J, J the Jacobian of the logits, and its
mean over tokens is C_o (m, m), here over the K likeliest answers of each position.  No Jacobian is
formed: H is the mean of z zᵀ over random signs ε, for z = Σ_k ε_k √p_k (e_k − p).  One backward
pass of ⟨z, logits⟩ gives g = Jᵀ z at every token, and E g gᵀ sums J_sᵀ H_s J_s over all positions s
that the token reaches: signs of two positions are independent, so their cross terms cancel.

Source: IO-SVD (arXiv 2605.15626), whose code is not public; the probes are ours.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from prehab_lib.batches import forward, frozen, mode
from prehab_lib.inputs import check_seed, check_whole
from prehab_lib.roots import on_factor_device
from prehab_lib.statistics.hooks import calibration, check_finite, check_reached, hooked
from prehab_lib.statistics.inputs import Gram
from prehab_lib.statistics.tokens import RealTokens, aligned, token_rows


@dataclass(frozen=True)
class Probe:
    """How the logit Hessian is probed.

    k: likeliest answers that count at each position (IO-SVD: 5).  probes: backward passes a batch,
    variance falls as 1 / probes.  seed: of the signs.  Raises ValueError for k < 2 or no probe.
    """

    k: int = 5
    probes: int = 1
    seed: int = 0

    def __post_init__(self):
        check_whole(2, k=self.k)
        check_whole(1, probes=self.probes)
        check_seed(self.seed)


USUAL = Probe()


def logit_grams(model, modules, batches, wanted, *, logit_probe, dtype, **_) -> dict:
    """layer -> {"logit_gram": C_o (m, m) in float64}, for `PASSES`.

    C_o is the mean over the layer's tokens of an unbiased estimate of Jᵀ H J.  One forward pass a
    batch and `probes` backward passes, in eval mode; no weight gets a gradient.  logit_probe: a
    `Probe`.  dtype: of the products.  The logits are `.logits` of what the model returns, or what
    it returns: (B, classes), or (B, T, classes), of which padded positions are left out.  Raises
    ValueError for fewer than two logits, a layer that they do not depend on (naming it), no batch,
    or NaN.
    """
    probe, real = logit_probe, RealTokens(model)
    generator = torch.Generator().manual_seed(probe.seed)
    sums = _Sums(modules, dtype, real)
    with real.hooks(), mode(model, training=False), torch.enable_grad(), frozen(model):
        for given in calibration(model, batches, "logit Grams"):
            batch = aligned(model, given)
            real.start_batch(batch)
            with hooked(modules, after=sums.listen, recorded=True):
                logits = _logits_of(forward(model, batch))
            likeliest = logits.topk(min(probe.k, logits.shape[-1])).values
            top = real.rows(likeliest)  # (tokens, K)
            for left in reversed(range(probe.probes if top.requires_grad else 0)):
                z = _cotangent(top.detach(), generator)
                torch.autograd.backward(top, z.to(top), retain_graph=left > 0)
    remedy = "its logit Gram says nothing, leave it out of layers=[...]"
    check_reached(modules, sums.grams, "the logits do not depend on", remedy)
    draws = {name: sums.tokens[name] * probe.probes for name in modules}
    return {name: {"logit_gram": sums.grams[name].finish(draws[name])} for name in modules}


LOGIT_STATISTICS = {"logit_gram": logit_grams}


class _Sums:
    """Σ g gᵀ over the output gradients of each layer; one called twice has twice the tokens."""

    def __init__(self, layers: Iterable[str], dtype: torch.dtype, real: RealTokens):
        self.dtype, self.real = dtype, real
        self.tokens, self.grams = dict.fromkeys(layers, 0), {}

    def listen(self, name: str, x: Tensor, out: Tensor) -> Tensor:
        if not out.requires_grad:  # nothing before it asks for a gradient: the graph starts here
            out = out.detach().requires_grad_().clone()  # cloned: what follows may work in place
        mask = self.real.mask_of(x)  # now: on the way back nobody knows where x was read
        self.tokens[name] += len(token_rows(out.detach()[..., :1], mask))

        def receive(D: Tensor) -> None:
            rows = token_rows(D.detach(), mask)  # (tokens, m)
            check_finite("gradients", name, rows)
            self.grams.setdefault(name, Gram()).update(on_factor_device(rows, self.dtype))

        out.register_hook(receive)
        return out


def _cotangent(top: Tensor, generator: torch.Generator) -> Tensor:
    """z (tokens, K) with E z zᵀ = diag(p) − p pᵀ, for p the softmax of the K largest logits."""
    p = top.to(torch.promote_types(top.dtype, torch.float32)).softmax(-1)
    signed = _signs(top.shape, generator).to(p) * p.sqrt()
    return signed - p * signed.sum(-1, keepdim=True)


def _logits_of(out: object) -> Tensor:
    logits = getattr(out, "logits", out)
    if isinstance(logits, Tensor) and logits.ndim > 1 and logits.shape[-1] > 1:
        return logits
    kind = f"a {type(logits).__name__}"
    if isinstance(logits, Tensor):
        kind = f"logits of shape {tuple(logits.shape)}"
    needed = "the logit Gram needs a model that says two logits or more a row"
    raise ValueError(f"{needed}: this one returns {kind}")


def _signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """±1, drawn on the CPU: the same on every device."""
    return 2 * torch.randint(2, shape, generator=generator) - 1
