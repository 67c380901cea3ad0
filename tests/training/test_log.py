import json

import pytest

from strucfast.training import RunFolderError
from strucfast.training.log import History, Progress, RunLog, duration, read_history


def test_history_is_flushed_line_by_line(tmp_path):
    history = History(tmp_path, 0, tensorboard=False, log=RunLog(None, echo=False))
    history.write({"step": 1, "split": "train", "loss": 2.5})
    assert read_history(tmp_path / "metrics.jsonl") == [{"step": 1, "split": "train", "loss": 2.5}]
    history.write({"step": 2, "split": "train", "loss": float("inf")})
    history.close()
    assert read_history(tmp_path / "metrics.jsonl")[1]["loss"] is None


def test_torn_last_line_is_left_out_and_another_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [record["step"] for record in read_history(path)] == [1, 2]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2"):
        read_history(path)
    assert read_history(tmp_path / "none.jsonl") == []


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "split": "train"}) + "\n" for step in (5, 10, 15)) + '{"step": 2')
    history = History(tmp_path, 10, tensorboard=False, log=RunLog(None, echo=False))
    history.write({"step": 11, "split": "train"})
    history.close()
    assert [record["step"] for record in read_history(path)] == [5, 10, 11]


def test_tensorboard_files_hold_the_scalars(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="install tensorboard")
    history = History(tmp_path, 0, tensorboard=True, log=RunLog(None, echo=False))
    history.write({"step": 7, "split": "validation", "loss": 2.5})
    history.close()
    accumulator = events.EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    (scalar,) = accumulator.Scalars("validation/loss")
    assert (scalar.step, scalar.value) == (7, 2.5)


def test_without_tensorboard_one_line_says_so(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = RunLog(tmp_path / "run.log", echo=False)
    history = History(tmp_path, 0, tensorboard=True, log=log)
    history.write({"step": 1, "split": "train", "loss": 1.0})
    history.close()
    (line,) = (tmp_path / "run.log").read_text().splitlines()
    assert "no TensorBoard files" in line
    assert "pip install tensorboard" in line


def test_full_disk_is_said(tmp_path):
    log = RunLog(None, echo=False)
    history = History(tmp_path, 0, tensorboard=False, log=log)
    history.close()
    history._stream = open("/dev/full", "w")
    with pytest.raises(RunFolderError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        history.write({"step": 1, "split": "train"})


def test_lines_say_loss_speed_and_time_left(tmp_path, capsys):
    log = RunLog(tmp_path / "run.log")
    progress = Progress("lines", 0, 4, log)
    progress.update(4, 12.5, 2000.0, 1.0)
    progress.close()
    assert "step 4/4  loss 12.5  2,000 images/s  0:00 left" in capsys.readouterr().err


def test_time_left_is_cut_by_the_limit_and_does_not_count_earlier_sessions(capsys, monkeypatch):
    import strucfast.training.log as module

    clock = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    progress = Progress("lines", 90, 200, RunLog(None))
    progress.update(100, 1.0, 10.0, 1e6)
    # ten steps in ten seconds, a hundred to go
    assert "1:40 left" in capsys.readouterr().err
    progress.max_seconds = 1000030.0
    progress.update(200, 1.0, 10.0, 1e6)
    assert "0:00 left" in capsys.readouterr().err


def test_bar_on_a_terminal(capsys):
    progress = Progress("bar", 0, 10, RunLog(None))
    progress.update(10, 3.25, 1500.0, 1.0)
    progress.close()
    assert "10/10, loss 3.25  1,500 images/s  0:00 left" in capsys.readouterr().err


def test_duration():
    assert [duration(s) for s in (0, 59.6, 125, 3723)] == ["0:00", "1:00", "2:05", "1:02:03"]
