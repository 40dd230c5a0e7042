"""Augmentation whose random numbers are drawn apart from the pixels, so that one draw can be applied again."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, get_args

import torch
from torch import Tensor

from routing_gym.tasks.checking import check_choice, whole_number

GAMMA = 2.2
LEAST_DISTANCE = 0.3
"""How far apart the two colours are at least: Euclidean, in RGB of 0 to 1."""
Fill = Literal["black", "mean"]


@dataclasses.dataclass(frozen=True)
class Shift:
    """Move an image by up to `pixels` in each direction and mirror every other one.

    Attributes:
        pixels: Largest displacement along height and along width.
        flip: Whether half of the images, drawn at random, are mirrored left to right first.
        fill: What moves in: `"black"` (0), or `"mean"`, the mean colour of the image after gamma decoding
            (McGill and Perona 2017, section 4.8).
        recolor: Whether drawings get two new colours each time (`MultiTaskDataset.shades`).
    """

    pixels: int
    flip: bool = False
    fill: Fill = "black"
    recolor: bool = False

    def __post_init__(self) -> None:
        pixels = whole_number("pixels of an augmentation", self.pixels, least=None)
        if pixels < 0 or not (pixels or self.flip or self.recolor):
            raise ValueError(f"an augmentation moves by at least 1 pixel or flips, got {pixels} and {self.flip}")
        check_choice("fill", self.fill, *get_args(Fill))

    @property
    def num_parameters(self) -> int:
        """Numbers per instance."""
        return 9 if self.recolor else 3

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Parameters `(count, 3)` int64 of as many instances, drawn from a CPU generator.

        They are displacements (down, right) and whether to mirror; with `recolor` `(count, 9)`, the last six being two
        RGB colours, as `draw_palettes` gives them.
        """
        moves = torch.randint(-self.pixels, self.pixels + 1, (count, 2), generator=generator, device="cpu")
        mirrored = torch.randint(0, 1 + self.flip, (count, 1), generator=generator, device="cpu")
        colors = [draw_palettes(count, generator).view(count, 6)] if self.recolor else []
        return torch.cat([moves, mirrored, *colors], 1)

    def apply(self, images: Tensor, parameters: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Images `(B, C, H, W)` uint8, mirrored and moved.

        Args:
            images: The images, of the same shape and type.
            parameters: `(B, P)` from `draw`, on the same device; colours among them are not looked at.
            drawn: `(B,)` bool, images that must not be mirrored (drawings, writing); None: all may be.
        """
        batch, channels, height, width = images.shape
        padded = torch.nn.functional.pad(images, (self.pixels,) * 4)
        down = self.pixels - parameters[:, :1] + torch.arange(height, device=images.device)
        across = torch.arange(width, device=images.device) - parameters[:, 1:2]
        mirrored = parameters[:, 2:3].bool()
        if drawn is not None:
            mirrored = mirrored & ~drawn[:, None]
        # Where the pixel comes from that stands at `across` after mirroring, then moving.
        right = self.pixels + torch.where(mirrored, width - 1 - across, across)
        row = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
        channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
        moved = padded[row, channel, down[:, None, :, None], right[:, None, None, :]]
        if self.fill == "black" or not self.pixels:
            return moved
        inside_down = (down >= self.pixels) & (down < self.pixels + height)
        inside_right = (right >= self.pixels) & (right < self.pixels + width)
        inside = inside_down[:, None, :, None] & inside_right[:, None, None, :]
        return torch.where(inside, moved, mean_color(images)[..., None, None])


def shift_or_none(pixels: int, flip: bool = False, fill: Fill = "black", recolor: bool = False) -> Shift | None:
    """Augmentation of these options; None where they change nothing."""
    return Shift(pixels, flip, fill, recolor) if pixels or flip or recolor else None


def mean_color(images: Tensor) -> Tensor:
    """Mean colours `(B, C)` uint8 of images `(B, C, H, W)` uint8, as light: `255 mean((x / 255)^2.2)^(1 / 2.2)`.

    The paper fills "with the mean color of the image (after gamma-decoding)"; 2.2 is the authors' code's. The sum is
    one of integers, so every device and every batch size gives the same bytes.
    """
    light, steps = _gamma_tables(images.device)
    pixels = images.shape[-2] * images.shape[-1]
    total = light[images.long()].sum((-2, -1))
    # The byte is how many of the 255 steps between neighbouring bytes the mean has passed.
    return torch.bucketize(total, steps * pixels, right=True).to(torch.uint8)


@functools.cache
def _gamma_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Light of the 256 bytes, and of the 255 steps between them, in units of 2^-30."""
    byte = torch.arange(256, dtype=torch.float64, device="cpu")
    light, steps = (((value / 255) ** GAMMA * 2**30).round().long() for value in (byte, byte[:-1] + 0.5))
    return light.to(device), steps.to(device)


def draw_palettes(count: int, generator: torch.Generator) -> Tensor:
    """Palettes `(count, 2, 3)` int64 in [0, 255], from a CPU generator: what black and what white of a drawing become.

    Both are uniform over all RGB bytes; the second is drawn anew until it is at least `LEAST_DISTANCE` from the first,
    as in the authors' code. The paper only says "two random colors at least 0.3 units away from each other".
    """
    palettes = torch.randint(0, 256, (count, 2, 3), generator=generator, device="cpu")
    least = (255 * LEAST_DISTANCE) ** 2
    while len(close := ((palettes[:, 1] - palettes[:, 0]).square().sum(1) < least).nonzero().flatten()):
        palettes[close, 1] = torch.randint(0, 256, (len(close), 3), generator=generator, device="cpu")
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
