"""`kevre doctor` and `kevre info` say what is there, also as JSON."""

import json
import os
import subprocess
import unittest

import cluster
from cluster import Cluster, kevre


class Doctor(unittest.TestCase):
    def test_every_finding_has_a_state_and_every_lack_a_remedy(self):
        findings = json.loads(kevre("doctor", "--json").stdout)
        self.assertIn("userfaultfd", [f["what"] for f in findings])
        for finding in findings:
            self.assertIn(finding["state"], ("good", "limited", "missing"))
            self.assertTrue(finding["state"] == "good" or finding["remedy"], finding)
        self.assertIn("userfaultfd", kevre("doctor").stdout)

    def test_what_rdma_lacks_is_a_note_with_the_command_that_mends_it(self):
        done = kevre("doctor", "--json")  # exit 0: no device is no failure
        findings = {f["what"]: f for f in json.loads(done.stdout)}
        for what in ("RDMA device", "RDMA connections", "locked memory"):
            self.assertIn(what, findings)
            self.assertIn(findings[what]["state"], ("good", "limited"))
        if findings["RDMA device"]["found"] == "none":
            self.assertIn("rdma link add", findings["RDMA device"]["remedy"])
            self.assertIn("not needed", findings["RDMA device"]["remedy"])
        if findings["RDMA connections"]["state"] == "limited":
            self.assertRegex(findings["RDMA connections"]["remedy"], "modprobe rdma_ucm|chmod")

    def test_a_small_memlock_limit_is_named_with_its_remedy(self):
        # As root the limit does not bind (CAP_IPC_LOCK): as somebody else it does.
        done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c",
                               f"ulimit -l 64; exec {cluster.KEVRE} doctor --json"], capture_output=True, text=True)
        findings = {f["what"]: f for f in json.loads(done.stdout)}
        self.assertEqual(findings["locked memory"]["found"], "limit 64 KiB")
        self.assertIn("ulimit -l unlimited", findings["locked memory"]["remedy"])

    def test_info_names_the_transport_of_each_peer_and_why(self):
        with Cluster(2) as c:
            about = json.loads(kevre("info", "--json", cluster=c.name).stdout)
            self.assertIn("ucx", about["transport"])
            self.assertEqual([(p["name"], p["backend"], p["via"]) for p in about["peers"]], [("n2", "ucx", "tcp")])
            self.assertIn("RDMA device", about["peers"][0]["why"])
            self.assertIn(about["peers"][0]["why"], kevre("info", cluster=c.name).stdout)
            # and inside a node it is that node
            inside = json.loads(c.run("n2", "env", "-u", "LD_PRELOAD", cluster.KEVRE, "info", "--json").stdout)
            self.assertEqual(inside["node"], "n2")
            counters = json.loads(kevre("info", "--json", cluster=c.name).stdout)["counters"]
            self.assertGreater(counters["messages_received"], 0)  # the program's output, at least
            self.assertEqual(counters["one_sided_reads"], 0)

    def test_a_forced_transport_says_that_it_was_forced(self):
        with Cluster(2, options=("--transport", "ucx")) as c:
            about = json.loads(kevre("info", "--json", cluster=c.name).stdout)
            self.assertEqual(about["transport"], "ucx")
            self.assertEqual(about["peers"][0]["why"], "--transport ucx at this node")

    def test_verbs_forced_on_a_machine_without_a_device_is_refused_in_one_line_with_the_remedy(self):
        if os.path.isdir("/sys/class/infiniband") and os.listdir("/sys/class/infiniband"):
            self.skipTest("this machine has an RDMA device")
        name = f"test-{os.getpid()}"
        done = kevre("cluster", "up", "--local", 1, "--transport", "verbs", cluster=name, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertIn("no RDMA device", done.stderr)
        self.assertIn("--transport ucx", done.stderr)
        self.assertFalse(os.path.exists(f"/run/kevre/{name}"))


if __name__ == "__main__":
    cluster.main()
