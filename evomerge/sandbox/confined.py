"""Runs one program, confined; a script of its own, which imports nothing of evomerge.

    python -I -S confined.py SECONDS BYTES FOLDERS STATUS < PROGRAM

The first line of the input is a word, and the rest the program. The word is written to the file
descriptor STATUS if the program comes to its end without an exception.

Four things hold the program, from within its own process, as no privilege is needed for them:

- resource limits: seconds of the processor, bytes of memory, open files, the size of files;
- Landlock (Linux 5.13): FOLDERS can be read, and no file be written;
- seccomp: no socket, no other program, no process but threads, no signal to others, no attributes
  of files changed, and none of what only an administrator may do;
- it dies with the process that started it.

What is denied fails with PermissionError, as the program may expect of any system.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys

# name -> number on x86-64, on ARM64 (None: it has no such call); from the kernel's tables
# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # network, and ways around system calls
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    # other programs and processes
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    # limits, and memory that outlives a process
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "request_key": (249, 218),
    # what Landlock lets be: attributes of files
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "fallocate": (285, 47),
    # an administrator's
    "mount": (165, 40),
    "umount2": (166, 39),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "open_by_handle_at": (304, 265),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "syslog": (103, 116),
}
_CLONE, _CLONE3 = (56, 220), 435
_TO_ITSELF = {"kill": (62, 129), "tgkill": (234, 131)}  # allowed with its own number alone

# audit.h: what seccomp calls the machine; the first has a second table of numbers, from _X32 on
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000
_CLONE_THREAD = 0x00010000

# seccomp.h and bpf_common.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in seccomp_data; the argument's low half
_EPERM, _ENOSYS = 1, 38

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38

# landlock.h: numbers of its three calls, the same everywhere, and its rights by version
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_READ = 0b1101  # execute, read a file, read a directory
_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}

_LIBC = ctypes.CDLL(None, use_errno=True)


def program_of(machine: str, own: int) -> bytes:
    """Return the seccomp program: BPF instructions, 8 bytes each.

    Args:
        machine: as the kernel calls it.
        own: the number of the process.

    >>> len(program_of("x86_64", 7)) % 8
    0
    """
    column, audited = _MACHINES[machine]
    lines: list[bytes] = []

    def add(code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        lines.append(struct.pack("HBBI", code, if_true, if_false, value))

    def only(number: int, test: int, value: int, otherwise: int) -> None:
        """Let a call pass if its first argument passes a test."""
        add(_EQUAL, number, 0, 4)
        add(_LOAD, _FIRST_ARGUMENT)
        add(test, value, 0, 1)
        add(_RETURN, _ALLOW)
        add(_RETURN, _FAIL | otherwise)

    add(_LOAD, _ARCH)
    add(_EQUAL, audited, 1, 0)
    add(_RETURN, _KILL)
    add(_LOAD, _NUMBER)
    if machine == "x86_64":
        add(_AT_LEAST, _X32, 0, 1)
        add(_RETURN, _KILL)
    add(_EQUAL, _CLONE3, 0, 1)
    add(_RETURN, _FAIL | _ENOSYS)  # then the C library takes clone, whose flags can be seen
    only(_CLONE[column], _ANY_BIT, _CLONE_THREAD, _EPERM)
    for both in _TO_ITSELF.values():
        only(both[column], _EQUAL, own, _EPERM)
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            add(_EQUAL, number, 0, 1)
            add(_RETURN, _FAIL | _EPERM)
    add(_RETURN, _ALLOW)
    return b"".join(lines)


def forbid_calls() -> bool:
    """Let seccomp hold this process; return whether it does.

    >>> callable(forbid_calls)  # nothing takes back what it does to a process
    True
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _MACHINES:
        return False
    program = program_of(machine, os.getpid())
    held = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(held))
    return int(_LIBC.prctl(_PR_SET_SECCOMP, 2, header, 0, 0)) == 0


def forbid_files(folders: list[str]) -> bool:
    """Let Landlock keep this process from all files but some to be read; return whether it does.

    >>> callable(forbid_files)  # nothing takes back what it does to a process
    True
    """
    version = int(_LIBC.syscall(_CREATE, None, 0, 1))
    if version < 1:
        return False
    rights = _RIGHTS[min(version, max(_RIGHTS))]
    attributes = struct.pack("Q", rights)
    rules = int(_LIBC.syscall(_CREATE, attributes, len(attributes), 0))
    if rules < 0:
        return False
    for folder in folders:
        try:
            at = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = _READ if os.path.isdir(folder) else 0b101
        if folder == os.devnull:
            allowed |= 0b10  # it may be written to
        rule = struct.pack("=Qi", allowed, at)
        _LIBC.syscall(_ADD, rules, 1, rule, 0)
        os.close(at)
    is_held = int(_LIBC.syscall(_RESTRICT, rules, 0)) == 0
    os.close(rules)
    return is_held


def limit(seconds: int, size: int) -> None:
    """Limit what this process may use up.

    Args:
        seconds: of the processor.
        size: bytes of memory.

    >>> callable(limit)  # nothing takes back what it does to a process
    True
    """
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_AS: (size, size),
        resource.RLIMIT_FSIZE: (1 << 20, 1 << 20),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_STACK: (1 << 26, 1 << 26),
    }
    for which, (soft, hard) in limits.items():
        most = resource.getrlimit(which)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(which, (soft, hard))


def main() -> None:
    """Run the program that the input holds; the process ends with it.

    >>> callable(main)
    True
    """
    seconds, size, folders, status = sys.argv[1:]
    word, _, program = sys.stdin.buffer.read().partition(b"\n")
    places = folders.split(os.pathsep)
    sys.path += [place for place in places if place.endswith("-packages")]
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    held = [name for name, is_held in (("files", forbid_files(places)),) if is_held]
    limit(int(seconds), int(size))
    held += ["calls"] if forbid_calls() else []
    if "calls" not in held:  # no network, no signals: nothing runs without that
        os.write(int(status), b"unconfined")
        os._exit(1)
    code = compile(program, "<program>", "exec", dont_inherit=True)
    exec(code, {})
    os.write(int(status), word + b" " + ",".join(held).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
