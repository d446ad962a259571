"""Two thin matrices in the place of one: the factors, and the layer made of them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Factors:
    """Ŵ = U V with U (m, r) and V (r, n)."""

    U: Tensor
    V: Tensor

    def __post_init__(self):
        if self.U.ndim != 2 or self.V.ndim != 2 or self.U.shape[1] != self.V.shape[0]:
            shapes = f"{tuple(self.U.shape)} and {tuple(self.V.shape)}"
            raise ValueError(f"factors of shapes {shapes} do not multiply")

    @property
    def rank(self) -> int:
        return self.U.shape[1]

    @property
    def numel(self) -> int:
        """Numbers stored: r (m + n)."""
        return self.U.numel() + self.V.numel()

    def dense(self) -> Tensor:
        """The product, (m, n)."""
        return self.U @ self.V

    def balanced(self, like: Tensor | None = None) -> "Factors":
        """The same product with |U_:i| = |V_i:|, in dtype and on the device of `like`.

        It matters for half precision, and for fine-tuning with one learning rate for both.
        """
        like = self.U if like is None else like
        tiny = torch.finfo(self.U.dtype).tiny
        left, right = self.U.norm(dim=0), self.V.norm(dim=1)  # (r,), (r,)
        usable = (left > tiny) & (right > tiny)
        scale = torch.where(usable, (right / left.clamp_min(tiny)).sqrt(), 1)
        return Factors((self.U * scale).to(like), (self.V / scale[:, None]).to(like))


class LowRankLinear(nn.Module):
    """y = U (V x) + b, in the place of an `nn.Linear` (n -> m) of rank at most r.

    `V` (n -> r, no bias) and `U` (r -> m, the bias) are ordinary `nn.Linear`s: optimisers, LoRA and
    quantisers know them.  kind: device and dtype, as `nn.Linear` takes them.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True, **kind):
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.V = nn.Linear(in_features, rank, bias=False, **kind)
        self.U = nn.Linear(rank, out_features, bias=bias, **kind)

    @classmethod
    def from_factors(cls, factors: Factors, bias: Tensor | None = None) -> "LowRankLinear":
        """The layer of these factors, on their device and in their dtype; bias (m,) as it is."""
        (m, rank), n, like = factors.U.shape, factors.V.shape[1], factors.U
        # By way of "meta", so that no random weights are drawn.
        values = {"U.weight": factors.U, "V.weight": factors.V, "U.bias": bias}
        with torch.inference_mode(False), torch.no_grad():  # so that it can be trained
            layer = cls(n, m, rank, bias=bias is not None, device="meta", dtype=like.dtype)
            layer = layer.to_empty(device=like.device)
            for name, parameter in layer.named_parameters():
                parameter.copy_(values[name])
        return layer

    @classmethod
    def in_place_of(cls, layer: nn.Linear, factors: Factors) -> "LowRankLinear":
        """A layer with the dtype, device, bias, mode and `requires_grad` flags of `layer`.

        Raises ValueError where the factors are not finite in that dtype.
        """
        like = layer.weight
        factors = Factors(factors.U.to(like), factors.V.to(like))
        if not all(torch.isfinite(part).all() for part in (factors.U, factors.V)):
            raise ValueError(f"the factors are not finite in {like.dtype}")
        new = cls.from_factors(factors, layer.bias)
        new.requires_grad_(like.requires_grad)
        if layer.bias is not None:
            new.U.bias.requires_grad_(layer.bias.requires_grad)
        return new.train(layer.training)

    @property
    def bias(self) -> Tensor | None:
        return self.U.bias

    @property
    def weight(self) -> Tensor:
        """The dense Ŵ (m, n), multiplied out; some host models look at `.weight.dtype`."""
        return self.U.weight @ self.V.weight

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        return self.U(self.V(x))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
