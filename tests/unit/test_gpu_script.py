"""The script that measures a GPU, in small form and on a CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file

from benchmarks import cases, gpu, limits
from benchmarks.cases import CASES, CLASSES, MORE, Case, Images, Measured, closed_forms, taught
from ostinato.backbones import Arch
from ostinato.contract import Case as ContractCase
from ostinato.contract.tiny_models import random_backbone
from ostinato.lookup import get_method
from ostinato.methods.base import LearnTask, Method
from ostinato.training.precision import prepare

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def script(*words: str, cwd: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHON": python, "OMP_NUM_THREADS": "1"}
    env.pop("OUT", None)
    return subprocess.run([str(SCRIPT), *words], env=env, cwd=cwd, capture_output=True, text=True)


def asked(folder: Path, seconds: float = 120.0) -> gpu.Asked:
    return gpu.Asked(CPU, folder, seconds, small=True)


# The script


@pytest.mark.slow
def test_the_script_tells_what_it_finds_and_writes_it_down(tmp_path):
    done = script("--small", "--device", "cpu", "--parts", "machine,contract", "found", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "found" / "findings.txt").read_text() == done.stdout
    assert re.search(r"Matrix products in bf16: \S+ TFLOP/s", done.stdout)
    assert re.search(r"simplecil: .*\d+ holds", done.stdout)
    assert done.stdout.index("== machine") < done.stdout.index("== contract")
    assert done.stdout.rstrip().endswith("all parts ran through")


def test_a_part_that_fails_stops_no_other(tmp_path):
    failing = tmp_path / "python"
    failing.write_text('#!/bin/sh\ntest "$1" = -c\n')
    failing.chmod(0o755)
    done = script("--small", "--parts", "machine,contract", "found", cwd=tmp_path, python=str(failing))
    assert done.returncode == 1
    assert re.findall(r"FAILED: (\w+): exit code 1", done.stdout) == ["machine", "contract"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_part_fails_without_its_device(tmp_path, capsys):
    with pytest.raises(typer.Exit) as stop:
        gpu.main(gpu.Part.machine, tmp_path, "cuda")
    assert stop.value.exit_code == 1
    assert "FAILED: machine: InputError: " in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--parts", "nothing"], ["--fast"], ["--device"]])
def test_the_script_refuses_what_it_does_not_know(tmp_path, words):
    done = script(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


# Speed


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(cases.ARCHS, "small", Arch(dim=24, depth=12, heads=2, mlp_dim=24))
    monkeypatch.setitem(cases.SIDES, "small", 32)


def test_speed_goes_on_past_a_case_that_fails(tmp_path, monkeypatch, capsys, tiny):
    good, bad = MORE[1], MORE[0]
    monkeypatch.setattr(gpu, "all_cases", lambda: [bad, good])

    def measure(case: Case, *words: Any, **more: Any) -> Measured:
        if case is bad:
            raise RuntimeError("no kernel image")
        return cases.measure(case, *words, **more)

    monkeypatch.setattr(gpu, "measure", measure)
    failed = gpu.tell_speed(asked(tmp_path))
    assert failed == [f"{bad.name}: RuntimeError: no kernel image"]
    table = (tmp_path / "speed.md").read_text()
    assert f"| {good.name} |" in table
    assert bad.name not in table
    assert good.name in capsys.readouterr().out


def test_speed_ends_in_time_and_says_what_is_missing(tmp_path):
    failed = gpu.tell_speed(asked(tmp_path, seconds=0.0))
    assert len(failed) == len(cases.all_cases())
    assert all("not measured, no time is left" in line for line in failed)


@pytest.mark.usefixtures("counts_attention")
@pytest.mark.parametrize("case", [*MORE, *closed_forms()], ids=lambda c: c.name)
def test_every_further_case_runs_to_its_figures(case: Case, tiny):
    more: dict[str, Any] = {"with_reference": True, "count": True, "shapes": ((32, 32, 32),)}
    took = cases.measure(case, "small", batch=6, rounds=1, device=CPU, dtype=torch.float32, **more)
    assert min(took.ours, took.reference, took.limit) > 0
    arch, n = cases.ARCHS["small"], cases.tokens("small")
    least = limits.forward_flops(arch, n)
    assert least * 0.99 <= took.done <= 8 * least
    if case.flops:
        assert took.done >= 0.99 * case.flops(arch, n)


@pytest.mark.usefixtures("counts_attention")
def test_arithmetic_is_counted_in_a_step_with_looked_up_queries(tiny):
    """One pass forward and the gradient for the inputs; with the query it would be a pass more."""
    known, new = CASES[0], CASES[1]
    more: dict[str, Any] = {"with_reference": False, "count": True, "shapes": ((32, 32, 32),)}
    first, second = (
        cases.measure(case, "small", batch=6, rounds=1, device=CPU, dtype=torch.float32, **more).done
        for case in (known, new)
    )
    assert second - first == pytest.approx(limits.forward_flops(cases.ARCHS["small"], cases.tokens("small")), rel=0.01)


def test_a_linear_map_in_bf16_is_counted():
    from ostinato.backbones.edits import frozen_linear, fused_bf16

    if not fused_bf16():
        pytest.skip("this processor has no kernel for it")
    x, weight, bias = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((2, 3, 8), (16, 8), (16,)))
    with limits.counter() as counter, torch.no_grad():
        frozen_linear(x, weight, bias)
    assert counter.get_total_flops() == 2 * 2 * 3 * 8 * 16


def test_goals_name_who_misses_them():
    training = Case("slow", "l2p", {}, 1, training=True, reference=lambda m, x, y: x)
    scoring = Case("fast", "l2p", {}, 1, training=False, reference=lambda m, x, y: x)
    nan = float("nan")
    share, ratio = gpu.goals(
        [
            (training, Measured(ours=1.0, reference=4.0, limit=10.0, done=4.0, memory=nan), 4.0),
            (scoring, Measured(ours=1.0, reference=12.0, limit=10.0, done=1.0, memory=nan), 1.0),
        ]
    )
    assert share == "Goal: at least 50% of the limit in training: 0 of 1 cases reach it; not slow (40%)."
    assert ratio == "Goal: at least 10 times the reference: 1 of 2 cases reach it; not slow (4.0)."


def method_of(case: Case, *, learning: bool) -> Any:
    method = taught(case, random_backbone(), 3, learning=learning)
    for p in method.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    return method


@pytest.mark.parametrize("case", [c for c in MORE if not c.training], ids=lambda c: c.name)
def test_both_sides_score_the_same(case: Case):
    method = method_of(case, learning=False)
    x, y = Images(20, 8, range(15)).batch(20, CPU)
    method.eval()
    with torch.no_grad():
        plain, ours = case.reference(method, x, y), method.scores(x)
    assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_both_sides_of_soft_tf_have_the_same_loss_and_gradients():
    case = next(c for c in MORE if c.name == "Soft-TF, training")
    method = method_of(case, learning=True)
    x, y = Images(10, 8, range(2 * CLASSES, 3 * CLASSES)).batch(10, CPU)
    method.train()
    gradients = []
    for loss in (torch.stack(list(method.loss(x, y).values())).sum(), case.reference(method, x, y)):
        params = {n: p for n, p in method.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        gradients.append((loss, {n: g for n, g in zip(params, found, strict=True) if g is not None}))
    (ours, of_ours), (plain, of_plain) = gradients
    assert torch.allclose(ours, plain, rtol=1e-5)
    assert of_ours.keys() == of_plain.keys()
    assert any("masks" in name for name in of_ours)
    for name, g in of_plain.items():
        assert torch.allclose(of_ours[name], g, rtol=1e-3, atol=1e-5 * float(g.abs().max())), name


def test_closed_forms_are_the_methods_that_optimise_nothing():
    names = {case.method for case in closed_forms()}
    assert "simplecil" in names
    assert not names & {case.method for case in CASES}
    images = Images(CLASSES, 8, range(CLASSES))
    task = LearnTask(0, range(CLASSES), images, lambda: iter([images.batch(CLASSES, CPU)]))
    for name in names:
        method: Method = get_method(name)(random_backbone())
        method.begin_task(task)
        assert not list(method.stages(task))


# The contract


def test_the_contract_is_held_where_it_is_asked_for():
    case = ContractCase(get_method("l2p"), "image", device=torch.device("meta"))
    assert {p.device.type for p in case.make().parameters()} == {"meta"}
    assert {p.device.type for p in case.reloaded(case.make().learned_state()).parameters()} == {"meta"}
    assert case.inputs.device.type == case.settings.device.type == "meta"


def test_what_is_broken_is_told(tmp_path, monkeypatch, capsys):
    held = [("a", gpu.Held("a", gpu.Counter(holds=3, broken=1), ["a on image: it: why"], 1.0)), ("b", OSError("gone"))]
    monkeypatch.setattr(gpu, "methods", lambda: {"a": None, "b": None, "c": None})
    monkeypatch.setattr(gpu, "_each_held", lambda names, asked: iter(held))
    failed = gpu.tell_contract(gpu.Asked(CPU, tmp_path, 1.0, small=False))
    assert failed == [
        "a on image: it: why",
        "b: OSError: gone",
        "c: not held against the contract, no time is left",
    ]
    assert "a: 1 broken, 3 holds" in capsys.readouterr().out


# Resuming


@pytest.mark.slow
def test_a_run_is_killed_and_resumed_to_the_same_result(tmp_path, capsys):
    assert gpu.tell_resume(asked(tmp_path)) == []
    said = capsys.readouterr().out
    assert "Killed behind checkpoint" in said
    assert "Accuracy matrix of the resumed run: the same." in said
    assert "Learned tensors of the resumed run: bit-equal." in said


def test_differences_of_tensors_are_told(tmp_path):
    tensors = {"a": torch.zeros(3), "b": torch.ones(2)}
    changed = {"one": {}, "same": {}, "far": {"a": torch.tensor([0.0, 0.5, 0.0])}, "other": {"c": torch.zeros(1)}}
    for run, more in changed.items():
        (tmp_path / run / "artifact").mkdir(parents=True)
        save_file(tensors | more, tmp_path / run / "artifact" / "learned.safetensors")
    told = {run: gpu.differences(tmp_path / "one", tmp_path / run) for run in ("same", "far", "other")}
    assert told == {"same": "", "far": "1 of 2 differ, by 0.5 at most", "other": "of other names: ['c']"}
    (tmp_path / "none").mkdir()
    assert gpu.differences(tmp_path / "none", tmp_path / "none")


# The library on a GPU


def test_fp32_on_a_gpu_is_not_rounded_to_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

    class Moved:
        trains_backbone = True

        def to(self, device: torch.device) -> None:
            pass

    method: Any = Moved()
    prepare(method, torch.device("cuda"), torch.bfloat16)
    prepare(method, CPU, torch.float32)
    assert torch.backends.cudnn.allow_tf32
    prepare(method, torch.device("cuda"), torch.float32)
    assert not torch.backends.cudnn.allow_tf32
