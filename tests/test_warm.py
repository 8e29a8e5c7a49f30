"""What the tests start with the libraries imported already is a process of its own."""

import os
import signal

import warm


def test_it_has_its_own_folder_environment_streams_and_end(tmp_path):
    code = (
        "import os, sys\n"
        "print(os.getcwd(), os.environ['MINE'], sys.argv, 'evomerge' in sys.modules)\n"
        "print('torch' in sys.modules, os.getpid(), file=sys.stderr)\n"
        "sys.exit(int(sys.argv[1]))"
    )
    done = warm.run(["-c", code, "7"], cwd=tmp_path, env=os.environ | {"MINE": "x"})
    assert (done.returncode, done.stdout) == (7, f"{tmp_path} x ['-c', '7'] False\n")
    imported, pid = done.stderr.split()
    assert imported == "True" and int(pid) != os.getpid() and "MINE" not in os.environ


def test_it_ends_as_it_is_ended():
    waiting = warm.Process(["-c", "import signal; signal.pause()"])
    assert waiting.poll() is None
    waiting.send_signal(signal.SIGKILL)
    assert waiting.wait(60) == -signal.SIGKILL
    assert warm.run(["-c", "1 / 0"]).returncode == 1
