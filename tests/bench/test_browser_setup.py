"""The test command's browser: installed where it may be, and otherwise one sentence. apt-get is a stand-in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.setup import browser

APT = """#!/bin/sh
echo "$@" >>"$STAND_IN/calls"
case "$*" in
  *update*) touch "$STAND_IN/updated"; exit 0 ;;
esac
if [ "$MODE" = offline ]; then echo "noise"; echo "E: Failed to fetch chromium.deb  No route to host"; exit 100; fi
if [ "$MODE" = stale ] && [ ! -e "$STAND_IN/updated" ]; then echo "E: Unable to locate package chromium"; exit 100; fi
if [ "$MODE" = hang ]; then sleep 60; fi
case "$*" in
  *--download-only*) exit 0 ;;
esac
if [ "$MODE" != hollow ]; then
  for name in chromium chromedriver; do
    printf '#!/bin/sh\\n' >"$STAND_IN/bin/$name"
    chmod +x "$STAND_IN/bin/$name"
  done
fi
"""


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """A Debian on which this user is root and nothing is installed; bin/ is all there is on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "env", "touch", "sleep", "printf", "chmod"):
        (folder / name).symlink_to(shutil.which(name))
    put(folder / "apt-get", APT)
    (tmp_path / "os-release").write_text('ID=ubuntu\nID_LIKE="debian"\n')
    monkeypatch.setattr(browser, "OS_RELEASE", tmp_path / "os-release")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.setenv("MODE", "")
    monkeypatch.delenv(browser.VARIABLE, raising=False)
    return tmp_path


def put(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def calls(machine: Path) -> list[str]:
    path = machine / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_root_on_debian_gets_it_and_the_next_time_costs_nothing(machine, capsys):
    assert browser.provide(machine / "setup.log") == ""
    fetch, unpack = calls(machine)
    assert fetch.endswith("--download-only install chromium chromium-driver")
    assert unpack.endswith("install chromium chromium-driver") and "--no-install-recommends" in unpack
    assert capsys.readouterr().out == "browser: installing chromium and chromium-driver ... 0 s\n"
    assert "apt-get" in (machine / "setup.log").read_text()
    assert browser.provide(machine / "setup.log") == "" and len(calls(machine)) == 2
    assert capsys.readouterr().out == ""


def test_stale_package_lists_are_renewed_once(machine, monkeypatch):
    monkeypatch.setenv("MODE", "stale")
    assert browser.provide(machine / "setup.log") == ""
    ends = [call.split()[-1] for call in calls(machine)]
    assert ends == ["chromium-driver", "update", "chromium-driver", "chromium-driver"]


def test_without_network_it_is_one_sentence(machine, monkeypatch, capsys):
    monkeypatch.setenv("MODE", "offline")
    told = browser.provide(machine / "setup.log")
    assert told == (
        "browser: apt-get could not install chromium (Failed to fetch chromium.deb  No route to host; all it "
        f"printed: {machine / 'setup.log'}); the browser tests are skipped"
    )
    assert capsys.readouterr().out.endswith("... failed\n")


def test_a_mirror_that_never_answers_is_given_up(machine, monkeypatch):
    monkeypatch.setenv("MODE", "hang")
    monkeypatch.setattr(browser, "DOWNLOAD_S", 0.2)
    assert "(it took too long;" in browser.provide(machine / "setup.log")
    assert not any("--download-only" not in call and "update" not in call for call in calls(machine))


def test_packages_without_the_program_are_told(machine, monkeypatch):
    monkeypatch.setenv("MODE", "hollow")
    assert browser.provide(machine / "setup.log").startswith("browser: apt-get installed no chromium that can be found")


def test_a_user_without_root_is_told_the_command(machine, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    told = browser.provide(machine / "setup.log")
    assert "needs root: `sudo apt-get install chromium chromium-driver`; the browser tests are skipped" in told
    put(machine / "bin/sudo", "#!/bin/sh\nexit 1\n")  # one that would ask for a password
    assert "needs root" in browser.provide(machine / "setup.log") and calls(machine) == []


def test_sudo_that_asks_nothing_will_do(machine, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    put(machine / "bin/sudo", '#!/bin/sh\n[ "$1" = -n ] || exit 1\nshift\n[ "$1" = true ] && exit 0\nexec "$@"\n')
    assert browser.provide(machine / "setup.log") == "" and len(calls(machine)) == 2
    assert "$ sudo -n env" in (machine / "setup.log").read_text()


@pytest.mark.parametrize("how", ["other", "no apt", "unwanted"])
def test_elsewhere_nothing_is_tried(machine, monkeypatch, how):
    if how == "other":
        (machine / "os-release").write_text("ID=fedora\n")
    elif how == "no apt":
        (machine / "bin/apt-get").unlink()
    else:
        monkeypatch.setenv(browser.VARIABLE, "0")
    told = browser.provide(machine / "setup.log")
    assert told.startswith("browser: no chromium, and ") and told.endswith("the browser tests are skipped")
    assert ("CALIBRATE_BROWSER=0" in told) == (how == "unwanted") and calls(machine) == []


def test_only_the_test_command_asks_for_it(monkeypatch, tmp_path):
    from bench import bootstrap
    from bench.setup.machine import Engine

    asked: list[Path] = []
    monkeypatch.setattr(bootstrap.browser, "provide", lambda log: asked.append(log) or "browser: no")
    monkeypatch.setattr(bootstrap, "choose_engine", lambda *_: Engine("cpu", "x"))
    monkeypatch.setattr(bootstrap.Environment, "why_rebuild", lambda self: "")
    monkeypatch.setattr(bootstrap.Environment, "missing", lambda self: [])
    root = Path(__file__).resolve().parents[2]
    for words, count in (([], 0), (["--extra", "test", "--check"], 0), (["--extra", "test", "--dry-run"], 0),
                         (["--extra", "test"], 1)):  # fmt: skip
        assert bootstrap.main(words, root) == 0
        assert len(asked) == count


def test_what_runs_is_stopped_with_everything_it_started(machine, monkeypatch):
    """A given-up download leaves no process behind."""
    monkeypatch.setenv("MODE", "hang")
    monkeypatch.setattr(browser, "DOWNLOAD_S", 0.2)
    browser.provide(machine / "setup.log")
    ps = subprocess.run(["/bin/sh", "-c", f"grep -l STAND_IN={machine} /proc/[0-9]*/environ 2>/dev/null"],
                        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})  # fmt: skip
    mine = f"/proc/{os.getpid()}/environ"
    assert [line for line in ps.stdout.splitlines() if line != mine] == []
