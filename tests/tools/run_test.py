"""`kevre run` carries exit status, signals, stdin, stdout, stderr and the working directory."""

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import tempfile
import time
import unittest

import cluster
from cluster import KEVRE, Cluster, kevre, wait_until


class Run(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.c = Cluster(2)
        cls.c.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.c.__exit__()

    def run_raw(self, node, *command, **options):
        return subprocess.run([KEVRE, "--cluster", self.c.name, "run", "--on", node, "--", *command], capture_output=True,
                              timeout=60, **options)

    def test_exit_status_and_the_two_outputs_arrive_apart(self):
        done = self.run_raw("n2", "sh", "-c", "echo out; echo err >&2; exit 37")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (37, b"out\n", b"err\n"))

    def test_a_program_killed_by_a_signal_gives_128_plus_its_number_as_a_shell_does(self):
        self.assertEqual(self.run_raw("n2", "sh", "-c", "kill -KILL $$").returncode, 137)

    def test_the_program_runs_on_the_named_node(self):
        for node in ("n1", "n2"):
            self.assertEqual(self.run_raw(node, "hostname").stdout.decode().strip(), node)

    def test_standard_input_is_carried_whole_and_binary_and_its_end_too(self):
        data = os.urandom(3_000_000) + b"\0\xff\n" * 1000
        done = self.run_raw("n2", "sha256sum", input=data)
        self.assertEqual(done.stdout.split()[0].decode(), hashlib.sha256(data).hexdigest())
        self.assertEqual(self.run_raw("n2", "cat", input=data).stdout, data)

    def test_a_large_output_to_a_slow_reader_is_not_lost(self):
        process = self.c.start("n2", "sh", "-c", "head -c 20000000 /dev/zero")
        time.sleep(0.3)  # the reader is slow on purpose: everything on the way must stop, not overflow
        out = process.stdout.buffer.read()
        self.assertEqual((process.wait(60), len(out)), (0, 20000000))
        process.communicate()

    def test_signals_reach_the_program(self):
        for number, name in ((signal.SIGTERM, "TERM"), (signal.SIGINT, "INT"), (signal.SIGUSR1, "USR1")):
            process = self.c.start("n2", "sh", "-c", f"trap 'echo got {name}; exit 5' {name}; echo ready; while :; do sleep 0.05; done")
            self.assertEqual(process.stdout.readline(), "ready\n")
            process.send_signal(number)
            out, _ = process.communicate(timeout=30)
            self.assertEqual((out, process.returncode), (f"got {name}\n", 5))

    def test_the_working_directory_is_the_callers(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(self.run_raw("n2", "pwd", cwd=folder).stdout.decode().strip(), os.path.realpath(folder))

    def test_the_program_ends_when_its_caller_is_killed(self):
        with tempfile.TemporaryDirectory() as folder:
            mark = os.path.join(folder, "alive")
            process = self.c.start("n2", "sh", "-c", f"while :; do date +%s%N > {mark}; sleep 0.05; done")
            wait_until(lambda: os.path.exists(mark) and os.path.getsize(mark) > 0, 20, "the program runs")
            process.kill()
            process.communicate()

            def stopped():
                before = os.stat(mark).st_mtime_ns
                time.sleep(0.5)
                return os.stat(mark).st_mtime_ns == before

            wait_until(stopped, 20, "the program stops writing")

    def test_unknown_program_is_127_and_unknown_node_one_line(self):
        done = self.run_raw("n2", "no-such-program-here")
        self.assertEqual(done.returncode, 127)
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        done = self.run_raw("n9", "true")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr.decode(), r"^kevre: .*n9.*\n$")

    def test_from_inside_a_node_everything_travels_between_the_daemons(self):
        data = os.urandom(2_000_000)
        inner = ("env", "-u", "LD_PRELOAD", KEVRE, "run", "--on", "n2", "--")
        self.assertEqual(self.run_raw("n1", *inner, "hostname").stdout, b"n2\n")
        self.assertEqual(self.run_raw("n1", *inner, "cat", input=data).stdout, data)
        self.assertEqual(self.run_raw("n1", *inner, "sh", "-c", "kill -TERM $$").returncode, 143)

    def test_a_library_whose_constructor_uses_shared_memory_finds_the_cluster(self):
        done = self.c.run("n2", cluster.program("early"))
        self.assertEqual((done.stdout, done.stderr), ("made and removed\n", ""))

    def test_a_terminal_is_a_terminal_on_the_other_node(self):
        parent, child = pty.openpty()
        process = subprocess.Popen([KEVRE, "--cluster", self.c.name, "run", "--on", "n2", "--", "sh", "-c", "test -t 0 && test -t 1 && stty size"],
                                   stdin=child, stdout=child, stderr=child, close_fds=True)
        os.close(child)
        seen = b""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            ready, _, _ = select.select([parent], [], [], 1)
            if ready:
                try:
                    piece = os.read(parent, 1000)
                except OSError:
                    break
                if not piece:
                    break
                seen += piece
        os.close(parent)
        self.assertEqual(process.wait(30), 0, seen)
        self.assertRegex(seen.decode(), r"\d+ \d+")

    def test_what_the_user_preloads_is_loaded_behind_our_library(self):
        libc = "/lib/x86_64-linux-gnu/libutil.so.1"
        done = subprocess.run([KEVRE, "--cluster", self.c.name, "run", "--on", "n2", "--", "sh", "-c",
                               "echo $LD_PRELOAD; grep -c libutil /proc/$$/maps"], capture_output=True, timeout=60,
                              env=dict(os.environ, LD_PRELOAD=libc))
        preload, count = done.stdout.decode().split()
        self.assertRegex(preload, f"^/.*libkevre-preload.so:{libc}$")
        self.assertGreater(int(count), 0)

    def test_a_run_from_inside_a_run_preloads_our_library_once(self):
        done = self.run_raw("n1", KEVRE, "run", "--on", "n2", "--", "sh", "-c", "echo $LD_PRELOAD")
        self.assertEqual(done.stdout.decode().count("libkevre-preload"), 1, (done.stdout, done.stderr))

    def test_many_programs_at_once_with_few_open_files_allowed_and_none_of_them_stays(self):
        name = f"test-{os.getpid()}-files"
        up = subprocess.run(["prlimit", "--nofile=128:4096", KEVRE, "--cluster", name, "cluster", "up", "--local", "2"], timeout=60)
        self.assertEqual(up.returncode, 0)
        try:
            descriptors = lambda: [len(os.listdir(f"/proc/{n['daemon_pid']}/fd")) for n in
                                   json.loads(kevre("cluster", "status", "--json", cluster=name).stdout)["nodes"]]
            before = descriptors()
            done = kevre("run", "-n", 100, "--", "sh", "-c", "ulimit -Sn; sleep 1", cluster=name)
            self.assertEqual(done.stdout.split(), ["128"] * 100)
            wait_until(lambda: descriptors() == before, 10, f"descriptors {before} {descriptors()}")
        finally:
            kevre("cluster", "down", cluster=name)

    def test_pids_of_the_nodes_are_disjoint(self):
        pids = {node: {int(self.run_raw(node, "sh", "-c", "echo $$").stdout) for _ in range(20)} for node in ("n1", "n2")}
        self.assertTrue(max(pids["n1"]) < min(pids["n2"]) or max(pids["n2"]) < min(pids["n1"]), pids)


if __name__ == "__main__":
    cluster.main()
