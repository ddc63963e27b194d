"""The store of per-sample values: what is taken is what was put, or is known to be missing."""

import errno
import gc
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from headstart.deferred import columns, saved
from headstart.deferred.store import Store

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.int64]


@pytest.fixture
def notes():
    return []


@pytest.fixture
def kept(tmp_path, notes):
    """Make a `Store` on one directory, as each run of a program would."""
    stores = []

    def make(**settings):
        settings = {"memory_limit": 10**8, "disk_limit": 10**8, "on_note": notes.append, **settings}
        stores.append(Store(directory=tmp_path / "kept", **settings))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def samples(num_samples, shape, dtype):
    values = torch.randn(num_samples, *shape, generator=torch.Generator().manual_seed(num_samples)) * 50
    return values > 0 if dtype == torch.bool else values.abs().to(dtype)


def small(store, key="key", num_samples=20, shape=(3,), dtype=torch.float32, **more):
    return store.column(key, num_samples=num_samples, shape=shape, dtype=dtype, **more)


def fill_and_close(store, **like):
    column = small(store, **like)
    values = samples(column.num_samples, column.shape, column.dtype)
    assert column.put(torch.arange(column.num_samples), values)
    store.close()
    return values


def files(folder, pattern="*"):
    return sorted(path for path in Path(folder).glob(pattern) if path.name != ".lock")


# ---- columns


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_column_gives_back_what_was_put(place, shape, dtype):
    with Store(memory_limit=10**6 if place == "memory" else 0, disk_limit=10**6) as store:
        column = store.column("key", num_samples=20, shape=shape, dtype=dtype)
        values = samples(20, shape, dtype)
        ids = torch.randperm(20)[:12]
        assert (column.num_samples, column.shape, column.dtype, column.place) == (20, shape, dtype, place)
        assert column.put(ids, values[ids])
        taken = column.take(ids.flip(0))
        assert taken.dtype == dtype
        assert torch.equal(taken, values[ids.flip(0)])
        assert column.nbytes == values.nbytes


def test_missing_says_which_rows_were_never_put():
    with Store() as store:
        column = small(store, num_samples=6)
        assert column.missing(torch.tensor([2, 2])).tolist() == [True, True]
        column.put(torch.tensor([2, 4, 2]), torch.zeros(3, 3))
        assert column.missing(torch.tensor([4, 5, 2])).tolist() == [False, True, False]
        assert column.missing(torch.tensor([4, 2, 4])) is None
        assert (column.num_filled, column.is_complete) == (2, False)
        column.put(torch.arange(6), torch.zeros(6, 3))
        assert (column.num_filled, column.is_complete) == (6, True)
        assert column.missing(torch.arange(6)) is None


def test_rows_that_were_never_put_cannot_be_taken():
    with Store() as store:
        column = small(store)
        column.put(torch.tensor([1]), torch.zeros(1, 3))
        with pytest.raises(AssertionError, match="never put"):
            column.take(torch.tensor([1, 2]))


@pytest.mark.parametrize("memory_limit", [10**6, 0])
def test_what_was_taken_shares_no_memory_with_the_column(memory_limit):
    with Store(memory_limit=memory_limit) as store:
        column = small(store)
        column.put(torch.arange(20), torch.ones(20, 3))
        column.take(torch.arange(20)).zero_()
        assert torch.equal(column.take(torch.arange(20)), torch.ones(20, 3))


def test_values_of_another_shape_or_dtype_are_not_converted_quietly():
    with Store() as store:
        column = small(store)
        with pytest.raises((RuntimeError, IndexError)):
            column.put(torch.tensor([0]), torch.zeros(1, 4))
        with pytest.raises((RuntimeError, IndexError)):
            column.put(torch.tensor([0]), torch.zeros(1, 3, dtype=torch.float64))
        with pytest.raises((RuntimeError, IndexError)):
            column.put(torch.tensor([20]), torch.zeros(1, 3))
        assert column.num_filled == 0


@pytest.mark.parametrize("memory_limit", [10**6, 0])
def test_channels_last_rows_come_in_that_memory_format(memory_limit):
    with Store(memory_limit=memory_limit) as store:
        column = small(store, num_samples=5, shape=(3, 4, 6), channels_last=True)
        values = samples(5, (3, 4, 6), torch.float32)
        column.put(torch.arange(5), values)
        taken = column.take(torch.tensor([4, 0, 4]))
        assert torch.equal(taken, values[[4, 0, 4]])
        assert taken.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("memory_limit", [10**6, 8 * 12])
def test_columns_filled_in_inference_mode_serve_autograd(memory_limit):
    ids = torch.arange(4)
    with Store(memory_limit=memory_limit) as store:
        with torch.inference_mode():
            ragged = store.ragged("ragged", num_samples=8, rest=(3,), dtype=torch.float32)
            column = small(store, num_samples=8)
            column.put(ids, torch.ones(4, 3))
            column.take(ids)
            ragged.put(ids, torch.ones(4, 2, 3))
            ragged.take(ids, length=2)
        weight = torch.ones(3, requires_grad=True)
        column.put(ids + 4, weight.expand(4, 3))  # outside, and no part of the graph
        ragged.put(ids + 4, weight.expand(4, 2, 3))
        taken = column.take(torch.arange(8))
        assert not taken.requires_grad
        (taken * weight).sum().backward()
        (ragged.take(torch.arange(8), length=2) * weight).sum().backward()
        assert weight.grad.tolist() == [8.0 + 16.0] * 3


# ---- ragged columns


@pytest.fixture
def tiny_segments(monkeypatch):
    monkeypatch.setattr(columns, "SMALLEST_SEGMENT", 64)
    monkeypatch.setattr(columns, "LARGEST_SEGMENT", 256)


@pytest.mark.parametrize("memory_limit", [10**6, 1000, 20 * 12])
@pytest.mark.parametrize("rest", [(), (2,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_ragged_column_gives_the_newest_values_of_each_sample(tiny_segments, memory_limit, rest, dtype):
    rng = random.Random(0)
    with Store(memory_limit=memory_limit, disk_limit=10**6) as store:
        column = store.ragged("key", num_samples=20, rest=rest, dtype=dtype)
        expected = {}
        for step in range(60):
            length = rng.randrange(4)
            ids = torch.tensor(rng.choices(range(20), k=rng.randrange(1, 6)))
            values = samples(20 + step, (length, *rest), dtype)[ids]
            assert column.put(ids, values)
            expected.update(zip(ids.tolist(), values, strict=True))
            assert column.num_filled == len(expected)
        for length in range(5):
            there = [i for i in range(20) if i in expected and len(expected[i]) == length]
            mask = column.missing(torch.arange(20), length=length)
            assert mask is not None
            assert (~mask).nonzero().flatten().tolist() == there
            if there:
                assert column.missing(torch.tensor(there), length=length) is None
                taken = column.take(torch.tensor(there), length=length)
                assert taken.dtype == dtype
                assert torch.equal(taken, torch.stack([expected[i] for i in there]))


def test_values_of_the_same_length_reuse_their_room():
    with Store() as store:
        column = store.ragged("key", num_samples=4, rest=(1024,), dtype=torch.float32)
        for number in range(1000):  # 16 MB in all
            column.put(torch.arange(4), torch.full((4, 1, 1024), float(number)))
        assert column.nbytes == columns.SMALLEST_SEGMENT + 4 * 12
        assert torch.equal(column.take(torch.arange(4), length=1), torch.full((4, 1, 1024), 999.0))


def test_a_ragged_column_stores_nothing_beyond_the_limits(tiny_segments):
    with Store(memory_limit=12 * 50 + 300, disk_limit=300) as store:
        column = store.ragged("key", num_samples=50, rest=(), dtype=torch.float32)
        places = []
        kept = [
            i
            for i in range(50)
            if column.put(torch.tensor([i]), torch.full((1, 4), float(i))) and not places.append(column.place)
        ]
        assert kept == list(range(36))  # 300 // 16 in each place: the last segments are shorter
        assert set(places) == {"memory", "disk"}
        assert (column.num_filled, store.nbytes_memory, store.nbytes_disk) == (36, 12 * 50 + 288, 288)
        assert torch.equal(column.take(torch.tensor(kept), length=4)[:, 0], torch.tensor(kept).float())
        assert not column.put(torch.tensor([0, 40]), torch.full((2, 4), -1.0))
        assert column.take(torch.tensor([0]), length=4)[0, 0] == 0
        assert column.put(torch.tensor([0]), torch.full((1, 4), -1.0))  # needs no room
        store.drop(column)
        assert (store.nbytes_memory, store.nbytes_disk) == (0, 0)


def test_the_last_of_the_room_is_taken_in_few_segments():
    with Store(memory_limit=10_000_000, disk_limit=0) as store:
        column = store.ragged("key", num_samples=5000, rest=(1024,), dtype=torch.float32)
        while column.put(torch.tensor([column.num_filled]), torch.ones(1, 1, 1024)):
            pass
        assert column.num_filled == (10_000_000 - 5000 * 12) // 4096
        assert len(column._segments) < 20


def test_a_sample_that_comes_twice_takes_room_once():
    with Store(memory_limit=4 * 12 + 16, disk_limit=0) as store:
        column = store.ragged("key", num_samples=4, rest=(), dtype=torch.float32)
        assert column.put(torch.tensor([2, 2, 2]), torch.ones(3, 4))
        assert column.num_filled == 1
        assert torch.equal(column.take(torch.tensor([2, 2]), length=4), torch.ones(2, 4))


def test_a_ragged_column_without_room_for_its_table_is_refused():
    with Store(memory_limit=11, disk_limit=10**6) as store:
        assert store.ragged("key", num_samples=1, rest=(), dtype=torch.float32) is None
        assert store.refusal.startswith("1 samples need 12 bytes")


# ---- budgets


def test_columns_go_to_memory_then_to_disk_then_are_refused():
    with Store(memory_limit=500, disk_limit=300) as store:
        first, second, third = (small(store, key) for key in "abc")  # 240 bytes each
        assert [column.place for column in (first, second, third)] == ["memory", "memory", "disk"]
        assert (store.nbytes_memory, store.nbytes_disk) == (480, 240)
        assert small(store, "d") is None
        assert store.refusal == (
            "20 samples need 240 bytes, but 20 bytes are left of the 500 bytes of memory_limit and 60 bytes of the "
            "300 bytes of disk_limit: raise memory_limit or disk_limit."
        )
        store.drop(first)
        assert small(store, "d").place == "memory"
        store.drop(third)
        assert store.nbytes_disk == 0


def test_the_default_limits_are_parts_of_what_is_there():
    with Store() as store:
        assert 0 < store._memory_limit < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 4 + 1
        assert store._disk_limit > 0


def test_a_column_in_use_is_given_again():
    with Store() as store:
        assert small(store) is small(store)
        assert store.nbytes_memory == 240
        with pytest.raises(AssertionError, match="another layout"):
            small(store, num_samples=21)


def test_a_column_of_no_samples_needs_no_room(kept):
    column = small(kept(memory_limit=0, disk_limit=0), num_samples=0)
    assert column.is_complete
    assert column.take(torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


def test_temporary_files_have_no_name_that_could_stay_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = Store(memory_limit=240, disk_limit=10**7)
    column = small(store)
    ragged = store.ragged("key", num_samples=4, rest=(), dtype=torch.float32)
    column.put(torch.arange(20), torch.ones(20, 3))
    assert ragged is None  # its table belongs in memory
    assert small(store, "more").place == "disk"
    assert files(tmp_path) == []
    store.close()


def resident_memory():
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_columns_on_disk_take_no_memory_of_the_process(kept):
    ids, values = torch.arange(256), torch.ones(256, 4096)  # 4 MB
    store = kept()
    column = small(store, num_samples=20 * 256, shape=(4096,))
    pool = Store(memory_limit=10**6, disk_limit=10**9)
    ragged = pool.ragged("ragged", num_samples=20 * 256, rest=(1024,), dtype=torch.float32)
    column.put(ids, values)
    before = resident_memory()
    for step in range(20):
        column.put(ids + step * 256, values)
        ragged.put(ids + step * 256, values.view(256, 4, 1024))
    store.save()
    column.take(ids)
    assert (column.is_complete, ragged.place) == (True, "disk")
    assert resident_memory() - before < 24e6  # 160 MB were put; the values of a batch are 4 MB
    pool.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_ten_million_samples_are_a_matter_of_disk_alone():
    """At a thousandth of the size and at a tenth: what grows is the file, and a byte of memory a sample."""
    gathered = []
    for num_samples in (10_000, 1_000_000):
        store = Store(memory_limit=0, disk_limit=10**10)
        gc.collect()
        objects, memory = sys.getallocatedblocks(), resident_memory()
        column = small(store, num_samples=num_samples, shape=(1280,))
        ids = torch.randint(num_samples, (320,), generator=torch.Generator().manual_seed(0))
        values = torch.randn(320, 1280)
        for part, rows in zip(ids.split(32), values.split(32), strict=True):
            column.put(part, rows)
        last = {int(each): row for row, each in enumerate(ids)}  # of a sample that comes twice
        assert torch.equal(column.take(ids), values[[last[int(each)] for each in ids]])
        assert (column.place, column.nbytes) == ("disk", num_samples * 1280 * 4)
        assert column.filled.nbytes == num_samples
        gc.collect()
        gathered.append((sys.getallocatedblocks() - objects - 2 * len(last), resident_memory() - memory))
        store.close()
    (few_objects, little), (many_objects, much) = gathered
    assert many_objects < few_objects + 500  # Python's own counts wander by some dozens
    assert much - little < 1_000_000 + 8e6  # the marks, and what the allocator rounds up to


# ---- kept across runs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (2, 3, 4)])
def test_a_saved_column_is_there_in_the_next_run(kept, notes, dtype, shape):
    like = {"dtype": dtype, "shape": shape, "channels_last": len(shape) == 3}
    values = fill_and_close(kept(), **like)
    column = small(kept(), **like)
    assert (column.is_complete, column.place, column.num_filled) == (True, "disk", 20)
    assert torch.equal(column.take(torch.arange(20)), values)
    assert notes == []


def test_a_saved_file_is_an_array_that_numpy_reads(kept, tmp_path):
    values = fill_and_close(kept())
    npy, sidecar = (
        tmp_path / "kept" / f"{saved.stem('key')}.npy",
        tmp_path / "kept" / f"{saved.stem('key')}.json",
    )
    assert files(tmp_path / "kept") == [sidecar, npy]
    assert np.array_equal(np.load(npy, allow_pickle=False), values.numpy())
    fields = json.loads(sidecar.read_text())
    assert (fields["key"], fields["dtype"], fields["shape"]) == ("key", "torch.float32", [3])


def test_a_partial_column_goes_on_where_it_was(kept, tmp_path, notes):
    values = samples(20, (3,), torch.float32)
    first, rest = torch.arange(0, 20, 2), torch.arange(1, 20, 2)
    store = kept()
    small(store).put(first, values[first])
    store.close()
    column = small(kept())
    assert column.missing(torch.arange(4)).tolist() == [False, True, False, True]
    assert torch.equal(column.take(first), values[first])
    other = small(kept())  # opened before more is added: stays as it was
    before = [path.read_bytes() for path in files(tmp_path / "kept")]
    column.put(rest, values[rest])
    assert [path.read_bytes() for path in files(tmp_path / "kept", "*[!k]")] == before
    assert torch.equal(column.take(torch.arange(20)), values)
    assert (other.num_filled, small(kept()).num_filled) == (10, 10)
    assert torch.equal(other.take(first), values[first])


def test_each_save_keeps_what_was_put_since(kept, notes):
    values = samples(20, (3,), torch.float32)
    store = kept()
    column = small(store)
    for i in range(0, 20, 5):
        column.put(torch.arange(i, i + 5), values[i : i + 5])
        store.save()
        store.save()
        found = small(kept())
        assert found.num_filled == i + 5
        assert torch.equal(found.take(torch.arange(i + 5)), values[: i + 5])
    assert notes == []


def test_nothing_is_kept_of_keys_with_a_tilde_and_of_columns_without_rows(kept, tmp_path):
    store = kept()
    small(store, "~key").put(torch.tensor([0]), torch.ones(1, 3))
    small(store, "empty")
    assert len(files(tmp_path / "kept", "*.work")) == 1
    store.close()
    assert files(tmp_path / "kept") == []


def test_dropping_a_column_keeps_what_was_saved_of_it(kept, tmp_path):
    store = kept()
    column = small(store)
    column.put(torch.tensor([0]), torch.ones(1, 3))
    store.save()
    column.put(torch.tensor([1]), torch.ones(1, 3))
    store.drop(column)
    assert store.nbytes_disk == 0
    assert len(files(tmp_path / "kept")) == 2
    assert small(store).num_filled == 1


def test_a_store_that_is_forgotten_leaves_no_work_file(tmp_path):
    store = Store(directory=tmp_path)
    small(store).put(torch.tensor([0]), torch.ones(1, 3))
    assert len(files(tmp_path, "*.work")) == 1
    del store
    gc.collect()
    assert files(tmp_path) == []


@pytest.mark.slow
def test_a_program_that_ends_without_closing_leaves_no_work_file(tmp_path):
    program = (
        "import sys, torch; from headstart.deferred.store import Store; store = Store(directory=sys.argv[1]);"
        "column = store.column('key', num_samples=4, shape=(), dtype=torch.float32);"
        "column.put(torch.arange(4), torch.ones(4))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert files(tmp_path) == []


def test_work_files_of_dead_processes_are_removed_and_no_others(kept, tmp_path, notes):
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    folder = tmp_path / "kept"
    folder.mkdir()
    stem, node, alive, dead = "0" * 32, saved._NODE, os.getpid(), ended.pid
    names = {
        "alive": f"{stem}.{node}-{alive}-00000000.work",
        "dead": f"{stem}.{node}-{dead}-00000000.work",
        "other machine": f"{stem}.other{node}-{dead}-00000000.work",
        "old": f"{stem}.{node}-{alive}-00000001.work",
        "somebody's": "thesis.work",
    }
    for name in names.values():
        (folder / name).write_bytes(b"x")
    two_days_ago = (folder / names["alive"]).stat().st_mtime - 2 * 24 * 3600
    os.utime(folder / names["old"], (two_days_ago, two_days_ago))
    kept()
    assert {path.name for path in files(folder)} == {
        names["alive"],
        names["other machine"],
        names["somebody's"],
    }


# ---- damaged and foreign files


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_one_flipped_byte_anywhere_is_found(kept, tmp_path, notes, monkeypatch, suffix, flip):
    monkeypatch.setattr(saved, "BLOCK", 100)
    fill_and_close(kept())
    path = tmp_path / "kept" / f"{saved.stem('key')}{suffix}"
    intact = path.read_bytes()
    store = kept()
    for position in range(len(intact)):
        path.write_bytes(intact[:position] + bytes([intact[position] ^ flip]) + intact[position + 1 :])
        column = small(store)
        assert column.num_filled == 0, position
        assert len(notes) == position + 1
        store.drop(column)
    assert all(re.search(r"\.json is not used, .* is damaged|; expected ", note) for note in notes)
    path.write_bytes(intact)
    assert small(store).is_complete


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_files_that_were_cut_off_or_grew_are_found(kept, tmp_path, notes, monkeypatch, suffix):
    monkeypatch.setattr(saved, "BLOCK", 64)
    fill_and_close(kept())
    path = tmp_path / "kept" / f"{saved.stem('key')}{suffix}"
    intact = path.read_bytes()
    store = kept()
    for content in [intact[:end] for end in range(len(intact))] + [intact + b"\0", intact + b" ", intact * 2]:
        path.write_bytes(content)
        column = small(store)
        assert column.num_filled == 0
        store.drop(column)
    assert len(notes) == len(intact) + 3


@pytest.mark.parametrize("text", ["[1]", "null", "{}", '{"key": ' + "[" * 10**5, "\x00", "9" * 5000])
def test_a_sidecar_that_is_something_else_is_found(kept, tmp_path, notes, text):
    fill_and_close(kept())
    (tmp_path / "kept" / f"{saved.stem('key')}.json").write_text(text)
    assert small(kept()).num_filled == 0
    assert len(notes) == 1


@pytest.mark.parametrize(
    "like",
    [{"num_samples": 21}, {"shape": (4,)}, {"dtype": torch.int32}, {"shape": (3, 1)}, {"key": "other"}],
)
def test_a_file_of_other_values_is_not_used(kept, tmp_path, notes, like):
    fill_and_close(kept())
    for path in files(tmp_path / "kept"):
        path.rename(path.with_stem(saved.stem(like.get("key", "key"))))
    column = small(kept(), **like)
    assert column.num_filled == 0
    name = next(iter(like))
    assert re.fullmatch(
        rf".*\.json is not used, its values are computed again: its {name} is .*; expected .*", *notes
    )


def test_a_file_of_another_version_is_not_used(kept, notes, monkeypatch):
    fill_and_close(kept())
    monkeypatch.setattr(saved, "VERSION", 2)
    assert small(kept()).num_filled == 0
    assert "its version is '1'; expected '2'" in notes[0]


def test_a_damaged_file_is_replaced_by_the_next_save(kept, tmp_path, notes):
    fill_and_close(kept())
    (tmp_path / "kept" / f"{saved.stem('key')}.npy").write_bytes(b"")
    values = fill_and_close(kept())
    assert torch.equal(small(kept()).take(torch.arange(20)), values)
    assert len(notes) == 1


def test_the_rows_of_one_save_beside_the_sidecar_of_another_are_not_used(kept, tmp_path, notes, monkeypatch):
    """What a kill between the two renames leaves."""
    values = samples(20, (3,), torch.float32)
    store = kept()
    column = small(store)
    column.put(torch.arange(10), values[:10])
    store.save()
    column.put(torch.arange(20), values)
    rename = Path.replace

    def cut_off(path, target):
        if target.suffix == ".json":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut_off)
        with pytest.raises(KeyboardInterrupt):
            store.save()
    assert small(kept()).num_filled == 0
    assert "not the one that the .json was written for" in notes.pop()
    # The column itself goes on in a file of its own.
    visible = (tmp_path / "kept" / f"{saved.stem('key')}.npy").read_bytes()
    column.put(torch.arange(20), values)
    assert (tmp_path / "kept" / f"{saved.stem('key')}.npy").read_bytes() == visible
    store.save()
    assert torch.equal(small(kept()).take(torch.arange(20)), values)


def test_without_on_note_a_note_is_a_warning(tmp_path):
    fill_and_close(Store(directory=tmp_path))
    files(tmp_path, "*.json")[0].write_text("{}")
    store = Store(directory=tmp_path)
    with pytest.warns(UserWarning, match="is not used, its values are computed again: the .json is damaged"):
        small(store)
    store.close()


# ---- the limit of the directory


def test_the_least_recently_used_files_are_removed_first(kept, tmp_path):
    folder = tmp_path / "kept"
    for age, key in enumerate("abcd"):
        fill_and_close(kept(), key=key, num_samples=1000)  # 12 kB
        for path in files(folder, f"{saved.stem(key)}.*"):
            os.utime(path, (1000 + age, 1000 + age))
    with kept() as store:
        assert small(store, "a", num_samples=1000).is_complete  # used now, in spite of its age
    store = kept(directory_limit=60_000)
    (folder / "notes.txt").write_text("mine" * 10_000)
    small(store, "e", num_samples=1000)
    small(store, "f", num_samples=1000)
    left = {key for key in "abcd" if (folder / f"{saved.stem(key)}.npy").exists()}
    assert left == {"a", "d"}
    assert (folder / "notes.txt").exists()
    store.close()


def test_files_in_use_are_never_removed(kept, tmp_path, notes):
    for key in "ab":
        fill_and_close(kept(), key=key, num_samples=1000)
    store = kept(directory_limit=30_000)
    columns_in_use = [small(store, key, num_samples=1000) for key in "ab"]
    refused = small(store, "c", num_samples=1000)
    assert refused.place == "memory"
    assert re.fullmatch(
        r".*: 12.0 kB for 'c' are not kept, they do not fit the 30.0 kB of directory_limit: raise it\.",
        *notes,
    )
    assert len(files(tmp_path / "kept", "*.npy")) == 2
    assert all(column.is_complete for column in columns_in_use)


def test_adding_to_partial_columns_needs_no_second_room_in_the_directory(kept, notes):
    store = kept(directory_limit=30_000)
    both = [small(store, key, num_samples=1000) for key in "ab"]  # 12 kB each
    for i in range(3):
        assert all(column.put(torch.tensor([i]), torch.ones(1, 3)) for column in both)
        store.save()
    store.close()
    assert [small(kept(), key, num_samples=1000).num_filled for key in "ab"] == [3, 3]
    assert notes == []


def test_a_saved_column_that_others_removed_serves_on(kept, tmp_path):
    values = fill_and_close(kept())
    column = small(kept())
    for path in files(tmp_path / "kept"):
        path.unlink()
    assert torch.equal(column.take(torch.arange(20)), values)


def test_opening_a_smaller_store_removes_what_is_too_much(kept, tmp_path):
    fill_and_close(kept())
    kept(directory_limit=10)
    assert files(tmp_path / "kept") == []


# ---- no room on the disk


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_only_the_columns_that_were_to_be_there(kept, tmp_path, notes, monkeypatch):
    store = kept(memory_limit=12 * 20)
    first = small(store, "first")
    first.put(torch.arange(20), torch.ones(20, 3))
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    second = small(store, "second")
    assert (second.place, len(notes)) == ("memory", 1)
    assert re.fullmatch(
        r".*: no file of 240 bytes could be made, no further ones are tried: .*No space left.*", notes[0]
    )
    assert small(store, "~third") is None
    assert "of the 0 bytes of disk_limit" in store.refusal
    assert len(files(tmp_path / "kept", "*.work")) == 1
    store.close()
    assert small(kept(), "first").is_complete


def test_a_column_that_disk_limit_has_no_room_for_is_not_kept(kept, notes):
    store = kept(disk_limit=300)
    assert [small(store, key).place for key in "ab"] == ["disk", "memory"]
    assert "240 bytes for 'b' are not kept, 60 bytes are left of disk_limit: raise it." in notes[0]


def test_without_room_for_a_copy_a_partial_column_takes_no_more(kept, notes, monkeypatch):
    store = kept()
    small(store).put(torch.arange(10), torch.ones(10, 3))
    store.close()
    column = small(kept())
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    assert not column.put(torch.tensor([15]), torch.ones(1, 3))
    assert not column.put(torch.tensor([15]), torch.ones(1, 3))
    assert (column.is_broken, column.num_filled, len(notes)) == (True, 10, 1)
    assert torch.equal(column.take(torch.arange(10)), torch.ones(10, 3))


def test_a_ragged_column_on_a_full_disk_stores_nothing_more(notes, monkeypatch):
    with Store(memory_limit=12 * 4, disk_limit=10**8, on_note=notes.append) as store:
        column = store.ragged("key", num_samples=4, rest=(), dtype=torch.float32)
        monkeypatch.setattr(os, "posix_fallocate", full_disk)
        assert not column.put(torch.tensor([1]), torch.ones(1, 5))
        assert (column.num_filled, len(notes)) == (0, 1)


def test_a_save_that_fails_costs_no_values_of_this_run(kept, tmp_path, notes, monkeypatch):
    store = kept()
    column = small(store)
    column.put(torch.arange(10), torch.ones(10, 3))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        store.save()
    assert re.fullmatch(
        r".*'key' could not be saved, it is computed again by the next run: .*No space left.*", *notes
    )
    assert files(tmp_path / "kept") == []
    assert torch.equal(column.take(torch.arange(10)), torch.ones(10, 3))
    column.put(torch.arange(10, 20), torch.ones(10, 3))  # begins a new file
    store.save()
    assert small(kept()).is_complete


# ---- other processes

TWO_WRITERS = """
import os, random, sys, torch
from headstart.deferred.store import Store

torch.set_num_threads(1)


def write(writer):
    rng = random.Random(writer)
    for key in map(str, range(5)):
        with Store(directory=sys.argv[1]) as store:
            column = store.column(key, num_samples=5000, shape=(16,), dtype=torch.float32)
            start = 0 if column.is_complete else 5000
            order = torch.tensor(rng.sample(range(5000), 5000)).split(500)
            for ids in order:
                if column.missing(ids) is not None:
                    column.put(ids, (ids * 10 + writer).float()[:, None].expand(-1, 16))
                if rng.random() < 0.5:
                    store.save()
            taken = column.take(torch.arange(5000))
            own = (torch.arange(5000) * 10).float()[:, None].expand(-1, 16)
            assert ((taken - own == 1) | (taken - own == 2)).all(), key


pids = []
for writer in (1, 2):
    pids.append(os.fork())
    if pids[-1] == 0:
        try:
            write(writer)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
sys.exit(any([os.waitpid(pid, 0)[1] for pid in pids]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_processes_fill_the_same_keys_at_once(tmp_path, notes):
    result = subprocess.run(
        [sys.executable, "-c", TWO_WRITERS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (
        0,
        "",
    )  # without a lock, a note about mixed files could be there
    with Store(directory=tmp_path, on_note=notes.append) as store:
        for key in map(str, range(5)):
            column = small(store, key, num_samples=5000, shape=(16,))
            assert column.is_complete
            written = column.take(torch.arange(5000)) - (torch.arange(5000) * 10).float()[:, None]
            assert ((written == 1) | (written == 2)).all()
    assert notes == []
    assert files(tmp_path, "*.work") == []


KILLED = """
import os, random, signal, sys, time, torch
from headstart.deferred.store import Store

torch.set_num_threads(1)
rng = random.Random(0)
num_samples, num_found, notes = 20_000, [], []


def values(ids):
    return (ids[:, None] * 7 + torch.arange(32)).float()


def open_column():
    store = Store(directory=sys.argv[1], on_note=notes.append)
    return store, store.column("key", num_samples=num_samples, shape=(32,), dtype=torch.float32)


for round in range(30):
    pid = os.fork()
    if pid == 0:
        torch.manual_seed(round)
        store, column = open_column()
        while True:
            ids = torch.randint(num_samples, (500,))
            column.put(ids, values(ids))
            store.save()
    time.sleep(rng.uniform(0.02, 0.2))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    store, column = open_column()
    ids = column.filled.nonzero().flatten()
    assert torch.equal(column.take(ids), values(ids)), round
    num_found.append(column.num_filled)
    store.close()
assert not [name for name in os.listdir(sys.argv[1]) if name.endswith(".work")]
print(max(num_found), len(notes))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_killed_at_any_moment_leaves_no_wrong_values(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    num_found, num_notes = map(int, result.stdout.split())
    assert num_found > 0
    assert num_notes < 30  # a kill between two renames is rare
