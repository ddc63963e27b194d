"""Feed the readers of files with what coverage-guided mutation finds, for a bounded time.

    pip install atheris
    python tests/faults/files/fuzz.py checkpoint --seconds 300
    python tests/faults/files/fuzz.py --list

A reader gives a value or raises a `HeadstartError`. Anything else ends the run with the input in a file, `crash-*`: make a
test of it in `test_fuzz.py`, which runs the same targets on a bounded number of mutations and needs no atheris.
"""

from __future__ import annotations

import argparse
import atexit
import io
import json
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(
    tempfile.mkdtemp(prefix="headstart-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


class Target(NamedTuple):
    """A reader, and files from which mutations begin."""

    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]


def _state() -> dict[str, Any]:
    import torch

    weight = torch.arange(6.0).reshape(2, 3)
    return {
        "state_dict": {
            "w": weight,
            "t": weight.T,
            "p": torch.nn.Parameter(weight),
            "b": torch.ones(2).bfloat16(),
        },
        "hyper_parameters": {"lr": 0.1, "names": ["a", "b"], "none": None, "flag": True, "pair": (1, 2.5)},
        "epoch": 3,
        "big": 1 << 70,
        "bytes": b"abc",
    }


def _file(name: str, content: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(content)
    return path


# ---- a checkpoint: as it is, of another tool (no seal), and its pickle alone with all checksums right


def read_checkpoint(content: bytes) -> object:
    from headstart.checkpoint import read_checkpoint as read

    return read(_file("a.ckpt", content))


def sealed() -> list[bytes]:
    from headstart.checkpoint import write_checkpoint

    write_checkpoint(_state(), FOLDER / "seed.ckpt")
    return [(FOLDER / "seed.ckpt").read_bytes()]


def unsealed() -> list[bytes]:
    import torch

    new, old = io.BytesIO(), io.BytesIO()
    torch.save(_state(), new)
    torch.save(_state(), old, _use_new_zipfile_serialization=False)
    return [new.getvalue(), old.getvalue()]


def read_pickle(content: bytes) -> object:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/byteorder", "little")
        for index in range(4):
            file.writestr(f"a/data/{index}", bytes(24))
        file.writestr("a/version", "3\n")
    from headstart.backbones.weights import read_weights

    return read_weights(_file("a.pth", archive.getvalue()))


def pickles() -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(unsealed()[0])) as archive:
        return [archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))]


# ---- weights, artefacts


def read_safetensors(content: bytes) -> object:
    from headstart.backbones.weights import read_weights

    return read_weights(_file("a.safetensors", content))


def safetensors_files() -> list[bytes]:
    import torch
    from safetensors.torch import save

    return [save({"w": torch.ones(2, 3), "half": torch.ones(2).half()}, metadata={"format": "pt"})]


_ARTEFACT = FOLDER / "artefact"


def read_metadata(content: bytes) -> object:
    from headstart.artefact import read_metadata as read

    _ARTEFACT.mkdir(exist_ok=True)
    (_ARTEFACT / "headstart.json").write_bytes(content)
    return read(_ARTEFACT)


def read_artefact(content: bytes) -> object:
    from headstart.artefact import load_artefact

    _ARTEFACT.mkdir(exist_ok=True)
    (_ARTEFACT / "headstart.json").write_bytes(content)
    return load_artefact(_ARTEFACT)


def metadata() -> list[bytes]:
    from headstart.artefact import save_artefact
    from headstart.tasks import ImageClassifier

    model = ImageClassifier(
        "torchvision:squeezenet1_1", class_names=["a", "b"], pretrained=False, image_size=64
    )
    save_artefact(_ARTEFACT, model, metrics={"val_acc": 0.5})
    return [(_ARTEFACT / "headstart.json").read_bytes()]


def metadata_without_checksum() -> list[bytes]:
    found = json.loads(metadata()[0])
    del found["checksum"]
    return [json.dumps(found).encode()]


# ---- stored features


def read_features(content: bytes) -> object:
    """Both files in one input: the length of the table, the table, the rows. `Store` notes and computes again."""
    from headstart.deferred import saved
    from headstart.deferred.columns import Layout

    cut = int.from_bytes(content[:4], "little")
    stem = FOLDER / saved.stem("k")
    rows = content[4 + cut :]
    stem.with_suffix(".npy").write_bytes(rows)
    table = content[4 : 4 + cut]
    try:  # checksums are made right, so that what they guard is reached
        fields = json.loads(table)
        fields.pop("own_checksum", None)
        with stem.with_suffix(".npy").open("rb") as file:
            fields["checksums"] = saved._checksums(file)
        table = saved._encode(fields)
    except (ValueError, AttributeError, RecursionError):
        pass
    stem.with_suffix(".json").write_bytes(table)
    import torch

    try:
        found = saved.read(FOLDER, "k", Layout(3, (2,), torch.float32, False))
        return None if found is None else (found[0].sum().item(), found[1].sum().item())
    except (ValueError, OSError):  # what `Store` expects
        return None


def features() -> list[bytes]:
    import torch

    from headstart.deferred import saved
    from headstart.deferred.columns import Layout

    layout = Layout(3, (2,), torch.float32, False)
    work, rows = saved.create(FOLDER, "k", layout)
    rows.fill_(1.0)
    saved.commit(work, "k", layout, torch.ones(3, dtype=torch.bool))
    stem = FOLDER / saved.stem("k")
    table = stem.with_suffix(".json").read_bytes()
    return [len(table).to_bytes(4, "little") + table + stem.with_suffix(".npy").read_bytes()]


# ---- tables, images


def _reads_table(suffix: str) -> Callable[[bytes], object]:
    def read(content: bytes) -> object:
        from headstart.data.table import read_table

        return read_table(_file(f"a{suffix}", content))

    return read


def delimited() -> list[bytes]:
    return [
        b'text,label\n"good, ""very"" good",1\r\nbad,0\n',
        b"\xef\xbb\xbftext;label\nbad\xff;0\n",
        "text\tlabel\ngut\t1\n".encode("utf-16"),
    ]


def json_lines() -> list[bytes]:
    return [b'{"text": "good", "label": 1}\n{"text": [1, {"a": null}], "more": 1e999}\n\n']


def parquets() -> list[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"text": ["good", "bad", None], "label": [1, 0, 1], "list": [[1], [2], []]})
    found = []
    for compression in ("none", "snappy"):
        file = io.BytesIO()
        parquet.write_table(table, file, compression=compression)
        found.append(file.getvalue())
    return found


def read_image(content: bytes) -> object:
    from headstart.data.images import check_images, open_image

    path = _file("a.png", content)
    check_images([path])
    return open_image(path)


def images() -> list[bytes]:
    from PIL import Image

    found = []
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(file, form)
        found.append(file.getvalue())
    return found


TARGETS = {
    "checkpoint": Target(read_checkpoint, sealed),
    "foreign": Target(read_checkpoint, unsealed),
    "pickle": Target(read_pickle, pickles),
    "safetensors": Target(read_safetensors, safetensors_files),
    "metadata": Target(read_metadata, metadata),
    "artefact": Target(read_artefact, metadata_without_checksum),
    "features": Target(read_features, features),
    "csv": Target(_reads_table(".csv"), delimited),
    "tsv": Target(_reads_table(".tsv"), delimited),
    "jsonl": Target(_reads_table(".jsonl"), json_lines),
    "parquet": Target(_reads_table(".parquet"), parquets),
    "image": Target(read_image, images),
}


def feed(name: str, content: bytes) -> None:
    """Give a target an input; return if it answers as a reader should."""
    from headstart.errors import HeadstartError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of decoders, about odd files
        try:
            TARGETS[name].read(content)
        except HeadstartError as error:
            if not str(error):
                raise AssertionError("an error without a message") from error


def main() -> None:
    """Fuzz one target for a bounded time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--list", action="store_true", help="name the targets")
    options = parser.parse_args()
    if options.list or options.target is None:
        print("\n".join(TARGETS))
        return
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris")
    import torch
    from torch._weights_only_unpickler import Unpickler

    with atheris.instrument_imports(include=["headstart"]):
        import headstart.artefact
        import headstart.backbones.weights
        import headstart.checkpoint
        import headstart.data.table
        import headstart.deferred.saved  # noqa: F401
    # These are loaded already, and decide what a file may do.
    for function in (
        Unpickler.load,
        zipfile.ZipFile._RealGetContents,
        zipfile.ZipInfo._decodeExtra,
        torch.serialization._load,
    ):
        atheris.instrument_func(function)
    corpus = FOLDER / f"corpus-{options.target}"
    corpus.mkdir()
    for index, seed in enumerate(TARGETS[options.target].seeds()):
        (corpus / str(index)).write_bytes(seed)
    arguments = [
        f"-max_total_time={options.seconds}",
        "-rss_limit_mb=6000",
        "-max_len=20000",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], lambda content: feed(options.target, content))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
