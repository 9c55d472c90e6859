"""The spool directory: names, locks, and what keeps others out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remote_logging.errors import SpoolError
from remote_logging.leadership import Leadership
from remote_logging.location import Template
from remote_logging.report import Reporter
from remote_logging.spool import Spool, network_file_system
from remote_logging.state import State

STATES = [
    State.unplaced(),
    State.unplaced(replace=True),
    State.unplaced(label="node-1.a1b2c3"),
    State.replacing(None),
    State.replacing('"etag/with %2F-and.dots"'),
    State.replacing("none"),
    State.anchor(0, 0),
    State.anchor(5_000_000_000, 8192),
    State.anchor(0, 4096, "ip-10-0-0-12.a1b2c3"),
]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    location = Template("memory://a.log").resolve()
    made = Spool.of(str(tmp_path / "spool"), location, Reporter(location.url))
    made.prepare()
    return made


@pytest.mark.parametrize("state", STATES, ids=str)
def test_a_state_survives_in_the_name_of_its_file(state: State, spool: Spool) -> None:
    with spool.structure():
        file = spool.create(state)
    (found,) = spool.files()
    assert found.path == file.path
    fields = ("kind", "remote", "file", "token", "label")
    assert [getattr(found.state, name) for name in fields] == [getattr(state, name) for name in fields]


def test_a_file_of_a_strange_name_is_kept_aside_and_reported(spool: Spool, capsys: pytest.CaptureFixture[str]) -> None:
    strange = Path(spool.directory, "strange.spool")
    strange.write_bytes(b"one\n")
    assert spool.files() == []
    assert Path(f"{strange}.damaged").read_bytes() == b"one\n"
    assert "strange.spool is damaged" in capsys.readouterr().err


def test_generations_never_begin_again_while_the_directory_lives(spool: Spool) -> None:
    spool.leadership.acknowledge(7, 100)
    with spool.structure():
        assert spool.create(State.unplaced()).generation == 8  # else the hint would be of another file


def test_a_lock_that_somebody_does_not_give_back_is_waited_for_within_bounds(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_logging.spool.LOCK_TIMEOUT", 0.05)
    other = Spool(spool.directory, spool.location, spool.report)
    with spool.structure(), pytest.raises(SpoolError, match="fuser"), other.structure():
        pass  # I6


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path, spool: Spool) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.rmdir(spool.directory)
    os.symlink(elsewhere, spool.directory)
    with pytest.raises(SpoolError, match="not a directory of this user"):
        spool.prepare()


def test_a_directory_of_another_user_is_refused(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SpoolError, match="not a directory of this user"):
        spool.prepare()


def test_the_lead_is_one_processs_and_free_when_it_gives_it_up(spool: Spool) -> None:
    one, two = Leadership(spool.directory), Leadership(spool.directory)
    assert one.take()
    assert not two.take()
    assert two.pid() == os.getpid()
    one.give_up()
    assert two.take()
    two.give_up()


def test_a_hint_of_which_half_was_overwritten_is_none(spool: Spool) -> None:
    spool.leadership.acknowledge(1, 999)
    assert spool.leadership.acknowledged() == (1, 999)
    path = Path(spool.directory, "acknowledged")
    path.write_bytes(path.read_bytes().replace(b"999", b"1000", 1))
    assert spool.leadership.acknowledged() == (0, 0)


@pytest.mark.parametrize(
    ("directory", "kind"), [("/home/me/.local", "nfs4"), ("/home/me too/x", None), ("/data", None), ("/home", "nfs4")]
)
def test_a_network_file_system_is_recognized_by_the_mount_that_holds_the_directory(
    directory: str, kind: str | None, tmp_path: Path
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/vda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n/dev/vdb /home/me\\040too ext4 rw 0 0\n")
    assert network_file_system(directory, str(mounts)) == kind
