"""Files made to harm: each is refused with a clear error, none of its code runs, memory stays bounded."""

import csv
import json
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from headstart.artefact import load_artefact, read_metadata, save_artefact
from headstart.backbones.weights import read_weights
from headstart.checkpoint import load_module, read_checkpoint
from headstart.cli.run_folder import RunFolder
from headstart.data.images import check_images, open_image
from headstart.data.table import read_table
from headstart.errors import CheckpointError, DataError, HeadstartError, MisconfigurationError
from headstart.tasks import ImageClassifier


class Planted:
    """Makes a folder where it is unpickled without protection."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


READERS = {"checkpoint": read_checkpoint, "weights": read_weights}
readers = pytest.mark.parametrize("read", READERS.values(), ids=READERS)

# ---- pickles with code


@readers
@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_code_in_a_pickle_does_not_run(tmp_path, read, form):
    path = tmp_path / "bad.pth"
    content = {"state_dict": {"w": torch.ones(1)}, "more": Planted(tmp_path / "ran")}
    if form == "bare":
        path.write_bytes(pickle.dumps(content["more"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"bad\.pth cannot be read"):
        read(path)
    assert not (tmp_path / "ran").exists()


# ---- archives that burst the memory


def rewritten(source: Path, target: Path, change) -> Path:
    """Copy an archive entry by entry, each as `change(info, content)` gives it."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for info in before.infolist():
            after.writestr(*change(info, before.read(info)))
    return target


@pytest.fixture
def harmless(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(1000)}}, tmp_path / "harmless.pth")
    return tmp_path / "harmless.pth"


@readers
def test_compressed_entries_are_refused_before_they_are_unpacked(tmp_path, harmless, read):
    def change(info, content):
        info.compress_type = zipfile.ZIP_DEFLATED
        return info, content if "data/0" not in info.filename else bytes(50_000_000)

    bomb = rewritten(harmless, tmp_path / "bomb.pth", change)
    assert bomb.stat().st_size < 60_000
    with pytest.raises(CheckpointError, match=r"compressed or encrypted, which torch\.save never does"):
        read(bomb)


def test_entries_that_share_their_bytes_are_refused(tmp_path, harmless):
    content = harmless.read_bytes()
    with zipfile.ZipFile(harmless) as archive:
        first, second = archive.infolist()[:2]
    # The second entry of the table of contents says that it begins where the first one does.
    place = content.rindex(struct.pack("<L", second.header_offset), 0)
    harmless.write_bytes(content[:place] + struct.pack("<L", first.header_offset) + content[place + 4 :])
    with pytest.raises(CheckpointError, match="overlaps what comes after it|does not begin"):
        read_checkpoint(harmless)


def test_two_entries_of_one_name_are_refused(tmp_path, harmless):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(harmless, "a") as archive:
        archive.writestr("harmless/data.pkl", b"other")
    with pytest.raises(CheckpointError, match="same name"):
        read_checkpoint(harmless)


LIMITED = """
import pickle, resource, sys, zipfile
from pathlib import Path
import torch
from headstart.checkpoint import read_checkpoint, write_checkpoint
from headstart.backbones.weights import read_weights
from headstart.data.images import check_images, open_image
from headstart.data.table import read_table
from headstart.errors import HeadstartError
import PIL.Image, safetensors.torch

folder = Path(sys.argv[1])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
room = 2_500_000_000
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
readers = {".ckpt": read_checkpoint, ".safetensors": read_weights, ".png": open_image, ".csv": read_table, ".parquet": read_table}
for path in sorted(folder.iterdir()):
    try:
        found = readers[path.suffix](path)
    except HeadstartError as error:
        assert path.name in str(error), error
        print(path.name, "refused", str(error)[:1000].replace(chr(10), " "))
    else:
        print(path.name, "read", getattr(found, "set_aside", ""))
# ru_maxrss would be that of the process that started this one, if it was larger.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print("peak", peak.split()[1])
"""


def bomb_png(path: Path, width: int, height: int) -> None:
    """A PNG of a few bytes whose header says that it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    header = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.slow
def test_memory_stays_bounded_whatever_a_file_claims(tmp_path, program):
    import pyarrow as pa
    from pyarrow import parquet

    folder = tmp_path / "hostile"
    folder.mkdir()
    # A checkpoint of 2 kB that asks for a byte array of a terabyte, and one that asks for such a storage.
    torch.save({"state_dict": {}}, tmp_path / "a.pth")
    huge = b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85R."
    rewritten(
        tmp_path / "a.pth", folder / "bytearray.ckpt",
        lambda info, content: (info, huge if info.filename.endswith("data.pkl") else content),
    )  # fmt: skip
    (folder / "length.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    bomb_png(folder / "giga.png", 100_000, 10_000)
    row = b"x" * 100_000_000
    (folder / "cell.csv").write_bytes(b"text,label\ngood,1\n" + row + b",1\nbad,0\n")
    # 6 kB, in which one text of a megabyte stands for 3,000.
    schema = pa.schema({"text": pa.string()})
    with parquet.ParquetWriter(folder / "rows.parquet", schema, compression="zstd") as writer:
        for _ in range(30):
            writer.write_table(pa.table({"text": pa.array(["a" * 1_000_000] * 100)}))
    assert (folder / "rows.parquet").stat().st_size < 100_000
    out = program(LIMITED, folder)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "refused" in lines["bytearray.ckpt"]
    assert (
        "refused" in lines["length.safetensors"]
        and "damaged, or no safetensors file" in lines["length.safetensors"]
    )
    assert "more than the 178,956,970 pixels that are read" in lines["giga.png"]
    assert "a text of 100,000,000 characters; up to 10,000,000 are read" in lines["cell.csv"]
    assert (
        "rows.parquet refused" in lines["rows.parquet"]
        and "unpacks to more than 50 times" in lines["rows.parquet"]
    )
    assert int(lines["peak"].split()[1]) < 3_000_000  # kB


# ---- safetensors


def safetensors_file(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


ABSURD = {
    "a header of 2^60 bytes": (b"{}", b"", 1 << 60),
    "a header longer than the file": (b"{}", b"", 1000),
    "no JSON": (b"{" * 1000, b"", None),
    "nested JSON": (b'{"a":' * 100_000, b"", None),
    "a tensor out of range": ({"a": entry(0, 400, (100,))}, bytes(4), None),
    "a tensor that begins before the data": ({"a": entry(-4, 0)}, bytes(4), None),
    "a tensor that ends before it begins": ({"a": entry(4, 0)}, bytes(4), None),
    "overlapping tensors": ({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4), None),
    "a hole": ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), None),
    "a dtype that does not exist": ({"a": entry(0, 4, dtype="F33")}, bytes(4), None),
    "a shape of 2^62": ({"a": entry(0, 4, (1 << 31, 1 << 31))}, bytes(4), None),
    "a negative shape": ({"a": entry(0, 4, (-1,))}, bytes(4), None),
    "two tensors of one name": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
        None,
    ),
    "an empty file": (b"", b"", None),
}


@pytest.mark.parametrize("what", ABSURD)
def test_an_absurd_safetensors_file_is_refused(tmp_path, what):
    header, data, length = ABSURD[what]
    path = safetensors_file(tmp_path / "bad.safetensors", header, data, length=length)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors is damaged, or no safetensors file"):
        read_weights(path)


# ---- artefacts that lead elsewhere


@pytest.fixture(scope="module")
def model():
    return ImageClassifier(
        "torchvision:squeezenet1_1", class_names=["a", "b"], pretrained=False, image_size=64
    )


@pytest.fixture
def artefact(tmp_path, model):
    return save_artefact(tmp_path / "run", model)


def change(directory, edit):
    """Edit the metadata as an attacker would: without a checksum, which is allowed."""
    path = directory / "headstart.json"
    metadata = json.loads(path.read_text())
    del metadata["checksum"]
    edit(metadata)
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    "name",
    ["../secret.txt", "/etc/passwd", "tokenizer/../../secret.txt", "tokenizer//etc/passwd", "tokenizer/..", "tokenizer/a/b.txt",
     "tokenizer/x.pkl", "tokenizer/.hidden.txt", "other.txt", "tokenizer\\..\\x.txt"],
)  # fmt: skip
def test_a_file_name_that_leads_elsewhere_is_refused(artefact, name):
    change(artefact, lambda metadata: metadata["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    with pytest.raises(CheckpointError, match="may lie outside of the folder, or is no file of a tokenizer"):
        load_artefact(artefact)


def test_a_link_to_a_file_outside_is_not_read(artefact, tmp_path):
    (artefact / "model.safetensors").rename(tmp_path / "elsewhere")
    (artefact / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is a link to a place outside of the folder"
    ):
        load_artefact(artefact)


def test_the_folder_itself_may_be_a_link(artefact, tmp_path):
    (tmp_path / "link").symlink_to(artefact)
    assert load_artefact(tmp_path / "link").class_names == ["a", "b"]


def test_nothing_is_written_through_links_in_the_folder(tmp_path, model):
    from headstart.artefact import _refuse_links

    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer").symlink_to(tmp_path / "outside")
    with pytest.raises(
        MisconfigurationError, match="tokenizer is a link, and nothing is written through links"
    ):
        _refuse_links(tmp_path / "run", ["tokenizer/vocab.txt"])
    # A link in the place of a file is replaced, and what it led to stays.
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run" / "model.safetensors").symlink_to(tmp_path / "victim")
    save_artefact(tmp_path / "run", model)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize(
    "edit",
    [
        lambda metadata: metadata["arguments"].update(backbone="hf:someone/model", pretrained=True),
        lambda metadata: metadata["backbone"]["architecture"].update(
            library="timm", model="hf-hub:someone/model"
        ),
    ],
)
def test_a_description_that_would_be_fetched_is_refused(artefact, edit):
    change(artefact, edit)
    with pytest.raises(CheckpointError, match="would have to be fetched"):
        load_artefact(artefact)


@pytest.mark.parametrize(
    "edit",
    [
        lambda metadata: metadata.update(files=[]),
        lambda metadata: metadata.update(class_names={"a": 1}),
        lambda metadata: metadata.update(class_names=[["a"], "b"]),
        lambda metadata: metadata.update(task=["image-classification"]),
        lambda metadata: metadata.update(backbone="resnet"),
        lambda metadata: metadata["backbone"].update(architecture=None),
        lambda metadata: metadata["backbone"]["architecture"].update(library="os"),
        lambda metadata: metadata["backbone"]["architecture"].update(model="system"),
        lambda metadata: metadata["arguments"].update(description={"architecture": None}),
        lambda metadata: metadata["arguments"].update(__class__="x"),
        lambda metadata: metadata["arguments"].update(image_size=10**6),
        lambda metadata: metadata["files"].update({"model.safetensors": {"bytes": "many", "sha256": 1}}),
    ],
)
def test_metadata_of_other_kinds_is_refused(artefact, edit):
    change(artefact, edit)
    with pytest.raises(HeadstartError):
        load_artefact(artefact)


def test_weights_with_an_absurd_header_are_refused_though_their_digest_fits(artefact):
    import hashlib

    content = struct.pack("<Q", 1 << 60) + b"{}"
    (artefact / "model.safetensors").write_bytes(content)
    digest = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(artefact, lambda metadata: metadata["files"].update({"model.safetensors": digest}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no safetensors file"):
        load_artefact(artefact)


def test_a_class_name_is_a_text_and_never_a_path(artefact):
    change(artefact, lambda metadata: metadata.update(class_names=["../../etc/passwd", "/b"]))
    assert load_artefact(artefact).class_names == ["../../etc/passwd", "/b"]  # shown, never opened


# ---- a run that came from elsewhere


def test_a_run_with_a_link_out_of_its_folder_does_not_go_on(tmp_path):
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / "run.yaml").touch()
    (tmp_path / "victim").touch()
    (run / "logs" / "metrics.csv").symlink_to(tmp_path / "victim")
    request = type("Request", (), {"resume": True})()
    with pytest.raises(MisconfigurationError, match=r"metrics\.csv is a link out of the run's folder"):
        RunFolder(run).check(request)
    (run / "logs" / "metrics.csv").unlink()
    (run / "logs" / "last").symlink_to("metrics.csv")  # one within it may stay
    (run / "logs" / "wandb" / "offline-run-1").mkdir(parents=True)
    (run / "logs" / "wandb" / "offline-run-1" / "debug.log").symlink_to(
        tmp_path / "victim"
    )  # wandb's own, of a run that is over
    RunFolder(run).check(request)
    (run / "logs" / "wandb" / "new").symlink_to(tmp_path)
    with pytest.raises(MisconfigurationError, match=r"wandb/new is a link out of the run's folder"):
        RunFolder(run).check(request)


# ---- images


def test_an_image_of_a_billion_pixels_is_refused_by_its_header(tmp_path, monkeypatch):
    from PIL import Image

    bomb_png(tmp_path / "bomb.png", 100_000, 10_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other libraries set it
    (reason,) = check_images([tmp_path / "bomb.png"])
    assert reason == "100,000 x 10,000 pixels, more than the 178,956,970 that are read; scale it down"
    with pytest.raises(DataError, match=r"bomb\.png: 100,000 x 10,000 pixels"):
        open_image(tmp_path / "bomb.png")


def test_postscript_is_handed_to_no_other_program(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    (tmp_path / "cat.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(DataError, match=r"cat\.jpg: not an image"):
        open_image(tmp_path / "cat.jpg")
    assert not (tmp_path / "ran").exists()


def test_a_link_to_an_image_elsewhere_is_an_image(tmp_path):
    # Data is often laid out as folders of links; nothing is written there.
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "elsewhere.png")
    (tmp_path / "photo.png").symlink_to(tmp_path / "elsewhere.png")
    assert open_image(tmp_path / "photo.png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("target", ["/dev/zero", "fifo"])
def test_a_link_to_a_device_or_a_pipe_is_not_opened(tmp_path, target):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "photo.png").symlink_to(target)
    (tmp_path / "table.csv").symlink_to(target)
    assert check_images([tmp_path / "photo.png"]) == ["not a file"]
    with pytest.raises(DataError, match="no file"):
        read_table(tmp_path / "table.csv")


# ---- tables


def test_a_cell_of_a_hundred_megabytes_costs_its_row_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.data.table.MAX_CELL", 1000)  # the real one in the test of memory above
    long = "x" * 1001
    (tmp_path / "a.csv").write_text(f'text,label\ngood,1\n"{long[:500]}\n{long[500:]}",1\nbad,0\n')
    (tmp_path / "a.jsonl").write_text(f'{{"text": "good"}}\n{{"text": "{long}"}}\n{{"text": "bad"}}\n')
    for name, place in (("a.csv", "line 3"), ("a.jsonl", "line 2")):
        table = read_table(tmp_path / name)
        assert [values[0] for _, values in table.rows] == ["good", "bad"]
        (aside,) = table.set_aside
        assert str(aside).startswith(f"{place}: a text of 1,00") and "up to 1,000 are read" in str(aside)
    assert csv.field_size_limit() == 131_072  # as it was


def test_json_nested_without_end_costs_its_line_alone(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + '{"text": ' * 100_000 + "\n")
    table = read_table(tmp_path / "a.jsonl")
    assert len(table.rows) == 1 and "not JSON" in str(table.set_aside[0])


# ---- YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: !!python/object/apply:os.mkdir ['{ran}']", r"tags such as !!python/object are never followed"),
        ("lr: !!python/name:os.system", r"tags such as !!python/object are never followed"),
        ("lr: [1, 2", r"h\.yaml cannot be read"),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefg", "bcdefgh", strict=True)
        ), "repeats itself by aliases"),
        ("a: &a [*a]", "repeats itself by aliases"),
    ],
)  # fmt: skip
def test_yaml_is_plain_values(tmp_path, harmless, text, message):
    (tmp_path / "h.yaml").write_text(text.replace("{ran}", str(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=message):
        load_module(
            torch.nn.Identity, harmless, map_location=None, hparams_file=tmp_path / "h.yaml", strict=None,
            on_mismatch="error", kwargs={},
        )  # fmt: skip
    assert not (tmp_path / "ran").exists()


def test_the_options_of_a_run_are_plain_values(tmp_path):
    from headstart.cli.options import read_options

    (tmp_path / "run.yaml").write_text(f"lr: !!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']")
    with pytest.raises(
        MisconfigurationError, match=r"run\.yaml is damaged: could not determine a constructor"
    ):
        read_options(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_metadata_of_an_artefact_is_not_read_without_end(tmp_path):
    (tmp_path / "headstart.json").touch()
    os.truncate(tmp_path / "headstart.json", 10**12)  # a sparse file: a terabyte that takes no room
    with pytest.raises(CheckpointError, match=r"has 1,000,000,000,000 bytes; expected up to 100,000,000"):
        read_metadata(tmp_path)
