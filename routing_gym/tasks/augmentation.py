"""Augmentation whose random numbers are drawn apart from the pixels, so that one draw can be applied again."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Shift:
    """Move an image by up to `pixels` in each direction, what moves in being black (0), and mirror every other one.

    Attributes:
        pixels: Largest displacement along height and along width.
        flip: Whether half of the images, drawn at random, are mirrored left to right first.
    """

    pixels: int
    flip: bool = False

    def __post_init__(self) -> None:
        if self.pixels < 0 or not (self.pixels or self.flip):
            raise ValueError(f"an augmentation moves by at least 1 pixel or flips, got {self.pixels} and {self.flip}")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `(count, 3)` int64, displacements (down, right) and whether to mirror, drawn from a CPU generator."""
        moves = torch.randint(-self.pixels, self.pixels + 1, (count, 2), generator=generator)
        mirrored = torch.randint(0, 1 + self.flip, (count, 1), generator=generator)
        return torch.cat([moves, mirrored], 1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return `(B, C, H, W)` images changed by `(B, 3)` parameters, same type and device."""
        batch, channels, height, width = images.shape
        padded = torch.nn.functional.pad(images, (self.pixels,) * 4)
        down = self.pixels - parameters[:, :1] + torch.arange(height, device=images.device)
        across = torch.arange(width, device=images.device) - parameters[:, 1:2]
        mirrored = parameters[:, 2:].bool()
        # Where the pixel comes from that stands at `across` after mirroring, then moving.
        right = self.pixels + torch.where(mirrored, width - 1 - across, across)
        row = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
        channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
        return padded[row, channel, down[:, None, :, None], right[:, None, None, :]]
