"""The transport's conformance suite over verbs, on a Soft-RoCE device, in the guest."""

import os
import re
import subprocess
import sys
import unittest

import guest
import report

SUITE = os.path.join(os.environ["KEVRE_BUILD"], "tests", "transport_conformance_test")


class VerbsConformance(unittest.TestCase):
    def test_the_suite_passes_over_verbs_and_reads_were_made(self):
        report.show_kernel()
        before = report.driver()
        # Unbuffered and as it comes: a hang is seen where it is.
        suite = subprocess.Popen([SUITE, "--gtest_filter=*verbs*"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        reads = ran = 0
        for line in suite.stdout:
            sys.stdout.write(line)
            counted = re.match(r"transport verbs: (\d+) one-sided reads", line)
            reads += int(counted[1]) if counted else 0
            ran += line.startswith("[       OK ]")
        packets = report.show_driver(before)
        report.show(f"transport verbs, {ran} tests, {reads} RDMA READs, {packets} packets")
        self.assertEqual(suite.wait(), 0)
        self.assertGreater(ran, 20)
        self.assertGreater(reads, 0)
        self.assertGreater(packets, 2 * reads)  # a request and an answer each: the driver saw them too


if __name__ == "__main__":
    guest.be_in_guest(network="dummy", time_limit=280)
    unittest.main(verbosity=2)
