"""The application in this process, with a model that answers when the test lets it."""

import asyncio
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from PIL import Image

from headstart.serving.app import make_app
from headstart.serving.limits import Limits
from headstart.serving.page import page
from headstart.serving.predictor import Predictor
from headstart.serving.schemas import ModelFacts
from headstart.tasks import ImageClassifier

METADATA = {"backbone": {"name": "resnet18"}, "preprocessing": {"size": 32}, "versions": {"torch": "2"}}


class HeldPredictor(Predictor):
    """A network that answers as soon as it may."""

    def __init__(self, model):
        super().__init__(model, takes="photos", device=torch.device("cpu"))
        self.may_go, self.has_begun, self.fails = threading.Event(), threading.Event(), False

    def probabilities(self, samples):
        self.has_begun.set()
        assert self.may_go.wait(20)
        if self.fails:
            raise RuntimeError("out of memory, say")
        return super().probabilities(samples)


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    model = ImageClassifier(
        "torchvision:resnet18", class_names=["cat", "dog"], pretrained=False, image_size=32
    )
    return HeldPredictor(model)


def photos(number):
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "PNG")
    return [("file", (f"{n}.png", file.getvalue())) for n in range(number)]


def talk(predictor, conversation, **limits):
    """Hold a conversation with the application of a model."""

    async def main():
        app = make_app(predictor, METADATA, Limits(**limits))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                try:
                    return await conversation(client)
                finally:
                    predictor.may_go.set()

    with ThreadPoolExecutor(1) as thread:  # a test of pages may have left an event loop in this one
        return thread.submit(asyncio.run, main()).result(timeout=60)


def test_a_full_queue_is_503_and_what_was_taken_is_answered(predictor):
    async def conversation(client):
        first = asyncio.create_task(client.post("/predict", files=photos(2)))
        await asyncio.to_thread(predictor.has_begun.wait, 10)
        waiting = (await client.get("/health")).json()
        refused = await client.post("/predict", files=photos(2))
        predictor.may_go.set()
        return waiting, refused, await first, await client.post("/predict", files=photos(2))

    waiting, refused, first, later = talk(predictor, conversation, queue_size=3, max_samples=2)
    assert waiting == {"status": "ok", "waiting": 2}
    assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    assert "no room for 2 more" in refused.json()["detail"]
    assert first.status_code == later.status_code == 200


def test_an_answer_that_takes_too_long_is_504_and_its_place_is_free_again(predictor):
    async def conversation(client):
        late = await client.post("/predict", files=photos(2))
        return late, (await client.get("/health")).json()

    late, health = talk(predictor, conversation, timeout=0.5)
    assert late.status_code == 504
    assert late.json()["detail"].startswith("There was no answer within 0.5 seconds")
    assert health["waiting"] == 0


def test_a_body_that_is_not_sent_in_time_is_408(predictor):
    async def slowly():
        yield b"--x\r\n"
        await asyncio.sleep(10)

    async def conversation(client):
        return await client.post(
            "/predict", content=slowly(), headers={"content-type": "multipart/form-data; boundary=x"}
        )

    late = talk(predictor, conversation, timeout=0.3)
    assert late.status_code == 408
    assert "not read to its end within 0.3 seconds" in late.json()["detail"]


def test_more_bytes_than_there_is_room_for_are_503(predictor):
    async def conversation(client):
        first = asyncio.create_task(client.post("/predict", files=photos(1)))
        await asyncio.to_thread(predictor.has_begun.wait, 10)
        refused = await client.post("/predict", files={"file": b"0" * 3000})
        predictor.may_go.set()
        counters = (await client.get("/metrics")).text
        return refused, await first, counters

    refused, first, counters = talk(predictor, conversation, max_body=4000, max_bodies=3100)
    assert refused.status_code == 503
    assert "as many bytes of requests as it has room for" in refused.json()["detail"]
    assert first.status_code == 200
    assert 'headstart_requests_total{status="503"} 1' in counters


def test_a_network_that_fails_is_an_error_for_that_request_alone(predictor):
    async def conversation(client):
        predictor.may_go.set()
        predictor.fails = True
        failed = await client.post("/predict", files=photos(1))
        predictor.fails = False
        return failed, await client.post("/predict", files=photos(1)), (await client.get("/metrics")).text

    failed, later, counters = talk(predictor, conversation)
    assert (failed.status_code, later.status_code) == (500, 200)
    assert failed.json()["detail"].startswith("The model failed on this request")
    assert 'headstart_requests_total{status="500"} 1' in counters


def test_a_class_name_is_never_markup():
    names = ["<script>alert(1)</script>", "</title><b>", "$style"]
    facts = ModelFacts(
        takes="texts", class_names=names, backbone="<i>", preprocessing={}, temperature=None, metrics={}, created="",
        versions={}, limits={},
    )  # fmt: skip
    document, policy = page(facts)
    assert document.count("<script") == document.count("</script>") == 2  # the facts, and the program
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt;" in document
        and "<i>" not in document
        and "<b>" not in document
    )
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "not calibrated" in document and "not tested" in document
