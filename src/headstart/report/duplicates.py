"""Samples that are in two parts of the data: what is tested with was then trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

#: Cosine of centred features from which on two samples are called alike. Measured (150 samples, EfficientNet-Lite0 and MiniLM):
#: a solar cell saved again as JPEG of quality 90 comes to 0.98 or more and one that is 5 % brighter to 0.993, while the two most
#: alike of different cells come to 0.968; a Reuters text with one word of some sixty less or misspelt mostly comes to 0.98, and
#: of two different texts one in a hundred to 0.93.
THRESHOLD = 0.98
#: So many samples of a part are compared, at most: 5,000 with 70,000 take some 13 s of one core.
MOST_HELD_OUT = 5_000
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Twin:
    """A sample of a part that was held out, and the one that is most like it in another part."""

    part: str
    index: int
    other_part: str
    other_index: int
    similarity: float


@dataclass(frozen=True, slots=True)
class Twins:
    """What was found, the most alike first, and of how many samples."""

    found: list[Twin]
    num_looked_at: int
    num_held_out: int


def near_duplicates(
    features: Mapping[str, Tensor], *, threshold: float = THRESHOLD, most: int = MOST_HELD_OUT, seed: int = 0
) -> Twins:
    """Give the samples that are nearly the same as one of an earlier part.

    Each sample of a part after the first (validation, test) is compared with all of the parts before. Features are centred with the
    mean of the first part: those of a network point the same way for the most part, and the angle between what is left tells
    samples apart.

    Args:
        features: For each part in its order, train first, what one and the same network makes of its samples (N, D).
        threshold: Cosine from which on a pair counts.
        most: Samples of a part that are compared; drawn where there are more.
        seed: Of that draw.

    Example:
        >>> features = {"train": torch.eye(4), "test": torch.eye(4)[2:3] + 0.001}
        >>> near_duplicates(features).found[0].other_index
        2
    """
    parts = list(features)
    centre = features[parts[0]].mean(dim=0)
    unit = {part: normalize(features[part] - centre, dim=1) for part in parts}
    generator = torch.Generator().manual_seed(seed)
    found: list[Twin] = []
    num_looked_at = 0
    for position, part in enumerate(parts[1:], start=1):
        indices = torch.randperm(len(unit[part]), generator=generator)[:most].sort().values
        num_looked_at += len(indices)
        for rows in torch.split(indices, _BLOCK):
            best = torch.full((len(rows),), -2.0)
            where = [("", 0)] * len(rows)
            for other in parts[:position]:
                start = 0
                for block in torch.split(unit[other], 16 * _BLOCK):
                    similarity, nearest = (unit[part][rows] @ block.T).max(dim=1)
                    for row in torch.nonzero(similarity > best).flatten().tolist():
                        best[row], where[row] = similarity[row], (other, start + int(nearest[row]))
                    start += len(block)
            found += [
                Twin(part, int(index), *place, min(1.0, float(similarity)))
                for index, place, similarity in zip(rows, where, best, strict=True)
                if similarity >= threshold
            ]
    found.sort(key=lambda twin: -twin.similarity)
    return Twins(found, num_looked_at, sum(len(features[part]) for part in parts[1:]))
