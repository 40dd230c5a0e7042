"""Augmentation whose random numbers are drawn apart from the pixels, so that one draw can be applied again."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Shift:
    """Move an image by up to `pixels` in each direction; what moves in is black (0).

    Attributes:
        pixels: Largest displacement along height and along width, at least 1.
    """

    pixels: int

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise ValueError(f"a shift moves by at least 1 pixel, got {self.pixels}")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `(count, 2)` int64 displacements (down, right) drawn from a CPU generator."""
        return torch.randint(-self.pixels, self.pixels + 1, (count, 2), generator=generator)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return `(B, C, H, W)` images moved by `(B, 2)` displacements, same type and device."""
        batch, channels, height, width = images.shape
        padded = torch.nn.functional.pad(images, (self.pixels,) * 4)
        down = self.pixels - parameters[:, :1] + torch.arange(height, device=images.device)
        right = self.pixels - parameters[:, 1:] + torch.arange(width, device=images.device)
        row = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
        channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
        return padded[row, channel, down[:, None, :, None], right[:, None, None, :]]
