"""The shipper driven by hand, one step at a time, without its thread: what it decides, and what the object then holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_logging import shipper as shipper_module
from remote_logging.appender import Appender
from remote_logging.location import Location, Template
from remote_logging.report import Reporter
from remote_logging.shipper import Shipper, plan
from remote_logging.spool import KEPT, Spool
from remote_logging.state import State
from remote_logging.store import Head, Store, open_store

from .support import Bucket, lines_of

MiB = 2**20


class Place:
    """An object in a store, written to behind the package's back."""

    def __init__(self, bucket: Bucket | None, file: Path) -> None:
        self.bucket, self.file = bucket, file
        template = Template(bucket.url(), bucket.options) if bucket else Template(file)
        self.location: Location = template.resolve()

    def read(self) -> bytes:
        if self.bucket:
            return self.bucket.read()
        return self.file.read_bytes() if self.file.exists() else b""

    def write(self, data: bytes) -> None:
        if self.bucket:
            return self.bucket.write(data)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(data)
        return None

    def delete(self) -> None:
        self.bucket.delete() if self.bucket else self.file.unlink()

    def siblings(self) -> dict[str, bytes]:
        if self.bucket:
            return {key: self.bucket.read(key) for key in self.bucket.list() if key != "run/training.log"}
        return {path.name: path.read_bytes() for path in self.file.parent.iterdir() if path != self.file}


class Rig:
    """Spool, appender and shipper of one process, to be driven by hand."""

    def __init__(self, place: Place, root: Path, *, replace: bool = False, max_bytes: int = 2**30) -> None:
        self.report = Reporter(place.location.url)
        self.spool = Spool.of(str(root), place.location, self.report)
        self.appender = Appender(self.spool, max_bytes=max_bytes, fsync=False, report=self.report)
        self.appender.join(replace=replace)
        self.stores: list[Store] = []
        self.shipper = Shipper(self.spool, self.appender, self._connect, self.report)
        self._location = place.location

    def _connect(self, label: str | None) -> Store:
        self.stores.append(open_store(self._location.sibling(label) if label else self._location))
        return self.stores[-1]

    def append(self, *records: bytes) -> None:
        for record in records:
            assert self.appender.append(record)

    def ship(self) -> None:
        while self.shipper.step():
            pass

    def names(self) -> list[str]:
        return [str(file.state) for file in self.spool.files()]

    def die(self) -> None:
        """Leave as a killed process does: locks and descriptors go, files stay."""
        self.appender.leave()
        self.shipper.close()

    def end(self) -> None:
        self.appender.leave()
        self.shipper.settle()
        self.shipper.close()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.getfixturevalue("bucket") if request.param == "s3" else None, tmp_path / "objects" / "training.log")


@pytest.fixture
def rig(place: Place, tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        made.append(Rig(place, tmp_path / "spool", **options))
        return made[-1]

    yield make
    for one in made:
        one.die()


@pytest.mark.parametrize(
    ("state", "acked", "end", "head", "action"),
    [
        (State.unplaced(), 0, 0, None, "rest"),
        (State.unplaced(), 0, 5, None, "place"),
        (State.unplaced(replace=True), 0, 5, None, "place"),
        (State.replacing("e"), 0, 5, None, "ask"),
        (State.replacing("e"), 0, 5, Head(3, "e"), "put"),
        (State.anchor(0, 0), 5, 5, None, "rest"),
        (State.anchor(0, 0), 0, 5, None, "ask"),
        (State.anchor(0, 0), 0, 5, Head(0, None), "append"),
    ],
)
def test_the_plan_follows_from_the_state_alone(state: State, acked: int, end: int, head: Head | None, action: str) -> None:
    assert plan(state, acked, end, head) == action


def test_the_first_step_asks_and_names_the_anchor_before_anything_is_sent(rig: Callable[..., Rig], place: Place) -> None:
    one = rig()
    assert one.names() == ["unplaced"]
    one.append(b"one\n")
    assert one.shipper.step()
    assert one.names() == ["0-0"]  # I2: the intent is on disk
    assert place.read() == b""
    assert one.shipper.step()
    assert place.read() == b"one\n"
    assert not one.shipper.step()


def test_an_object_that_is_there_is_continued(rig: Callable[..., Rig], place: Place) -> None:
    place.write(b"before\n")
    one = rig()
    one.append(b"one\n")
    one.ship()
    one.append(b"two\n")
    one.ship()
    assert one.names() == ["7-0"]
    assert place.read() == b"before\none\ntwo\n"


def test_everything_shipped_and_nobody_there_removes_the_spool_whole(rig: Callable[..., Rig], place: Place) -> None:
    one = rig()
    one.append(b"one\n")
    one.ship()
    one.end()
    assert not Path(one.spool.directory).exists()
    assert place.read() == b"one\n"


def test_a_spool_that_is_not_shipped_is_not_removed(rig: Callable[..., Rig], place: Place) -> None:
    one = rig()
    one.append(b"one\n")
    one.ship()
    one.append(b"two\n")
    one.end()
    assert one.spool.pending((1, 4)) == 4  # I7
    two = rig()
    two.ship()
    assert place.read() == b"one\ntwo\n"


def test_a_spool_that_another_process_holds_is_not_removed(rig: Callable[..., Rig], place: Place) -> None:
    one, two = rig(), rig()
    one.append(b"one\n")
    one.ship()
    one.end()
    assert len(two.spool.files()) == 1  # I7
    two.append(b"two\n")
    two.ship()
    two.end()
    assert place.read() == b"one\ntwo\n"
    assert not Path(two.spool.directory).exists()


def test_only_one_of_two_processes_ships(rig: Callable[..., Rig], place: Place) -> None:
    one, two = rig(), rig()
    one.append(b"one\n")
    two.append(b"two\n")
    assert one.shipper.step()
    assert not two.shipper.step()
    one.ship()
    assert place.read() == b"one\ntwo\n"
    assert two.spool.leadership.acknowledged() == (1, 8)


def test_the_next_leader_finds_by_asking_what_has_landed(rig: Callable[..., Rig], place: Place) -> None:
    one, two = rig(), rig()
    one.append(b"one\n")
    one.ship()
    one.die()
    two.append(b"two\n")
    two.ship()
    assert place.read() == b"one\ntwo\n"


def test_a_stale_hint_is_not_believed(rig: Callable[..., Rig], place: Place) -> None:
    one = rig()
    one.append(b"one\n")
    one.spool.leadership.acknowledge(1, 4)
    one.ship()
    assert place.read() == b"one\n"  # I2


def test_foreign_bytes_behind_ours_are_left_alone_and_the_log_goes_on_in_a_sibling(
    rig: Callable[..., Rig], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    one = rig()
    one.append(b"one\n")
    one.ship()
    place.write(b"one\nforeign\n")
    one.append(b"two\n")
    one.ship()
    one.append(b"three\n")
    one.ship()
    assert place.read() == b"one\nforeign\n"  # I4
    assert list(place.siblings().values()) == [b"two\nthree\n"]
    assert capsys.readouterr().err.count("somebody else wrote to") == 1


def test_an_object_that_was_overwritten_whole_is_left_alone_and_ours_starts_again_in_a_sibling(
    rig: Callable[..., Rig], place: Place
) -> None:
    one = rig()
    one.append(b"one\n")
    one.ship()
    place.write(b"a longer text of somebody else\n")
    one.append(b"two\n")
    one.ship()
    assert place.read() == b"a longer text of somebody else\n"
    assert list(place.siblings().values()) == [b"one\ntwo\n"]


def test_the_choice_of_a_sibling_outlives_the_process_and_a_clean_end(rig: Callable[..., Rig], place: Place) -> None:
    one = rig()
    one.append(b"one\n")
    one.ship()
    place.write(b"one\nforeign\n")
    one.append(b"two\n")
    one.ship()
    one.end()
    two = rig()
    two.append(b"three\n")
    two.ship()
    assert place.read() == b"one\nforeign\n"
    assert list(place.siblings().values()) == [b"two\nthree\n"]


def test_a_deleted_object_is_written_again_from_what_the_spool_holds(
    rig: Callable[..., Rig], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    one = rig()
    one.append(b"one\n")
    one.ship()
    place.delete()
    one.append(b"two\n")
    one.ship()
    assert place.read() == b"one\ntwo\n"
    assert "deleted" in capsys.readouterr().err


def test_a_cut_object_is_continued_where_it_was_cut(
    rig: Callable[..., Rig], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    one = rig()
    one.append(*(b"line %d\n" % n for n in range(10)))
    one.ship()
    place.write(lines_of("line", 10)[:30])
    one.append(b"line 10\n")
    one.ship()
    assert place.read() == lines_of("line", 11)
    assert "cut" in capsys.readouterr().err


def test_an_object_deleted_after_disk_was_given_back_never_gets_bytes_from_below_the_anchor(
    rig: Callable[..., Rig], place: Place
) -> None:
    one = rig()
    one.append(*[b"x" * (MiB - 1) + b"\n"] * 12)
    one.ship()
    state = one.spool.files()[0].state
    assert state.file > 4 * MiB
    place.delete()
    one.append(b"last\n")
    one.ship()
    body = place.read()
    assert b"\0" not in body  # what was punched out reads as NULs
    assert body.endswith(b"x\nlast\n")
    assert len(body) == 12 * MiB - state.file + len(b"last\n")


def test_an_object_that_somebody_edited_below_what_is_compared_keeps_the_edit(rig: Callable[..., Rig], place: Place) -> None:
    one = rig()
    one.append(b"password\n", b"x" * 2 * KEPT + b"\n")
    one.ship()
    edited = b"********\n" + b"x" * 2 * KEPT + b"\n"
    place.write(edited)
    one.append(b"two\n")
    one.ship()
    assert place.read() == edited + b"two\n"


def test_the_last_request_of_a_multipart_append_states_what_it_expects(bucket: Bucket, tmp_path: Path) -> None:
    # The embedded server does not check this condition; S3 does. So it is looked at on its way out.
    one = Rig(Place(bucket, tmp_path), tmp_path / "spool")
    one.append(*[b"x" * (MiB - 1) + b"\n"] * 6)
    one.ship()
    store: Any = one.stores[0]
    before = store.head().token
    stated: list[str] = []

    def look(request: Any, **_: Any) -> None:
        stated.append(request.headers["If-Match"].decode())

    store._fs._s3.meta.events.register("before-send.s3.CompleteMultipartUpload", look)
    one.append(b"two\n")
    one.ship()
    one.end()
    assert stated == [before]  # I3, I4


def test_mode_w_replaces_with_the_first_bytes_and_then_appends(rig: Callable[..., Rig], place: Place) -> None:
    place.write(b"old\n" * 5)
    one = rig(replace=True)
    one.append(b"one\n")
    one.ship()
    one.append(b"two\n")
    one.ship()
    assert place.read() == b"one\ntwo\n"


def test_mode_w_ships_the_leftovers_of_the_run_before_first(rig: Callable[..., Rig], place: Place) -> None:
    one = rig()
    one.append(b"one\n")
    one.die()
    two = rig(replace=True)
    assert two.names() == ["unplaced", "unplaced-w"]
    two.append(b"two\n")
    assert two.shipper.step()
    assert two.shipper.step()
    assert place.read() == b"one\n"
    two.ship()
    assert place.read() == b"two\n"


def test_mode_w_of_a_second_live_process_joins_the_first(rig: Callable[..., Rig], place: Place) -> None:
    one, two = rig(replace=True), rig(replace=True)
    one.append(b"one\n")
    two.append(b"two\n")
    one.ship()
    assert place.read() == b"one\ntwo\n"


def test_mode_w_does_not_replace_what_somebody_wrote_after_we_looked(rig: Callable[..., Rig], place: Place) -> None:
    place.write(b"old\n")
    one = rig(replace=True)
    one.append(b"one\n")
    assert one.shipper.step()
    place.write(b"foreign, and of another length\n")
    one.ship()
    assert place.read() == b"foreign, and of another length\n"
    assert list(place.siblings().values()) == [b"one\n"]


def test_after_a_boot_the_old_file_is_shipped_and_new_records_go_to_a_new_one(
    rig: Callable[..., Rig], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = rig()
    one.append(b"one\n", b"a torn rec")
    one.die()
    monkeypatch.setattr("remote_logging.appender.boot_id", lambda: "feedbeef")
    monkeypatch.setattr("remote_logging.spool.boot_id", lambda: "feedbeef")
    two = rig()
    assert two.names() == ["unplaced", "unplaced"]
    two.append(b"two\n")
    two.ship()
    assert place.read() == b"one\na torn rec\ntwo\n"
    assert len(two.names()) == 1


def test_whole_records_are_shipped_and_an_unfinished_one_waits(rig: Callable[..., Rig], place: Place) -> None:
    one = rig()
    one.append(b"one\n")
    one.appender.terminator = b""
    other = rig()
    fragment = "x" * 10
    with open(other.spool.files()[0].path, "a") as file:  # a live process in the middle of a long write
        file.write(fragment)
    one.ship()
    assert place.read() == b"one\n"
    assert one.shipper.step(final=True)  # it does not grow: its writer is dead
    assert place.read() == b"one\n" + fragment.encode() + b"\n"


def test_a_record_without_terminator_is_whole_too(rig: Callable[..., Rig], place: Place) -> None:
    one = rig()
    one.appender.terminator = b""
    one.append(b"one,")
    one.ship()
    assert place.read() == b"one,"


def test_records_are_cut_at_a_newline_and_a_window_without_one_goes_whole(
    rig: Callable[..., Rig], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper_module, "WINDOW", 10)
    one = rig()
    one.shipper._window = 10
    one.append(b"123456\n", b"abc\n", b"0123456789ABCDEF\n")
    sizes = []
    while one.shipper.step():
        sizes.append(len(place.read()))
    assert sizes == [0, 7, 11, 21, 28]


def test_disk_is_given_back_below_the_anchor(rig: Callable[..., Rig], place: Place) -> None:
    one = rig()
    record = b"x" * (MiB - 1) + b"\n"
    one.append(*[record] * 20)
    before = Path(one.spool.files()[0].path).stat().st_blocks
    one.ship()
    file = one.spool.files()[0]
    assert file.state.file > 15 * MiB
    assert Path(file.path).stat().st_blocks < before / 4
    one.append(b"after\n")
    one.ship()
    assert place.read() == record * 20 + b"after\n"


def test_an_emptied_large_file_is_followed_by_a_new_one(
    rig: Callable[..., Rig], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper_module, "RENEW", 1000)
    one = rig()
    one.append(b"x" * 999 + b"\n")
    one.ship()
    assert [file.generation for file in one.spool.files()] == [2]
    one.append(b"after\n")
    one.ship()
    assert place.read() == b"x" * 999 + b"\nafter\n"


def test_a_file_that_another_process_holds_is_not_followed_by_a_new_one(
    rig: Callable[..., Rig], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper_module, "RENEW", 1000)
    one, two = rig(), rig()
    one.append(b"x" * 999 + b"\n")
    one.ship()
    two.append(b"two\n")
    one.ship()
    assert place.read() == b"x" * 999 + b"\ntwo\n"


def test_what_is_shipped_was_synced_to_the_disk_first(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    one = rig()
    one.append(b"one\n")
    order: list[str] = []
    monkeypatch.setattr("os.fdatasync", lambda fd: order.append("sync"))
    one.shipper.step()
    store = one.stores[0]
    append = store.append

    def noted(*given: Any) -> Head:
        order.append("append")
        return append(*given)

    monkeypatch.setattr(store, "append", noted)
    one.ship()
    assert order == ["sync", "append"]  # I1


def test_a_file_shorter_than_its_name_says_is_kept_aside_and_reported(
    rig: Callable[..., Rig], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    one = rig()
    one.append(*[b"x" * (MiB - 1) + b"\n"] * 6)
    one.ship()
    one.die()
    path = one.spool.files()[0].path
    with open(path, "r+b") as file:
        file.truncate(100)
    two = rig()
    two.append(b"after\n")
    two.ship()
    assert Path(path + ".damaged").stat().st_size == 100  # I7
    assert "damaged" in capsys.readouterr().err
    assert place.read().endswith(b"x\nafter\n")


def test_a_failed_flush_is_told_once_and_so_is_its_end(
    rig: Callable[..., Rig], place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = rig()
    one.append(b"one\n")
    monkeypatch.setattr("remote_logging.store.FileStore.head", _refuse)
    monkeypatch.setattr("remote_logging.store_s3.S3Store.head", _refuse)
    assert not one.shipper.ship()
    assert not one.shipper.ship()
    assert one.shipper.failures == 2
    assert one.shipper.next_try > 0
    monkeypatch.undo()
    assert one.shipper.ship()
    assert one.shipper.next_try == 0
    assert place.read() == b"one\n"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "the network is gone" in said[0]
    assert "works again" in said[1]


def test_a_leader_that_fails_for_long_lets_another_process_try(
    rig: Callable[..., Rig], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = rig(), rig()
    one.append(b"one\n")
    assert one.shipper.step()
    monkeypatch.setattr(one.stores[0], "append", _refuse)
    monkeypatch.setattr(one.shipper, "_connect", _refuse)
    for _ in range(shipper_module.YIELD_AFTER):
        assert not one.shipper.ship()
    assert two.shipper.ship()
    assert place.read() == b"one\n"


def _refuse(*_: object) -> Any:
    raise ConnectionError("the network is gone")


def test_a_fragment_that_was_ended_just_after_it_was_shipped_is_no_reason_for_a_sibling(
    rig: Callable[..., Rig], place: Place
) -> None:
    one = rig()
    one.append(b"one\n", b"fragmR\n")  # what the leader saw before the writer of R looked behind itself
    one.ship()
    with open(one.spool.files()[0].path, "r+b") as file:
        file.seek(len(b"one\nfrag"))
        file.write(b"\n")
    one.die()
    two = rig()  # any restart: the object is asked, and compared
    two.append(b"two\n")
    two.ship()
    assert place.read() == b"one\nfragmR\ntwo\n"
    assert place.siblings() == {}


def test_a_bucket_that_is_gone_for_a_while_is_not_taken_for_a_deleted_object(bucket: Bucket, tmp_path: Path) -> None:
    place = Place(bucket, tmp_path)
    one = Rig(place, tmp_path / "spool")
    one.append(b"one\n")
    one.ship()
    before = one.names()
    store: Any = one.stores[0]
    store.bucket = "gone"
    one.append(b"two\n")
    assert not one.shipper.ship()
    assert "bucket does not exist" in (one.shipper.last_error or "")
    assert one.names() == before
    assert one.shipper.ship()
    assert place.read() == b"one\ntwo\n"
    one.end()


def test_a_sibling_that_the_old_file_went_to_is_the_new_files_too(
    rig: Callable[..., Rig], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = rig()
    one.append(b"one\n")
    one.ship()
    place.write(b"one\nforeign\n")
    one.append(b"two\n")
    one.die()
    monkeypatch.setattr("remote_logging.appender.boot_id", lambda: "feedbeef")
    monkeypatch.setattr("remote_logging.spool.boot_id", lambda: "feedbeef")
    two = rig()
    two.append(b"three\n")
    two.ship()
    assert place.read() == b"one\nforeign\n"
    assert list(place.siblings().values()) == [b"two\nthree\n"]  # I4
