"""Nodes with programs over verbs, on a Soft-RoCE device, in the guest: no increment is lost, no reader sees an older page, and
pages come by RDMA READs of their homes' shelves."""

import os
import re
import subprocess
import sys
import unittest

import guest
import report

SUITE = os.path.join(os.environ["KEVRE_BUILD"], "tests", "node_test")
FILTER = "*NoIncrement*:*WhatOthersHaveRead*:*AForkedChild*"


class VerbsNode(unittest.TestCase):
    def test_pages_are_coherent_over_verbs_and_some_are_fetched(self):
        report.show_kernel()
        before = report.driver()
        environment = dict(os.environ, KEVRE_TEST_TRANSPORT="verbs", KEVRE_TEST_ADDRESS="10.78.0.1")
        suite = subprocess.Popen([SUITE, f"--gtest_filter={FILTER}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 text=True, env=environment)
        pages = reads = ran = 0
        for line in suite.stdout:
            sys.stdout.write(line)
            counted = re.match(r"n\d+: (\d+) pages fetched, .* (\d+) one-sided reads over verbs", line)
            pages += int(counted[1]) if counted else 0
            reads += int(counted[2]) if counted else 0
            ran += line.startswith("[       OK ]")
        packets = report.show_driver(before)
        report.show(f"transport verbs, {ran} tests, {pages} pages fetched by {reads} RDMA READs, {packets} packets")
        self.assertEqual(suite.wait(), 0)
        self.assertEqual(ran, 5)
        self.assertGreater(pages, 50)
        self.assertGreater(packets, 2 * reads)


if __name__ == "__main__":
    guest.be_in_guest(network="dummy", memory=1024, time_limit=200)
    unittest.main(verbosity=2)
