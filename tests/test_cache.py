"""The cache: what goes by age and by size, and never what a live process uses."""

import ast
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import evomerge
from evomerge.cache import KINDS, holding
from evomerge.cache import eviction as removal
from evomerge.cache.entries import entries
from evomerge.cache.eviction import AGE, SIZE, empty, limits, make_room
from evomerge.cache.holding import held, hold
from evomerge.cli.main import main
from evomerge.environment import cache_folder
from evomerge.errors import BadInput
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source

DAY = 86400


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A cache of the test's own, with no limits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(SIZE, "inf")
    monkeypatch.setenv(AGE, "inf")
    yield cache_folder()
    holding._USER.clear()


def entry(name, days=0.0, size=1000):
    """An entry of two files that was used some days ago."""
    path = cache_folder() / name
    path.mkdir(parents=True)
    for file in "ab":
        (path / file).write_bytes(bytes(size // 2))
    return aged(path, days)


def aged(path, days):
    at = time.time() - days * DAY
    for place in (*(path.iterdir() if path.is_dir() else ()), path):
        os.utime(place, (at, at))
    return path


def names():
    return {entry.name for entry in entries()}


class Other:
    """Another process that holds an entry until it is told to end, or is killed."""

    CODE = "import sys; from evomerge.cache.holding import hold; from pathlib import Path\n"

    def __init__(self, path):
        code = f"{self.CODE}hold(Path({str(path)!r})); print('held', flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", code]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout.readline() == "held\n"

    def end(self, kill=False):
        if kill:
            self.process.kill()
        self.process.communicate()
        assert self.process.returncode == (-signal.SIGKILL if kill else 0)


def test_what_is_unused_for_long_goes(monkeypatch):
    for days in (1, 29, 31):
        entry(f"prepared/{days}", days)
        entry(f"digests/{days}", days)
    make_room()
    assert len(names()) == 6
    monkeypatch.setenv(AGE, "30")
    make_room()
    assert names() == {"prepared/1", "prepared/29", "digests/1", "digests/29"}


def test_beyond_the_size_the_least_recently_used_goes(monkeypatch):
    entry("native/small", 9)  # dear to make again, and no gain
    for days, kind in ((4, "candidates"), (3, "prepared"), (2, "factories"), (1, "candidates")):
        entry(f"{kind}/{days}", days)
    monkeypatch.setenv(SIZE, "5e-6")
    make_room()
    assert len(names()) == 5
    make_room(coming=1000)
    assert names() == {"native/small", "prepared/3", "factories/2", "candidates/1"}
    hold(cache_folder("prepared") / "3")  # which uses it
    make_room(coming=2001)
    assert names() == {"native/small", "prepared/3"}
    make_room(coming=10**9)
    assert names() == {"native/small", "prepared/3"}


def test_the_limits_are_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv(SIZE, "1.5")
    monkeypatch.setenv(AGE, "7")
    assert limits() == (1.5e9, 7.0)
    monkeypatch.setenv(SIZE, "")
    monkeypatch.delenv(AGE)
    disk = os.statvfs(tmp_path)
    assert limits() == (pytest.approx(0.1 * disk.f_blocks * disk.f_frsize), 30.0)
    for wrong in ("-1", "nan", "10GB"):
        monkeypatch.setenv(SIZE, wrong)
        with pytest.raises(BadInput, match=r"environment: EVOMERGE_CACHE_GB: .* e\.g\. 100"):
            make_room()


def test_what_a_live_process_uses_stays():
    path = entry("candidates/0f", days=99)
    other = Other(path)
    assert entries()[0].user == f"process {other.process.pid} on {holding.platform.node()}"
    aged(path, 50)
    assert empty().kept.keys() == {"candidates/0f"} and path.is_dir()
    other.end()
    assert time.time() - entries()[0].used < DAY  # it was in use until then
    assert held(cache_folder()) == {} and not list((cache_folder() / ".users").iterdir())
    assert empty()[:2] == (1, 1000) and not path.exists()


def test_what_a_killed_process_used_does_not_stay():
    path = entry("candidates/0f")
    Other(path).end(kill=True)
    assert list((cache_folder() / ".users").iterdir())
    assert empty().entries == 1 and not path.exists()
    assert not list((cache_folder() / ".users").iterdir())


def test_an_entry_that_is_yet_to_come_is_held():
    path = cache_folder("prepared") / "0f"
    hold(path / "1.safetensors")
    assert held(cache_folder()).keys() == {"prepared/0f"}
    entry("prepared/0f")
    assert empty().entries == 0


def test_a_childs_end_is_not_its_parents():
    path = entry("prepared/0f")
    hold(path)
    child = os.fork()
    if child == 0:
        holding._leave()
        os._exit(0)
    os.waitpid(child, 0)
    assert empty().entries == 0 and path.is_dir()


def test_a_hold_is_renewed_where_all_of_the_cache_was_removed(root):
    hold(root / "prepared" / "0f")
    root.rename(root.with_name("removed"))
    hold(root / "prepared" / "0f")
    assert held(root).keys() == {"prepared/0f"}


@pytest.mark.parametrize("days, stays", [(6, True), (8, False)])
def test_of_processes_elsewhere_silence_is_no_sign_of_death(root, days, stays):
    """Their locks may not be seen from here."""
    path = entry("candidates/0f")
    (root / ".users").mkdir()
    user = root / ".users" / "far-off-node-7-0123abcd"
    user.write_text("candidates/0f\n")
    aged(user, days)
    assert empty().entries == (not stays)
    assert path.exists() == user.exists() == stays
    assert held(root) == ({"candidates/0f": "process 7 on far-off-node"} if stays else {})


def test_without_locks_on_the_disk_silence_is_no_sign_of_death(monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    path = entry("candidates/0f")
    Other(path).end(kill=True)
    with monkeypatch.context() as patch:
        patch.setattr(holding.fcntl, "flock", no_locks)
        assert held(cache_folder())
    assert held(cache_folder()) == {}


def test_a_removal_that_is_killed_leaves_nothing_that_is_taken_for_whole(monkeypatch):
    path = entry("prepared/0f")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(removal.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            empty()
    (rest,) = path.parent.iterdir()
    assert sorted(file.name for file in rest.iterdir()) == ["a", "b"]
    assert names() == set()
    make_room()
    assert not list(path.parent.iterdir())


def test_what_is_being_written_stays_and_what_was_left_goes():
    entry("prepared/0a.tmp", days=0.5)
    entry("native/.tmp123", days=0.5)
    entry("candidates/.0b.7.tmp", days=2)
    entry("prepared/0c.tmp", days=2)
    (cache_folder("prepared") / "0c.lock").touch()
    hold(cache_folder("prepared") / "0c")  # as its writer does
    assert names() == set()
    assert empty().entries == 0
    left = {str(path.relative_to(cache_folder())) for path in cache_folder().glob("*/*")}
    assert {name for name in left if not name.startswith(".")} == {
        "prepared/0a.tmp",
        "native/.tmp123",
        "prepared/0c.tmp",
        "prepared/0c.lock",
    }


def test_no_link_is_followed(tmp_path):
    """Whoever links an entry elsewhere loses the link."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.safetensors").write_bytes(bytes(1000))
    link = cache_folder("candidates") / "0f"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    removed = empty()
    assert removed.entries == 1 and removed.bytes < 1000
    assert not link.is_symlink() and (outside / "model.safetensors").exists()


COMERS = """
import sys
from pathlib import Path
from evomerge.cache.holding import hold

there = []
for name in range({count}):
    path = Path({folder!r}) / str(name)
    hold(path)
    if path.is_dir():
        there.append(path)
assert all(sorted(f.name for f in path.iterdir()) == ["a", "b"] for path in there)
print(len(there), flush=True)
sys.stdin.read()
"""


def test_those_who_remove_and_those_who_use_do_not_disturb_each_other():
    """Two processes take what they find, while two others remove all that nobody has taken."""
    count, folder = 60, cache_folder("prepared")
    for name in range(count):
        entry(f"prepared/{name}", days=1)
    code = COMERS.format(count=count, folder=str(folder))
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    users = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    done, removed = threading.Event(), [0, 0]

    def remove(i):
        while not (folder.parent / ".users").exists():  # until the first is at it
            time.sleep(0.001)
        while not done.is_set():
            removed[i] += empty().entries

    removers = [threading.Thread(target=remove, args=(i,)) for i in range(2)]
    for thread in removers:
        thread.start()
    try:
        found = [int(user.stdout.readline()) for user in users]
    finally:
        done.set()
        for thread in removers:
            thread.join()
    assert len(names()) + sum(removed) == count
    assert max(found) <= len(names()) <= sum(found)
    for user in users:
        user.communicate()
        assert user.returncode == 0
    assert empty().entries == count - sum(removed)


def test_whoever_takes_an_entry_while_it_is_removed_finds_it_gone(monkeypatch):
    """Not there at first, and gone a moment later."""
    path, seen = entry("prepared/0f"), []

    def take():
        hold(path)
        seen.append(path.exists())

    taker = threading.Thread(target=take)

    def held_then_taken(root):
        users = held(root)
        taker.start()
        taker.join(0.2)  # all the time that it needs, if nothing holds it up
        return users

    monkeypatch.setattr(removal, "held", held_then_taken)
    assert empty().entries == 1
    taker.join()
    assert seen == [False]


def test_what_is_read_at_once_is_noted_as_used(world):
    source = open_source(str(world / "a"))
    before = digest(source)
    (file,) = cache_folder("digests").glob("*.json")
    aged(file, 40)
    assert digest(source) == before
    assert time.time() - file.stat().st_mtime < DAY


def test_a_cache_that_cannot_be_written_to_is_let_be(root):
    root.parent.write_text("a file where the home should be")
    hold(root / "prepared" / "0f")
    make_room()
    assert names() == set() and empty() == (0, 0, {})


def test_every_folder_of_the_cache_is_a_kind():
    asked = set()
    for file in Path(evomerge.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "cache_folder":
                asked |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    assert asked == set(KINDS)


def test_the_command_shows_and_empties():
    entry("prepared/0f", size=3000)
    hold(entry("candidates/0f", size=2000))
    shown = CliRunner().invoke(main, ["cache"])
    assert shown.exit_code == 0
    lines = [line.split() for line in shown.output.splitlines()]
    (prepared,) = [line for line in lines if line[:1] == ["prepared"]]
    assert prepared[-6:-4] == ["1", "3.0"] and prepared[-1] == "0"
    assert f"5.0 kB in {cache_folder()}" in shown.output
    done = CliRunner().invoke(main, ["cache", "native", "--empty"])
    assert done.output == "freed 0 bytes; entries removed: 0\n" and len(names()) == 2
    done = CliRunner().invoke(main, ["cache", "--empty"])
    assert done.exit_code == 0
    first, second = done.output.splitlines()
    assert first == "freed 3.0 kB; entries removed: 1"
    assert second.startswith(f"candidates/0f stays: in use by process {os.getpid()} on ")
    found = json.loads(CliRunner().invoke(main, ["cache", "--json"]).output)
    (row,) = [row for row in found["kinds"] if row["entries"]]
    assert (row["kind"], row["bytes"], row["in_use"]) == ("candidates", 2000, 1)
    assert found["limit_bytes"] is None


def test_the_command_refuses_what_is_no_limit(monkeypatch):
    monkeypatch.setenv(AGE, "a month")
    done = CliRunner().invoke(main, ["cache"])
    assert done.exit_code == 2
    assert done.output.startswith("environment: EVOMERGE_CACHE_DAYS: 'a month' is no such limit")
