"""`--format hf`: a folder in the layout of the Hugging Face hub, with a model card, which stock libraries load.

Photos: timm's layout, `timm.create_model("local-dir:FOLDER", pretrained=True)`. Texts: the backbone in the layout of
transformers, mean and head in that of sentence-transformers. No class of transformers is a linear layer on the mean of the
tokens: its `...ForSequenceClassification` read the first or the last token, through layers that this model does not have.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headstart.backbones.huggingface import quiet
from headstart.errors import MisconfigurationError
from headstart.export import prepare
from headstart.export.compare import Logits
from headstart.export.model_card import model_card
from headstart.export.samples import Sample, opened
from headstart.export.source import Source
from headstart.export.whole import MeanOfTokens, own_weights, whole_network

_HEAD_FOLDER = "2_Dense"

_USAGE_OF_PHOTOS = """\
```python
import timm
import torch
from PIL import Image, ImageOps

folder = "."  # this folder; on the hub: "hf-hub:USER/NAME" in place of "local-dir:..."
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
with torch.no_grad():
    probabilities = model(transform(photo)[None]).softmax(dim=-1)[0]
for name, probability in zip(model.pretrained_cfg["label_names"], probabilities.tolist()):
    print(f"{name}: {probability:.3f}")
```"""

_USAGE_OF_TEXTS = """\
```python
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

folder = "."  # this folder, or a snapshot of it: huggingface_hub.snapshot_download("USER/NAME")
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
head = load_file(f"{folder}/2_Dense/model.safetensors")

inputs = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
with torch.no_grad():
    states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    features = (states * mask).sum(dim=1) / mask.sum(dim=1)
    logits = features @ head["linear.weight"].T + head["linear.bias"]
probabilities = logits.softmax(dim=-1)
for row in probabilities.tolist():
    print({name: round(row[index], 3) for index, name in model.config.id2label.items()})
```

What loads it: `AutoModel` with the lines above{others}.

What does **not**: `AutoModelForSequenceClassification` and the `text-classification` pipeline. They read one token through layers that this model does not have, fill those with random
numbers, and say so in a warning only. `AutoModel` names a pooler that it made anew: the lines above do not read it."""


def write(folder: Path, source: Source) -> dict[str, Any]:
    """Write configuration, weights, tokenizer and card.

    Raises:
        MisconfigurationError: If the hub has no layout for the architecture that holds such a model.
    """
    library = source.facts["architecture"]["library"]
    if library == "timm":
        _write_for_timm(folder, source)
        card = model_card(source, library="timm", usage=_USAGE_OF_PHOTOS)
    elif library == "transformers" and source.model.kind == "text":
        card = model_card(source, library="sentence-transformers", usage=_write_for_texts(folder, source))
    else:
        raise MisconfigurationError(
            f"The backbone {source.facts['backbone']!r} is {library}'s, and for its photos --format hf has no layout that "
            "stock code loads with this head: it has timm's, and for texts that of transformers. Take --format onnx, torch-export "
            "or safetensors."
        )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return {}


def predict(folder: Path, description: dict[str, Any], batches: Sequence[Sequence[Sample]]) -> list[Logits]:
    """Give the logits of batches of samples, as the card says how to."""
    if description["architecture"]["library"] == "timm":
        return _predict_by_timm(folder, batches)
    return _predict_by_transformers(folder, batches)


# ---- photos


def _write_for_timm(folder: Path, source: Source) -> None:
    from timm.models import save_for_hf

    facts, names = source.facts["preprocessing"], source.model.class_names
    network, _ = whole_network(source.facts["architecture"], len(names))
    network.load_state_dict(own_weights(source))
    size = facts["center_crop"]
    network.pretrained_cfg = {  # type: ignore[assignment]  # a plain table, which timm writes out
        **network.pretrained_cfg,  # type: ignore[dict-item]
        "input_size": (3, size, size),
        "mean": tuple(facts["mean"]),
        "std": tuple(facts["std"]),
        "interpolation": facts["interpolation"],
        # timm divides the size by this and rounds down: half a pixel more, so that it comes out as here.
        "crop_pct": 1.0
        if facts["resize_shorter_side"] == size
        else size / (facts["resize_shorter_side"] + 0.5),
        "crop_mode": "center",
        "test_input_size": None,
        "test_crop_pct": None,
    }
    save_for_hf(network, str(folder), model_config={"label_names": names}, safe_serialization=True)


def _predict_by_timm(folder: Path, batches: Sequence[Sequence[Sample]]) -> list[Logits]:
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        return [
            model(torch.stack([transform(opened(photo)) for photo in photos])).numpy() for photos in batches
        ]


# ---- texts


def _write_for_texts(folder: Path, source: Source) -> str:
    """Write all but the card, and give its section on how to use it."""
    import transformers
    from safetensors.torch import save_file

    network, names = source.model.backbone.model, source.model.class_names
    facts = source.facts["preprocessing"]
    network.config.id2label = dict(enumerate(names))  # type: ignore[union-attr]  # a network of transformers
    network.config.label2id = {name: index for index, name in enumerate(names)}  # type: ignore[union-attr]
    with quiet(transformers):
        network.save_pretrained(folder)  # type: ignore[operator]
    prepare.save_tokenizer(folder, source.tokenizer_files(), max_length=facts["max_length"])
    head = source.model.head
    (folder / _HEAD_FOLDER).mkdir()
    weights = {f"linear.{name}": value.detach().clone() for name, value in head.state_dict().items()}
    save_file(weights, folder / _HEAD_FOLDER / "model.safetensors", metadata={"format": "pt"})
    dense = {
        "in_features": head.in_features,
        "out_features": head.out_features,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    kinds = ("Transformer", "Pooling", "Dense")
    for name, content in {
        "modules.json": [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, (path, kind) in enumerate(zip(("", "1_Pooling", _HEAD_FOLDER), kinds, strict=True))
        ],
        "sentence_bert_config.json": {"max_seq_length": facts["max_length"], "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": head.in_features,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        f"{_HEAD_FOLDER}/config.json": dense,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    if source.facts["texts_per_sample"] == 2:
        return _USAGE_OF_TEXTS.replace("TEXTS", '["a first text"], ["its second text"]').replace(
            "{others}", ""
        )
    others = "; and `SentenceTransformer(folder).encode(texts)`, which gives the logits"
    return _USAGE_OF_TEXTS.replace("TEXTS", '["a text", "another one"]').replace("{others}", others)


def _predict_by_transformers(folder: Path, batches: Sequence[Sequence[Sample]]) -> list[Logits]:
    import transformers
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    with quiet(transformers):
        network = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    weights = load_file(folder / _HEAD_FOLDER / "model.safetensors")
    num_classes, width = weights["linear.weight"].shape
    head = torch.nn.Linear(width, num_classes)
    head.load_state_dict({name.removeprefix("linear."): value for name, value in weights.items()})
    classifier = MeanOfTokens(network, head)
    found = []
    for texts in batches:
        columns = (
            [list(texts)] if isinstance(texts[0], str) else [list(each) for each in zip(*texts, strict=True)]
        )
        tokens = tokenizer(*columns, truncation=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            found.append(classifier(**tokens).numpy())
    return found
