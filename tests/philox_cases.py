"""Questions to every implementation of Philox and of its normals: known answers, and words near the seams."""

from __future__ import annotations

import torch
from torch import Tensor

KNOWN_ANSWERS = {  # Random123's kat_vectors: counter, key, output
    "zeros": ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


def words_of(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def edge_words() -> tuple[Tensor, Tensor]:
    """Return every radius word near a seam of the logarithm, beside every angle word near a seam of the quadrants."""
    near = torch.arange(-3, 4)
    seams = [0, 1 << 23, 1 << 24, 1 << 31, round(2**32 / 3), round(2**33 / 3), (1 << 32) - (1 << 8), 1 << 32]
    radius = (torch.tensor(seams)[:, None] + near).flatten()
    angle = (torch.arange(9)[:, None] * (1 << 29) + near).flatten()
    radius, angle = (words[(words >= 0) & (words < 1 << 32)] for words in (radius, angle))
    return radius.repeat_interleave(len(angle)), angle.repeat(len(radius))
