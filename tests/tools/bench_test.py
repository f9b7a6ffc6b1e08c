"""`kevre bench transport` and `kevre bench fault`: what they print is what scripts rely on, and both sides were measured."""

import json
import os
import unittest

import cluster
from cluster import kevre

HAS_RDMA = os.path.isdir("/sys/class/infiniband") and os.listdir("/sys/class/infiniband")


class Bench(unittest.TestCase):
    def check(self, answer, bench):
        self.assertEqual(answer["bench"], bench)
        self.assertIn(answer["transport"], ("ucx", "verbs"))
        self.assertTrue(answer["version"])
        self.assertTrue(answer["rows"])
        for row in answer["rows"]:
            self.assertIn(row["unit"], ("us", "MB/s"))
            self.assertTrue(row["reference"]["name"])
            ours, theirs = row["kevre"]["median"], row["reference"]["median"]
            self.assertGreater(ours, 0, row)
            self.assertGreater(theirs, 0, row)
            self.assertAlmostEqual(row["ratio"], theirs / ours if row["unit"] == "MB/s" else ours / theirs, places=6)
            self.assertGreater(row["kevre"]["n"], 0)

    def test_the_transport_is_measured_beside_the_bare_library(self):
        done = kevre("bench", "transport", "--transport", "ucx", "--quick", "--iterations", 30, "--json", timeout=280)
        answer = json.loads(done.stdout)
        self.check(answer, "transport")
        cases = [row["case"] for row in answer["rows"]]
        for wanted in ("tcp, sleeping: round trip 8 B", "shm, sleeping: round trip 64 KiB", "tcp, sleeping: message stream 64 KiB"):
            self.assertIn(wanted, cases)
        self.assertEqual([r["kevre"]["n"] for r in answer["rows"] if r["case"] == "tcp, sleeping: round trip 4 KiB"], [30])

    def test_a_fault_is_measured_beside_the_raw_round_trip(self):
        done = kevre("bench", "fault", "--transport", "ucx", "--quick", "--iterations", 64, "--json", timeout=280)
        answer = json.loads(done.stdout)
        self.check(answer, "fault")
        self.assertIn("tcp, sleeping: read fault", [row["case"] for row in answer["rows"]])

    @unittest.skipIf(HAS_RDMA, "this machine has an RDMA device")
    def test_verbs_without_a_device_is_refused_in_one_line_with_the_remedy(self):
        for bench in ("transport", "fault"):
            done = kevre("bench", bench, "--transport", "verbs", check=False)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(done.stdout, "")
            self.assertRegex(done.stderr, r"^kevre: .*no RDMA device.*--transport ucx.*\n$")


if __name__ == "__main__":
    cluster.main()
