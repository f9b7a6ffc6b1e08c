#!/usr/bin/python3
"""Three nodes on this machine; unmodified programs of Debian packages share memory, a semaphore and a queue.

./run demo builds first and then starts this. Exit status: 0 when every count is right. --transport auto|ucx|verbs; --few counts
less, for slow machines; KEVRE_BIN names the folder of another build.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
KEVRE = os.path.join(os.environ.get("KEVRE_BIN", os.path.join(HERE, "..", "build", "release", "bin")), "kevre")
CLUSTER = f"demo-{os.getpid()}"
ROUNDS = {"perl on n1": 1000, "python on n2": 1000, "C on n3": 4000}
JOBS = 200

READ = "import sysv_ipc, sys; print(sysv_ipc.SharedMemory(sysv_ipc.ftok(sys.argv[1], ord('k'), True)).read(32).hex())"


def say(text):
    print(f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text, flush=True)


def command(node, *words):
    return [KEVRE, "--cluster", CLUSTER, "run", "--on", node, "--", *map(str, words)]


def run(node, *words, show=True):
    done = subprocess.run(command(node, *words), capture_output=True, text=True, timeout=60)
    if show:
        print(f"  {node}$ {' '.join(map(str, words))}")
        print("".join(f"      {line}\n" for line in (done.stdout + done.stderr).splitlines() if line.strip()), end="")
    if done.returncode != 0:
        sys.exit(f"demo: '{' '.join(map(str, words))}' on {node} failed with {done.returncode}: {done.stderr}")
    return done.stdout


def util_linux():
    say("\nutil-linux, unmodified: made on n2, seen on n3, removed on n1")
    made = run("n2", "ipcmk", "-M", 65536, "-S", 3, "-Q")
    ids = [line.split()[-1] for line in made.splitlines() if line.strip()]
    run("n3", "ipcs")
    run("n1", "ipcrm", "-m", ids[0], "-q", ids[1], "-s", ids[2])
    left = run("n2", "ipcs", show=False)
    return not any(line.startswith("0x") for line in left.splitlines())


def workers(folder):
    """Starts the three programs; returns what they printed."""
    say("\nperl, python and C add to one segment under one semaphore, and pass work through one queue")
    worker = os.path.join(folder, "worker")
    subprocess.run(["gcc", "-O2", "-o", worker, os.path.join(HERE, "worker.c")], check=True)
    keyfile = os.path.join(HERE, "worker.c")
    options = {"stdout": subprocess.PIPE, "text": True}
    perl = subprocess.Popen(command("n1", "perl", os.path.join(HERE, "worker.pl"), keyfile, ROUNDS["perl on n1"], JOBS, 2), **options)
    try:
        if perl.stdout.readline() != "ready\n":
            sys.exit("demo: the perl program could not make its objects")
        others = [
            subprocess.Popen(command("n2", "/usr/bin/python3", os.path.join(HERE, "worker.py"), keyfile, ROUNDS["python on n2"]), **options),
            subprocess.Popen(command("n3", worker, keyfile, ROUNDS["C on n3"]), **options),
        ]
        try:
            outputs = [p.communicate(timeout=240)[0].split() for p in (perl, *others)]
        finally:
            for process in others:
                process.kill()
    finally:
        perl.kill()
    ended = [p.wait() for p in (perl, *others)]
    counters = struct.unpack("4q", bytes.fromhex(run("n2", "/usr/bin/python3", "-c", READ, keyfile, show=False).strip()))
    return ended, outputs, counters


def show_table(outputs, counters):
    total, own = counters[0], counters[1:]
    served = [0, int(outputs[1][1]), int(outputs[2][1])]
    print(f"\n  {'program':<14}{'added':>8}{'expected':>10}{'jobs served':>13}")
    right = True
    for (name, rounds), added, jobs in zip(ROUNDS.items(), own, served):
        print(f"  {name:<14}{added:>8}{rounds:>10}{jobs:>13}")
        right = right and added == rounds
    expected = sum(ROUNDS.values())
    squares, squares_expected = outputs[0][1], outputs[0][3]
    print(f"  {'all':<14}{total:>8}{expected:>10}{sum(served):>13}")
    print(f"  sum of squares through the queue: {squares}, expected {squares_expected}")
    return right and total == expected and squares == squares_expected and sum(served) == JOBS


def show_nodes():
    say("\nwhat the nodes did")
    status = json.loads(subprocess.run([KEVRE, "--cluster", CLUSTER, "cluster", "status", "--json"], capture_output=True, text=True, check=True).stdout)
    print(f"  {'node':<6}{'faults served':>14}{'median us':>11}{'p99 us':>9}{'calls here':>12}{'calls away':>12}  transport")
    for node in status["nodes"]:
        fault = node["fault_us"]
        print(f"  {node['name']:<6}{node['faults']:>14}{fault['median']:>11.1f}{fault['p99']:>9.1f}{node['calls_local']:>12}"
              f"{node['calls_remote']:>12}  {', '.join(node['transports'])}")
    return sum(node["faults"] for node in status["nodes"]) > 0


def take_options():
    global JOBS
    parser = argparse.ArgumentParser()
    parser.add_argument("--transport", choices=("auto", "ucx", "verbs"), default="auto")
    parser.add_argument("--few", action="store_true")
    options = parser.parse_args()
    if options.few:
        JOBS = 20
        ROUNDS.update({name: rounds // 40 for name, rounds in ROUNDS.items()})
    return options


def main():
    options = take_options()
    start = time.monotonic()
    say("three nodes, each with its own network, pids, mounts, IPC and host name")
    if subprocess.run([KEVRE, "--cluster", CLUSTER, "cluster", "up", "--local", "3", "--transport", options.transport]).returncode != 0:
        return 1
    folder = tempfile.mkdtemp(prefix="kevre-demo-")
    try:
        removed = util_linux()
        ended, outputs, counters = workers(folder)
        right = show_table(outputs, counters)
        faults = show_nodes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([KEVRE, "--cluster", CLUSTER, "cluster", "down"], stdout=subprocess.DEVNULL)
    good = removed and right and faults and ended == [0, 0, 0]
    say(f"\n{'every count is right' if good else 'A COUNT IS WRONG'}; {time.monotonic() - start:.1f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
