import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headstart.backbones import load_backbone
from headstart.backbones.timm_models import _lite0_file
from headstart.backbones.weights import read_weights


def test_input_is_the_authors_normalisation():
    values = np.arange(224 * 224 * 3, dtype=np.int64).reshape(224, 224, 3) % 256
    photo = Image.fromarray(values.astype(np.uint8))
    found = load_backbone("efficientnet_lite0", pretrained=False).preprocessing.eval_transform()(photo)
    expected = torch.from_numpy((values - 127) / 128).float().permute(2, 0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # float32 rounding of another order


def test_every_packaged_tensor_is_in_its_place():
    own = load_backbone("efficientnet_lite0").model.state_dict()
    packaged = list(read_weights(_lite0_file()).values())[:-2]  # without the classifier
    assert len(own) == len(packaged)
    assert all(torch.equal(here, there) for here, there in zip(own.values(), packaged, strict=True))


@pytest.mark.slow
def test_pretrained_features_tell_defective_solar_cells_better_than_random_ones(solar_cells):
    labels = [label for _, label in solar_cells]
    # Shuffled: the photos are sorted by module, and a block of them is another module than the rest.
    folds = StratifiedKFold(n_splits=5, shuffle=True, random_state=0)
    scores = {}
    for pretrained in (True, False):
        torch.manual_seed(0)
        backbone = load_backbone("efficientnet_lite0", pretrained=pretrained).eval()
        transform = backbone.preprocessing.with_changes(size=128).eval_transform()
        photos = torch.stack([transform(Image.open(path).convert("RGB")) for path, _ in solar_cells])
        with torch.inference_mode():
            features = torch.cat([backbone(part) for part in photos.split(50)]).numpy()
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, max_iter=500))
        scores[pretrained] = cross_val_score(probe, features, labels, cv=folds).mean()
    # Measured at C=0.001: 0.785, and 0.71 to 0.745 with three draws of random weights; C was chosen after looking. At 0.01
    # it is 0.78 against 0.705, 0.745 and 0.775. The difference has a standard error of about 0.03 on 200 photos, so with
    # its seed this test notices weights that went missing, and is no measure of how much pretraining gives.
    assert scores[True] > scores[False] + 0.02, scores
