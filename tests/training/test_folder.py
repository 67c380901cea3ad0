import pytest

from strucfast.training import RunFolderError
from strucfast.training.folder import CONFIG, Lock, claim


def test_new_folder_with_parents(tmp_path):
    claim(tmp_path / "a" / "b").release()
    assert [entry.name for entry in (tmp_path / "a" / "b").iterdir()] == [".lock"]


def test_existing_run_is_refused_and_replaced_only_when_asked(tmp_path):
    (tmp_path / CONFIG).write_text("")
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "checkpoints" / "last").mkdir(parents=True)
    (tmp_path / "seed-3").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"holds a run already; go on with it .--resume. or replace"):
        claim(tmp_path)
    lock = claim(tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").exists()
    with pytest.raises(RunFolderError, match="another process is training there"):
        claim(tmp_path, overwrite=True)
    assert (tmp_path / "metrics.jsonl").exists()
    lock.release()
    claim(tmp_path, overwrite=True).release()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "notes.txt"]


def test_other_peoples_folders_are_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="is not empty and holds no run"):
            claim(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "all of it"


def test_nothing_to_resume(tmp_path):
    with pytest.raises(RunFolderError, match="no run to resume there"):
        claim(tmp_path, resume=True)


def test_path_that_cannot_be_a_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunFolderError, match="expected a folder for the run, found a file"):
        claim(file)
    with pytest.raises(RunFolderError, match=r"cannot write to the run folder .*: Not a directory"):
        claim(file / "run")


def test_two_processes_cannot_share_a_run(tmp_path):
    pytest.importorskip("fcntl", reason="needs POSIX file locks")
    lock = Lock(tmp_path)
    with pytest.raises(RunFolderError, match="another process is training there"):
        Lock(tmp_path)
    lock.release()
    Lock(tmp_path).release()
