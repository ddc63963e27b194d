"""Features in two dimensions, to be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

#: Points on the map: more make the page slow, and t-SNE slower still.
MOST_POINTS = 2_000
# t-SNE of fewer points has nothing to arrange.
_FEWEST_FOR_TSNE = 20
# What the paper does first: noise is left out, and distances cost less.
_NUM_COMPONENTS = 50


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """Places (M, 2) of some samples, which they are, and how they were found."""

    places: list[list[float]]
    indices: list[int]
    method: str
    share_of_variance: float | None


def map_features(features: Tensor, *, most: int = MOST_POINTS, seed: int = 0) -> FeatureMap:
    """Give features places in the plane: by t-SNE where scikit-learn is installed, else by principal components.

    Args:
        features: (N, D).
        most: Points; as many samples are drawn where there are more.
        seed: Of that draw, and of t-SNE.

    Source: van der Maaten and Hinton 2008, "Visualizing Data using t-SNE", JMLR 9:2579-2605.

    Example:
        >>> found = map_features(torch.tensor([[0.0, 0.0], [3.0, 3.0], [6.0, 6.0]]))
        >>> found.method, found.share_of_variance, [round(abs(x), 2) for x, _ in found.places]
        ('PCA', 1.0, [4.24, 0.0, 4.24])
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(features), generator=generator)[:most].sort().values
    centred = features[chosen].double()
    centred = centred - centred.mean(dim=0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    components = left * singular  # (M, min(M, D)), by variance
    varies = bool(len(singular) > 1 and singular[0] > 1e-9)
    if varies and len(chosen) >= _FEWEST_FOR_TSNE and find_spec("sklearn") is not None:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(chosen) - 1) / 3)
        tsne = TSNE(init="pca", perplexity=perplexity, random_state=seed)
        places = tsne.fit_transform(components[:, :_NUM_COMPONENTS].float().numpy()).tolist()
        return FeatureMap(places, chosen.tolist(), "t-SNE", None)
    flat = torch.zeros(len(chosen), 2, dtype=torch.float64)
    flat[:, : components.shape[1]] = components[:, :2]
    share = float((singular[:2] ** 2).sum() / (singular**2).sum()) if varies else 1.0
    return FeatureMap(flat.tolist(), chosen.tolist(), "PCA", round(share, 4))
