"""Two random colours for a grey drawing (McGill and Perona 2017, Figure 4)."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_DISTANCE = 0.3
"""How far apart the two colours are at least: Euclidean, in RGB of 0 to 1."""


def draw_palettes(count: int, generator: torch.Generator) -> Tensor:
    """Palettes `(count, 2, 3)` int64 in [0, 255], from a CPU generator: what black and what white of a drawing become.

    Both are uniform over all RGB bytes; the second is drawn anew until it is at least `LEAST_DISTANCE` from the first,
    as in the authors' code. The paper only says "two random colors at least 0.3 units away from each other".
    """
    palettes = torch.randint(0, 256, (count, 2, 3), generator=generator)
    least = (255 * LEAST_DISTANCE) ** 2
    while len(close := ((palettes[:, 1] - palettes[:, 0]).square().sum(1) < least).nonzero().flatten()):
        palettes[close, 1] = torch.randint(0, 256, (len(close), 3), generator=generator)
    return palettes


def recolor(shades: Tensor, palettes: Tensor) -> Tensor:
    """Drawings `(B, 3, H, W)` uint8: black of the grey ones becomes the first colour, white the second, linear between.

    Computed in integers and rounded, so every device gives the same bytes.

    Args:
        shades: `(B, 1, H, W)` uint8, 0 black and 255 white.
        palettes: `(B, 2, 3)` integers in [0, 255], on the same device.
    """
    shade, (first, second) = shades.int(), palettes.int()[..., None, None].unbind(1)
    return ((first * (255 - shade) + second * shade + 127) // 255).to(torch.uint8)
