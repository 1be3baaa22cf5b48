"""Attention of a ViT: reading its weights block by block, or putting another rule in its place.

A = softmax(q k^T / sqrt(d)), (B, heads, N, N), rows sum to 1. timm's blocks hand q, k, v to torch's
fused `scaled_dot_product_attention`, which gives no weights. `attend_by(rule)` sends these calls to
`rule` instead, by torch's own means (`torch.overrides.TorchFunctionMode`): nothing of the network
is replaced, so nothing is to be restored, other threads do not see it, and what a block does before
(q and k norms, rotary positions) and after (gates, layer scale, drop path) stays timm's.
`read_attention` only looks on: the output is the fused kernel's, bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from wsl_zoo.encoders import surgery
from wsl_zoo.encoders.timm import Encoder

Rule = Callable[..., Tensor]
"""Called as `scaled_dot_product_attention` is: q, k, v `(B, heads, N, d)`, options by name."""


class _AttendBy(TorchFunctionMode):
    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Send attention to the rule; torch has left the mode while this runs."""
        called = self.rule if func is F.scaled_dot_product_attention else func
        return called(*args, **(kwargs or {}))


@contextmanager
def attend_by(rule: Rule) -> Iterator[None]:
    """Inside, every fused attention of this thread is `rule(q, k, v, **options)`.

    Args:
        rule: Gives `(B, heads, N, d)`. Options are those of torch's function: `attn_mask`,
            `dropout_p`, `is_causal`, `scale`.
    """
    with _AttendBy(rule):
        yield


def attention_scores(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """Attention before the softmax: q k^T / sqrt(d), plus an additive mask.

    Args:
        query: `(B, heads, N', d)`, all queries or some of the first.
        key: `(B, heads, N, d)`.
        attn_mask: Added to the scores, broadcastable to `(B, heads, N, N)` (BEiT's position bias).
        is_causal: Refused.
        scale: Instead of 1 / sqrt(d).

    Returns:
        `(B, heads, N', N)`, at least float32.

    Raises:
        ValueError: Causal attention or a boolean mask: no classifier of images uses them.
    """
    if is_causal or (attn_mask is not None and attn_mask.dtype == torch.bool):
        raise ValueError("attention weights are read without causal and boolean masks only.")
    dtype = torch.promote_types(query.dtype, torch.float32)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        scores = (query.to(dtype) * scale) @ key.to(dtype).transpose(-2, -1)
    if attn_mask is not None:
        scores = scores + attn_mask[..., : query.shape[-2], :].to(dtype)
    return scores


def read_attention(
    encoder: Encoder, image: Tensor, rows: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Final map and the attention of every block, mean over heads.

    Args:
        encoder: A ViT with class token (see `require_class_token`).
        image: `(B, C, H, W)`, normalised for the encoder.
        rows: Only the first so many rows, 1 for the class token's: all but free of cost.

    Returns:
        `final (B, D, h, w)`, equal to `encoder.final(image)`, and per block `(B, rows, N)`, at
        least float32, in the graph; columns are the class token, other prefix tokens if any, then
        the h w patches in raster order.

    Raises:
        ValueError: The blocks do not attend from all tokens to all, once each.
    """
    depth = require_class_token(encoder)
    weights: list[Tensor] = []

    def read(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        scores = attention_scores(query[..., :rows, :], key, **options)
        weights.append(scores.softmax(dim=-1).mean(dim=1))
        return F.scaled_dot_product_attention(query, key, value, **options)

    with attend_by(read):
        final = encoder.final(image)
    count = prefix_tokens(encoder) + final.shape[-2] * final.shape[-1]
    sizes = [w.shape[-1] for w in weights]
    if sizes != [count] * depth:
        raise ValueError(
            f"{encoder.name}: {depth} blocks over {count} tokens attended {len(sizes)} times, to "
            f"{sorted(set(sizes))} tokens. Attention is read from ViT and DeiT."
        )
    return final, weights


def forward_tokens(encoder: Encoder, image: Tensor, extra: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run a ViT with more tokens at the end of the sequence.

    Args:
        encoder: A ViT or DeiT with class token.
        image: `(B, C, H, W)`, normalised for the encoder.
        extra: `(1, E, D)`, appended after the position embedding.

    Returns:
        After the last norm: prefix tokens `(B, P, D)` (the class token first), patches
        `(B, D, h, w)`, and the extra tokens `(B, E, D)`.

    Raises:
        ValueError: The network's trunk is no known chain of blocks.
    """
    steps = surgery.chain(encoder.model, ())
    if not steps or steps[0][0] != "patch_embed":
        raise ValueError(f"{encoder.name} takes no further tokens; ViT and DeiT do.")
    encoder._check(image)
    x = steps[0][1](image)
    x = torch.cat([x, extra.to(x.dtype).expand(len(x), -1, -1)], dim=1)
    for _, step in steps[1:]:
        x = step(x)
    end = x.shape[1] - extra.shape[1]
    patches, prefix = encoder._to_map(x[:, :end], (image.shape[-2], image.shape[-1]))
    assert prefix is not None
    return prefix, patches, x[:, end:]


def prefix_tokens(encoder: Encoder) -> int:
    """Number of tokens before the patches."""
    return int(getattr(encoder.model, "num_prefix_tokens", 0))


def require_class_token(encoder: Encoder) -> int:
    """Number of attention blocks of a ViT with class token.

    Raises:
        ValueError: The network has no class token or no blocks, or they do not use fused attention.
    """
    model: Any = encoder.model
    token, blocks = getattr(model, "cls_token", None), getattr(model, "blocks", None)
    if token is None or not blocks or prefix_tokens(encoder) < 1:
        raise ValueError(
            f"{encoder.name} has no class token that attends to patches: use a ViT or DeiT, such "
            "as deit_small_patch16_224."
        )
    if any(getattr(module, "fused_attn", True) is False for module in blocks.modules()):
        raise ValueError(
            f"{encoder.name}: its blocks do not use torch's fused attention, from which weights "
            "are read. Those of ViT and DeiT do, unless TIMM_FUSED_ATTN=0 is set or "
            "timm.layers.set_fused_attn(False) was called before."
        )
    return len(blocks)
