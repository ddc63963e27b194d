"""What is exported: a run's model, and the facts that every export carries with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.artefact import load_artefact, read_metadata
from headstart.backbones import ImagePreprocessing, TextPreprocessing
from headstart.errors import MisconfigurationError
from headstart.tasks import Classifier


@dataclass(frozen=True, slots=True)
class Source:
    """A run that is exported.

    Attributes:
        run: Its folder.
        metadata: Its `headstart.json`.
        model: Its model, on the CPU and in evaluation mode.
        facts: What every export says of itself: class names, preprocessing, calibration, origin.
    """

    run: Path
    metadata: dict[str, Any]
    model: Classifier
    facts: dict[str, Any]

    def tokenizer_files(self) -> dict[str, bytes]:
        """Give the tokenizer of a text model as files by name.

        Raises:
            MisconfigurationError: If it is none of the library tokenizers, which other programs can read.
        """
        assert isinstance(self.model.preprocessing, TextPreprocessing), "images have no tokenizer"
        files = self.model.preprocessing.files()
        if "tokenizer.json" not in files:
            raise MisconfigurationError(
                f"The tokenizer of {self.facts['backbone']!r} has no tokenizer.json, which other programs read; it has "
                f"{', '.join(files)}. Use the run itself: headstart predict, headstart serve."
            )
        return files


def read_source(run: str | Path) -> Source:
    """Give the model of a run with its facts.

    Raises:
        CheckpointError: If the folder holds no whole artefact.
    """
    metadata = read_metadata(run)
    model = load_artefact(run)
    calibration = (metadata.get("metrics") or {}).get("calibration") or {}
    facts = {
        "task": metadata["task"],
        "class_names": metadata["class_names"],
        "preprocessing": preprocessing_facts(model.preprocessing),
        "calibration": {
            # The head's weights are divided by it: the softmax of the logits is calibrated as it is.
            "temperature": calibration.get("temperature"),
            "where": "in the weights of the head",
        },
        "backbone": metadata["backbone"]["name"],
        "architecture": metadata["backbone"]["architecture"],
        "texts_per_sample": (metadata.get("data") or {}).get("texts_per_sample", 1),
        "versions": metadata["versions"],
        "created": metadata.get("created"),
    }
    if isinstance(model.preprocessing, ImagePreprocessing):
        del facts["texts_per_sample"]
    return Source(Path(run), metadata, model, facts)


def preprocessing_facts(preprocessing: ImagePreprocessing | TextPreprocessing) -> dict[str, Any]:
    """Give what is done to a photo or a text, step by step, in words that need no library.

    Example:
        >>> preprocessing_facts(ImagePreprocessing(size=224, crop_fraction=0.875))["resize_shorter_side"]
        256
    """
    if isinstance(preprocessing, TextPreprocessing):
        return {"tokenizer": "tokenizer.json", "max_length": preprocessing.max_length}
    return {
        "color": "RGB",
        "resize_shorter_side": round(preprocessing.size / preprocessing.crop_fraction),
        "interpolation": preprocessing.interpolation,
        "center_crop": preprocessing.size,
        "divide_by": 255,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
