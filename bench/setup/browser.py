"""The browser of the browser tests: Debian's chromium and chromium-driver, where this user may install them.

Only the test command asks for it. Whatever stands in the way is one sentence, and the browser tests are skipped: no
measurement needs a browser.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

from bench.setup.installer import telling_lines

PACKAGES = ("chromium", "chromium-driver")
BY_HAND = "apt-get install {}".format(" ".join(PACKAGES))
VARIABLE = "CALIBRATE_BROWSER"  # 0: install none
OS_RELEASE = Path("/etc/os-release")
DOWNLOAD_S, UNPACK_S = 240, 300  # about 120 MB, and 490 MB of disk
_PROGRAMS = (("chromium", "chromium-browser"), ("chromedriver",))
# Unreachable mirrors are given up on; another apt-get that holds the lock is waited for.
_OPTIONS = (
    "-q",
    "-y",
    "--no-install-recommends",
    "-o",
    "Acquire::http::Timeout=15",
    "-o",
    "Acquire::Retries=1",
    "-o",
    "DPkg::Lock::Timeout=60",
)


def missing() -> bool:
    """Whether the browser or its driver is not there."""
    return not all(any(shutil.which(name) for name in names) for names in _PROGRAMS)


def obstacle() -> str:
    """Why nothing can be installed here; empty where it can."""
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE}=0"
    if not shutil.which("apt-get") or not _like_debian():
        return "this is no Debian, whose packages are known to work"
    if _root() is None:
        return f"installing it needs root: `sudo {BY_HAND}`"
    return ""


def provide(log: Path) -> str:
    """Installs what is missing and says in a line what came of it; empty when all was there before."""
    if not missing():
        return ""
    skipped = "the browser tests are skipped"
    why = obstacle()
    if why:
        return f"browser: no chromium, and {why}; {skipped}"
    print(f"browser: installing {' and '.join(PACKAGES)} ...", end="", flush=True)
    began = time.monotonic()
    try:
        _install(log)
    except _Failure as failure:
        print(" failed", flush=True)
        return f"browser: apt-get could not install chromium ({failure}; all it printed: {log}); {skipped}"
    except BaseException:
        print(" interrupted", flush=True)
        raise
    print(f" {time.monotonic() - began:.0f} s", flush=True)
    return "" if not missing() else f"browser: apt-get installed no chromium that can be found; {skipped}"


class _Failure(Exception):
    pass


def _like_debian() -> bool:
    with contextlib.suppress(OSError):
        for line in OS_RELEASE.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name in ("ID", "ID_LIKE") and "debian" in value.strip("\"'").split():
                return True
    return False


def _root() -> "list[str] | None":
    """What goes before a command that needs root; None without a way to it that asks nothing."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            asked = subprocess.run(["sudo", "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
            if asked.returncode == 0:
                return ["sudo", "-n"]
    return None


def _install(log: Path) -> None:
    root = _root() or []
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get", *_OPTIONS]
    fetch = [*apt, "--download-only", "install", *PACKAGES]
    until = time.monotonic() + DOWNLOAD_S
    try:
        _call(fetch, log, until)
    except _Failure:  # a fresh container has no lists of packages, and old lists name files that are gone
        _call([*apt, "update"], log, until)
        _call(fetch, log, until)
    # Fetched apart, because only a download can be cut off without harm.
    _call([*apt, "install", *PACKAGES], log, time.monotonic() + UNPACK_S)


def _call(command: "list[str]", log: Path, until: float) -> None:
    with log.open("a+b") as out:
        out.write(f"\n$ {shlex.join(command)}\n".encode())
        out.flush()
        start = out.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(max(until - time.monotonic(), 0.1))
        except BaseException as stopped:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            if isinstance(stopped, subprocess.TimeoutExpired):
                raise _Failure("it took too long") from None
            raise
        out.seek(start)
        text = out.read().decode(errors="replace")
    if code:
        told = [line.strip() for line in telling_lines(text.replace("E: ", "ERROR: "), 1)]
        raise _Failure(told[0].replace("ERROR: ", "") if told else f"exit code {code}")
