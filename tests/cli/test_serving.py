"""A server in a process of its own: what it answers while it is killed or gets a new model, and what its page shows."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.cli.command import ROOT, ostinato
from tests.cli.forking import Forked, Server
from tests.conftest import BLUE, GREEN, RED, photos

from ostinato import Learner

pytestmark = pytest.mark.slow

missing = [
    package
    for package in ("fastapi", "httpx2", "python_multipart", "prometheus_client", "uvicorn")
    if find_spec(package) is None
]
if missing:
    pytest.skip(f"the extra serve is not installed: {', '.join(missing)}", allow_module_level=True)

import httpx2  # noqa: E402 - after the check

sys.path.append(str(ROOT / "examples"))
from drop_photo import browser, free_port, installed, until  # noqa: E402

sys.path.remove(str(ROOT / "examples"))

CLIENTS = 4
CPU = ("device=cpu", "precision=fp32")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that learned two colours."""
    photos(tmp_path / "old", {"red": RED, "green": GREEN})
    ostinato("run", "simplecil", f"data={tmp_path / 'old'}", "stream.step=2", f"out={tmp_path / 'run'}", *CPU)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Other pictures of these colours and of a third one."""
    folder = photos(tmp_path_factory.mktemp("asked") / "all", {"red": RED, "green": GREEN, "blue": BLUE}, 4, seed=1)
    return sorted(folder.glob("*/*.jpg"))


@dataclass(frozen=True)
class Expected:
    """Answers of a model to pictures, by their number."""

    rows: list[tuple[list[str], list[float], list[float]]]

    @classmethod
    def by(cls, run: Path, pictures: list[Path]) -> Expected:
        found = Learner.load(run, device="cpu", precision="fp32").predict(pictures, topk=2)
        return cls([(one.classes, one.scores, one.probabilities) for one in found])

    def has(self, number: int, answer: dict[str, Any]) -> bool:
        """Whether an answer is that of the model."""
        classes, scores, probabilities = self.rows[number]
        return (
            answer["classes"] == classes
            and answer["scores"] == pytest.approx(scores, abs=1e-5)
            and answer["probabilities"] == pytest.approx(probabilities, abs=1e-5)
        )


@dataclass
class Load:
    """Clients that ask for pictures all the time.

    Attributes:
        answers: pairs of the numbers of a request's pictures and what was answered.
        refused: requests without an answer.
        failed: what went wrong in a client.
    """

    port: int
    pictures: list[bytes]
    answers: list[tuple[list[int], dict[str, Any]]] = field(default_factory=list)
    refused: int = 0
    failed: list[BaseException] = field(default_factory=list)
    over: bool = False

    def client(self, seed: int) -> None:
        """Ask until the load is over."""
        draw = random.Random(seed)
        try:
            while not self.over:
                numbers = draw.choices(range(len(self.pictures)), k=draw.randint(1, 3))
                form = [("images", (f"{i}.jpg", self.pictures[i], "image/jpeg")) for i in numbers]
                try:
                    got = httpx2.post(f"http://127.0.0.1:{self.port}/predict?topk=2", files=form, timeout=60)
                except httpx2.TransportError:
                    self.refused += 1
                    time.sleep(0.02)
                    continue
                assert got.status_code == 200, got.text
                self.answers.append((numbers, got.json()))
        except BaseException as error:
            self.failed.append(error)

    def wait(self, n: int) -> None:
        """Wait for ``n`` further answers."""
        before = len(self.answers)
        until(lambda: self.failed or len(self.answers) >= before + n, f"{n} answers")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask during the block."""
        threads = [threading.Thread(target=self.client, args=[seed]) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over = True
            for thread in threads:
                thread.join()
        assert not self.failed, self.failed[0]


@pytest.fixture
def serving(forked: Server) -> Iterator[Callable[..., Forked]]:
    """Starts servers of a run on a port, and waits until they answer."""
    begun: list[Forked] = []

    def start(run: Path, port: int, *words: str) -> Forked:
        server = forked("serve", run, "--port", port, *CPU, *words, cwd=run.parent)
        begun.append(server)

        def healthy() -> bool:
            assert server.poll() is None, server.communicate()
            return httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 200

        def answers() -> bool:
            try:
                return healthy()
            except httpx2.TransportError:
                return False

        until(answers, "the server")
        return server

    yield start
    for server in begun:
        server.kill()
    for server in begun:
        server.communicate()


def test_a_server_killed_under_load_answers_nothing_wrong(run, pictures, serving):
    want, port = Expected.by(run, pictures), free_port()
    server = serving(run, port)
    load = Load(port, [picture.read_bytes() for picture in pictures])
    with load.running():
        for _ in range(2):
            load.wait(20)
            server.kill()
            until(lambda: server.poll() is not None, "its end")  # noqa: B023 - called here
            before = load.refused
            until(lambda: load.refused >= before + CLIENTS, "requests without a server")  # noqa: B023 - called here
            server = serving(run, port)
        load.wait(20)
    for numbers, answer in load.answers:
        assert len(answer["predictions"]) == len(numbers)
        for number, one in zip(numbers, answer["predictions"], strict=True):
            assert one["source"] == f"{number}.jpg"
            assert want.has(number, one), (number, one, want.rows[number])


def test_a_model_put_in_place_under_load_answers_next_to_the_old_one_never_mixed(run, pictures, serving):
    models, port = {"old": Expected.by(run, pictures)}, free_port()
    serving(run, port)
    load = Load(port, [picture.read_bytes() for picture in pictures])
    first = httpx2.get(f"http://127.0.0.1:{port}/healthz").json()["model"]
    with load.running():
        load.wait(20)
        ostinato("learn", run, f"data={photos(run.parent / 'new', {'blue': BLUE}, seed=2)}", "device=cpu")
        until(lambda: load.answers[-1][1]["model"] != first or load.failed, "the new model")
        load.wait(20)
    models["new"] = Expected.by(run, pictures)
    seen = []
    for numbers, answer in load.answers:
        seen.append("old" if answer["model"] == first else "new")
        for number, one in zip(numbers, answer["predictions"], strict=True):
            assert models[seen[-1]].has(number, one), (seen[-1], number, one)
    assert {"old", "new"} == set(seen)
    assert any(answer["predictions"][0]["answer"] == "blue" for _, answer in load.answers)


@pytest.fixture
def chromium() -> str:
    found = installed()
    if found is None:
        pytest.skip("Chromium and chromedriver are not installed")
    return found


def test_a_photo_dropped_on_the_page_shows_its_answer(run, pictures, serving, chromium, tmp_path):
    want = Learner.load(run, device="cpu", precision="fp32").predict(pictures, topk=2)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    port = free_port()
    serving(run, port, "--token", "secret")
    with browser(chromium) as page:
        page.open(f"http://127.0.0.1:{port}")
        page.drop([pictures[0]], "#drop")
        status = until(lambda: [text for text in page.texts("#status.error") if text], "a refusal")
        assert status == ["Give the token of the server: Authorization: Bearer TOKEN."]
        page.run("document.getElementById('token').value = 'secret'")
        page.drop([pictures[0], pictures[-1], tmp_path / "broken.jpg"], "#drop")
        shown = until(lambda: len(found := page.texts("#answers li")) == 3 and found, "three answers")
        pictured = page.run("return [...document.images].map(one => [one.alt, one.naturalWidth > 0])")
    lines = [
        [f"{name} {100 * p:.1f} %" for name, p in zip(one.classes, one.probabilities, strict=True)]
        for one in (want[-1], want[0])
    ]
    assert [text.splitlines() for text in shown[1:]] == lines  # the newest is on top
    assert shown[0].startswith("not an image")
    names = ["broken.jpg", pictures[-1].name, pictures[0].name]
    assert pictured == [[names[0], False], [names[1], True], [names[2], True]]
