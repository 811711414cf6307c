"""What every part of the lab needs to talk to the operator and to run commands."""

import contextlib
import subprocess
import sys
import threading
import time

_STARTED = time.monotonic()
_held = threading.local()


class LabError(Exception):
    """An error with one clear sentence for the operator; the command line shows it without a traceback."""


def say(text):
    """
    Print one line of progress with the seconds since the program started.

    Progress goes to standard error, so that ``--json`` and the output of ``exec`` stay clean.
    """
    print(f"[{time.monotonic() - _STARTED:5.0f} s] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def shared_with_commands(lock):
    """
    Let the commands that ``run`` starts in this thread hold ``lock``, an open locked file, too.

    A program that is killed leaves its last command behind; the lock is free when that has ended as well.
    """
    _held.descriptors = (lock.fileno(),)
    try:
        yield
    finally:
        _held.descriptors = ()


def run(argv, **kw):
    """
    Run ``argv``, capture its output as text, and return the finished process.

    Keywords go to ``subprocess.run``. Failure raises LabError with the last lines of standard error;
    pass ``check=False`` to look at the exit status yourself.
    """
    argv = [str(word) for word in argv]
    check = kw.pop("check", True)
    if "stdout" not in kw and "stderr" not in kw:
        kw.setdefault("capture_output", True)
    kw.setdefault("text", True)
    kw.setdefault("pass_fds", getattr(_held, "descriptors", ()))
    try:
        done = subprocess.run(argv, check=False, **kw)
    except FileNotFoundError as exc:
        raise LabError(f"{argv[0]} cannot be run: {exc.strerror} ({exc.filename}).") from exc
    except subprocess.TimeoutExpired as exc:
        raise LabError(f"{' '.join(argv)} took longer than {exc.timeout:.0f} s.") from exc
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)} ended with status {done.returncode}: {last_lines(done.stderr)}")
    return done


def last_lines(output, count=5):
    """Return the last ``count`` non-empty lines of ``output`` (text, bytes or None) for an error message."""
    if isinstance(output, bytes):
        output = output.decode(errors="replace")
    lines = [line.strip() for line in (output or "").splitlines() if line.strip()]
    return " | ".join(lines[-count:]) or "it wrote nothing to standard error"
