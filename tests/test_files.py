"""Files are written whole or not at all, and what killed writers leave goes."""

import errno
import os
import signal
import subprocess
import sys

import pytest

import routing_gym.files
from routing_gym.files import WriteError, clear_orphans, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def killed_while_writing(target):
    """Start a process that writes half a file and waits, and return it when it has."""
    code = (
        f"import runpy, sys; write = runpy.run_path({routing_gym.files.__file__!r})['write_atomically']\n"
        "def half(out): out.write(b'half'); out.flush(); print('half', flush=True); sys.stdin.read()\n"
        f"write({str(target)!r}, half)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    return process


def test_what_killed_writers_left_goes_but_never_a_live_ones(tmp_path):
    killed, alive, other = (killed_while_writing(tmp_path / name) for name in ("a[1].json", "a[1].json", "b.json"))
    try:
        for process in (killed, other):
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert len(names(tmp_path)) == 3
        write_atomically(tmp_path / "a[1].json", lambda out: out.write(b"whole"))
        left = names(tmp_path)
        assert len(left) == 3 and left.count("a[1].json") == 1  # the live one's, and the other file's
        clear_orphans(tmp_path)
        assert len(names(tmp_path)) == 2
        alive.communicate()
        assert names(tmp_path) == ["a[1].json"] and (tmp_path / "a[1].json").read_bytes() == b"half"
    finally:
        for process in (killed, alive, other):
            process.kill()
            process.communicate()


def test_a_writer_taken_for_an_orphan_before_it_is_locked_begins_again(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    lock = fcntl.flock

    def late(file, how):
        monkeypatch.setattr(fcntl, "flock", lock)
        clear_orphans(tmp_path)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_atomically(tmp_path / "a", lambda out: out.write(b"whole"))
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_have_the_mode_the_umask_says(umask, tmp_path):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "a", lambda out: out.write(b""))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_cannot_be_written_names_the_file_and_keeps_the_old_one(tmp_path):
    def full(out):
        out.write(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "a.json"
    with pytest.raises(WriteError, match=r"a\.json was not written: No space left on device$"):
        write_atomically(target, full)
    assert names(tmp_path) == []
    target.write_text("old")
    with pytest.raises(WriteError, match=r"a\.json was not written: No space left on device; what was there before is"):
        write_atomically(target, full)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, lambda out: os.kill(os.getpid(), signal.SIGINT))
    assert names(tmp_path) == ["a.json"] and target.read_text() == "old"
    with pytest.raises(WriteError, match=r"no/a\.json was not written: there is no folder .*no$"):
        write_atomically(tmp_path / "no" / "a.json", full)
    for folder in (tmp_path, "."):
        with pytest.raises(WriteError, match="was not written: it is a folder"):
            write_atomically(folder, full)
    with pytest.raises(WriteError, match=r"a\.json/b was not written: Not a directory"):
        write_atomically(target / "b", full)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_disk_that_is_really_full(tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(WriteError, match="a was not written: File too large"):
            write_atomically(tmp_path / "a", lambda out: out.write(bytes(2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []
