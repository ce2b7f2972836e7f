"""The precision that is fastest, on processors that are not here as well."""

from __future__ import annotations

import json

import pytest
import torch

from ostinato.errors import InputError
from ostinato.training import precision, rates
from ostinato.training.precision import choose_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A machine that was never measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/ostinato/rates.json"


def test_names():
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert choose_precision(name, CPU) == precision.Precision(dtype, "asked for")
    assert choose_precision("auto", CPU).dtype in (torch.float32, torch.bfloat16)
    with pytest.raises(InputError, match="auto, fp32 or bf16, got 'fp16'"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize(
    ("processor", "kernels", "seconds", "want", "says"),
    [
        ("AVX2", False, None, torch.float32, "no kernels for bf16"),
        ("AVX-512 that emulates bf16", True, (1.0, 4.7), torch.float32, "takes 4.70 of its time in fp32"),
        ("AVX512_BF16 slower than fp32", True, (1.0, 1.6), torch.float32, "takes 1.60 of its time in fp32"),
        ("hardly faster", True, (1.1, 1.0), torch.float32, "takes 0.91 of its time in fp32"),
        ("AVX512_BF16 of full width", True, (2.1, 1.0), torch.bfloat16, "takes 0.48 of its time in fp32"),
        ("AMX", True, (6.0, 1.0), torch.bfloat16, "takes 0.17 of its time in fp32"),
    ],
)
def test_auto_is_bf16_where_it_is_faster(monkeypatch, home, processor, kernels, seconds, want, says):
    monkeypatch.setattr(precision, "fused_bf16", lambda: kernels)
    asked = []

    def taken(operands):
        asked.append(operands[0].dtype)
        return seconds[operands[0].dtype == torch.bfloat16]

    monkeypatch.setattr(rates, "_seconds", taken)
    chosen = choose_precision("auto", CPU)
    assert chosen.dtype == want
    assert says in chosen.reason
    n = len(asked)
    assert choose_precision("auto", CPU) == chosen
    assert len(asked) == n, "measured once per machine"
    assert home.exists() == kernels


def test_one_thread_is_measured_whatever_the_process_uses(monkeypatch):
    seen = []

    def taken(operands):
        seen.append(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr(rates, "_seconds", taken)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rates.bf16_gain()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_tells_by_its_instructions(monkeypatch, has):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    chosen = choose_precision("auto", torch.device("cuda"))
    assert chosen.dtype == (torch.bfloat16 if has else torch.float32)
    assert ("no instructions" in chosen.reason) != has


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_memory_is_measured_anew(home, text):
    home.parent.mkdir(parents=True)
    home.write_text(text)
    gain = rates.bf16_gain()
    assert gain > 0
    assert list(json.loads(home.read_text()).values()) == [gain]


@pytest.mark.parametrize("value", [True, 0.0, -1.0, "2", None, [2.0]])
def test_what_is_no_gain_is_measured_anew(home, monkeypatch, value):
    gain = rates.bf16_gain()
    (key,) = json.loads(home.read_text())
    home.write_text(json.dumps({key: value, "another machine": 3.0}))
    monkeypatch.setattr(rates, "_measured", lambda: 7.5)
    assert rates.bf16_gain() == 7.5 != gain
    assert json.loads(home.read_text()) == {key: 7.5, "another machine": 3.0}


def test_a_home_that_cannot_be_written_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert rates.bf16_gain() > 0
