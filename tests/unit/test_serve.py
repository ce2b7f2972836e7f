"""The server answers as predict does, bounds what it is sent, and takes over new models."""

from __future__ import annotations

import asyncio
import io
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

import ostinato
from ostinato import Learner
from ostinato.backbones import VisionBackbone
from ostinato.errors import DataError, InputError
from ostinato.learner import Prediction

missing = [
    package for package in ("fastapi", "httpx2", "python_multipart", "prometheus_client") if find_spec(package) is None
]
if missing:
    pytest.skip(f"the extra serve is not installed: {', '.join(missing)}", allow_module_level=True)

from starlette.testclient import TestClient  # noqa: E402 - after the check

from ostinato.serve.app import Asked, Limits, _result, make_app  # noqa: E402
from ostinato.serve.batching import Answer, Batcher, BusyError  # noqa: E402
from ostinato.serve.served import Served  # noqa: E402


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model of two classes, one of three, and images of both as PNG files."""
    root = tmp_path_factory.mktemp("serve")
    stream = ostinato.stream("glyphs", classes=3, first=2, step=1, limit_per_class=6)
    learner = Learner("simplecil", device="cpu", precision="fp32")
    learner.learn(stream.task(0))
    learner.save(root / "two")
    learner.learn(stream.task(1))
    learner.save(root / "three")
    images = []
    for i in range(3):
        file = io.BytesIO()
        Image.fromarray(np.asarray(stream.test(0).raw(i))).save(file, "PNG")
        images.append(file.getvalue())
    return root, images


@pytest.fixture
def model(places, tmp_path):
    shutil.copytree(places[0] / "two", tmp_path / "model")
    return tmp_path / "model"


def client_of(path, **more):
    return TestClient(make_app(Served(path, device="cpu", precision="fp32"), **more))


def form(images):
    return [("images", (f"{i}.png", data, "image/png")) for i, data in enumerate(images)]


def test_predictions_are_those_of_the_learner(places, model):
    images = places[1]
    want = Learner.load(model, device="cpu", precision="fp32").predict(images, topk=2)
    with client_of(model) as client:
        answer = client.post("/predict?topk=2", files=form(images)).json()
    assert [one["source"] for one in answer["predictions"]] == ["0.png", "1.png", "2.png"]
    assert [one["classes"] for one in answer["predictions"]] == [one.classes for one in want]
    for got, one in zip(answer["predictions"], want, strict=True):
        assert got["scores"] == pytest.approx(one.scores, abs=1e-6)
        assert got["probabilities"] == pytest.approx(one.probabilities, abs=1e-6)
        assert got["answer"] == one.classes[0]


def test_an_answer_below_the_threshold_is_unknown(places, model):
    images = places[1]
    sure = [one.probabilities[0] for one in Learner.load(model, device="cpu", precision="fp32").predict(images)]
    middle = sorted(sure)[1]
    with client_of(model) as client:
        answer = client.post(f"/predict?threshold={middle}", files=form(images)).json()
        assert [one["unknown"] for one in answer["predictions"]] == [p < middle for p in sure]
        assert [one["answer"] == "unknown" for one in answer["predictions"]] == [p < middle for p in sure]
        assert client.post("/predict?threshold=1.5", files=form(images)).status_code == 422


def test_an_image_far_from_all_classes_is_unknown(places, tmp_path):
    """Under the rate of the request, or that of the server if it gives none."""
    stream = ostinato.stream("glyphs", classes=2, step=2, limit_per_class=40)
    learner = Learner("simplecil", device="cpu", precision="fp32")
    learner.learn(stream.task(0))
    learner.save(tmp_path / "model")
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(noise, "PNG")
    images = [places[1][0], noise.getvalue()]
    want = learner.predict(images, reject_rate=0.2)
    assert [one.unknown for one in want] == [False, True]

    def answers(client, words=""):
        return client.post(f"/predict{words}", files=form(images)).json()["predictions"]

    with client_of(tmp_path / "model") as client:
        assert [one["unknown"] for one in answers(client)] == [False, False]
        assert [one["typicality"] for one in answers(client)] == [None, None]
        got = answers(client, "?reject_rate=0.2")
        assert [one["answer"] for one in got] == [one.answer for one in want]
        assert [one["typicality"] for one in got] == pytest.approx([one.typicality for one in want])
        small = client.post("/predict?reject_rate=0.001", files=form(images))
        assert (small.status_code, "needs 999 held-out samples" in small.json()["error"]) == (422, True)
    with client_of(tmp_path / "model", default=Asked(reject_rate=0.2, threshold=0.999999)) as client:
        assert [one["answer"] for one in answers(client, "?threshold=0.000001")] == [one.answer for one in want]
        assert all(one["unknown"] for one in answers(client, "?reject_rate=0.2"))


def test_a_typicality_that_another_request_asked_for_is_left_out():
    found = Prediction("image 0", ["a"], [1.0], [0.9], typicality=0.01)
    alone = _result("a.png", found, Asked())
    assert (alone["typicality"], alone["answer"]) == (None, "a")
    assert _result("a.png", found, Asked(reject_rate=0.05))["answer"] == "unknown"


def test_classes_health_and_page(model):
    with client_of(model) as client:
        names = client.get("/classes").json()
        assert names["classes"] == Learner.load(model, device="cpu").class_names
        assert client.get("/healthz").json() == {"status": "ok", "model": names["model"], "problem": None}
        page = client.get("/")
        assert "Drop pictures here" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http" not in page.text  # nothing from elsewhere


def test_an_unusable_image_leaves_the_others_their_answers(places, model):
    with client_of(model) as client:
        mixed = client.post("/predict", files=form([places[1][0], b"no image"]))
        assert mixed.status_code == 200
        good, bad = mixed.json()["predictions"]
        assert len(good["classes"]) == 1
        assert bad["source"] == "1.png"
        assert bad["error"].startswith("not an image")
        alone = client.post("/predict", files=form([b"no image"]))
        assert alone.status_code == 422
        figures = client.get("/metrics").text
    assert 'ostinato_images_total{result="predicted"} 1.0' in figures
    assert 'ostinato_images_total{result="refused"} 2.0' in figures
    assert 'ostinato_requests_total{path="/predict",status="422"} 1.0' in figures
    assert "ostinato_classes 2.0" in figures


def test_requests_are_bounded(places, model):
    image, limits = places[1][0], Limits(megabytes=0.01, images=2, pixels=10_000)
    wide = io.BytesIO()
    Image.new("1", (400, 400)).save(wide, "PNG")
    with client_of(model, limits=limits) as client:
        assert client.post("/predict", files=form([image] * 2)).status_code == 200
        many = client.post("/predict", files=form([image] * 3))
        assert many.status_code == 413
        assert "at most 2 images, got 3" in many.json()["error"]
        large = client.post("/predict", files=form([bytes(20_000)]))
        assert large.status_code == 413
        assert "at most 0.01 MB" in large.json()["error"]
        kind = {"content-type": "multipart/form-data; boundary=x"}
        pieces = client.post("/predict", content=iter([bytes(6_000)] * 3), headers=kind)
        assert pieces.status_code == 413  # no length is declared
        pixels = client.post("/predict", files=form([wide.getvalue()]))
        assert "400 x 400 pixels; at most 0.01 million are read" in pixels.json()["predictions"][0]["error"]
        assert client.post("/predict?topk=0", files=form([image])).status_code == 422
        assert client.post("/predict?top=3", files=form([image])).status_code == 422
        assert client.post("/predict").status_code == 422


@pytest.mark.parametrize(
    ("given", "said"),
    [({"megabytes": 0}, "--max-mb"), ({"pixels": 10**9}, "--max-pixels"), ({"batch": 8}, "--batch")],
)
def test_limits_must_fit_each_other(given, said):
    with pytest.raises(InputError, match=said):
        Limits(**given)


def test_a_token_guards_all_but_the_page_and_health(places, model):
    with client_of(model, token="secret") as client:
        for given in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
            for path in ("/classes", "/metrics"):
                assert client.get(path, headers=given).status_code == 401
            assert client.post("/predict", files=form(places[1][:1]), headers=given).status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert client.post("/predict", files=form(places[1][:1]), headers=right).status_code == 200
        assert client.get("/healthz").status_code == client.get("/").status_code == 200


def test_a_new_model_takes_over_and_a_damaged_one_does_not(places, model):
    served = Served(model, device="cpu", precision="fp32")
    first = served.current
    assert not served.refresh()
    Learner.load(places[0] / "three", device="cpu").save(model)
    assert served.refresh()
    assert len(served.current.class_names) == 3
    assert served.current.revision != first.revision
    assert not served.refresh()
    (model / "artifact.json").write_text("{}")
    assert not served.refresh()
    assert served.problem is not None
    assert len(served.current.class_names) == 3
    with TestClient(make_app(served)) as client:
        assert client.get("/healthz").json()["problem"] == served.problem
        assert client.post("/predict", files=form(places[1][:1])).status_code == 200
    shutil.rmtree(model)
    assert not served.refresh()
    shutil.copytree(places[0] / "two", model)
    assert served.refresh()
    assert served.problem is None


def test_a_running_server_loads_a_new_model(places, model):
    with client_of(model, every=0.01) as client:
        Learner.load(places[0] / "three", device="cpu").save(model)
        for _ in range(500):
            if len(client.get("/classes").json()["classes"]) == 3:
                break
        else:
            pytest.fail("the new model was not loaded")


def predictions_of(images, topk):
    """Predictions whose best class is the image itself."""
    names = [f"{image.decode()}{rank}" for image in images for rank in range(topk)]
    rows = [names[i : i + topk] for i in range(0, len(names), topk)]
    return Answer([Prediction("", row, [0.0] * topk, None) for row in rows], "r")


def test_requests_that_arrive_meanwhile_share_a_batch():
    sizes, rates = [], []

    def predict(images, topk, rate):
        sizes.append(len(images))
        rates.append(rate)
        if b"bad" in images:
            raise DataError("bad")
        return predictions_of(images, topk)

    async def play():
        batcher = Batcher(predict, most=4, waiting=100)
        asks = [batcher.ask([b"a"], 1, 0.5), batcher.ask([b"b", b"c"], 3, 0.2), batcher.ask([b"d", b"e"], 2)]
        asked = [asyncio.create_task(ask) for ask in asks]
        await asyncio.sleep(0)
        gone = asyncio.create_task(batcher.ask([b"gone"], 1))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(BusyError):
            await batcher.ask([bytes(100)], 1)
        work = asyncio.create_task(batcher.run())
        answers = await asyncio.gather(*asked)
        assert [[p.classes for p in answer.predictions] for answer in answers] == [
            [["a0"]], [["b0", "b1", "b2"], ["c0", "c1", "c2"]], [["d0", "d1"], ["e0", "e1"]]
        ]  # fmt: skip
        assert sizes == [3, 2]
        assert rates == [0.2, None]
        assert batcher.queued == 0
        fine, bad = await asyncio.gather(batcher.ask([b"f"], 1), batcher.ask([b"bad"], 1), return_exceptions=True)
        assert fine.predictions[0].classes == ["f0"]
        assert isinstance(bad, DataError)
        work.cancel()

    asyncio.run(play())


def test_models_of_texts_are_refused(model, monkeypatch):
    monkeypatch.setattr(VisionBackbone, "modality", "text")
    with pytest.raises(InputError, match="must be one of images"):
        Served(model, device="cpu")
