"""From photos and texts to probabilities, in the same steps as `headstart predict`."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import torch

from headstart.data.images import image_size, read_image
from headstart.precision import Precision
from headstart.serving.limits import Takes
from headstart.tasks import Classifier, ImageClassifier
from headstart.transfer import move_to_device

# Unpacked, a photo of a phone's camera takes 150 MB on its way. Larger ones are unpacked one at a time.
_LARGE = 12_000_000  # pixels


class Predictor:
    """A trained model, ready for samples of many requests.

    Args:
        model: The model, as `load_artefact` gives it.
        takes: What it takes.
        device: Where it computes.
        precision: Number format, as the `Trainer` takes it.

    Example:
        >>> from PIL import Image
        >>> import io
        >>> model = ImageClassifier("torchvision:resnet18", class_names=["cat", "dog"], pretrained=False).eval()
        >>> predictor = Predictor(model, takes="photos", device=torch.device("cpu"))
        >>> Image.new("RGB", (60, 40)).save(file := io.BytesIO(), "PNG")
        >>> sample = predictor.unpack(file, max_pixels=10_000)
        >>> [round(sum(each), 3) for each in predictor.probabilities([sample, sample])]
        [1.0, 1.0]
    """

    def __init__(
        self, model: Classifier, *, takes: Takes, device: torch.device, precision: str = "32-true"
    ) -> None:
        self.takes = takes
        self.class_names = model.class_names
        self._precision = Precision(precision, device=device)
        self._device = device
        self._model = model.to(device).eval()
        self._precision.convert(self._model)
        if isinstance(model, ImageClassifier):
            self._model.to(memory_format=torch.channels_last)  # as `headstart predict` has it
            self._transform = model.preprocessing.eval_transform()
        self._one_at_a_time = threading.Lock()

    def unpack(self, file: BinaryIO, *, max_pixels: int) -> torch.Tensor:
        """Give a photo as the model sees it (3, H, W). For any thread.

        Raises:
            DataError: If it is no image, damaged, or larger than `max_pixels`; the message is the reason alone.
        """
        width, height = image_size(file, max_pixels=max_pixels)
        if width * height <= _LARGE:
            return self._unpack(file, max_pixels=max_pixels)
        with self._one_at_a_time:
            return self._unpack(file, max_pixels=max_pixels)

    def _unpack(self, file: BinaryIO, *, max_pixels: int) -> torch.Tensor:
        unpacked: torch.Tensor = self._transform(read_image(file, max_pixels=max_pixels))
        return unpacked

    def probabilities(self, samples: Sequence[Any]) -> list[list[float]]:
        """Give the probabilities of each class, for photos that were unpacked, texts, or pairs. For one thread at a time.

        Args:
            samples: One or more.
        """
        preprocessing: Any = self._model.preprocessing  # a tokenizer is for one thread
        batch = torch.stack(list(samples)) if self.takes == "photos" else preprocessing(list(samples))
        batch = self._precision.convert_batch(move_to_device(batch, self._device))
        with torch.inference_mode(), self._precision.forward_context():
            output = self._model.predict_step(batch)["probabilities"]
        found: list[list[float]] = output.float().cpu().tolist()
        return found


def what_it_takes(model: Classifier, metadata: Mapping[str, Any]) -> Takes:
    """Give what a model takes; whether texts come in pairs stands in what it remembers of its training data.

    Args:
        model: The model.
        metadata: What `read_metadata` gives.
    """
    if isinstance(model, ImageClassifier):
        return "photos"
    return "pairs" if (metadata.get("data") or {}).get("texts_per_sample", 1) == 2 else "texts"
