"""Unmodified programs on three nodes share memory and semaphores without losing anything."""

import os
import random
import signal
import subprocess
import unittest

import cluster
from cluster import Cluster, finish, program


class SharedMemory(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(3)
        cls.cluster.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__()

    def spread(self, *command, processes=2):
        return [self.cluster.start(f"n{node}", *command) for node in (1, 2, 3) for _ in range(processes)]

    def test_atomic_increments_of_six_processes_on_one_page_without_a_lock_are_exact(self):
        finish(self.spread(program("count_atomic"), "0x1001", 200000))
        self.assertEqual(self.cluster.run("n1", program("count_atomic"), "0x1001", 0).stdout, "1200000\n")

    def test_plain_increments_under_a_semaphore_are_exact(self):
        self.cluster.run("n2", program("count_semaphore"), "0x1002", -1)
        finish(self.spread(program("count_semaphore"), "0x1002", 5000, processes=1))
        self.assertEqual(self.cluster.run("n3", program("count_semaphore"), "0x1002", 0).stdout, "15000\n")

    def test_64_mib_written_on_n1_read_identical_on_n2_and_n3(self):
        size = 64 << 20
        written = self.cluster.run("n1", program("pattern"), "0x1003", size, "write", 7).stdout
        for node in ("n2", "n3"):
            read = self.cluster.run(node, program("pattern"), "0x1003", size, "check", 7).stdout
            self.assertIn("differ 0 ", read)
            self.assertEqual(read.split()[-1], written.split()[-1])
        # and back: what n3 changed is what n1 sees
        self.cluster.run("n3", program("pattern"), "0x1003", size, "write", 8)
        self.assertIn("differ 0 ", self.cluster.run("n1", program("pattern"), "0x1003", size, "check", 8).stdout)


if __name__ == "__main__":
    cluster.main()
