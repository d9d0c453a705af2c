"""The audit of all tests finds what it is there to find, names the place, and costs next to nothing."""

import collections
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests import audit

# As if maxlm did it; line 3.
SOURCE = """
def act(pickle, os, subprocess, socket, text, data):
    return {}
"""
FORBIDDEN = {
    "open('/somewhere/else', 'wb')": "open of /somewhere/else",
    "open(text + '/docs/new', 'a')": "docs/new",
    "os.open('/somewhere/else', os.O_CREAT)": "open of /somewhere/else",
    "os.rename('/somewhere/a', '/somewhere/b')": "os.rename of /somewhere/a",
    "os.remove('/somewhere/a')": "os.remove of /somewhere/a",
    "os.mkdir('/somewhere/a')": "os.mkdir of /somewhere/a",
    "pickle.loads(data)": "unpickled collections.OrderedDict",
    "exec(code)": "exec of code",
    "compile('1', 'x', 'eval')": "compile of code",
    "subprocess.Popen(['/nowhere/program'])": "subprocess.Popen of '/nowhere/program'",
    "os.system('')": "os.system of b''",
    "socket.socket().bind(('0.0.0.0', 0))": "socket.bind to ('0.0.0.0', 0)",
}
ALLOWED = (
    "open('/etc/hostname').close()",
    "open(os.devnull, 'w').close()",
    "socket.socket().bind(('127.0.0.1', 0))",
    "open(__import__('tempfile').mkdtemp() + '/x', 'w').close()",
)


def act(call):
    path = str(audit.ROOT / "maxlm/fake.py")
    space = {"code": compile("1", "x", "exec")}
    exec(compile(SOURCE.format(call), path, "exec"), space)
    modules = [sys.modules[name] for name in ("pickle", "os", "subprocess", "socket")]
    data = pickle.dumps(collections.OrderedDict())
    audit.take()
    try:
        space["act"](*modules, str(audit.ROOT), data)
    except OSError:
        return audit.take()
    return audit.take()


@pytest.mark.parametrize("call", FORBIDDEN)
def test_what_is_forbidden_is_found_with_its_place(call):
    found = act(call)
    assert len(found) == 1, found
    assert FORBIDDEN[call] in found[0]
    assert "maxlm/fake.py:3" in found[0]


@pytest.mark.parametrize("call", ALLOWED)
def test_what_is_allowed_is_not(call):
    assert act(call) == []


IN_A_PROCESS = f"""
import os, pathlib, pickle, socket, subprocess, sys
path = "{audit.ROOT / "maxlm/fake.py"}"
space = {{"code": compile("1", "x", "exec")}}
exec(compile(sys.argv[1], path, "exec"), space)
try:
    space["act"](pickle, os, subprocess, socket, "{audit.ROOT}", pickle.dumps(pathlib.PurePath()))
except OSError:
    pass
os._exit(0)
"""


def act_in_a_process(call, folder):
    environment = {**os.environ, **audit.environment_of(folder)}
    command = [sys.executable, "-c", IN_A_PROCESS, SOURCE.format(call)]
    subprocess.run(command, env=environment, check=True, cwd=audit.ROOT)
    return audit.take()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("open('/somewhere/else', 'wb')", "open of /somewhere/else"),
        ("open(os.path.dirname(os.environ['TESTS_AUDIT_FOLDER']) + '/x', 'w')", "/x"),
        ("os.system('')", "os.system of b''"),
    ],
)
def test_what_a_process_of_a_test_does_is_found(call, expected, tmp_path):
    (found,) = act_in_a_process(call, tmp_path / "run")
    assert expected in found
    assert "maxlm/fake.py:3" in found
    assert found.startswith("process ")


@pytest.mark.parametrize(
    "call",
    [
        "open(os.environ['TESTS_AUDIT_FOLDER'] + '/x', 'w').close()",
        "open(__import__('tempfile').mkdtemp() + '/x', 'w').close()",
        "open(os.devnull, 'w').close()",
    ],
)
def test_a_process_may_write_where_it_is_told_to(call, tmp_path):
    assert act_in_a_process(call, tmp_path) == []


def test_what_others_write_is_theirs():
    audit.take()
    with pytest.raises(OSError):
        Path("/somewhere/else").write_bytes(b"")
    assert audit.take() == []


def test_a_pickle_is_found_whoever_reads_it():
    pickle.loads(pickle.dumps(collections.OrderedDict()))  # noqa: S301
    (found,) = audit.take()
    assert "unpickled collections.OrderedDict at " in found
    assert "test_audit.py:" in found


def test_events_that_nobody_asks_for_cost_nothing():
    began = time.process_time()
    for _ in range(100_000):
        sys.audit("nobody.asks", 1)
    assert time.process_time() - began < 0.5  # 5 us each, on a slow and busy machine


def test_temporary_files_are_allowed():
    with tempfile.NamedTemporaryFile() as file:
        assert audit._may_be_written(file.name)
    assert not audit._may_be_written(audit.ROOT / "README.md")
    assert not audit._may_be_written("/etc/passwd")
