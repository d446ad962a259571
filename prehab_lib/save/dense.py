"""Back to dense: the factors multiplied out, for tools that know no low-rank layers."""

import torch
from torch import Tensor, nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import is_conv1d
from prehab_lib.save.rewrite import SplitQKV


def dense_weight(module: nn.Module) -> Tensor:
    """W (m, n) of a dense or low-rank layer, or of a split query-key-value layer, in the layer's
    dtype.

    U V is summed in float32 or better and rounded once.
    """
    if isinstance(module, SplitQKV):
        return torch.cat([dense_weight(part) for part in (module.q, module.k, module.v)])
    if not isinstance(module, LowRankLinear):
        return module.weight.detach()
    U, V = module.U.weight.detach(), module.V.weight.detach()
    wide = torch.promote_types(U.dtype, torch.float32)
    return (U.to(wide) @ V.to(wide)).to(U.dtype)


@torch.no_grad()
def fill_dense(skeleton: nn.Module, model: nn.Module) -> nn.Module:
    """Give `skeleton`, fresh from the recipe of `model`, the weights of `model`: low-rank layers
    dense, rewrites undone.

    What stayed as it was is shared with `model`, not copied.  Where the skeleton ties two tensors
    they stay tied.
    """
    theirs, ours = dict(model.named_modules()), dict(skeleton.named_modules())
    tied: dict[int, Tensor] = {}
    for name, module in ours.items():
        source = theirs[name]
        weight = type(module) is nn.Linear or is_conv1d(module)
        for leaf, old in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]:
            if id(old) not in tied:
                if weight and leaf == "weight" and type(source) is not type(module):
                    W = dense_weight(source)
                    tied[id(old)] = nn.Parameter(W.T.contiguous() if is_conv1d(module) else W)
                else:
                    new = getattr(source, leaf).detach()
                    tied[id(old)] = nn.Parameter(new) if isinstance(old, nn.Parameter) else new
            setattr(module, leaf, tied[id(old)])
    return skeleton.train(model.training)
