"""Checkpoints from a URL: only what its digest vouches for, from a server that may do anything."""

import hashlib
import http.server
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from headstart import LightningModule
from headstart.checkpoint import read_checkpoint, write_checkpoint
from headstart.errors import CheckpointError


class Net(LightningModule):
    def __init__(self, width=2):
        super().__init__()
        self.save_hyperparameters()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@contextmanager
def serve(answer):
    """A real server on this machine: `answer(handler)` answers each GET."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer(self)

        def log_message(self, *args): ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def whole(content):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def cut(content):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])

    return answer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def kept(cache: Path):
    return [path for path in cache.rglob("*") if path.is_file()]


@pytest.fixture
def run(tmp_path, quiet_trainer):
    """The content of a checkpoint after two steps, and its digest."""
    trainer = quiet_trainer()
    trainer.fit(Net(width=3), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    content = (tmp_path / "last.ckpt").read_bytes()
    return content, f"#sha256={hashlib.sha256(content).hexdigest()}"


def loader():
    return DataLoader(TensorDataset(torch.ones(2, 1)))


def test_a_module_is_loaded_from_a_url_and_fetched_once(run):
    content, digest = run
    with serve(whole(content)) as (host, asked):
        for _ in range(2):
            assert Net.load_from_checkpoint(f"{host}/last.ckpt{digest}").weight.tolist() == [-1, -1, -1]
    assert asked == ["/last.ckpt"]


def test_a_run_goes_on_from_a_url(run, quiet_trainer):
    content, digest = run
    net, trainer = Net(width=3), quiet_trainer(max_epochs=3)
    with serve(whole(content)) as (host, _):
        trainer.fit(net, loader(), ckpt_path=f"{host}/last.ckpt{digest}")
    assert (trainer.global_step, net.weight.tolist()) == (6, [-5, -5, -5])


def test_a_run_refuses_a_url_without_a_digest(run, quiet_trainer):
    with serve(whole(run[0])) as (host, asked):
        with pytest.raises(CheckpointError, match=rf"needs its digest.*{host}/last.ckpt#sha256=<64"):
            quiet_trainer().fit(Net(), loader(), ckpt_path=f"{host}/last.ckpt")
    assert asked == []


def test_the_name_of_another_host_is_another_file(tmp_path):
    contents = []
    for epoch in (1, 2):
        write_checkpoint({"epoch": epoch}, tmp_path / "last.ckpt")
        contents.append((tmp_path / "last.ckpt").read_bytes())
    digests = [f"#sha256={hashlib.sha256(content).hexdigest()}" for content in contents]
    with serve(whole(contents[0])) as (one, _), serve(whole(contents[1])) as (two, _):
        assert read_checkpoint(f"{one}/last.ckpt{digests[0]}")["epoch"] == 1
        assert read_checkpoint(f"{two}/last.ckpt{digests[1]}")["epoch"] == 2
        # The other host's digest does not make its file appear here.
        with pytest.raises(CheckpointError, match=r"has the SHA-256 .* It was not kept"):
            read_checkpoint(f"{one}/last.ckpt{digests[1]}")


def test_a_file_in_the_cache_that_was_damaged_is_fetched_again(run, cache, flip):
    content, digest = run
    with serve(whole(content)) as (host, asked):
        read_checkpoint(f"{host}/last.ckpt{digest}")
        flip(kept(cache)[0], 1000)
        assert read_checkpoint(f"{host}/last.ckpt{digest}")["global_step"] == 2
    assert len(asked) == 2


def test_a_download_that_breaks_off_is_named_and_leaves_nothing(run, cache):
    content, digest = run
    with (
        serve(cut(content)) as (host, _),
        pytest.raises(CheckpointError, match=rf"{host}/last.ckpt (broke off|has the)"),
    ):
        read_checkpoint(f"{host}/last.ckpt{digest}")
    assert kept(cache) == []


def test_an_address_that_nobody_answers_is_named(run, cache):
    content, digest = run
    with serve(lambda handler: handler.send_error(404)) as (host, _):
        with pytest.raises(CheckpointError, match=r"/gone.ckpt could not be fetched: .*404"):
            read_checkpoint(f"{host}/gone.ckpt{digest}")
    with pytest.raises(CheckpointError, match=r"/last.ckpt could not be fetched: .*refused"):
        read_checkpoint(f"{host}/last.ckpt{digest}")
    assert kept(cache) == []


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://host/last.ckpt", "s3://bucket/last.ckpt"])
def test_another_kind_of_address_is_refused(address):
    with pytest.raises(CheckpointError, match=r"neither a file nor an address with http:// or https://"):
        read_checkpoint(f"{address}#sha256={'0' * 64}")


def test_a_server_that_leads_elsewhere_is_followed_no_further_than_http(run):
    def elsewhere(handler):
        handler.send_response(302)
        handler.send_header("Location", "file:///etc/passwd")
        handler.end_headers()

    with serve(elsewhere) as (host, _), pytest.raises(CheckpointError, match="could not be fetched"):
        read_checkpoint(f"{host}/last.ckpt{run[1]}")


def test_a_server_that_sends_without_end_is_cut_off(run, cache, monkeypatch):
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    monkeypatch.setattr("headstart.checkpoint._free_bytes", lambda folder: 10_000_000)
    with (
        serve(endless) as (host, _),
        pytest.raises(CheckpointError, match="sends more than there is room for.*XDG_CACHE_HOME"),
    ):
        read_checkpoint(f"{host}/last.ckpt{run[1]}")
    assert kept(cache) == []
