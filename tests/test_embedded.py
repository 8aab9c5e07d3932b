from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from arc_halo import embedded
from arc_halo.bundled import accounts, programs
from arc_halo.bundled.accounts import account_for
from arc_halo.bundled.place import Place
from arc_halo.errors import EmbeddedServerError

IS_ROOT = os.geteuid() == 0
root_only = pytest.mark.skipif(not IS_ROOT, reason="the claim is about root")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project whose server was made once; tests work on copies."""
    project = tmp_path_factory.mktemp("made")
    embedded.acquire(project).release()
    return project


@pytest.fixture
def project(made, tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(made, copy)
    yield copy
    embedded.stop(copy, force=True)


@pytest.fixture
def new_project(tmp_path):
    directory = tmp_path / "new"
    directory.mkdir()
    yield directory
    if directory.is_dir():
        embedded.stop(directory, force=True)


def home(project):
    return project / ".arc-halo" / "postgres"


def ask(url, query):
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(query).fetchone()[0]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def is_running(project):
    return embedded.status(project).running


USER = """
import sys, time
from pathlib import Path
from arc_halo import embedded
lease = embedded.acquire(Path(sys.argv[1]))
print(embedded.status(Path(sys.argv[1])).pid, flush=True)
"""


def a_user(project, then="sys.stdin.read()"):
    """Another process that uses the server, until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{USER}\n{then}", str(project)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(claim, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_the_first_use_makes_a_database_and_prints_nothing(new_project, capfd):
    with embedded.acquire(new_project) as lease:
        assert ask(lease.url, "SELECT current_database()") == "arc_halo"
        assert ask(lease.url, "SELECT current_user") == "arc_halo"
        assert ask(lease.url, "SHOW server_encoding") == "UTF8"
        collation = "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = "
        assert ask(lease.url, f"{collation} current_database()") == "bC.UTF-8"
    assert capfd.readouterr() == ("", "")


def test_only_its_user_can_reach_it(project):
    with embedded.acquire(project) as lease:
        data = embedded.status(project).data_directory
        assert (mode(home(project)), mode(data)) == (0o700, 0o700)
        assert mode(data / ".s.PGSQL.5432") == 0o700
        assert {mode(path) for path in home(project).iterdir() if path.is_file()} == {0o600}
        assert ask(lease.url, "SHOW listen_addresses") == ""
        methods = "SELECT string_agg(DISTINCT type || ' ' || auth_method, ',') FROM "
        assert ask(lease.url, f"{methods} pg_hba_file_rules") == "local peer"


def test_peer_authentication_refuses_another_role(project):
    with embedded.acquire(project) as lease:
        other = lease.url.replace("//arc_halo@", "//pg_monitor@")
        with pytest.raises(psycopg.OperationalError, match="Peer authentication failed"):
            psycopg.connect(other)


def test_it_is_tuned_without_giving_up_durability(project):
    with embedded.acquire(project) as lease, psycopg.connect(lease.url) as conn:
        rows = conn.execute("SELECT name, setting FROM pg_settings").fetchall()
    settings = dict(rows)
    durable = ("fsync", "full_page_writes", "synchronous_commit", "data_checksums")
    assert {settings[name] for name in durable} == {"on"}
    assert settings["wal_level"] == "minimal"
    assert int(settings["max_wal_size"]) >= 2048


def test_pgvector_can_be_created(project):
    with embedded.acquire(project) as lease, psycopg.connect(lease.url) as conn:
        conn.execute("CREATE EXTENSION vector")
        assert conn.execute("SELECT '[1,2]'::vector <-> '[1,4]'").fetchone() == (2.0,)


def test_settings_of_the_user_outlive_a_restart(project):
    with embedded.acquire(project) as lease, psycopg.connect(lease.url, autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET work_mem = '7MB'")
    with embedded.acquire(project) as lease:
        assert ask(lease.url, "SHOW work_mem") == "7MB"


def test_the_last_user_stops_it(project):
    first, second = embedded.acquire(project), embedded.acquire(project)
    first.release()
    assert is_running(project)
    assert ask(second.url, "SELECT 1") == 1
    second.release()
    assert not is_running(project)


def test_a_second_release_does_nothing(project):
    lease = embedded.acquire(project)
    lease.release()
    with embedded.acquire(project):
        lease.release()
        assert is_running(project)


def test_processes_share_one_server(project):
    other = a_user(project)
    with other:
        pid = int(other.stdout.readline())
        with embedded.acquire(project):
            assert embedded.status(project).pid == pid
        assert is_running(project)
        other.stdin.close()
        assert other.wait(30) == 0
    assert not is_running(project)


def test_many_first_users_at_once_make_one_server(new_project):
    users = [a_user(new_project) for _ in range(4)]
    pids = {user.stdout.readline() for user in users}
    for user in users:
        user.communicate(timeout=60)
    assert len(pids) == 1
    assert [user.returncode for user in users] == [0, 0, 0, 0]
    assert not is_running(new_project)


def test_a_process_that_forgets_its_lease_gives_it_back_at_its_end(project):
    with a_user(project, then="") as other:
        assert other.wait(30) == 0
    assert not is_running(project)


def test_a_killed_user_leaves_a_server_that_the_next_one_uses_and_stops(project):
    with a_user(project) as other:
        pid = int(other.stdout.readline())
        other.kill()
    assert is_running(project)
    with embedded.acquire(project):
        assert embedded.status(project).pid == pid
    assert not is_running(project)


def test_a_forked_child_does_not_give_back_its_parents_lease(project):
    fork = """
import os
if os.fork() == 0:
    lease.release()
    os._exit(0)
os.wait()
print(embedded.status(Path(sys.argv[1])).running, flush=True)
"""
    with a_user(project, then=fork) as other:
        other.stdout.readline()
        assert other.stdout.readline() == "True\n"


def test_ctrl_c_at_the_terminal_does_not_reach_the_server(project):
    patient = "try:\n  print(flush=True)\n  time.sleep(60)\nexcept KeyboardInterrupt: pass"
    with a_user(project, then=patient) as other:
        pid = int(other.stdout.readline())
        assert other.stdout.readline() == "\n"
        with embedded.acquire(project) as lease:
            os.killpg(other.pid, signal.SIGINT)
            assert other.wait(30) == 0
            assert embedded.status(project).pid == pid
            assert ask(lease.url, "SELECT 1") == 1


def test_a_kept_server_holds_neither_our_pipes_nor_our_terminal(project):
    script = (
        "import sys; from pathlib import Path; from arc_halo import embedded;"
        "print(embedded.start(Path(sys.argv[1])).pid)"
    )
    # Would not return while anybody else had the pipes open.
    done = subprocess.run(
        [sys.executable, "-c", script, str(project)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    pid = int(done.stdout)
    assert os.getsid(pid) not in (os.getsid(0), 0)
    assert done.stderr == ""


def test_a_kept_server_stays_until_it_is_stopped(project):
    assert embedded.start(project).kept
    embedded.acquire(project).release()
    assert is_running(project)
    assert embedded.stop(project)
    found = embedded.status(project)
    assert (found.running, found.kept, found.pid) == (False, False, None)
    assert not embedded.stop(project)


def test_stop_refuses_while_somebody_is_connected_and_names_them(project):
    url = embedded.start(project).url
    with psycopg.connect(url, application_name="notebook") as conn:
        with pytest.raises(EmbeddedServerError, match=rf"notebook \(pid {conn.info.backend_pid}"):
            embedded.stop(project)
        assert embedded.status(project).kept
    embedded.stop(project, force=True)
    assert not is_running(project)


def test_stop_refuses_while_a_process_holds_a_lease(project):
    with embedded.acquire(project):
        with pytest.raises(EmbeddedServerError, match="in use: an arc-halo process"):
            embedded.stop(project)
        assert embedded.stop(project, force=True)


def test_what_was_committed_survives_the_death_of_the_server(project):
    with embedded.acquire(project) as lease:
        with psycopg.connect(lease.url) as conn:
            conn.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        pid = embedded.status(project).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Place(project).answers())
        with embedded.acquire(project) as again:
            assert embedded.status(project).pid != pid
            assert ask(again.url, "SELECT sum(n)::int FROM kept") == 500500


def test_a_pid_file_that_names_another_process_is_stale(project):
    with embedded.acquire(project):
        text = (home(project) / "data" / "postmaster.pid").read_text()
    ours = re.sub(r"^\d+", str(os.getpid()), text)
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (home(project) / "data" / name).write_text(ours)
    with embedded.acquire(project) as lease:
        assert ask(lease.url, "SELECT 1") == 1


@pytest.mark.parametrize("seconds", [0.15, 0.3, 0.45])
def test_a_kill_while_the_database_is_made_is_made_good(new_project, seconds):
    other = a_user(new_project)
    time.sleep(seconds)
    other.kill()
    other.communicate()
    with embedded.acquire(new_project) as lease:
        assert ask(lease.url, "SELECT current_database()") == "arc_halo"
    assert sorted(path.name for path in home(new_project).iterdir() if path.is_dir()) == ["data"]


def test_data_of_another_version_is_left_alone(project):
    (home(project) / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedServerError, match="of PostgreSQL 16") as caught:
        embedded.acquire(project)
    assert "dump it" in str(caught.value.hint)


def test_a_directory_that_is_no_cluster_is_left_alone(new_project):
    (home(new_project) / "data").mkdir(parents=True)
    with pytest.raises(EmbeddedServerError, match="not a PostgreSQL data directory"):
        embedded.acquire(new_project)


def test_a_failed_start_shows_the_end_of_the_log_and_can_be_repaired(project):
    overrides = home(project) / "data" / "postgresql.auto.conf"
    overrides.write_text("work_mem = 'much'\n")
    with pytest.raises(EmbeddedServerError, match='invalid value for parameter "work_mem"'):
        embedded.acquire(project)
    assert not is_running(project)
    overrides.write_text("")
    with embedded.acquire(project) as lease:
        assert ask(lease.url, "SELECT 1") == 1


def test_a_missing_package_is_an_error_with_its_name(new_project, monkeypatch):
    monkeypatch.setattr(programs, "PACKAGE", "a_package_that_nobody_installed")
    with pytest.raises(EmbeddedServerError, match="not installed") as caught:
        embedded.acquire(new_project)
    assert caught.value.error_code == "AH043"
    assert "ARC_HALO_DATABASE_URL" in str(caught.value.hint)


def test_a_project_directory_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(EmbeddedServerError, match="No such file") as caught:
        embedded.acquire(tmp_path / "nowhere")
    assert caught.value.hint == "the project directory must exist"


def test_a_file_in_the_place_of_the_directory_is_an_error(new_project):
    (new_project / ".arc-halo").touch()
    with pytest.raises(EmbeddedServerError, match="arc-halo"):
        embedded.acquire(new_project)
    (new_project / ".arc-halo").unlink()


def test_status_changes_nothing(new_project):
    found = embedded.status(new_project)
    assert (found.running, found.pid, found.size_bytes, found.kept) == (False, None, None, False)
    assert found.version is not None
    assert found.version.startswith("18.")
    assert list(new_project.iterdir()) == []


def test_status_knows_the_running_server(project):
    with embedded.acquire(project) as lease:
        found = embedded.status(project)
        assert found.running
        assert found.url == lease.url
        assert found.size_bytes is not None
        assert found.size_bytes > 10_000_000


@pytest.mark.parametrize("name", ["with space", "ünï'code", 'per%cent "quoted"', "a&b=c?d#e"])
def test_the_path_may_hold_any_character(made, tmp_path, name):
    project = tmp_path / name
    shutil.copytree(made, project)
    with embedded.acquire(project) as lease:
        assert ask(lease.url, "SELECT 1") == 1


def test_a_path_too_long_for_a_socket_gets_a_short_private_name(made, tmp_path):
    project = tmp_path / ("long" * 20) / ("longer" * 20)
    shutil.copytree(made, project)
    with embedded.acquire(project) as lease:
        found = embedded.status(project)
        assert len(str(found.socket_directory)) < 90
        assert mode(found.socket_directory.parent) == 0o700
        assert ask(lease.url, "SELECT 1") == 1
        found.socket_directory.unlink()  # as a cleaner of /tmp would
        with embedded.acquire(project) as again:
            assert ask(again.url, "SELECT 1") == 1
    found.socket_directory.unlink()


def test_a_short_name_in_a_directory_of_others_is_refused(made, tmp_path, monkeypatch):
    shared = tmp_path / "runtime"
    shared.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared))
    if len(str(shared)) >= 60:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        monkeypatch.setattr("tempfile.tempdir", None)
    project = tmp_path / ("long" * 20) / ("longer" * 20)
    shutil.copytree(made, project)
    place = embedded.status(project).socket_directory.parent
    place.mkdir(exist_ok=True)
    before = mode(place)
    place.chmod(0o777)
    try:
        with pytest.raises(EmbeddedServerError, match="not a private directory"):
            embedded.acquire(project)
    finally:
        place.chmod(before)


def test_a_project_that_was_moved_still_works(project, tmp_path):
    with embedded.acquire(project) as lease, psycopg.connect(lease.url) as conn:
        conn.execute("CREATE TABLE moved ()")
    project.rename(tmp_path / "elsewhere")
    with embedded.acquire(tmp_path / "elsewhere") as lease:
        assert ask(lease.url, "SELECT count(*) FROM moved") == 0
    (tmp_path / "elsewhere").rename(project)


def test_a_large_log_is_put_aside(project):
    log = home(project) / "server.log"
    log.write_bytes(b"x" * (2**20 + 1))
    embedded.acquire(project).release()
    assert log.stat().st_size < 2**20
    assert log.with_name("server.log.1").stat().st_size == 2**20 + 1


@root_only
def test_root_changes_no_permission_on_the_way_to_the_project(new_project):
    new_project.chmod(0o700)
    before = {parent: mode(parent) for parent in (new_project, *new_project.parents)}
    with embedded.acquire(new_project) as lease:
        assert ask(lease.url, "SELECT 1") == 1
        server = embedded.status(new_project).pid
        assert Path(f"/proc/{server}").stat().st_uid == pwd.getpwnam("pgserver").pw_uid
    assert before == {parent: mode(parent) for parent in before}


@root_only
def test_programs_out_of_the_accounts_reach_are_copied(tmp_path, monkeypatch):
    package = "hidden_pgserver"
    tmp_path.chmod(0o700)
    source = programs.program("postgres").parents[1]
    shutil.copytree(source, tmp_path / package / source.name)
    monkeypatch.syspath_prepend(tmp_path)
    libraries = source.parent.with_name(f"{programs.PACKAGE}.libs")
    if libraries.is_dir():
        # The programs look for their libraries by the package's name.
        shutil.copytree(libraries, tmp_path / libraries.name)
    account = account_for(tmp_path / "nothing yet")
    assert not programs._can_run(tmp_path / package / source.name / "bin", account)
    shared = Path("/var/lib") / f"arc-halo-test-{os.getpid()}"
    monkeypatch.setattr(programs, "SHARED_COPY", shared)
    try:
        target = shared / "copy"
        programs._make_shared_copy(source, target)
        assert programs._can_run(target / programs.PACKAGE / source.name / "bin", account)
        assert [path.name for path in shared.iterdir()] == ["copy"]
    finally:
        shutil.rmtree(shared)


@root_only
def test_root_serves_a_users_data_as_that_user(project):
    nobody = pwd.getpwnam("nobody")
    for path in (home(project), *home(project).rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    (home(project) / "lease").unlink()
    with embedded.acquire(project) as lease:
        server = embedded.status(project).pid
        assert Path(f"/proc/{server}").stat().st_uid == nobody.pw_uid
        assert ask(lease.url, "SELECT current_user") == "arc_halo"
        assert (home(project) / "lease").stat().st_uid == nobody.pw_uid


@root_only
def test_a_full_disk_and_a_read_only_one_are_named(tmp_path):
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(mounted)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this root may not mount")
    try:
        with pytest.raises(EmbeddedServerError, match="No space left") as caught:
            embedded.acquire(mounted)
        assert "free some space" in str(caught.value.hint)
        assert not (home(mounted) / "data").exists()
        subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
        with pytest.raises(EmbeddedServerError, match="Read-only") as caught:
            embedded.acquire(mounted)
        assert "takes no writes" in str(caught.value.hint)
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.skipif(IS_ROOT, reason="root may write everywhere")
def test_a_directory_without_the_right_to_write_is_named(new_project):
    new_project.chmod(0o500)
    with pytest.raises(EmbeddedServerError, match="Permission denied"):
        embedded.acquire(new_project)
    new_project.chmod(0o700)


@pytest.mark.skipif(IS_ROOT, reason="root may use everybody's data")
def test_data_of_another_user_is_refused():
    with pytest.raises(EmbeddedServerError, match="another user"):
        account_for(Path("/etc"))


def test_a_user_without_a_name_is_told_that_postgresql_needs_one():
    with pytest.raises(EmbeddedServerError, match="4242424 has no name"):
        accounts._account(4242424)
