import os
import subprocess
import sys

import pytest

from strucfast.training import machine

# the file by itself, because it must act before torch is loaded
CHILD = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("machine", os.environ["MACHINE"])
machine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(machine)
machine.restart_with_allocator()
print(os.environ.get("MALLOC_MMAP_MAX_"), os.environ.get(machine.GUARD), sys.argv[1:], os.getpid())
"""


def run(tmp_path, **environment):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    clean = {k: v for k, v in os.environ.items() if k not in (*machine.ALLOCATOR_SETTINGS, machine.GUARD)}
    clean["MACHINE"] = machine.__file__
    command = [sys.executable, str(script), "a b", "--flag"]
    process = subprocess.Popen(command, env=clean | environment, stdout=subprocess.PIPE, text=True)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return text.split(maxsplit=2), process.pid


@pytest.mark.skipif(not machine._is_glibc(), reason="the settings are glibc's; run this on a glibc Linux")
def test_restarts_once_with_the_same_arguments_and_process(tmp_path):
    (value, guard, rest), pid = run(tmp_path)
    assert (value, guard) == ("0", "set")
    assert rest.strip() == f"['a b', '--flag'] {pid}"


def test_can_be_turned_off(tmp_path):
    (value, guard, _), _ = run(tmp_path, **{machine.GUARD: "default"})
    assert (value, guard) == ("None", "default")


@pytest.mark.skipif(not machine._is_glibc(), reason="the settings are glibc's; run this on a glibc Linux")
def test_what_the_user_set_stays(tmp_path):
    (value, _, _), _ = run(tmp_path, MALLOC_MMAP_MAX_="7")
    assert value == "7"


def test_says_what_is_set(monkeypatch):
    for name in machine.ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert machine.describe_allocator() == "allocator: default"
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    assert machine.describe_allocator() == "allocator: MALLOC_MMAP_MAX_=0"


def test_physical_cores_respect_the_affinity(monkeypatch):
    assert 1 <= machine.physical_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        one = min(os.sched_getaffinity(0))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {one})
        assert machine.physical_cores() == 1


def test_threads_are_shared_between_local_processes(monkeypatch):
    import torch

    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "physical_cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    try:
        assert machine.set_threads(0) == 2 == torch.get_num_threads()
        assert machine.set_threads(3) == 3 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_threads_follow_what_is_quicker(monkeypatch):
    import torch

    now = [4]
    monkeypatch.setattr(torch, "set_num_threads", lambda count: now.__setitem__(0, count))
    chooser = machine.ThreadChooser(4, period=2.0)
    seconds = {4: 0.01, 1: 0.03}

    def run(steps):
        changes = [chooser.record(seconds[now[0]]) for _ in range(steps)]
        return [change for change in changes if change is not None], now[0]

    assert run(6) == ([], 4)
    # a neighbour comes, and is noticed at the next trial
    seconds[4] = 0.4
    assert run(40) == ([1], 1)
    assert run(20) == ([], 1)
    # and goes
    seconds[4] = 0.01
    changes, threads = run(400)
    assert (changes, threads) == ([4], 4)


def test_device_that_is_not_there():
    assert machine.resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=r"train\.device: expected one of \d+ CUDA devices .*, got 'cuda:99'"):
        machine.resolve_device("cuda:99")


@pytest.mark.parametrize(
    ("text", "name", "bf16"),
    [
        ("processor : 0\nmodel name\t: Good CPU\nflags\t: fpu avx512f avx512_bf16 sse\n", "Good CPU", True),
        ("model name\t: Old CPU\nflags\t: fpu avx2 avx512_bf16x\n", "Old CPU", False),
        ("Features\t: fp asimd bf16\n", None, True),
        ("", None, False),
    ],
)
def test_what_the_processor_is(monkeypatch, text, name, bf16):
    monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: text)
    assert machine.has_bf16_units() is bf16
    assert machine.cpu_name() == (name or machine.platform.processor() or machine.platform.machine())
