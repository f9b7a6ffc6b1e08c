"""A local cluster comes up, is described truthfully, and leaves nothing behind."""

import json
import os
import signal
import subprocess
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
