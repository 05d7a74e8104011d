"""Set up .venv for what this machine can run. The Makefile calls it: `python3 -I bench/bootstrap.py`."""

import argparse
import contextlib
import os
import platform
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from bench.setup import SetupError, browser  # noqa: E402
from bench.setup.environment import LOCK, LOG, STAMP, Environment  # noqa: E402
from bench.setup.installer import Installer  # noqa: E402
from bench.setup.machine import check_host, check_python, choose_engine, query_nvml  # noqa: E402


def take_lock(path: Path) -> int:
    """An open file descriptor holding the checkout's set-up lock; waits for another set-up."""
    import fcntl

    descriptor = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("environment: waiting for another set-up of this checkout", flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def install(env: Environment, why: str, rebuild: bool, lock: int) -> None:
    users = env.users() if rebuild else []
    if users:
        raise SetupError(
            f"{env.venv} must be made again ({why}), but process {users[0]} is running on it: "
            "wait for that to end or stop it, then try again."
        )
    if rebuild:
        with contextlib.suppress(FileNotFoundError):
            (env.venv / STAMP).unlink()
        (env.venv / LOG).write_bytes(b"")
    installer = Installer(env, lock)
    steps = installer.plan(rebuild)
    print(f"environment: installing into .venv ({why})", flush=True)
    began = time.monotonic()
    for number, (title, step) in enumerate(steps, 1):
        start = time.monotonic()
        print(f"  [{number}/{len(steps)}] {title} ...", end="", flush=True)
        try:
            step()
        except BaseException:
            print(" failed", flush=True)
            raise
        print(f" {time.monotonic() - start:.0f} s", flush=True)
    env.write_stamp()
    print(f"environment: ready after {time.monotonic() - began:.0f} s", flush=True)


def provide_browser(env: Environment) -> None:
    """For the browser tests only. What cannot be had is a sentence, never an error."""
    told = browser.provide(env.venv / LOG)
    if told:
        print(told, flush=True)


def set_up(options: argparse.Namespace, root: Path) -> int:
    check_python(tuple(sys.version_info[:3]), sys.executable)
    engine = choose_engine(options.engine or os.environ.get("CALIBRATE_ENGINE"), query_nvml())
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    processor = Path("/proc/cpuinfo")
    cpuinfo = processor.read_text() if processor.exists() else ""
    check_host(engine.kind, platform.system(), platform.machine(), libc or "", cpuinfo)
    extras = set(options.extra)
    env = Environment(root, engine, extras)
    why = "--recreate" if options.recreate else env.why_rebuild()
    rebuild, missing = bool(why), env.missing()
    why = why or ("{} tools are missing".format(", ".join(missing)) if missing else "")
    line = f"engine: {engine.kind} ({engine.reason})"
    if not why:
        print(f"{line}; .venv is ready", flush=True)
        if "test" in extras and not (options.check or options.dry_run):
            provide_browser(env)
        return 0
    print(line, flush=True)
    if options.check:
        print(f"environment: not ready ({why})")
        return 1
    if options.dry_run:
        print(f"environment: would install into {env.venv} ({why})")
        for number, (title, _) in enumerate(Installer(env).plan(rebuild), 1):
            print(f"  {number}. {title}")
        if "test" in extras and browser.missing() and not browser.obstacle():
            print(f"browser: would install {' and '.join(browser.PACKAGES)} with apt-get")
        return 0
    env.venv.mkdir(exist_ok=True)
    lock = take_lock(env.venv / LOCK)
    try:
        env = Environment(root, engine, extras)  # as it is now that no other set-up runs
        why = "--recreate" if options.recreate else env.why_rebuild()
        if why or env.missing():
            install(env, why or "{} tools are missing".format(", ".join(env.missing())), bool(why), lock)
        if "test" in extras:
            provide_browser(env)
        return 0
    finally:
        os.close(lock)


def main(words: "list[str] | None" = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="bootstrap", description="Set up .venv for this machine.")
    parser.add_argument("--engine", help="auto (default), cpu or cuda; also as CALIBRATE_ENGINE")
    parser.add_argument("--extra", action="append", default=[], choices=["test"], help="these tools too")
    parser.add_argument("--check", action="store_true", help="only say whether it is ready (exit code 0 or 1)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be installed")
    parser.add_argument("--recreate", action="store_true", help="make the environment from scratch")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return set_up(options, root)
    except SetupError as error:
        print(*(f"    | {line}" for line in error.lines), f"set-up: {error}", sep="\n", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; the next call starts it again", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
