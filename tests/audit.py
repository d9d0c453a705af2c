"""What Python tells of itself while tests run (`sys.addaudithook`): the promises of SECURITY.md are
held against it, in every test.

Nothing unpickles, nothing loads or makes code out of data, no program is started but those listed,
nothing talks to other machines; and maxlm's own code writes where it was told to: a test that finds
otherwise fails, with the file and the line. Audit hooks see what Python does, not what libraries do
in C++ (arrays of checkpoints, compiled programs).

A hook sees its own process alone. Processes that are started with `environment_of` have one too, from
their first line on, as have those that they start; what they find comes to the test by a file. They may
write into the folder that is named there, and not into all temporary folders, as tests may.
"""

from __future__ import annotations

import atexit
import os
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1].resolve()
PACKAGES = tuple(f"{ROOT / package}{os.sep}" for package in ("maxlm", "data_pipeline", "launch"))

# Who may unpickle: pools of processes and Ray, which talk to processes that they have started, and
# what runs the tests.
TRUSTED_PIPES = ("/multiprocessing/", "/concurrent/futures/process", "/ray/", "/grain/")
RUNNERS = ("/xdist/", "/execnet/", "/_pytest/", "/hypothesis/")
# Who may start programs: with fixed words and the user's own command line.
STARTERS = (
    "maxlm/process/malloc.py",  # the same command once more
    "maxlm/scaling/ladder/run.py",
    "data_pipeline/engine/isolation/process.py",
    "launch/",
)
LOADERS = (
    "<frozen importlib",
    "/importlib/",
    "/_pytest/",
    "/zipimport",
    "/runpy.py",
    "/pkgutil.py",
)
LOOPBACK = ("127.", "::1", "localhost")

# Who has a cache of its own in the user's folder: matplotlib of fonts.
WITH_CACHES = ("/matplotlib/", "/ray/")

_PYTHON = sysconfig.get_paths()["stdlib"]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Where the paths stand in the arguments of events that change a file system.
_CHANGES = {
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "shutil.rmtree": (0,),
    "shutil.move": (0, 1),
}
_STARTS = frozenset(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"))
_CODE = frozenset(("compile", "exec", "marshal.loads", "marshal.load", "code.__new__"))

# Of processes that tests start: where to write what is found, and the folder that is theirs.
REPORT, FOLDER = "TESTS_AUDIT_REPORT", "TESTS_AUDIT_FOLDER"
AT_START = ROOT / "tests" / "audited"

_report = os.environ.get(REPORT)
_found: list[str] = []
_from_others: list[str] = []  # the file that other processes write to, once there are any
_inside = threading.local()
_installed = False


def install() -> None:
    """Watch this process from now on; an audit hook cannot be taken away again."""
    global _installed
    if not _installed:
        _installed = True
        tempfile.gettempdir()  # it finds out under a lock, by a file that it writes: the hook would wait for it
        sys.addaudithook(_hook)


def environment_of(folder: Path | str) -> dict[str, str]:
    """Return the variables of a Python process that is to be watched as this one is.

    Args:
      folder: the only one that it is told to write to.
    """
    if not _from_others:
        descriptor, path = tempfile.mkstemp(prefix="audit")
        os.close(descriptor)
        atexit.register(Path(path).unlink, missing_ok=True)
        _from_others.append(path)
    paths = [str(AT_START), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        REPORT: _from_others[0],
        FOLDER: str(folder),
    }


def take() -> list[str]:
    """Return what was found since the last call, each with its file and line."""
    found = _found[:]
    del _found[: len(found)]
    for path in map(Path, _from_others):
        if path.stat().st_size:
            found += path.read_text().splitlines()
            os.truncate(path, 0)
    return found


def _keep(finding: str) -> None:
    if _report is None:
        _found.append(finding)
        return
    with suppress(OSError):  # at once and in one piece: the process may be killed
        descriptor = os.open(_report, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, f"process {os.getpid()}: {finding}\n".encode())
        os.close(descriptor)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    # Called for every event there is: what is not asked for must cost nothing.
    if event == "open":
        if isinstance(arguments[2], int) and arguments[2] & _WRITES:
            _look(event, arguments)
    elif event in _EVENTS:
        _look(event, arguments)


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if getattr(_inside, "now", False):
        return
    _inside.now = True
    try:
        reason = _EVENTS[event](event, arguments)
        if reason:
            _keep(f"{reason} at {_place()}")
    finally:
        _inside.now = False


# --- judges: an event and its arguments -> what is wrong, or nothing --------------------------------


def _unpickles(event: str, arguments: tuple[Any, ...]) -> str:
    files = list(_files())
    trusted = any(part in file for file in files for part in TRUSTED_PIPES)
    # What runs the tests is below all of them: it counts where it unpickles itself.
    direct = next((file for file in files if not file.endswith("/pickle.py")), "")
    trusted |= any(part in direct for part in RUNNERS)
    return "" if trusted else f"unpickled {arguments[0]}.{arguments[1]}"


def _makes_code(event: str, arguments: tuple[Any, ...]) -> str:
    direct = next(_files(), "")
    return f"{event} of code" if direct.startswith(PACKAGES) else ""


def _starts(event: str, arguments: tuple[Any, ...]) -> str:
    # What libraries start is theirs: Ray its cluster, matplotlib a program that lists fonts.
    nearest = next((file for file in _files() if not _is_of_python(file)), "")
    name = nearest.removeprefix(f"{ROOT}{os.sep}")
    wrong = nearest.startswith(PACKAGES) and not name.startswith(STARTERS)
    return f"{event} of {arguments[0]!r}" if wrong else ""


def _talks(event: str, arguments: tuple[Any, ...]) -> str:
    address = arguments[1]
    host = address[0] if isinstance(address, tuple) and address else ""
    files = list(_files())
    own = any(file.startswith(PACKAGES) for file in files) and not any("/ray/" in f for f in files)
    if not own or not isinstance(host, str) or not host or host.startswith(LOOPBACK):
        return ""
    return f"{event} to {address!r}"


def _writes(event: str, arguments: tuple[Any, ...]) -> str:
    if event in _CHANGES and any(isinstance(one, int) and one >= 0 for one in arguments[-1:]):
        return ""  # relative to an open folder, within shutil.rmtree, which is judged itself
    places = [arguments[index] for index in _CHANGES.get(event, (0,))]
    wrong = [place for place in places if not _may_be_written(place)]
    files = list(_files()) if wrong else []
    own = any(file.startswith(PACKAGES) for file in files)
    if own and not any(part in file for file in files for part in WITH_CACHES):
        return f"{event} of {os.fsdecode(wrong[0])}"
    return ""


_EVENTS = {
    "pickle.find_class": _unpickles,
    "socket.bind": _talks,
    "socket.connect": _talks,
    "open": _writes,
    **dict.fromkeys(_CODE, _makes_code),
    **dict.fromkeys(_STARTS, _starts),
    **dict.fromkeys(_CHANGES, _writes),
}


def _may_be_written(place: Any) -> bool:
    """Tell whether a path is in a temporary folder or the folder of compiled programs."""
    if not isinstance(place, str | bytes | os.PathLike):  # a descriptor, which was judged as a path
        return True
    path = os.path.realpath(os.fsdecode(place))
    if path.startswith(f"{ROOT}{os.sep}"):
        return "/__pycache__" in path or path.startswith(f"{ROOT}{os.sep}.jax_cache")
    return path.startswith(_folders()) or path in ("/dev/null", "/dev/shm")


def _folders() -> tuple[str, ...]:
    temporary, cache = tempfile.gettempdir(), os.environ.get("JAX_COMPILATION_CACHE_DIR")
    own = os.environ.get(FOLDER)
    # Names of `tempfile` and of pools of processes; their folders are nobody else's.
    names = [f"{temporary}/{name}" for name in (tempfile.template, "pymp-")]
    places = [own, *names] if own else [temporary, "/tmp"]
    folders = (*places, *filter(None, [cache]), "/dev/shm", "/proc/self", "/dev/fd")
    return tuple(os.path.realpath(folder) for folder in folders)


def _frames() -> Iterator[FrameType]:
    """Yield the frames below the hook's own, the nearest first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame
        frame = frame.f_back


def _is_of_python(file: str) -> bool:
    """Tell whether a file is of Python's own library."""
    return file.startswith((_PYTHON, "<frozen")) and "site-packages" not in file


def _files() -> Iterator[str]:
    return (frame.f_code.co_filename for frame in _frames())


def _place() -> str:
    """Return the nearest file and line, and the nearest of maxlm's own if that is another."""
    frames = list(_frames())
    own = [frame for frame in frames if frame.f_code.co_filename.startswith(PACKAGES)][:1]
    places = [f"{frame.f_code.co_filename}:{frame.f_lineno}" for frame in [*frames[:1], *own]]
    return ", called from ".join(dict.fromkeys(places))
