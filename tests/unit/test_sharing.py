"""Models that are pushed to the hub or a folder and pulled from there; the hub is a fake object in place of its API."""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import yaml
from huggingface_hub import errors
from tests.cli.command import ostinato as command

import ostinato
from ostinato import artifact
from ostinato.backbones.weights import bundled_file
from ostinato.errors import DataError, InputError
from ostinato.learner import Learner
from ostinato.records import BackboneRecord
from ostinato.sharing import FolderStore, HubStore, is_name, pull, push
from ostinato.sharing.licences import licence_of


class Hub:
    """A hub in a folder: repositories, and a cache of links to blobs as the real one makes."""

    def __init__(self, root: Path) -> None:
        self.root, self.private = root, {}

    def create_repo(self, name, *, private, exist_ok):
        assert exist_ok
        (self.root / name).mkdir(parents=True, exist_ok=True)
        self.private.setdefault(name, private)

    def list_repo_files(self, name):
        return [p.relative_to(self.root / name).as_posix() for p in (self.root / name).rglob("*") if p.is_file()]

    def upload_folder(self, *, repo_id, folder_path, commit_message, allow_patterns, delete_patterns):
        files = [p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*") if p.is_file()]
        sent = [name for name in files if any(fnmatch(name, pattern) for pattern in allow_patterns)]
        for name in self.list_repo_files(repo_id):
            if name not in sent and any(fnmatch(name, pattern) for pattern in delete_patterns):
                (self.root / repo_id / name).unlink()
        for name in sent:
            (self.root / repo_id / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(Path(folder_path) / name, self.root / repo_id / name)

    def snapshot_download(self, name, *, allow_patterns):
        if name not in self.private:
            raise status(404, errors.RepositoryNotFoundError)
        snapshot = self.root / "cache" / name
        shutil.rmtree(snapshot, ignore_errors=True)
        for file in self.list_repo_files(name):
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
                target = os.path.relpath(self.root / name / file, (snapshot / file).parent)
                (snapshot / file).symlink_to(target)
        return str(snapshot)


def status(code, kind=errors.HfHubHTTPError):
    """The error of an answer."""
    return kind("no", response=httpx2.Response(code, request=httpx2.Request("GET", "https://huggingface.co")))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on weights from a file, with one continuation and a renamed class."""
    root = tmp_path_factory.mktemp("sharing")
    shutil.copyfile(bundled_file(), root / "mine.safetensors")
    options = ("data.limit_per_class=10", "device=cpu", "precision=fp32")
    command(
        "run", "simplecil", "data=glyphs", "data.classes=4", "stream.step=2", *options,
        f"backbone.weights={root / 'mine.safetensors'}", f"out={root / 'run'}",
    )  # fmt: skip
    return root / "run"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A learner that was saved from Python, a picture, and its scores."""
    stream = ostinato.stream("glyphs", classes=2, step=2, limit_per_class=4)
    learner = Learner("simplecil", device="cpu")
    learner.learn(stream.task(0))
    folder = tmp_path_factory.mktemp("plain") / "model"
    learner.save(folder)
    return folder, stream.test(0).raw(0), learner.predict([stream.test(0).raw(0)], topk=2)[0].scores


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    return made


def test_the_card_tells_what_the_record_knows(run, tmp_path):
    push(run, "anna/glyphs", FolderStore(tmp_path))
    _, head, text = (tmp_path / "anna/glyphs/README.md").read_text().split("---\n", 2)
    about, summary = artifact.read_about(run / "artifact"), json.loads((run / "summary.json").read_text())
    assert yaml.safe_load(head) == {
        "library_name": "ostinato", "license": "unknown", "pipeline_tag": "image-classification",
        "tags": ["continual-learning", "class-incremental-learning", "simplecil"],
    }  # fmt: skip
    assert "learned in 2 tasks by `simplecil`" in text
    assert "https://arxiv.org/abs/2303.07338" in text  # the paper
    assert f"| accuracy at the end | {100 * summary['last_accuracy']:.1f} % |" in text
    assert f"| forgetting | {100 * summary['forgetting']:.1f} % |" in text
    rows = [line.split(",") for line in (run / "accuracy_matrix.csv").read_text().splitlines()]
    assert f"| after task 2 | {' | '.join(f'{100 * float(cell):.1f}' for cell in rows[2][1:])} |" in text
    assert f"differ from their accuracy by {100 * summary['calibration_error']:.1f} points" in text
    for name, samples in zip(about.class_names, about.samples, strict=True):
        assert f"| {name} | {1 + about.class_names.index(name) // 2} | {samples} |" in text
    assert "unknown (they were read from a file; they come with ostinato, apache-2.0)" in text


def test_the_card_tells_of_later_changes(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    assert "afterwards" not in _card(tmp_path / "run", tmp_path / "before")
    before = artifact.read_about(run / "artifact").class_names[0]
    command("classes", tmp_path / "run", "rename", before, "<b>*new*</b>")
    text = _card(tmp_path / "run", tmp_path / "after")
    assert "Classes were renamed, removed or merged afterwards" in text
    assert "&#60;b&#62;&#42;new&#42;&#60;/b&#62;" in text


def _card(run, store):
    push(run, "anna/glyphs", FolderStore(store))
    return (store / "anna/glyphs/README.md").read_text()


def test_weights_from_a_file_travel_and_paths_of_this_machine_do_not(run, plain, tmp_path):
    scores = Learner.load(run, device="cpu").predict([plain[1]], topk=2)[0].scores
    push(run, "anna/glyphs", FolderStore(tmp_path / "store"))
    texts = [path.read_text() for path in (tmp_path / "store/anna/glyphs").iterdir() if path.suffix in (".json", ".md")]
    assert len(texts) >= 2
    assert not any(str(run.parent) in text for text in texts)
    weights = run.parent / "mine.safetensors"
    weights.rename(run.parent / "hidden")
    try:
        pull("anna/glyphs", tmp_path / "here", FolderStore(tmp_path / "store"))
        assert Learner.load(tmp_path / "here", device="cpu").predict([plain[1]], topk=2)[0].scores == scores
    finally:
        (run.parent / "hidden").rename(weights)


def test_a_model_comes_back_from_the_hub(plain, hub, tmp_path):
    folder, picture, scores = plain
    assert "https://huggingface.co/anna/plain" in command("push", folder, "anna/plain", "--bundle").stdout
    assert hub.private == {"anna/plain": True}
    assert ostinato.load("anna/plain", device="cpu").predict([picture], topk=2)[0].scores == scores
    assert "2 classes, learned by simplecil" in command("pull", "anna/plain", cwd=tmp_path).stdout
    assert (tmp_path / "plain/README.md").is_file()
    assert not any(path.is_symlink() for path in (tmp_path / "plain").rglob("*"))
    assert Learner.load(tmp_path / "plain", device="cpu").predict([picture], topk=2)[0].scores == scores


def test_a_second_push_replaces_the_files_of_the_first(plain, hub, tmp_path):
    push(plain[0], "anna/plain", HubStore(hub, public=True), hold=True)
    assert hub.private == {"anna/plain": False}
    (hub.root / "anna/plain/notes.txt").write_text("of the owner")
    first = set(hub.list_repo_files("anna/plain"))
    push(plain[0], "anna/plain", HubStore(hub))
    gone = first - set(hub.list_repo_files("anna/plain"))
    assert gone
    assert all(name.startswith("backbone-") for name in gone)


def test_a_repository_of_other_things_is_left_alone(plain, hub):
    hub.create_repo("anna/thesis", private=True, exist_ok=True)
    (hub.root / "anna/thesis/thesis.pdf").write_text("years")
    with pytest.raises(InputError, match=r"holds thesis\.pdf and no model"):
        push(plain[0], "anna/thesis", HubStore(hub))
    assert hub.list_repo_files("anna/thesis") == ["thesis.pdf"]
    with pytest.raises(DataError, match="holds no model of ostinato"):
        HubStore(hub).fetch("anna/thesis")


def test_a_flipped_byte_on_the_hub_is_refused(plain, hub, tmp_path):
    push(plain[0], "anna/plain", HubStore(hub), hold=True)
    for file in [name for name in hub.list_repo_files("anna/plain") if name != "README.md"]:
        path = hub.root / "anna/plain" / file
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DataError, match=r"damaged|JSON"):
            ostinato.load("anna/plain", device="cpu")
        with pytest.raises(DataError, match=r"damaged|JSON"):
            pull("anna/plain", tmp_path / "here", HubStore(hub))
        path.write_bytes(whole)
    assert not artifact.exists(tmp_path / "here")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (status(404, errors.RepositoryNotFoundError), InputError, "no repository anna/x, or it is private"),
        (status(403, errors.GatedRepoError), InputError, "is gated"),
        (status(401), InputError, "needs a token"),
        (errors.LocalTokenNotFoundError(), InputError, "needs a token"),
        (status(403), InputError, "refuses it to your token"),
        (status(500), DataError, r"with an error \(500\)"),
        (httpx2.ConnectError("no"), DataError, "cannot be reached"),
        (errors.OfflineModeIsEnabled("no"), DataError, "cannot be reached"),
        (errors.LocalEntryNotFoundError("no"), DataError, "cannot be reached"),
        (errors.HFValidationError("bad name"), InputError, "is no name of the hub: bad name"),
    ],
)
def test_errors_of_the_hub_are_plain(error, kind, words, plain, tmp_path):
    def fails(*_, **__):
        raise error

    api = SimpleNamespace(create_repo=fails, snapshot_download=fails)
    with pytest.raises(kind, match=words):
        HubStore(api).fetch("anna/x")
    with pytest.raises(kind, match=words):
        push(plain[0], "anna/x", HubStore(api))


def test_a_missing_folder_that_looks_like_a_name_tells_of_both(hub):
    with pytest.raises(InputError, match=r"no folder runs/photos here.*no repository runs/photos"):
        ostinato.load("runs/photos")


@pytest.mark.parametrize(
    "name", ["anna", "../x", "anna/../x", "anna/x/y", "/anna/x", "anna/", "a--b/x", "anna/x.", "a b/c"]
)
def test_other_names_are_refused(name, plain, tmp_path):
    assert not is_name(name)
    with pytest.raises(InputError, match="OWNER/NAME"):
        push(plain[0], name, FolderStore(tmp_path))
    with pytest.raises(InputError, match="OWNER/NAME"):
        pull(name, tmp_path / "here", FolderStore(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_folder_without_the_model_names_those_that_it_has(plain, tmp_path):
    push(plain[0], "anna/plain", FolderStore(tmp_path))
    with pytest.raises(InputError, match=r"no model 'anna/plane'\. There are anna/plain"):
        pull("anna/plane", tmp_path / "here", FolderStore(tmp_path))


def test_licences_are_those_of_the_publisher():
    def of(name, weights=None, card=None):
        record = BackboneRecord(name=name, weights=weights, size=None, preprocess="weights", length=None)
        return licence_of(record, SimpleNamespace(model_info=lambda _: SimpleNamespace(card_data=card)))

    assert of("vit_base_patch16_224.mae").name == "cc-by-nc-4.0"
    assert of("owner/bert", card={"license": "mit"}).name == "mit"
    assert of("owner/bert").name == of("owner/bert", card={}).name == "unknown"
    assert of("vit_base_patch16_224.mae", weights="mine.pth").name == "unknown"
    assert of("vit_mini_patch8_32.glyphs").name == "apache-2.0"

    def offline(_):
        raise httpx2.ConnectError("no")

    record = BackboneRecord(name="owner/bert", weights=None, size=None, preprocess="weights", length=None)
    assert licence_of(record, SimpleNamespace(model_info=offline)).name == "unknown"
