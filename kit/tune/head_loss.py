"""The loss of a frozen head, in pieces.

The logits of all positions, in float32 and with their gradient, would be the largest thing in memory (Llama 3.2 has
128,256 for each). The head learns nothing, so the one gradient that is wanted, that of the hidden states, can be made
with the loss: each piece's logits are made once, and not kept.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PIECE = 128  # positions whose logits are in memory at once


@cache
def head_loss() -> type[torch.autograd.Function]:
    """The function, once torch is to be imported."""
    import torch

    class HeadLoss(torch.autograd.Function):
        """The summed cross-entropy, in nats, of `targets` (n) under `hidden` (n, size) times `weight` (rows, size)."""

        @staticmethod
        def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            for start in range(0, hidden.shape[0], PIECE):
                part, right = hidden[start : start + PIECE], targets[start : start + PIECE, None]
                logits = torch.nn.functional.linear(part, weight).float()
                own = logits.gather(1, right)
                norm = logits.logsumexp(1, keepdim=True)
                total += (norm - own).sum()
                if gradient is not None:
                    # The gradient of the cross-entropy: the probabilities, less 1 at the target.
                    logits.sub_(norm).exp_()
                    logits.scatter_add_(1, right, torch.full_like(own, -1.0))
                    torch.mm(logits.to(weight.dtype), weight, out=gradient[start : start + PIECE])
            ctx.save_for_backward(gradient)
            return total

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
            (gradient,) = ctx.saved_tensors
            return gradient * grad.to(gradient.dtype), None, None

    return HeadLoss
