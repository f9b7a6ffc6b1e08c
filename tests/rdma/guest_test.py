"""The guest hands back output and exit status as they were, ends when it should, and leaves nothing behind."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import unittest

import kernel

GUEST = os.path.join(os.path.dirname(os.path.abspath(__file__)), "guest.py")


class GuestTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def start(self, *words):
        """A guest whose temporary files are in self.folder."""
        return subprocess.Popen([GUEST, "--cpus", "1", "--memory", "512", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env=dict(os.environ, TMPDIR=self.folder.name))

    def finish(self, process):
        out, err = process.communicate(timeout=200)
        self.assertEqual(os.listdir(self.folder.name), [])
        for pid in filter(str.isdigit, os.listdir("/proc")):  # QEMU's command line names its files
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as line:
                    self.assertNotIn(self.folder.name.encode(), line.read(), pid)
            except (FileNotFoundError, ProcessLookupError):
                pass
        return process.returncode, out, err.decode()

    def test_a_megabyte_of_output_arrives_intact_and_false_is_1(self):
        program = "import random, sys; sys.stdout.buffer.write(random.Random(1).randbytes(1 << 20))"
        code, out, err = self.finish(self.start(f"{sys.executable} -c '{program}'; sleep 1000 & false"))
        self.assertEqual((code, len(out)), (1, 1 << 20), err)
        sent = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout
        self.assertEqual(hashlib.sha256(out).digest(), hashlib.sha256(sent).digest())

    def test_arguments_folder_and_environment_are_those_of_the_caller_and_files_are_thrown_away(self):
        os.environ["GUEST_TEST"] = "a 'quoted' \"value\""
        path = os.path.join(os.getcwd(), f"guest-test-{os.getpid()}")
        guest = self.start("--", "sh", "-c", 'echo written >"$1" && cat "$1" && pwd && echo "$GUEST_TEST" && ls /sys/class/infiniband', "sh", path)
        code, out, err = self.finish(guest)
        self.assertEqual((code, out.decode()), (0, f"written\n{os.getcwd()}\n{os.environ['GUEST_TEST']}\nrxe0\n"), err)
        self.assertFalse(os.path.exists(path))

    def test_a_command_that_hangs_is_124(self):
        code, _, err = self.finish(self.start("--time-limit", "20", "sleep 1000"))
        self.assertEqual(code, 124, err)
        self.assertIn("not done within 20 s", err)

    def test_a_guest_that_dies_is_125_and_its_last_words_are_shown(self):
        code, _, err = self.finish(self.start("echo c >/proc/sysrq-trigger"))
        self.assertEqual(code, 125, err)
        self.assertIn("Kernel panic", err)

    def test_a_signal_ends_the_guest(self):
        guest = self.start("echo started; sleep 1000")
        self.assertEqual(guest.stdout.readline(), b"started\n")
        guest.send_signal(signal.SIGTERM)
        self.assertEqual(self.finish(guest)[0], 128 + signal.SIGTERM)


if __name__ == "__main__":
    try:
        kernel.get()
    except kernel.Unavailable as error:
        print("kevre: test skipped:", error)
        sys.exit(0)
    unittest.main(verbosity=2)
