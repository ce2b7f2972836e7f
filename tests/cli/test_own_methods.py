"""A method in a file of one's own, as the README shows it."""

from __future__ import annotations

import importlib
import json
import os
import re
from hashlib import sha256
from pathlib import Path

import pytest
from tests.cli.command import README, ROOT, blocks, ostinato
from tests.conftest import photos

import ostinato as package
from ostinato.contract import CHECKS, Case, ContractViolation, check_method
from ostinato.errors import InputError
from ostinato.lookup import file_of, get_method
from ostinato.methods.dualprompt import DualPrompt

(FILE,) = blocks("py")


pytestmark = pytest.mark.usefixtures("untouched")


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "my_method.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Where the README's commands for its method were run."""
    root = tmp_path_factory.mktemp("own")
    (root / "my_method.py").write_text(FILE)
    photos(root / "photos", {f"c{i}": (25 * i, 255 - 25 * i, 20 * i) for i in range(10)}, n=4)
    ostinato("run", "simplecil", "data=photos", "stream.step=5", "out=runs/photos", cwd=root)
    commands = next(b for b in blocks("sh") if "ostinato run my_method.py" in b).splitlines()
    for command in commands[1:]:  # checking has a test of its own
        ostinato(*command.split("#")[0].split()[1:], cwd=root)
    return root


def test_the_readmes_method_keeps_the_contract(file):
    done = json.loads(ostinato("check", "my_method.py", "method.length=2", "--json", cwd=file.parent).stdout)
    assert [one["kind"] for one in done] == [kind for kind in ("image", "text", "clip") for _ in CHECKS]
    # It infers no task; everything else is about it.
    assert {one["check"] for one in done if one["outcome"] != "holds"} == {
        "every rule weighs every task for each sample alone"
    }


def test_a_run_of_it_is_a_run_like_any_other(finished):
    run = finished / "runs/mine"
    assert json.loads((run / "summary.json").read_text())["method"] == "one_prefix"
    assert json.loads((run / "record.json").read_text())["options"] == {"layers": [0, 1, 2], "length": 10}
    assert (run / "method.py").read_text() == FILE
    assert "one_prefix" in ostinato("report", "runs/mine", cwd=finished).stdout
    shown = ostinato("show", "my_method.py", cwd=finished).stdout
    assert "Prefixes that every task trains further." in shown
    assert "method.length=5" in shown
    photo = finished / "photos/c3/0.jpg"
    own = finished / "my_method.py"
    told = ostinato("predict", run, photo, "--json", f"method={own}", cwd="/")
    learner = package.load(str(run), method=str(own))
    assert json.loads(told.stdout)[0]["classes"] == learner.predict([photo])[0].classes


def test_a_model_whose_file_moved_is_told_where_it_is(finished, tmp_path):
    photo, artifact = finished / "photos/c3/0.jpg", finished / "runs/mine/artifact"
    want = ostinato("predict", artifact, photo, f"method={finished / 'my_method.py'}").stdout
    (finished / "my_method.py").rename(tmp_path / "elsewhere.py")
    try:
        text = ostinato("predict", artifact, photo, code=2).stderr
        file = finished / "my_method.py"
        assert f"'one_prefix' of the file {file}. A file is run only if you name it: method=FILE" in text
        copy = text.split("as it was then, ")[1].strip()
        assert ostinato("predict", artifact, photo, copy).stdout == want
        assert ostinato("predict", artifact, photo, f"method={tmp_path / 'elsewhere.py'}").stdout == want
        wrong = ostinato("predict", artifact, photo, "method=simplecil", code=2).stderr
        assert "was learned by 'one_prefix', not by simplecil" in wrong
        moved = (f"method={tmp_path / 'elsewhere.py'}", "stream.step=2")
        photos(tmp_path / "more", {"new": (9, 9, 9), "newer": (90, 9, 9)}, n=4)
        ostinato("learn", finished / "runs/mine", f"data={tmp_path / 'more'}", *moved, "--accept")
        assert len(json.loads((artifact / "artifact.json").read_text())["class_names"]) == 12
        assert "task_confusion" in ostinato("analyse", finished / "runs/mine", moved[0]).stdout
    finally:
        (tmp_path / "elsewhere.py").rename(finished / "my_method.py")


def test_a_model_is_run_by_the_file_that_is_named_and_by_no_other(file):
    photos(file.parent / "photos", {f"c{i}": (60 * i, 255 - 60 * i, 0) for i in range(4)}, n=4)
    ostinato("run", "my_method.py", "data=photos", "stream.step=2", "train.epochs=1", "out=r", cwd=file.parent)
    words = ("predict", "r", "photos/c0/0.jpg")
    want = ostinato(*words, "method=my_method.py", cwd=file.parent).stdout
    file.write_text(FILE.replace("self.head(self", "-self.head(self"))
    commands = (
        words,
        ("learn", "r", "data=photos"),
        ("eval", "r", "data=photos"),
        ("analyse", "r"),
        ("protocols", "r"),
    )
    for command in commands:
        text = ostinato(*command, code=2, cwd=file.parent).stderr
        assert "my_method.py. A file is run only if you name it: method=FILE" in text
    (copy,) = (file.parent / "r/artifact").glob("method-*.py")
    assert ostinato(*words, f"method={copy}", cwd=file.parent).stdout == want
    assert ostinato(*words, "method=my_method.py", cwd=file.parent).stdout != want
    assert ostinato("analyse", "r", "task_confusion", "method=my_method.py", cwd=file.parent).stdout
    text = ostinato("protocols", "r", "--method", "my_method.py", code=2, cwd=file.parent).stderr
    assert "need a method that infers tasks" in text


def test_a_method_repaired_in_the_middle_of_a_run_goes_on_and_says_so(file):
    photos(file.parent / "photos", {f"c{i}": (60 * i, 255 - 60 * i, 0) for i in range(4)}, n=4)
    bug = FILE.replace(
        "        super().begin_task(task)\n", "        super().begin_task(task)\n        1 / (1 - task.index)\n"
    )
    file.write_text(bug)
    words = ("data=photos", "stream.step=2", "train.epochs=1", "out=r")
    text = ostinato("run", "my_method.py", *words, code=70, cwd=file.parent).stderr
    line = bug[: bug.index("1 / (1")].count("\n") + 1
    assert f"ZeroDivisionError: division by zero ({file}, line {line}, in begin_task)" in text
    report = Path(re.search(r"A report is in (\S+);", text)[1])
    assert "Traceback (most recent call last)" in report.read_text()  # for who wrote it
    report.unlink()
    file.write_text(FILE)
    text = ostinato("resume", "r", code=2, cwd=file.parent).stderr
    assert "A file is run only if you name it: ostinato resume r method=FILE" in text
    done = ostinato("resume", "r", "method=my_method.py", cwd=file.parent)
    assert "changed since the run began" in done.stdout.replace("\n", " ")
    assert (file.parent / "r/method.py").read_text() == bug
    record = json.loads((file.parent / "r/record.json").read_text())
    assert record["method_changed_to"] == [sha256(FILE.encode()).hexdigest()]
    assert json.loads((file.parent / "r/summary.json").read_text())["classes"] == 4


def test_a_method_repaired_before_anything_was_learned_is_the_runs_method(file):
    photos(file.parent / "photos", {f"c{i}": (60 * i, 255 - 60 * i, 0) for i in range(4)}, n=4)
    file.write_text(FILE.replace(BEGIN, BEGIN + "        1 / 0\n"))
    words = ("data=photos", "stream.step=2", "train.epochs=1", "out=r")
    ostinato("run", "my_method.py", *words, code=70, cwd=file.parent)
    file.write_text(FILE)
    assert "changed since" not in ostinato("resume", "r", "method=my_method.py", cwd=file.parent).stdout
    assert (file.parent / "r/method.py").read_text() == FILE
    record = json.loads((file.parent / "r/record.json").read_text())
    assert record["method_sha256"] == sha256(FILE.encode()).hexdigest()
    assert "method_changed_to" not in record


def test_a_forgotten_super_is_said_at_once(file):
    file.write_text(FILE.replace(BEGIN, ""))
    text = ostinato("run", "my_method.py", "data=digits", "out=r", code=2, cwd=file.parent).stderr
    assert "Let begin_task call super().begin_task(task) first" in text


def test_resuming_with_another_method_is_refused(file):
    photos(file.parent / "photos", {f"c{i}": (60 * i, 255 - 60 * i, 0) for i in range(4)}, n=4)
    file.write_text(FILE.replace("        super().begin_task(task)\n", "        raise RuntimeError\n"))
    ostinato("run", "my_method.py", "data=photos", "stream.step=2", "out=r", code=70, cwd=file.parent)
    text = ostinato("resume", "r", "method=simplecil", code=2, cwd=file.parent).stderr
    assert "is a run of one_prefix, not of simplecil" in text


def test_the_table_of_the_manual_runs_and_takes_no_row_of_another_text_for_its_own(file):
    photos(file.parent / "photos", {f"c{i}": (25 * i, 255 - 25 * i, 20 * i) for i in range(10)}, n=4)
    table, _ = blocks("toml", ROOT / "docs/howto/tables.md")
    (file.parent / "my_table.toml").write_text(table)
    words = ("reproduce", "my_table.toml", "method=my_method.py", "out=runs/table", "train.epochs=1")
    ostinato(*words, cwd=file.parent)
    lines = (file.parent / "runs/table/table.md").read_text().splitlines()
    assert sum(line.startswith(("| mine |", "| dualprompt |")) for line in lines) == 2
    assert sum(line.startswith("ostinato run my_method.py ") for line in lines) == 2
    ostinato(*words, cwd=file.parent)
    file.write_text(FILE.replace("lr=0.01", "lr=0.02"))
    assert "my_method.py changed since the run" in ostinato(*words, code=2, cwd=file.parent).stderr


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        (None, "my_method.py", "there is no file"),
        (
            FILE.replace("one_prefix", "one prefix"),
            "my_method.py",
            "a name must have only letters, digits, '_' and '-', got 'one prefix'",
        ),
        ("x = 1\n", "my_method.py", r"registers none. Write @ostinato.register\('name'\) above its class"),
        (FILE, "my_method.py:other", "registers no 'other'. It has one_prefix"),
        (FILE.replace("one_prefix", "l2p"), "my_method.py", "the name 'l2p' is taken by .*L2P"),
    ],
)
def test_what_a_file_must_hold(tmp_path, monkeypatch, text, name, says):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "my_method.py").write_text(text)
    with pytest.raises(InputError, match=says):
        get_method(name)


def test_the_text_that_lies_there_now_is_run(file):
    """Also where it has the size of the one before and came within the same second."""
    for rate in ("0.02", "0.03", "0.04"):
        file.write_text(FILE.replace("lr=0.01", f"lr={rate}"))
        os.utime(file, (1_000_000_000, 1_000_000_000))
        assert get_method(str(file)).recipe.lr == float(rate)
    assert not (file.parent / "__pycache__").exists()


def test_a_file_may_be_imported_as_well_and_register_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_method.py").write_text(FILE.replace("one_prefix", "one-prefix"))
    module = importlib.import_module("imported_method")
    assert get_method("one-prefix") is module.OnePrefix
    own = get_method(str(tmp_path / "imported_method.py"))
    assert own is not module.OnePrefix
    assert get_method("one-prefix") is module.OnePrefix, "as before"
    assert file_of(own).reference.endswith("imported_method.py:one-prefix")
    assert get_method(file_of(own).reference).name == "one-prefix"
    (tmp_path / "other.py").write_text(
        "import ostinato\nfrom imported_method import OnePrefix\nostinato.register('other')(OnePrefix)\n"
    )
    assert get_method(str(tmp_path / "other.py")) is module.OnePrefix


def test_a_file_of_several_methods_and_of_modules_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_it.py").write_text(FILE.replace("one_prefix", "beside_it"))
    two = (
        "import ostinato\nfrom beside_it import OnePrefix\n"
        "@ostinato.register('first')\nclass First(OnePrefix):\n    '''One.'''\n"
        "@ostinato.register('second')\nclass Second(OnePrefix):\n    '''Two.'''\n"
    )
    (tmp_path / "two.py").write_text(two)
    with pytest.raises(InputError, match=r"registers first, second. Choose one: two.py:first"):
        get_method("two.py")
    assert get_method("two.py:second").__doc__ == "Two."
    (tmp_path / "two.py").write_text(two.replace("Two.", "Changed."))
    assert get_method("two.py:second").__doc__ == "Changed.", "what the file says now"
    (tmp_path / "copy.py").write_text(two.replace("Two.", "The copy's."))
    assert get_method("copy.py:second").__doc__ == "The copy's.", "two versions of a file use one name"
    assert get_method("two.py:second").__doc__ == "Changed."
    with pytest.raises(InputError, match="there is no 'second'"):
        get_method("second")


BEGIN = "        super().begin_task(task)\n"
LOSS = FILE[FILE.index("    def loss") : FILE.index("    def scores")]
SCORES = "        return self.head(self.features(x))\n"


def after_begin(line: str) -> tuple[str, str]:
    """Something that happens when a task begins."""
    return BEGIN, f"{BEGIN}        {line}\n"


def with_hook(name: str, *lines: str) -> tuple[str, str]:
    """A ``stages`` or ``end_task`` of its own."""
    return LOSS, LOSS + "\n".join([f"    def {name}(self, task):", *(f"        {line}" for line in lines)]) + "\n\n"


BROKEN = {
    "a score does not depend on its batch": (SCORES, SCORES.replace("(x))", "(x) - x.float().mean() / 99)")),
    "all learned state is saved": (
        FILE[FILE.index(LOSS) :],
        LOSS.replace("        return", "        self.scale = 2\n        return")
        + f"    def scores(self, x):\n{SCORES.rstrip()} * getattr(self, 'scale', 1)\n",
    ),
    "same seed same run": after_begin("__import__('random').random()"),
    "there is no transformer in it": after_begin("nn.MultiheadAttention(4, 2)"),
    "what can train gets a gradient": after_begin("self.idle = nn.Parameter(torch.zeros(2))"),
    "a frozen backbone is bit equal": after_begin("self.backbone.requires_grad_(True)"),
    "learned tensors are not rounded": after_begin("self.prefixes.data = self.prefixes.data.bfloat16()"),
    "tasks continue the classes seen": (
        BEGIN,
        "        from dataclasses import replace\n"
        "        here = range(self.n_seen, self.n_seen + len(task.classes))\n"
        "        super().begin_task(replace(task, index=self.n_tasks, classes=here))\n",
    ),
    "every option has a default and is explained": ("        length: positions of a prefix.\n", ""),
    "it says what it implements": ("Differences from the paper: there is none.\n", ""),
    "scores are given the input alone": ("    def scores(self, x):", "    def scores(self, x, y=None):"),
    "what is said to be trained is": with_hook("stages", "return [ostinato.Stage(self.loss, params=[self.prefixes])]"),
    "a run stopped anywhere goes on to the same result": with_hook(
        "stages", "self.prefixes.data += 0.1", "return super().stages(task)"
    ),
    "scores cover exactly the classes seen": (SCORES, SCORES.replace("\n", "[:, :3]\n")),
    "nothing is sized by what is to come": after_begin(
        "OnePrefix.begun = getattr(OnePrefix, 'begun', 0) + 1; self.prefixes.data += OnePrefix.begun"
    ),
    "a task of one class is learned": with_hook("end_task", "self.prefixes.data /= len(task.classes) - 1"),
    "private parts of earlier tasks are bit equal": with_hook("end_task", "self.head.weight[0].data += task.index"),
    "the state between tasks is enough to go on": after_begin(
        "self.begun = getattr(self, 'begun', 0) + 1; self.prefixes.data *= self.begun"
    ),
    "it runs through a stream": (SCORES, SCORES.replace("\n", " / 0\n")),
}
"""By the check that finds it: a line of the README's method, and what breaks the contract in its place."""


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_contract_is_found(file, name):
    right, wrong = BROKEN[name]
    assert FILE.count(right) == 1
    file.write_text(FILE.replace(right, wrong))
    (check,) = [check for check in CHECKS if check.__name__ == name.replace(" ", "_")]
    with pytest.raises(ContractViolation):
        check(Case(get_method(str(file)), "text"))


def test_a_rule_that_weighs_a_batch_is_found():
    class ByBatch(DualPrompt):
        def rules(self):
            return {"keys": lambda x: self.task_scores(x) - x.float().mean()}

    (check,) = [check for check in CHECKS if check.__name__.startswith("every_rule")]
    with pytest.raises(ContractViolation, match="rule 'keys'"):
        check(Case(ByBatch, "text"))


def test_state_beside_the_method_is_found(file):
    """What a module remembers is not saved with the method."""
    text = FILE.replace("@ostinato.register", "MEMORY = {}\n\n\n@ostinato.register")
    text = text.replace(LOSS, LOSS + "    def end_task(self, task):\n        MEMORY['scale'] = 2\n\n")
    file.write_text(text.replace(SCORES, SCORES.replace("\n", " * MEMORY.get('scale', 1)\n")))
    (check,) = [check for check in CHECKS if check.__name__ == "all_learned_state_is_saved"]
    with pytest.raises(ContractViolation):
        check(Case(get_method(str(file)), "text"))


def test_options_that_do_not_fit_a_toy_are_no_finding(file):
    shown = ostinato("check", "my_method.py", "method.layers=9,10", cwd=file.parent).stdout
    assert shown.count("does not apply  it runs through a stream: the options do not fit this encoder") == 2
    text = ostinato("check", "my_method.py", "method.layers=12", code=2, cwd=file.parent).stderr
    assert "must name layers in [0, 5]" in text


def test_a_right_method_of_short_stages_and_one_without_a_file_are_not_broken(file):
    file.write_text(
        FILE.replace(*with_hook("stages", "own = ostinato.Recipe(epochs=1, batch_size=32)",
                                "return [ostinato.Stage(self.loss, recipe=own)]"))
    )  # fmt: skip
    assert not [c for c in check_method(get_method(str(file))) if c.outcome == "broken"]
    space = {"__name__": "__main__"}
    exec(FILE, space)  # as in an interpreter
    found = {c.check: c for c in check_method(space["OnePrefix"]) if c.outcome == "broken"}
    # No module tells what it implements.
    assert set(found) == {"it says what it implements"}


def test_a_first_task_that_cannot_be_resumed_is_found(file):
    """Also where no later one is trained."""
    text = FILE.replace(*with_hook("stages", "return [] if task.index else super().stages(task)"))
    text = text.replace(BEGIN, BEGIN + "        self.prefixes.requires_grad_(task.index == 0)\n")
    (check,) = [check for check in CHECKS if check.__name__.startswith("a_run_stopped_anywhere")]
    file.write_text(text)
    check(Case(get_method(str(file)), "text"))
    file.write_text(
        text.replace('return {"ce": ', "self.n = getattr(self, 'n', 0) + 1\n        return {\"ce\": self.n * ")
    )
    with pytest.raises(ContractViolation, match="of task 0"):
        check(Case(get_method(str(file)), "text"))


def test_the_second_example_keeps_the_contract(file):
    page = README.parent / "docs/architecture.md"
    (text,) = re.findall(r"```py\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    file.write_text(text)
    for check in CHECKS:
        check(Case(get_method(str(file)), "text"))


def test_every_check_is_shown_to_find_something():
    found = {*BROKEN, "every rule weighs every task for each sample alone"}
    assert found == {check.__name__.replace("_", " ") for check in CHECKS}


def test_what_is_broken_is_shown_with_what_must_hold(file):
    file.write_text(FILE.replace("there is none", "yes").replace("        length: positions of a prefix.\n", ""))
    shown = ostinato("check", "my_method.py", code=1, cwd=file.parent).stdout
    assert shown.count("  broken          every option has a default and is explained: method.length is missing") == 3
    assert "  every option has a default and is explained: Options have defaults, and stand" in shown


def test_a_method_that_fails_is_told_by_its_own_line_and_not_checked_further(file):
    file.write_text(FILE.replace(SCORES, SCORES.replace("x)", "x.missing)")))
    shown = ostinato("check", "my_method.py", code=1, cwd=file.parent).stdout
    assert shown.count("broken") == 3, "once on each kind of encoder"
    assert "AttributeError" in shown
    assert "(my_method.py, line" in shown


def test_check_takes_options_of_the_method(file):
    assert "method.lenght: unknown key. Did you mean 'length'" in ostinato(
        "check", "my_method.py", "method.lenght=2", code=2, cwd=file.parent
    ).stderr  # fmt: skip
    text = ostinato("check", "simplecil", "train.epochs=2", code=2).stderr
    assert "check takes only options of the method" in text
