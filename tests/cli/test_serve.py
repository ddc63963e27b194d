"""`headstart serve`: a real server in a second process, asked by many, by the hostile, and by people."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch

from headstart.artefact import load_artefact, read_metadata
from headstart.cli.main import main
from headstart.data import open_image
from headstart.serving.app import make_app
from headstart.serving.limits import Limits
from headstart.serving.predictor import Predictor, what_it_takes

pytestmark = pytest.mark.slow


class Server:
    """A server in a second process."""

    def __init__(self, process, address):
        self.process, self.address = process, address

    def post(self, **request):
        return httpx.post(f"{self.address}predict", timeout=60, **request)

    def counter(self, name):
        return float(
            re.search(rf"^headstart_{name} (.*)$", httpx.get(f"{self.address}metrics").text, re.MULTILINE)[1]
        )

    def peak_memory(self):
        """The most that it ever held, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1000


@contextmanager
def serving(run, *, end=signal.SIGTERM):
    process = subprocess.Popen(
        [sys.executable, "-m", "headstart", "serve", str(run), "--port", "0"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+/", line)
        assert found, process.communicate()
        yield Server(process, found[0])
    finally:
        if process.poll() is None:
            process.send_signal(end)
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed, errors) == (0, "Ended.\n", "")  # and no traceback on the way


@pytest.fixture(scope="module")
def cell_server(cell_run):
    with serving(cell_run) as server:
        yield server


@pytest.fixture(scope="module")
def text_server(text_run):
    with serving(text_run, end=signal.SIGINT) as server:
        yield server


@pytest.fixture(scope="module")
def cells(solar_cells, cell_run):
    """Each photo's file, and the probabilities that the model gives it alone."""
    model = load_artefact(cell_run)
    transform = model.preprocessing.eval_transform()
    files = sorted(solar_cells.glob("*/*"))
    with torch.inference_mode():
        rows = [
            model.predict_step(transform(open_image(file))[None])["probabilities"][0].tolist()
            for file in files
        ]
    return list(zip(files, rows, strict=True))


def answered(response):
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


# ---- answers


def test_photos_are_answered_as_predict_answers_them(cell_server, cells, cell_run, capsys):
    (one, expected_one), (other, expected_other) = cells[0], cells[-1]
    first, second = answered(
        cell_server.post(
            files=[("file", (one.name, one.read_bytes())), ("anything", (other.name, other.read_bytes()))]
        )
    )
    assert [first["file"], second["file"]] == [one.name, other.name]
    # Batches of other sizes are rounded in another way.
    assert list(first["probabilities"].values()) == pytest.approx(expected_one, abs=1e-5)
    assert list(second["probabilities"].values()) == pytest.approx(expected_other, abs=1e-5)
    assert main(["predict", str(cell_run), str(one), "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert first["class"] == said["class"] and list(first["probabilities"]) == list(said["probabilities"])
    assert first["probability"] == pytest.approx(said["probability"], abs=1e-5)
    encoded = base64.b64encode(one.read_bytes()).decode()
    for image in (encoded, f"data:image/png;base64,{encoded}"):
        (answer,) = answered(cell_server.post(json={"images": [image]}))
        assert "file" not in answer and answer["class"] == first["class"]


def test_texts_are_answered_together_whatever_their_length(text_server, text_run):
    texts = ["I love this film", "where can I buy a car? " * 40]
    answers = answered(text_server.post(json={"texts": texts}))
    model = load_artefact(text_run)
    for text, answer in zip(texts, answers, strict=True):
        with torch.inference_mode():
            alone = model.predict_step(model.preprocessing([text]))["probabilities"][0].tolist()
        assert list(answer["probabilities"].values()) == pytest.approx(alone, abs=1e-5)
        assert answer["class"] == max(answer["probabilities"], key=answer["probabilities"].get)


def test_a_model_of_pairs_takes_pairs(text_run):
    model = load_artefact(text_run)
    metadata = {**read_metadata(text_run), "data": {"texts_per_sample": 2}}
    takes = what_it_takes(model, metadata)
    predictor = Predictor(model, takes=takes, device=torch.device("cpu"))

    async def conversation():
        app = make_app(predictor, metadata, Limits.of(takes))
        async with app.router.lifespan_context(app):
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://test"
            ) as client:
                return [
                    await client.post("/predict", json={"pairs": pairs})
                    for pairs in (
                        [["A man sleeps.", "Nobody is awake."]],
                        [["one"]],
                        ["one", "two"],
                        [["one", ""]],
                    )
                ]

    with ThreadPoolExecutor(1) as thread:  # playwright may have left an event loop in this one
        first, *refused = thread.submit(asyncio.run, conversation()).result()
    with torch.inference_mode():
        inputs = model.preprocessing([("A man sleeps.", "Nobody is awake.")])
        alone = model.predict_step(inputs)["probabilities"][0].tolist()
    (answer,) = answered(first)
    assert list(answer["probabilities"].values()) == pytest.approx(alone, abs=1e-5)
    assert [each.status_code for each in refused] == [422, 422, 422]
    words = [
        "at 'pairs.0': List should have at least 2 items",
        'such as {"pairs": [["a text", "another"]]}',
        "Text 1 is empty",
    ]
    assert all(word in each.json()["detail"] for word, each in zip(words, refused, strict=True))


def test_others_can_read_what_is_served(cell_server, text_server):
    assert httpx.get(f"{cell_server.address}health").json() == {"status": "ok", "waiting": 0}
    facts = httpx.get(f"{cell_server.address}model").json()
    assert (facts["takes"], facts["class_names"]) == ("photos", ["defective", "functional"])
    assert (facts["backbone"], facts["preprocessing"]["size"]) == ("efficientnet_lite0", 64)
    assert facts["limits"]["max_body"] == 20_000_000 and "test" in facts["metrics"]
    for server, kinds in (
        (cell_server, {"multipart/form-data", "application/json"}),
        (text_server, {"application/json"}),
    ):
        schema = httpx.get(f"{server.address}openapi.json").json()
        assert set(schema["paths"]) == {"/predict", "/health", "/model", "/metrics"}
        predict = schema["paths"]["/predict"]["post"]
        assert set(predict["requestBody"]["content"]) == kinds
        assert {"200", "400", "408", "413", "415", "422", "500", "503", "504"} == set(predict["responses"])
        assert "class" in schema["components"]["schemas"]["Prediction"]["properties"]


# ---- under load


def ask_at_once(server, files, number):
    """Send so many requests at the same time, a photo each; give their answers."""

    async def main():
        async with httpx.AsyncClient(
            timeout=120, limits=httpx.Limits(max_connections=None), base_url=server.address
        ) as client:
            contents = [file.read_bytes() for file in files]
            return await asyncio.gather(
                *(client.post("predict", files={"file": contents[n % len(contents)]}) for n in range(number))
            )

    with ThreadPoolExecutor(1) as thread:  # playwright may have left an event loop in this one
        return thread.submit(asyncio.run, main()).result()


def test_200_requests_at_once_are_all_answered_right_in_batches(cell_server, cells):
    before = cell_server.peak_memory()
    samples, batches = cell_server.counter("samples_total"), cell_server.counter("batches_total")
    answers = ask_at_once(cell_server, [file for file, _ in cells], 200)
    for number, answer in enumerate(answers):
        (prediction,) = answered(answer)
        expected = cells[number % len(cells)][1]
        assert list(prediction["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
    assert cell_server.counter("samples_total") - samples == 200
    assert cell_server.counter("batches_total") - batches < 100
    assert cell_server.counter("largest_batch") > 4
    assert cell_server.counter("waiting_samples") == cell_server.counter("held_bytes") == 0
    assert cell_server.peak_memory() - before < 300


# ---- made to harm


def png(width, height, *, extra=b""):
    """A PNG of black pixels, a bit each, as small as it can be sent."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    packed, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    pixels = b"".join([packed.compress(row * height), packed.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def text_bomb():
    """A chunk of text in a PNG that unpacks to 200 MB."""
    content = b"Comment\x00\x00" + zlib.compress(bytes(200_000_000), 9)
    return (
        struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    )


def zip_bomb():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("photo.jpg", bytes(100_000_000))
    return file.getvalue()


def streamed(num_bytes):
    for _ in range(num_bytes // 100_000):
        yield bytes(100_000)


FORM = {"content-type": "multipart/form-data; boundary=x"}
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
JSON = {"content-type": "application/json"}


def harmful(photo):
    """Name, request, status and words of the answer."""
    return {
        "10^9 pixels": ({"files": {"file": png(40_000, 25_000)}}, 422, "more than the 50,000,000 pixels"),
        "more pixels than a phone's": ({"files": {"file": png(10_000, 6_000)}}, 422, "10,000 x 6,000 pixels, more than the 50,000,000"),
        "text in a photo": ({"files": {"file": png(8, 8, extra=text_bomb())}}, 422, "cannot be read"),
        "zip": ({"files": {"file": zip_bomb()}}, 422, "not an image"),
        "packed": ({"content": zlib.compress(bytes(50_000_000)), "headers": {**FORM, "content-encoding": "gzip"}}, 415, "compressed"),
        "program": ({"files": {"file": ("a.png", b"#!/bin/sh\n")}}, 422, "'a.png' cannot be read: not an image"),
        "empty": ({"files": {"file": b""}}, 422, "an empty file"),
        "cut off": ({"files": {"file": photo[: len(photo) // 2]}}, 422, "truncated"),
        "one of two": ({"files": [("file", photo), ("file", ("b.png", b"no"))]}, 422, "'b.png' .* send the others"),
        "100 MB of unknown length": ({"content": streamed(100_000_000), "headers": FORM}, 4, "damaged|Invalid|more than 20,000,000"),
        "a file of 100 MB": ({"content": (part for part in (HEAD, *streamed(100_000_000))), "headers": FORM}, 413, "more than 20,000,000 bytes"),
        "100 MB as announced": ({"files": {"file": bytes(100_000_000)}}, 413, "more than 20,000,000 bytes"),
        "10,000 files": ({"files": [("file", b"0")] * 10_000}, 400, "Too many files"),
        "10,000 fields": ({"data": {str(n): "0" for n in range(10_000)}, "files": {"file": photo}}, 400, "Too many fields"),
        "a field": ({"files": {"file": (None, "photo.jpg")}}, 422, "fields that are none: 'file'"),
        "no boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        "no form": ({"content": b"--x", "headers": {"content-type": "text/plain"}}, 415, "content type is 'text/plain'"),
        "no type": ({"content": b"--x"}, 415, "names no content type"),
        "texts": ({"json": {"texts": ["a"]}}, 422, "has 'texts'; this model takes photos: expected"),
        "no base64": ({"json": {"images": ["~~~"]}}, 422, "Image 1 is not in base64"),
        "65 images": ({"json": {"images": ["aaaa"] * 65}}, 413, "65 samples; expected up to 64"),
        "6 million lists": ({"content": b"[" + b"[]," * 6_000_000 + b"[]]", "headers": JSON}, 413, "too many values"),
    }  # fmt: skip


def test_what_is_made_to_harm_is_refused_in_words_and_costs_little(cell_server, cells):
    photo = cells[0][0].read_bytes()
    answered(cell_server.post(files={"file": photo}))
    before = cell_server.peak_memory()
    for name, (request, status, words) in harmful(photo).items():
        answer = cell_server.post(**request)
        assert answer.status_code == status or answer.status_code // 100 == status, (name, answer.text)
        assert re.search(words, answer.json()["detail"]), (name, answer.text)
    assert cell_server.peak_memory() - before < 100
    assert cell_server.counter("held_bytes") == cell_server.counter("waiting_samples") == 0
    answered(cell_server.post(files={"file": photo}))


def test_other_paths_and_methods_are_told_the_way(cell_server):
    for path, status, words in (
        ("predict", 405, "'/predict' does not take GET"),
        ("nowhere", 404, "There is no '/nowhere'"),
    ):
        answer = httpx.get(f"{cell_server.address}{path}")
        assert answer.status_code == status
        assert answer.json()["detail"].startswith(f"{words}. Send photos by POST to /predict")


def test_a_photo_of_a_dozen_megapixels_is_answered(cell_server):
    answered(cell_server.post(files=[("file", png(5_000, 4_000))] * 3))


def test_text_that_is_made_to_harm_is_refused_in_words_and_costs_little(text_server):
    answered(text_server.post(json={"texts": ["a text"]}))
    before = text_server.peak_memory()
    for request, status, words in [
        ({"json": {"texts": ["long " * 2_000_000]}}, 413, "more than 2,000,000 bytes"),
        ({"json": {"texts": ["a" * 100_001]}}, 413, "Text 1 has 100,001 characters; expected up to 100,000"),
        ({"json": {"texts": ["a"] * 65}}, 413, "65 samples"),
        ({"json": {"texts": ["a", " \n"]}}, 422, "Text 2 is empty"),
        ({"json": {"texts": []}}, 422, "at 'texts'"),
        (
            {"json": {"text": "a"}},
            422,
            r"has 'text'; this model takes texts: expected application/json such as \{",
        ),
        ({"json": {"texts": "a"}}, 422, "at 'texts': Input should be a valid (list|array)"),
        ({"json": {"texts": [1]}}, 422, "at 'texts.0'"),
        ({"json": {"texts": ["a"], "top_k": 3}}, 422, "an object of 2 keys"),
        ({"json": {str(n): n for n in range(100_000)}}, 422, "100,000 keys"),
        ({"json": ["a"]}, 422, "The JSON is list; expected"),
        ({"content": b"{", "headers": JSON}, 422, "not JSON"),
        ({"content": b'{"texts": ["\\ud800"]}', "headers": JSON}, 422, "not JSON"),
        ({"content": b"[" * 1_000_000, "headers": JSON}, 422, "recursion limit"),
        ({"content": b'{"texts": [' + b"[]," * 600_000 + b"[]]}", "headers": JSON}, 422, "at 'texts.0'"),
        ({"content": b"\xff\xfe", "headers": JSON}, 422, "not JSON"),
        ({"files": {"file": b"a text"}}, 415, 'expected application/json such as {"texts"'),
    ]:
        answer = text_server.post(**request)
        assert answer.status_code == status and re.search(words, answer.json()["detail"]), answer.text
    answered(text_server.post(json={"texts": ["a" * 100_000]}))
    assert text_server.peak_memory() - before < 300


# ---- the end


def half_a_request(address, photo):
    """Send the first half of a request; give the connection, and the other half."""
    url = httpx.URL(address)
    request = httpx.Client().build_request("POST", f"{address}predict", files={"file": photo})
    body = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    connection = socket.create_connection((url.host, url.port), timeout=30)
    connection.sendall(f"POST /predict HTTP/1.1\r\n{head}\r\n".encode() + body[: len(body) // 2])
    return connection, body[len(body) // 2 :]


def test_a_signal_ends_it_when_what_was_asked_is_answered(cell_run, cells):
    with serving(cell_run) as server:
        connection, rest = half_a_request(server.address, cells[0][0].read_bytes())
        with connection:
            while not server.counter("held_bytes"):
                time.sleep(0.02)
            gone, _ = half_a_request(server.address, cells[0][0].read_bytes())
            gone.close()  # and of a client that goes away, nobody hears
            server.process.send_signal(signal.SIGTERM)
            while True:  # it takes no others any more
                try:
                    httpx.get(f"{server.address}health")
                except httpx.TransportError:
                    break
            connection.sendall(rest)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200") and b'"class":"' in answer
        assert server.process.wait(timeout=30) == 0


# ---- what cannot begin


def test_an_address_that_is_not_free_is_named(cell_server, cell_run, capsys):
    port = httpx.URL(cell_server.address).port
    assert main(["serve", str(cell_run), "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"headstart serve: Cannot listen on '127.0.0.1', port {port}: ")
    assert "Give another --port" in said
    assert main(["serve", str(cell_run), "--host", "203.0.113.1"]) == 1
    assert "a --host that is an address of this machine" in capsys.readouterr().err


def test_a_missing_library_is_named_with_the_command_that_installs_it(cell_run, headstart):
    program = (
        "import sys; sys.modules['fastapi'] = None; from headstart.cli.main import main; "
        f"sys.exit(main(['serve', {str(cell_run)!r}]))"
    )
    found = headstart.python("-c", program)
    assert found.returncode == 1
    assert "'fastapi' is needed for `headstart serve` and is not installed" in found.stderr
    assert "pip install 'headstart[serve]'" in found.stderr


# ---- for people


def test_a_person_sees_the_classes_of_a_photo(cell_server, cells, browser_page):
    page = browser_page.page
    page.goto(cell_server.address)
    assert page.title() == "efficientnet_lite0: defective, functional"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"  # the first thing that the keyboard reaches
    assert page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    file, expected = cells[0]
    page.set_input_files("#file", file)
    page.wait_for_selector("#result:not([hidden])")
    classes = dict(zip(["defective", "functional"], expected, strict=True))
    best = max(classes, key=classes.get)
    assert page.inner_text("#best") == best
    shown = page.locator("#classes tr").all_inner_texts()
    assert [line.split("\t")[0].strip() for line in shown] == sorted(classes, key=classes.get, reverse=True)
    assert float(page.inner_text("#sure").rstrip(" %")) == pytest.approx(100 * classes[best], abs=0.06)
    assert (
        page.text_content("#status") == f"{best}, {page.inner_text('#sure')}"
    )  # said to those who do not see
    assert page.evaluate("document.getElementById('preview').naturalWidth") > 0
    assert {httpx.URL(each).copy_with(path="/") for each in browser_page.requests} == {
        httpx.URL(cell_server.address)
    }
    assert browser_page.console == browser_page.failed == []

    # dropped, and no photo
    page.evaluate("""() => {
        const data = new DataTransfer();
        data.items.add(new File(["no photo"], "<b>notes</b>.txt"));
        dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
    }""")
    page.wait_for_selector("#problem:not([hidden])")
    assert "'<b>notes</b>.txt' cannot be read: not an image" in page.inner_text("#problem")
    assert page.is_hidden("#result")


def test_a_person_sees_the_classes_of_a_text_on_a_phone_in_the_dark(text_server, browser_page):
    page = browser_page.page
    page.set_viewport_size({"width": 360, "height": 740})
    grounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(text_server.address)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
    page.fill("#text", "where can I buy a <b>car</b>?")
    page.press("#text", "Control+Enter")
    page.wait_for_selector("#result:not([hidden])")
    (answer,) = answered(text_server.post(json={"texts": ["where can I buy a <b>car</b>?"]}))
    assert page.inner_text("#best") == answer["class"]
    assert page.evaluate("document.documentElement.scrollWidth") == 360  # nothing is cut off
    page.fill("#text", " ")
    page.click("text=Classify")
    page.wait_for_selector("#problem:not([hidden])")
    assert "Text 1 is empty" in page.inner_text("#problem")
    assert page.evaluate("document.querySelector('#problem').getAttribute('role')") == "alert"
