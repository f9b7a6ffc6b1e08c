"""Bad input gives one clear line or the errno of the man page, and the daemons live on."""

import os
import subprocess
import tempfile
import unittest

import cluster
from cluster import BIN, KEVRE, Cluster, kevre, program

KEVRED = os.path.join(BIN, "kevred")

THROW = r"""
import os, socket, sys
host, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
for i in range(20):
    s = socket.create_connection((host, port), timeout=5)
    s.settimeout(0.2)
    try:
        s.sendall(os.urandom(1 + 977 * i) if kind == "garbage" else s.recv(7) or b"k")
    except OSError:
        pass
    s.close()
"""

LISTENING = r"""
for line in open("/proc/net/tcp").read().splitlines()[1:]:
    fields = line.split()
    if fields[3] == "0A": print(int(fields[1].split(":")[1], 16))
"""

ERRNO = r"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.shmget.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]
if libc.shmget(int(sys.argv[1], 0), int(sys.argv[2]), 0o1600) >= 0: print("made")
else: print(os.strerror(ctypes.get_errno()))
"""


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.c = Cluster(2)
        cls.c.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.c.__exit__()

    def alive(self):
        """Both daemons still serve programs and each other."""
        key = "0x3001"
        self.c.run("n1", program("count_atomic"), key, 10)
        self.c.run("n2", program("count_atomic"), key, 10)
        self.assertEqual(len(self.c.status()["nodes"]), 2)

    def address(self, node):
        host, port = [n for n in self.c.status()["nodes"] if n["name"] == node][0]["address"].split(":")
        return host, port

    def one_line(self, done, *words):
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def kevred(self, *options, node="n2", before=()):
        """A daemon by hand, inside a node's namespaces."""
        # (without the preload library, which a sanitized binary does not bear in front of its run-time)
        return self.c.run(node, "env", "-u", "LD_PRELOAD", *before, KEVRED, "--name", "guest", "--listen", "10.77.0.2:0", *options, check=False, timeout=60)

    def test_a_wrong_cluster_key_is_one_line_and_the_cluster_lives_on(self):
        with tempfile.TemporaryDirectory() as folder:
            key = os.path.join(folder, "key")
            with open(os.open(key, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
                f.write("00" * 32 + "\n")
            self.one_line(self.kevred("--join", ":".join(self.address("n1")), "--key-file", key), "key")
        self.alive()

    def test_a_key_file_that_others_may_read_or_that_is_no_key_is_one_line(self):
        with tempfile.TemporaryDirectory() as folder:
            key = os.path.join(folder, "key")
            with open(key, "w") as f:
                f.write("not a key\n")
            os.chmod(key, 0o644)
            self.one_line(self.kevred("--key-file", key), "chmod")
            os.chmod(key, 0o600)
            self.one_line(self.kevred("--key-file", key), key)

    def test_nobody_listens_is_one_line(self):
        with tempfile.TemporaryDirectory() as folder:
            key = os.path.join(folder, "key")
            with open(os.open(key, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
                f.write("11" * 32 + "\n")
            self.one_line(self.kevred("--join", "10.77.0.1:1", "--key-file", key), "10.77.0.1:1")

    def test_garbage_and_truncated_messages_on_the_daemons_port_are_shrugged_off(self):
        host, port = self.address("n1")
        for kind in ("garbage", "truncated"):
            self.c.run("n2", "/usr/bin/python3", "-c", THROW, host, port, kind)
            self.alive()

    def test_garbage_on_every_port_that_a_daemon_listens_on_is_shrugged_off(self):
        host, _ = self.address("n1")
        ports = set(self.c.run("n1", "/usr/bin/python3", "-c", LISTENING).stdout.split())
        self.assertGreaterEqual(len(ports), 2)  # the daemon's own and the transport's
        for port in ports:
            for kind in ("garbage", "truncated"):
                self.c.run("n2", "timeout", "30", "/usr/bin/python3", "-c", THROW, host, port, kind, check=False)
        self.alive()

    def test_garbage_on_the_programs_socket_is_shrugged_off(self):
        throw = r"""
import os, socket
for i in range(50):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect(os.environ["KEVRE_SOCKET"])
    try:
        s.send(os.urandom(1 + 37 * i))
        s.send(bytes(1 + i))
    except OSError:
        pass
    s.close()
"""
        self.c.run("n1", "/usr/bin/python3", "-c", throw)
        self.alive()

    def test_a_segment_larger_than_memory_is_enomem_and_beyond_the_limit_einval(self):
        self.assertEqual(self.c.run("n1", "/usr/bin/python3", "-c", ERRNO, "0x3002", 1 << 46).stdout, "Cannot allocate memory\n")
        self.assertEqual(self.c.run("n1", "/usr/bin/python3", "-c", ERRNO, "0x3003", 0).stdout, "Invalid argument\n")
        self.alive()

    def test_a_full_dev_shm_does_not_hurt(self):
        filled = self.c.run("n1", "sh", "-c", "mount -o remount,size=1m /dev/shm; cat /dev/zero > /dev/shm/full 2>/dev/null; df --output=avail /dev/shm | tail -1").stdout
        self.assertEqual(filled.strip(), "0")
        try:
            self.alive()
            self.c.run("n1", program("pattern"), "0x3004", 1 << 20, "write", 1)
            self.c.run("n2", program("pattern"), "0x3004", 1 << 20, "check", 1)
        finally:
            self.c.run("n1", "rm", "-f", "/dev/shm/full")

    def test_a_missing_userfaultfd_permission_is_one_line_with_the_remedy(self):
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o777)
            key = os.path.join(folder, "key")
            with open(os.open(key, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
                f.write("22" * 32 + "\n")
            os.chown(key, 65534, 65534)
            done = self.kevred("--key-file", key, "--control-socket", folder + "/c", "--node-socket", folder + "/n",
                               before=("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"))
            self.one_line(done, "userfaultfd", "remedy")

    def test_wrong_usage_is_exit_2_and_changes_nothing(self):
        for arguments in (("cluster", "up"), ("run",), ("cluster", "up", "--local", "zero"), ("no-such-command",), ("cluster", "up", "--local", "0")):
            done = kevre(*arguments, cluster="test-usage", check=False)
            self.assertEqual(done.returncode, 2, (arguments, done.stderr))
            self.assertNotEqual(done.stderr, "")
        self.assertFalse(os.path.exists("/run/kevre/test-usage"))


if __name__ == "__main__":
    cluster.main()
