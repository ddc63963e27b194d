"""`--format adapters`: what the plan `lora` trained and no more, for `peft`: adapters for the pretrained weights, and a head."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headstart.backbones import Backbone, load_backbone
from headstart.callbacks.plan import runner_of
from headstart.errors import MisconfigurationError, missing_dependency
from headstart.export import prepare
from headstart.export.compare import Logits
from headstart.export.samples import Sample, opened
from headstart.export.source import Source
from headstart.files import write_together
from headstart.tasks import Classifier

if TYPE_CHECKING:
    from headstart.trainer import Trainer

HEAD_FILE = "head.safetensors"
#: Where a run keeps them: its model has them added to its weights.
FOLDER_IN_RUN = "adapters"
_FILES = ("adapter_config.json", "adapter_model.safetensors")


def keep_adapters(trainer: Trainer, model: Classifier, run: Path) -> None:
    """Write the adapters of a run that trained some into its folder, as `peft` reads them.

    Args:
        trainer: After the fit, which has added them to the model's weights.
        model: Whose they are.
        run: The run's folder.
    """
    runner = runner_of(trainer)
    if runner is None or not runner.adapters:
        return
    from peft import LoraConfig
    from safetensors.torch import save_file

    lora = runner.plan.lora
    assert lora is not None
    # Of the backbone that was adapted, `model` is the network that its library knows.
    weights = {name.removeprefix("model."): value.contiguous() for name, value in runner.adapters.items()}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted({name.partition(".lora_")[0] for name in weights}),
        base_model_name_or_path=model.backbone.name,
        inference_mode=True,
    )
    folder = run / FOLDER_IN_RUN
    folder.mkdir(exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {f"base_model.model.{name}": value for name, value in weights.items()}
    write_together({folder / _FILES[1]: lambda path: save_file(tensors, path, metadata={"format": "pt"})})


def write(folder: Path, source: Source) -> dict[str, Any]:
    """Write adapters, head, and for texts a tokenizer.

    Raises:
        MisconfigurationError: If the run has no adapters.
    """
    from safetensors.torch import save_file

    kept = source.run / FOLDER_IN_RUN
    if not all((kept / name).is_file() for name in _FILES):
        raise MisconfigurationError(
            f"{source.run} has no adapters ({kept} is not there): it was not fitted with --plan lora. The other formats hold "
            "the whole model."
        )
    for name in _FILES:
        shutil.copyfile(kept / name, folder / name)
    head = {name: value.detach().clone() for name, value in source.model.head.state_dict().items()}
    save_file(head, folder / HEAD_FILE, metadata={"format": "pt"})
    if source.model.kind == "text":
        facts = source.facts["preprocessing"]
        prepare.save_tokenizer(folder, source.tokenizer_files(), max_length=facts["max_length"])
    return {}


def predict(folder: Path, description: dict[str, Any], batches: Sequence[Sequence[Sample]]) -> list[Logits]:
    """Give the logits of batches of samples, by the pretrained backbone with the adapters that `peft` puts in."""
    try:
        from peft import PeftModel
    except ImportError:
        raise missing_dependency("peft", needed_for="--format adapters", extra="lora") from None
    from safetensors.torch import load_file

    backbone = load_backbone(description["backbone"])
    with warnings.catch_warnings():
        # peft asks transformers for a property under its old name; nothing is trained here.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        backbone.model = PeftModel.from_pretrained(backbone.model, str(folder)).eval()
    weights = load_file(folder / HEAD_FILE)
    head = torch.nn.Linear(backbone.width, len(description["class_names"]))
    head.load_state_dict(weights)
    with torch.no_grad():
        return [
            head(backbone(_inputs(backbone, description, folder, samples))).numpy() for samples in batches
        ]


def _inputs(backbone: Backbone, description: dict[str, Any], folder: Path, samples: Sequence[Sample]) -> Any:
    facts = description["preprocessing"]
    if backbone.kind == "images":
        mean, std = (torch.tensor(facts[name]).view(3, 1, 1) for name in ("mean", "std"))
        pixels = torch.stack([torch.tensor(prepare.pixels_of(opened(each), facts)) for each in samples])
        return (pixels.permute(0, 3, 1, 2).float() / facts["divide_by"] - mean) / std
    names = list(backbone.preprocessing(["a text"]))  # type: ignore[operator]  # of a text backbone
    arrays = prepare.tokens_of(samples, folder / facts["tokenizer"], names)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
