"""Clusters of three nodes with a Soft-RoCE device each, in the guest: programs share memory over verbs, pages are fetched by
one-sided reads, and a device or daemon that goes in the middle is a lost node.

The deadlines are those of an emulated machine; what must happen within the failure timeout on a real one may take longer here.
"""

import json
import os
import signal
import subprocess
import sys
import unittest

import guest
import report

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tools"))

from cluster import Cluster, finish, kevre, program, wait_until  # noqa: E402

NODES = ("n1", "n2", "n3")
WITHIN = 60  # seconds; the failure timeout is 5 on a machine that is not emulated
PAGES = 256


class VerbsCluster(Cluster):
    def __init__(self, name):
        super().__init__(3, name=name, options=("--transport", "verbs"))

    def environment_of(self, node):
        return dict(os.environ, KEVRE_CONTROL=f"/run/kevre/{self.name}/{node}/control.sock")

    def info(self, node):
        return json.loads(kevre("info", "--json", cluster=self.name, env=self.environment_of(node)).stdout)

    def daemon(self, node):
        return [n["daemon_pid"] for n in self.status()["nodes"] if n["name"] == node][0]

    def members(self):
        done = kevre("nodes", "--json", cluster=self.name, check=False)
        return [n["name"] for n in json.loads(done.stdout)] if done.returncode == 0 else []

    def reads(self, node):
        return self.info(node)["counters"]["one_sided_reads"]


def device_of(node):
    return [device for device in report.driver() if device.startswith(f"kevre-{node}-")][0]


class VerbsClusterTest(unittest.TestCase):
    def check_transport(self, cluster, nodes=NODES):
        """Every node reaches every other by verbs; shows and returns how many RDMA READs the nodes made."""
        reads = 0
        for node in nodes:
            about = cluster.info(node)
            for peer in about["peers"]:
                self.assertEqual(peer["backend"], "verbs", f"{node} to {peer}")
            counters = about["counters"]
            reads += counters["one_sided_reads"]
            report.show(f"{node}: transport {about['transport']}, {counters['one_sided_reads']} RDMA READs, "
                        f"{counters['one_sided_atomics']} atomics, {counters['messages_sent']} messages, {counters['pages_in']} pages in")
        self.assertGreater(report.show_driver(), 2 * reads)
        return reads

    def test_programs_on_three_nodes_lose_no_increment_and_read_what_was_written_by_one_sided_reads(self):
        with VerbsCluster("coherence") as c:
            everywhere = [(f"{node}", copy) for node in NODES for copy in range(2)]
            finish([c.start(node, program("count_atomic"), "0x1001", 5000) for node, _ in everywhere])
            self.assertEqual(c.run("n1", program("count_atomic"), "0x1001", 0).stdout, "30000\n")
            c.run("n2", program("count_semaphore"), "0x1002", -1)
            finish([c.start(node, program("count_semaphore"), "0x1002", 50) for node in NODES])
            self.assertEqual(c.run("n3", program("count_semaphore"), "0x1002", 0).stdout, "150\n")
            for seed, writer in ((7, "n1"), (8, "n3")):
                size = 2 << 20
                written = c.run(writer, program("pattern"), "0x1003", size, "write", seed).stdout
                for node in NODES:
                    read = c.run(node, program("pattern"), "0x1003", size, "check", seed).stdout
                    self.assertIn("differ 0 ", read)
                    self.assertEqual(read.split()[-1], written.split()[-1])
            self.assertGreater(self.check_transport(c), 0)
        wait_until(lambda: not report.driver(), WITHIN, "down removes the nodes' devices")

    def test_the_demo_counts_right_over_verbs(self):
        demo = subprocess.run([sys.executable, os.path.join(HERE, "..", "..", "demo", "demo.py"), "--transport", "verbs", "--few"],
                              capture_output=True, text=True, timeout=200)
        print(demo.stdout, flush=True)
        self.assertEqual(demo.returncode, 0, demo.stderr)
        self.assertIn("every count is right", demo.stdout)

    def loses(self, name, lose):
        """One node writes pages, the others read them again and again, all the same bytes; in the middle n2 is lost by
        lose(cluster). Whoever survives has read right bytes, or got SIGBUS for a page that went with n2."""
        going = f"/run/loops-{name}"  # the loops run while it is there
        open(going, "w").close()
        with VerbsCluster(name) as c:
            def loop(node, what):
                pattern = f"{program('pattern')} 0x72 {PAGES * 4096} {what} 1"
                script = f"while [ -e {going} ]; do {pattern} >/dev/null || exit $?; done"
                return c.start(node, "sh", "-c", script, env=c.environment_of(node))
            c.run("n1", program("pattern"), "0x72", PAGES * 4096, "write", 1)
            loops = {"n1": loop("n1", "write"), "n2": loop("n2", "check"), "n3": loop("n3", "check")}
            try:
                wait_until(lambda: min(c.reads(node) for node in ("n2", "n3")) > 2, 2 * WITHIN, "pages are read one-sidedly")
                self.check_transport(c)
                lose(c)
                wait_until(lambda: c.members() == ["n1", "n3"], WITHIN, "the view is n1, n3")
                self.assertNotEqual(loops["n2"].wait(WITHIN), 0)
                # The survivors share new memory, still over verbs.
                c.run("n3", program("pattern"), "0x73", 1 << 18, "write", 9)
                self.assertIn("differ 0 ", c.run("n1", program("pattern"), "0x73", 1 << 18, "check", 9).stdout)
                os.unlink(going)
                for node in ("n1", "n3"):
                    _, err = loops[node].communicate(timeout=WITHIN)
                    self.assertIn(loops[node].returncode, (0, 128 + signal.SIGBUS), f"{node}: {err}")
                self.check_transport(c, ("n1", "n3"))
            finally:
                for process in loops.values():
                    process.kill()
                    process.communicate()

    def test_a_device_that_is_deleted_under_way_is_a_lost_node(self):
        self.loses("device", lambda c: subprocess.run(["rdma", "link", "delete", device_of("n2")], check=True))

    def test_a_daemon_killed_in_the_middle_of_one_sided_operations_is_a_lost_node(self):
        self.loses("daemon", lambda c: os.kill(c.daemon("n2"), signal.SIGKILL))


if __name__ == "__main__":
    guest.be_in_guest(network="none", memory=2048, time_limit=580)
    report.show_kernel()
    unittest.main(verbosity=2)
