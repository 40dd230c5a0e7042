"""Vision transformers (Dosovitskiy et al. 2021) with routed feed-forward layers, or blocks that are skipped or run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import ModuleBlocks
from routing_gym.blocks.skippable import CHOICES, ResidualBlock, skippable_bank
from routing_gym.networks.banked import blocks_per_bank, check_image
from routing_gym.networks.experts import Experts, InTurn, OnFirst, RoutedExperts, experts_per_layer
from routing_gym.tasks.checking import check_choice, check_counts

Pooling = Literal["token", "mean"]


class Patches(nn.Module):
    """Tokens `(B, N, width)` of an image's patches, each with its learned position; a class token first, if any."""

    def __init__(self, input_shape: Sequence[int], patch: int, width: int, pooling: Pooling) -> None:
        super().__init__()
        self.project = nn.Conv2d(input_shape[0], width, patch, stride=patch)
        count = (input_shape[1] // patch) * (input_shape[2] // patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if pooling == "token" else None
        self.positions = nn.Parameter(torch.empty(1, count + (self.token is not None), width))
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens of images `(B, C, H, W)`."""
        x = self.project(images).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return x + self.positions


class SelfAttention(nn.Module):
    """Multi-head attention of tokens `(B, N, width)` to one another: 4 N width² + 2 N² width multiply-accumulates."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(B, N, width)`."""
        queries, keys, values = self.project(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return self.join(functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))


class AttentionFirst(nn.Module):
    """First half of an encoder layer: x + attention(norm(x)), and its norm, which goes into the feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), SelfAttention(width, heads))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the feed-forward blocks, and the tokens that wait to be added to their output."""
        x = x + self.attention(x)
        return self.norm(x), x


class Sum(nn.Module):
    """End of an encoder layer: what the feed-forward blocks gave and the tokens that waited."""

    def forward(self, y: Tensor, x: Tensor) -> tuple[Tensor]:
        """Tokens of the layer."""
        return (x + y,)


class Pooled(nn.Module):
    """Features `(B, width)` of normalised tokens: the class token's, the first, or their mean."""

    def __init__(self, width: int, pooling: Pooling) -> None:
        super().__init__()
        self.norm, self.pooling = nn.LayerNorm(width), pooling

    def forward(self, x: Tensor) -> Tensor:
        """Features of tokens `(B, N, width)`."""
        return self.norm(x[:, 0]) if self.pooling == "token" else self.norm(x).mean(1)


class VisionTransformer(RoutedExperts):
    """A vision transformer, every feed-forward layer a decision between k blocks, or every block one to skip it.

    Source: Dosovitskiy et al. (ICLR 2021), with the norm before attention and feed-forward layers, as there. Where
    mixtures of experts choose for every token (Riquelme et al. 2021) an instance chooses here, for all its tokens; a
    router sees the mean of those that go into the blocks. Residual blocks that an image can skip (0) or run (1) are
    taken from AdaViT (Meng et al., CVPR 2022): every layer has two, attention and feed-forward, each with its norm.
    Where feed-forward blocks are chosen attention, norms and patches are shared, and counted as `stem_macs`.

    Args:
        skipping: Whether residual blocks are skipped or run, or feed-forward blocks chosen.
        input_shape: `(C, H, W)` of an image, its sides multiples of `patch`.
        num_blocks: Feed-forward blocks per layer, or a number for each, where they are chosen.
        patch: Side of the square patches that become tokens.
        width: Width of a token.
        heads: Heads of the attention; they share out the width.
        hidden: Width between the two linear layers of a feed-forward block, with GELU.
        layers: Encoder layers, of attention and feed-forward each.
        pooling: Features that are read out: `"token"`, those of a class token, or `"mean"` of all tokens.
        experts: Choices of all blocks, or a list for each: what `prune` leaves is skipped, or run, by all.
    """

    def __init__(
        self,
        skipping: bool,
        input_shape: Sequence[int],
        num_classes: int,
        num_blocks: int | Sequence[int] = 1,
        *,
        patch: int = 4,
        width: int = 64,
        heads: int = 4,
        hidden: int = 128,
        layers: int = 4,
        pooling: Pooling = "token",
        experts: Experts = CHOICES,
        num_tasks: int = 1,
    ) -> None:
        check_counts(patch=patch, width=width, heads=heads, hidden=hidden, layers=layers)
        check_choice("pooling", pooling, "token", "mean")
        check_image(input_shape, patch)
        if any(side % patch for side in input_shape[1:]):
            got = f"patch={patch} for {input_shape[1]}x{input_shape[2]} pixels"
            raise ValueError(f"patch must divide the sides of an image, got {got}")
        if width % heads:
            raise ValueError(f"heads must divide the width of a token, got heads={heads} for width={width}")
        patches = Patches(input_shape, patch, width, pooling)
        shape = patches.positions.shape[1:]
        stem, banks = InTurn(OnFirst(patches)), []
        if skipping:
            kinds, names = experts_per_layer(experts, 2 * layers), []
            for number, left in enumerate(kinds):
                inner = _feed_forward(width, hidden) if number % 2 else SelfAttention(width, heads)
                block = ResidualBlock(nn.Sequential(nn.LayerNorm(width), inner), nn.Identity(), relu=False)
                banks.append(skippable_bank(block, left, shape))
                names.append(f"layer {number // 2 + 1}, {'feed-forward' if number % 2 else 'attention'}")
            between = [InTurn() for _ in banks]
        else:
            counts, names = blocks_per_bank(num_blocks, [1] * layers), [f"layer {i + 1}" for i in range(layers)]
            banks = [ModuleBlocks([_feed_forward(width, hidden) for _ in range(count)], shape) for count in counts]
            kinds, between = [("feed-forward",) * count for count in counts], [InTurn(Sum()) for _ in banks]
            for before in (stem, *between[:-1]):
                before.append(AttentionFirst(width, heads))
        between[-1].append(OnFirst(Pooled(width, pooling)))
        super().__init__(input_shape, num_classes, stem, banks, between, kinds, names, num_tasks)
        self.skipping = skipping

    def form_options(self) -> dict[str, Any]:
        """Choices of every block; or how many feed-forward blocks layers have, which are all alike."""
        return super().form_options() if self.skipping else {"num_blocks": list(self.block_counts)}


def _feed_forward(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
