import errno
import json
import os
import resource
import shutil

import pytest
import torch

from strucfast.training import CheckpointError, RunFolderError, _files
from strucfast.training.checkpoint import Checkpoint, copy_into, load, save


def make(value: float = 1.0) -> Checkpoint:
    weight = torch.full((4, 3, 2, 2), value).to(memory_format=torch.channels_last)
    state = {"optimizer.0.weight.exp_avg": torch.arange(3.0), "optimizer.0.weight.step": torch.tensor(7.0)}
    return Checkpoint({"weight": weight, "half": torch.ones(2, dtype=torch.bfloat16)}, state, {"step": 7}, '{"a": 1}')


def test_round_trip(tmp_path):
    save(tmp_path / "last", make())
    found = load(tmp_path / "last")
    assert torch.equal(found.model["weight"], make().model["weight"])
    assert found.model["half"].dtype == torch.bfloat16
    assert found.state["optimizer.0.weight.step"].shape == ()
    assert found.scalars == {"step": 7}
    assert found.model_config == '{"a": 1}'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


def test_replacing_keeps_nothing_of_the_old(tmp_path):
    save(tmp_path / "last", make(1.0))
    save(tmp_path / "last", make(2.0))
    assert load(tmp_path / "last").model["weight"].max() == 2.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json", "config.json"])
def test_truncated_file_is_named(tmp_path, name):
    save(tmp_path / "last", make())
    path = tmp_path / "last" / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=f"last/{name}: (truncated|corrupt)"):
        load(tmp_path / "last")


def test_flipped_byte_is_found(tmp_path):
    save(tmp_path / "last", make())
    path = tmp_path / "last" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"last/model\.safetensors: corrupt: its checksum differs"):
        load(tmp_path / "last")


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
def test_missing_file_is_named(tmp_path, name):
    save(tmp_path / "last", make())
    (tmp_path / "last" / name).unlink()
    with pytest.raises(CheckpointError, match=f"last/{name}: is missing"):
        load(tmp_path / "last")


def test_state_json_without_file_list(tmp_path):
    save(tmp_path / "last", make())
    path = tmp_path / "last" / "state.json"
    scalars = json.loads(path.read_text())
    del scalars["files"]["model.safetensors"]
    path.write_text(json.dumps(scalars))
    with pytest.raises(CheckpointError, match=r"state\.json: field 'files': model\.safetensors is not listed"):
        load(tmp_path / "last")
    path.write_text("[]")
    with pytest.raises(CheckpointError, match=r"state\.json: corrupt"):
        load(tmp_path / "last")


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load(tmp_path / "last")


def test_kill_between_the_two_renames_is_recovered(tmp_path):
    save(tmp_path / "last", make(3.0))
    os.rename(tmp_path / "last", tmp_path / ".last.old")
    # a half-written successor lies about, too
    shutil.copytree(tmp_path / ".last.old", tmp_path / ".last.tmp")
    (tmp_path / ".last.tmp" / "state.json").unlink()
    assert load(tmp_path / "last").model["weight"].max() == 3.0
    save(tmp_path / "last", make(4.0))
    assert load(tmp_path / "last").model["weight"].max() == 4.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


@pytest.mark.parametrize("step", ["mkdir", "write", "rename"])
def test_failure_at_any_step_keeps_the_old_checkpoint(tmp_path, monkeypatch, step):
    save(tmp_path / "last", make(1.0))

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    written = []

    def fail_second_write(path, data):
        if written:
            path.write_bytes(data[:5])
            fail()
        written.append(path)
        path.write_bytes(data)

    if step == "mkdir":
        monkeypatch.setattr(_files.Path, "mkdir", fail)
    elif step == "write":
        monkeypatch.setattr(_files, "write_synced", fail_second_write)
    else:
        rename = os.rename
        # the first rename sets the old one aside; the second puts the new one in place
        monkeypatch.setattr(os, "rename", lambda a, b: fail() if str(a).endswith(".tmp") else rename(a, b))
    with pytest.raises(RunFolderError, match=r"cannot write .*last: No space left on device"):
        save(tmp_path / "last", make(2.0))
    monkeypatch.undo()
    assert load(tmp_path / "last").model["weight"].max() == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


def test_file_size_limit_stands_for_a_full_disk(tmp_path):
    save(tmp_path / "last", make(1.0))
    big = make(2.0)
    big.model["weight"] = torch.zeros(1 << 18)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(RunFolderError, match=r"cannot write .*last: File too large"):
            save(tmp_path / "last", big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load(tmp_path / "last").model["weight"].max() == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


def test_copy_into_names_the_tensor():
    target = {"weight": torch.zeros(2, 3)}
    with pytest.raises(CheckpointError, match=r"f: field 'weight' is missing"):
        copy_into(target, {}, "f")
    with pytest.raises(CheckpointError, match=r"'weight': expected float32 \(2, 3\), got float32 \(3, 2\)"):
        copy_into(target, {"weight": torch.zeros(3, 2)}, "f")
    with pytest.raises(CheckpointError, match=r"expected float32 \(2, 3\), got float64 \(2, 3\)"):
        copy_into(target, {"weight": torch.zeros(2, 3, dtype=torch.float64)}, "f")
    copy_into(target, {"weight": torch.ones(2, 3)}, "f")
    assert target["weight"].sum() == 6


def test_write_file_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    _files.write_file(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunFolderError, match=r"cannot write .*a\.json: No space left"):
        _files.write_file(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
