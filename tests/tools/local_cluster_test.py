"""A local cluster comes up, is described truthfully, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import time
import unittest

import cluster
from cluster import KEVRE, Cluster, kevre, leftovers, wait_until


class LocalCluster(unittest.TestCase):
    def test_down_leaves_no_process_no_file_no_mount(self):
        with Cluster(3) as c:
            c.run("n2", "ipcmk", "-M", "4096")
            self.assertNotEqual(leftovers(c.name), [])  # the check below can fail
        wait_until(lambda: leftovers(c.name) == [], 20, f"left behind: {leftovers(c.name)}")

    def test_down_works_after_a_daemon_was_killed_and_with_programs_running(self):
        with Cluster(2) as c:
            sleeper = c.start("n2", "sleep", "1000")
            daemon = [n for n in c.status()["nodes"] if n["name"] == "n2"][0]["daemon_pid"]
            os.kill(daemon, signal.SIGKILL)
        sleeper.communicate(timeout=30)
        self.assertNotEqual(sleeper.returncode, 0)
        wait_until(lambda: leftovers(c.name) == [], 20, f"left behind: {leftovers(c.name)}")

    def test_a_second_up_of_the_same_name_is_refused_and_harms_nothing(self):
        with Cluster(2) as c:
            again = kevre("cluster", "up", "--local", 2, cluster=c.name, check=False)
            self.assertEqual(again.returncode, 1)
            self.assertEqual(again.stderr.count("\n"), 1, again.stderr)
            self.assertEqual(c.run("n1", "echo", "alive").stdout, "alive\n")

    def test_a_cluster_name_that_is_no_plain_word_is_refused_as_usage_and_touches_nothing(self):
        # With a /run of its own: the name becomes a folder there, which `down` removes.
        private = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs /run && mkdir -p /run/kevre/keep /run/other && "$@"; '
                   "code=$?; ls -d /run/kevre/keep /run/other /run/x >&2; exit $code", "sh"]
        for name in ("../x", "..", ".", "", "a/b", "/run/x", "a b", "a\nb", "-x", "x" * 64, "\u00e9"):
            for command in (("up", "--local", "1"), ("down",), ("status",)):
                with self.subTest(name=name, command=command):
                    done = subprocess.run(private + [KEVRE, "--cluster", name, "cluster", *command], capture_output=True, text=True,
                                          timeout=60)
                    self.assertEqual(done.returncode, 2, done.stderr)
                    self.assertIn("no name for a cluster", done.stderr)
                    self.assertIn("/run/kevre/keep\n/run/other\n", done.stderr)
                    self.assertIn("cannot access '/run/x'", done.stderr)
        done = subprocess.run(private + [KEVRE, "cluster", "down"], capture_output=True, text=True, timeout=60,
                              env=dict(os.environ, KEVRE_CLUSTER=".."))
        self.assertEqual(done.returncode, 2, done.stderr)

    def test_up_that_is_interrupted_at_any_moment_leaves_nothing(self):
        name = f"test-{os.getpid()}-i"
        for delay in range(0, 60, 4):
            with self.subTest(delay):
                up = subprocess.Popen([KEVRE, "--cluster", name, "cluster", "up", "--local", "4"], stderr=subprocess.PIPE, text=True)
                time.sleep(delay / 1000)  # the moment is what is varied
                up.send_signal(signal.SIGINT)
                _, err = up.communicate(timeout=60)
                if up.returncode == 0:  # it was up already
                    kevre("cluster", "down", cluster=name)
                self.assertLessEqual(err.count("\n"), 1, err)
                wait_until(lambda: leftovers(name) == [], 20, f"left behind: {leftovers(name)}")

    def test_down_while_up_waits_for_it_and_leaves_nothing(self):
        name = f"test-{os.getpid()}-d"
        for delay in range(0, 60, 6):
            with self.subTest(delay):
                up = subprocess.Popen([KEVRE, "--cluster", name, "cluster", "up", "--local", "3"], stderr=subprocess.PIPE, text=True)
                time.sleep(delay / 1000)
                down = kevre("cluster", "down", cluster=name, check=False, timeout=20)
                _, err = up.communicate(timeout=20)
                if down.returncode != 0:  # it came before there was anything
                    self.assertIn("no cluster", down.stderr)
                    kevre("cluster", "down", cluster=name)
                self.assertLessEqual(err.count("\n"), 1, err)
                wait_until(lambda: leftovers(name) == [], 20, f"left behind: {leftovers(name)}")

    def test_a_disk_without_room_is_one_line_and_nothing_is_left_behind(self):
        name = f"test-{os.getpid()}-f"
        for inodes in range(3, 20):
            with self.subTest(inodes):
                up = subprocess.run(["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o nr_inodes={inodes} tmpfs /run && "
                                     '"$1" --cluster "$2" cluster up --local 2 && "$1" --cluster "$2" cluster down', "sh", KEVRE, name],
                                    capture_output=True, text=True, timeout=60)
                self.assertEqual(up.stderr.count("\n"), 0 if up.returncode == 0 else 1, up.stderr)
                wait_until(lambda: leftovers(name) == [], 20, f"left behind: {leftovers(name)}")

    def test_two_clusters_side_by_side_share_nothing(self):
        with Cluster(1, name=f"test-{os.getpid()}-a") as a, Cluster(1, name=f"test-{os.getpid()}-b") as b:
            a.run("n1", "ipcmk", "-M", "4096")
            self.assertIn("4096", a.run("n1", "ipcs", "-m").stdout)
            self.assertNotIn("4096", b.run("n1", "ipcs", "-m").stdout)

    def test_down_without_a_cluster_and_status_without_one_say_so(self):
        for command in (("cluster", "status"), ("cluster", "down")):
            done = kevre(*command, cluster="no-such-cluster", check=False)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_listings_come_as_json_too(self):
        with Cluster(2) as c:
            nodes = json.loads(kevre("nodes", "--json", cluster=c.name).stdout)
            self.assertEqual([n["name"] for n in nodes], ["n1", "n2"])
            for node in nodes:
                self.assertEqual(set(node) & {"name", "state", "address", "transports"}, {"name", "state", "address", "transports"})
            self.assertEqual([n["name"] for n in c.status()["nodes"]], ["n1", "n2"])
            self.assertIn("n2", kevre("nodes", cluster=c.name).stdout)

    def test_each_node_has_its_own_network_host_name_and_kernel_ipc(self):
        with Cluster(2) as c:
            links = {node: {os.path.basename(line) for line in
                            c.run(node, "readlink", *[f"/proc/self/ns/{k}" for k in ("net", "pid", "mnt", "ipc", "uts")]).stdout.split()}
                     for node in ("n1", "n2")}
            self.assertEqual(links["n1"] & links["n2"], set())
            self.assertEqual(len(links["n1"]), 5)

    def test_a_node_that_is_killed_leaves_the_view_and_the_others_go_on(self):
        with Cluster(3) as c:
            status = c.status()
            os.kill([n for n in status["nodes"] if n["name"] == "n3"][0]["daemon_pid"], signal.SIGKILL)
            wait_until(lambda: len(json.loads(kevre("nodes", "--json", cluster=c.name).stdout)) == 2, 30, "n3 leaves the view")
            self.assertEqual(c.run("n2", "echo", "on").stdout, "on\n")


if __name__ == "__main__":
    cluster.main()
