"""What the cluster tests share: a local cluster that is taken down whatever happens, and the leftovers it may not have.

Every test runs the real command line (KEVRE_BIN) from outside, as a person would. A test that cannot run here prints
"kevre test skipped: REASON", which ctest counts as skipped.
"""

import json
import os
import subprocess
import sys
import time
import unittest

BIN = os.environ["KEVRE_BIN"]
PROGRAMS = os.environ["KEVRE_TEST_PROGRAMS"]
KEVRE = os.path.join(BIN, "kevre")

# A sanitized kevre inside a node finds the preload library in front of its own run-time, which does no harm here.
os.environ.setdefault("ASAN_OPTIONS", "verify_asan_link_order=0")


def require_root_and_namespaces():
    reason = None
    if os.geteuid() != 0:
        reason = "needs root to make namespaces"
    elif not os.path.exists("/dev/userfaultfd"):
        reason = "needs /dev/userfaultfd"
    elif subprocess.run(["unshare", "-n", "-p", "-f", "true"], stderr=subprocess.DEVNULL).returncode != 0:
        reason = "needs the right to make namespaces"
    if reason:
        print("kevre test skipped:", reason)
        sys.exit(0)


def kevre(*arguments, cluster=None, check=True, timeout=120, **options):
    """Runs the command line; returns the finished process with text output."""
    command = [KEVRE] + (["--cluster", cluster] if cluster else []) + [str(a) for a in arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


class Cluster:
    """with Cluster(3) as cluster: cluster.run("n1", "prog", ...)"""

    def __init__(self, nodes, name=None, options=(), environment=None):
        self.nodes = nodes
        self.name = name or f"test-{os.getpid()}"
        self.options = list(options)
        self.environment = dict(os.environ, **(environment or {}))

    def __enter__(self):
        done = kevre("cluster", "up", "--local", self.nodes, *self.options, cluster=self.name, check=False,
                     env=self.environment)
        if done.returncode != 0:
            self.down()
            raise AssertionError(f"cluster up: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return self

    def __exit__(self, *_):
        self.down()

    def down(self):
        kevre("cluster", "down", cluster=self.name, check=False)

    def run(self, node, *command, check=True, **options):
        return kevre("run", "--on", node, "--", *command, cluster=self.name, check=check, **options)

    def start(self, node, *command, **options):
        """A program that runs beside the test; the caller waits for it."""
        command = [KEVRE, "--cluster", self.name, "run", "--on", node, "--"] + [str(c) for c in command]
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.Popen(command, text=True, **options)

    def status(self):
        return json.loads(kevre("cluster", "status", "--json", cluster=self.name).stdout)


def program(name):
    return os.path.join(PROGRAMS, name)


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)


def finish(processes, seconds=120):
    """Waits for all; returns their outputs; fails on the first that failed."""
    outputs = []
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(1, deadline - time.monotonic()))
            if process.returncode != 0:
                raise AssertionError(f"{process.args}: exit {process.returncode}\n{out}{err}")
            outputs.append(out)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return outputs


def leftovers(name):
    """What a cluster of this name left on the machine: processes, files, mounts."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                line = f.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if name in line and int(pid) != os.getpid() and "kevre" in line and "python" not in line:
            found.append(f"process {pid}: {line}")
    for base in ("/run/kevre", f"/tmp/kevre-{os.geteuid()}", "/run/netns"):
        if os.path.isdir(base):
            found += [os.path.join(base, entry) for entry in os.listdir(base) if name in entry]
    with open("/proc/self/mounts") as f:
        found += [line.strip() for line in f if name in line]
    return found


def main():
    require_root_and_namespaces()
    unittest.main(verbosity=2)
