"""The verbs backend between processes: peers killed and stopped, a device taken away, in the guest."""

import os
import subprocess
import unittest

import guest
import report

PROGRAM = os.path.join(os.environ["KEVRE_BUILD"], "tests", "transport_verbs_process_test")


class VerbsProcesses(unittest.TestCase):
    def test_kills_stops_and_a_removed_device_are_lost_peers_and_nothing_worse(self):
        report.show_kernel()
        before = report.driver()
        run = subprocess.run([PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(run.stdout, flush=True)
        report.show_driver(before)
        self.assertEqual(run.returncode, 0)
        self.assertNotIn("test skipped", run.stdout)
        self.assertGreaterEqual(run.stdout.count("[       OK ]"), 8)


if __name__ == "__main__":
    guest.be_in_guest(network="dummy", time_limit=230)
    unittest.main(verbosity=2)
