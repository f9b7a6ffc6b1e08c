"""Programs of Debian packages that live on System V IPC, on one node and on three. Whatever is not installed is
skipped and counted; nothing is installed for it."""

import os
import shutil
import tempfile
import unittest

import cluster
from cluster import Cluster, finish

POSTGRES = "/usr/lib/postgresql/15/bin"

PHP = r"""<?php
$k = (int)$argv[1]; $m = shm_attach($k, 10000, 0600); $s = sem_get($k, 1, 0600, 1); $q = msg_get_queue($k, 0600);
for ($i = 0; $i < 200; ++$i) {
  sem_acquire($s); shm_put_var($m, 1, (shm_has_var($m, 1) ? shm_get_var($m, 1) : 0) + 1); sem_release($s);
}
msg_send($q, 7, ["x" => $i]); if (!msg_receive($q, 0, $t, 1000, $d) || $d["x"] != 200) exit(1);
sem_acquire($s); echo shm_get_var($m, 1), "\n"; sem_release($s);
"""

APACHE = """ServerRoot {folder}
ServerName localhost
PidFile {folder}/pid
Listen 127.0.0.1:8091
Listen 127.0.0.1:8092
User www-data
Group www-data
LoadModule mpm_prefork_module /usr/lib/apache2/modules/mod_mpm_prefork.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
Mutex sysvsem default
StartServers 6
DocumentRoot {folder}
ErrorLog {folder}/error.log
"""


def needs(*paths):
    missing = [p for p in paths if not shutil.which(p)]
    return unittest.skipIf(missing, "not installed: " + " ".join(missing))


class Packages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.c = Cluster(3)
        cls.c.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.c.__exit__()

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="kevre-packages-")
        os.chmod(self.folder, 0o755)
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def leaves_nothing(self):
        for kind in ("-m", "-s", "-q"):
            lines = [line for line in self.c.run("n3", "ipcs", kind).stdout.splitlines() if line.startswith("0x")]
            self.assertEqual(lines, [])

    @needs("stress-ng")
    def test_stress_ng_verifies_on_three_nodes_at_once(self):
        finish([self.c.start(f"n{n}", "stress-ng", "--sem-sysv", 1, "--msg", 1, "--shm-sysv", 1, "--verify", "-t", 5) for n in (1, 2, 3)])
        self.leaves_nothing()

    @needs("php")
    def test_php_counts_over_three_nodes(self):
        script = os.path.join(self.folder, "count.php")
        with open(script, "w") as f:
            f.write(PHP)
        # PHP's shm_attach has no lock while it lays out a new segment: the first program runs alone.
        self.assertEqual(self.c.run("n1", "php", script, 0x7001).stdout, "200\n")
        outputs = finish([self.c.start(f"n{n}", "php", script, 0x7001) for n in (1, 2, 3)])
        self.assertEqual(max(int(o) for o in outputs), 800)
        self.c.run("n1", "ipcrm", "-M", "0x7001", "-Q", "0x7001")
        self.c.run("n1", "ipcrm", "-a")

    @needs("/usr/sbin/apache2", "ab")
    def test_apache_serves_under_a_sysvsem_mutex_and_cleans_up(self):
        conf = os.path.join(self.folder, "conf")
        with open(conf, "w") as f:
            f.write(APACHE.format(folder=self.folder))
        with open(os.path.join(self.folder, "index.html"), "w") as f:
            f.write("hello\n")
        self.c.run("n2", "sh", "-c", "ip link set lo up; exec /usr/sbin/apache2 -f " + conf + " -k start")
        try:
            self.c.run("n2", "sh", "-c", "for i in $(seq 100); do ab -q -n 1 http://127.0.0.1:8092/index.html >/dev/null 2>&1 && exit 0; sleep 0.1; done; exit 1")
            self.assertIn("www-data", self.c.run("n1", "ipcs", "-s").stdout)
            out = self.c.run("n2", "ab", "-q", "-n", 1000, "-c", 8, "http://127.0.0.1:8091/index.html").stdout
            self.assertRegex(out, r"Complete requests: +1000\nFailed requests: +0")
        finally:
            self.c.run("n2", "/usr/sbin/apache2", "-f", conf, "-k", "stop")
        cluster.wait_until(lambda: "www-data" not in self.c.run("n1", "ipcs", "-s").stdout, 20, "the mutex is removed")

    @needs(POSTGRES + "/initdb", "setpriv")
    def test_postgresql_with_sysv_memory_survives_kill_9(self):
        shutil.chown(self.folder, "postgres", "postgres")
        data, log = self.folder + "/data", self.folder + "/log"

        def run(*command):
            return self.c.run("n2", "setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups", "env", "HOME=/tmp", *command).stdout

        def start():
            run(POSTGRES + "/pg_ctl", "-D", data, "-l", log, "-w", "start")

        run(POSTGRES + "/initdb", "-D", data, "-A", "trust")
        with open(data + "/postgresql.conf", "a") as f:
            f.write(f"shared_memory_type=sysv\nunix_socket_directories='{self.folder}'\nlisten_addresses=''\n")
        start()
        try:
            self.assertIn("postgres", self.c.run("n1", "ipcs", "-m").stdout)
            run("createdb", "-h", self.folder, "bench")
            run(POSTGRES + "/pgbench", "-h", self.folder, "-i", "-q", "bench")
            out = run(POSTGRES + "/pgbench", "-h", self.folder, "-c", 4, "-T", 10, "bench")
            self.assertIn("number of failed transactions: 0 ", out)
            with open(data + "/postmaster.pid") as f:
                run("kill", "-9", f.readline().strip())
            # The children see that their postmaster is gone; a new one waits until nobody has the segment attached.
            cluster.wait_until(lambda: not [l for l in self.c.run("n2", "lsipc", "-m", "--raw", "-o", "OWNER,NATTCH").stdout.splitlines() if l.startswith("postgres") and not l.endswith(" 0")], 20, "the children end")
            start()
            self.assertEqual(run("psql", "-h", self.folder, "-Atc", "select sum(abalance) = (select sum(tbalance) from pgbench_tellers) from pgbench_accounts", "bench"), "t\n")
        finally:
            run(POSTGRES + "/pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
        with open(log) as f:
            self.assertNotRegex(f.read(), "ERROR|PANIC|semget|shmget|shmat")
        self.leaves_nothing()


if __name__ == "__main__":
    if not any(shutil.which(p) for p in ("stress-ng", "php", "/usr/sbin/apache2", POSTGRES + "/initdb")):
        print("kevre test skipped: none of stress-ng, php-cli, apache2 and postgresql-15 is installed")
        raise SystemExit(0)
    cluster.main()
