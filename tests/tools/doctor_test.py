"""`kevre doctor` and `kevre info` say what is there, also as JSON."""

import json
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

    def test_info_names_the_transport_of_each_peer_and_why(self):
        with Cluster(2) as c:
            about = json.loads(kevre("info", "--json", cluster=c.name).stdout)
            self.assertEqual(about["transport"], "ucx")
            self.assertEqual([(p["name"], p["via"]) for p in about["peers"]], [("n2", "tcp")])
            self.assertIn("UCX", about["peers"][0]["why"])
            # and inside a node it is that node
            inside = json.loads(c.run("n2", "env", "-u", "LD_PRELOAD", cluster.KEVRE, "info", "--json").stdout)
            self.assertEqual(inside["node"], "n2")


if __name__ == "__main__":
    cluster.main()
