#!/usr/bin/python3
"""guest.py [options] [--] COMMAND [ARGUMENT...]: runs a command under a kernel that has Soft-RoCE, so real verbs, here.

QEMU emulates the processors, so neither hardware nor /dev/kvm nor root is needed, and no absolute time means anything. The
guest's root is this machine's, read-only, below an overlay that is thrown away: any binary built here runs in it as it is, in
the same folder, with the same environment. Its output arrives as it is written, its exit status is this program's. A single
argument is a shell command.

  --network none     nothing but loopback (`kevre cluster up` makes its own)
            dummy    a device rxe0 on 10.78.0.1, for several processes (default)
            netnsK   network namespaces n1..nK behind one bridge, device rxeI on 10.77.0.I in each
            dummy,netnsK  both
  --cpus N  --memory MIB  --time-limit SECONDS

Exit: the command's status; 121 the network could not be made, 124 time limit, 125 the guest died, 126 no kernel or no QEMU.
Nothing stays behind, also after Ctrl-C or SIGTERM; QEMU dies with this process. Tested in guest_test.py.
"""

import argparse
import ctypes
import mmap
import os
import re
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time

import kernel

HERE = os.path.dirname(os.path.abspath(__file__))
QEMU = "qemu-system-x86_64"
BUSYBOX = "/bin/busybox"
INSIDE = "KEVRE_GUEST"  # set in the guest
DIED, TIME_LIMIT, UNAVAILABLE = 125, 124, 126
# A kernel that patches its own code while it boots now and then trips over the emulation of several processors.
BOOTS_MAX = 3


def archive(entries):
    """A cpio archive (newc) of (name, mode, bytes): what the kernel unpacks as its first file system."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")]):
        raw = name.encode() + b"\0"
        fields = (number + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return out


def initramfs(folder, files):
    def read(path):
        with open(path, "rb") as file:
            return file.read()
    directory, program = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    entries = [(name, directory, b"") for name in ("bin", "modules", "guest")]
    entries += [("bin/busybox", program, read(BUSYBOX)), ("init", program, read(os.path.join(HERE, "guest_init.sh"))),
                ("guest/main.sh", program, read(os.path.join(HERE, "guest_main.sh")))]
    modules = os.path.join(folder, "modules")
    entries += [(f"modules/{name}", program, read(os.path.join(modules, name))) for name in sorted(os.listdir(modules))]
    return archive(entries + [(f"guest/{name}", program, text.encode()) for name, text in files.items()])


def environment():
    lines = [f"export {name}={shlex.quote(value)}" for name, value in os.environ.items()
             if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and name not in ("PATH", "PWD", "OLDPWD", "SHLVL", "_", "TMPDIR")]
    lines.append(f"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp {INSIDE}=1")
    return "\n".join(lines) + "\n"


def tsc_khz():
    """The rate of this machine's time-stamp counter, which is the guest's: on a busy machine the guest's own calibration is
    wrong by factors, and its clock with it."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl rdx, 32; or rax, rdx; ret
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def sample():
        tries = []
        for _ in range(50):
            before, ticks, after = time.monotonic_ns(), read(), time.monotonic_ns()
            tries.append((after - before, before, ticks))
        return min(tries)
    first = sample()
    time.sleep(0.1)
    last = sample()
    return (last[2] - first[2]) * 1_000_000 // (last[1] - first[1])


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Guest:
    """One boot, one command: with Guest(command, ...) as guest: code = guest.run(output)."""

    def __init__(self, command, network="dummy", cpus=2, memory=1024, time_limit=300):
        for tool, package in ((QEMU, "qemu-system-x86"), (BUSYBOX, "busybox-static")):
            if not shutil.which(tool):
                raise kernel.Unavailable(f"no {tool}: apt-get install {package}")
        self.command, self.network, self.cpus, self.memory, self.time_limit = command, network, cpus, memory, time_limit
        self.folder = kernel.get()
        self.version = os.path.basename(self.folder)
        self.process = None
        self.work = tempfile.TemporaryDirectory(prefix="kevre-guest-")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.work.cleanup()

    def console(self):
        with open(os.path.join(self.work.name, "console"), errors="replace") as file:
            return file.read()

    def start(self, output, status):
        image = os.path.join(self.work.name, "initramfs")
        with open(image, "wb") as file:
            file.write(initramfs(self.folder, {
                "command": self.command[0] + "\n" if len(self.command) == 1 else shlex.join(self.command) + "\n",
                "options": f"NETWORK={shlex.quote(self.network)} FOLDER={shlex.quote(os.getcwd())}\n",
                "environment": environment()}))
        arguments = [
            QEMU, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", str(self.memory), "-smp", str(self.cpus),
            "-display", "none", "-no-reboot", "-nodefaults", "-no-user-config",
            "-kernel", os.path.join(self.folder, "vmlinux"), "-initrd", image,
            # The HPET costs 4 us per look at the clock; the emulated TSC is steady and the same on all CPUs.
            "-append", "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check tsc=reliable clocksource=tsc "
            f"tsc_early_khz={tsc_khz()}",
            "-chardev", f"file,id=console,path={self.work.name}/console", "-device", "isa-serial,chardev=console",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=output,fd={output.fileno()}", "-device", "virtserialport,chardev=output,nr=1",
            "-chardev", f"socket,id=status,fd={status.fileno()}", "-device", "virtserialport,chardev=status,nr=2",
            "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=root,mount_tag=host"]
        with open(os.path.join(self.work.name, "qemu"), "wb") as errors:
            self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True,
                                            pass_fds=(output.fileno(), status.fileno()), preexec_fn=die_with_parent)

    def run(self, write):
        """Boots, hands every piece of output to write(bytes), returns the exit status."""
        deadline = time.monotonic() + self.time_limit
        for _ in range(BOOTS_MAX):
            said = self.boot(write, deadline)
            if said is None:
                return TIME_LIMIT
            if said:
                break  # the command began
            print(f"guest: the kernel died before the command began, once more: {self.last_words()}", file=sys.stderr)
        code = said.removeprefix(b"begun").strip()
        return int(code) if code.isdigit() else DIED

    def boot(self, write, deadline):
        """One boot, to its end: what came through the status port; None: the time is over."""
        output, their_output = socket.socketpair()
        status, their_status = socket.socketpair()
        with output, status:
            with their_output, their_status:
                self.start(their_output, their_status)
            said, open_ends = b"", {output, status}
            while open_ends:  # QEMU's end closes them
                ready = select.select(open_ends, (), (), max(0, deadline - time.monotonic()))[0]
                if not ready:
                    return None
                for end in ready:
                    try:
                        data = end.recv(65536)
                    except ConnectionResetError:  # its end had bytes of ours unread
                        data = b""
                    if not data:
                        open_ends.remove(end)
                    elif end is output:
                        write(data)
                    else:
                        said += data
        self.process.wait()
        return said

    def last_words(self):
        lines = [line for line in self.console().splitlines() if "Oops" in line or "BUG" in line or "panic" in line or "guest:" in line]
        return "; ".join(lines) or "(nothing on the console)"

    def why(self):
        """What QEMU and the guest's kernel said last."""
        with open(os.path.join(self.work.name, "qemu"), errors="replace") as file:
            return file.read() + "\n".join(self.console().splitlines()[-80:])


def write_all(data):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]


def run_here(command, options):
    """Runs it to its end with this process's output; returns the exit status. Raises kernel.Unavailable."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    with Guest(command, **options) as guest:
        code = guest.run(write_all)
        if code in (DIED, TIME_LIMIT):
            what = "the guest died" if code == DIED else f"not done within {guest.time_limit:g} s"
            print(f"guest: {what}\n{guest.why()}", file=sys.stderr)
        return code


def be_in_guest(**options):
    """For a test: returns when this program runs in a guest; outside of one runs it there and ends like it did."""
    if os.environ.get(INSIDE):
        return
    sys.stdout.flush()
    try:
        sys.exit(run_here([sys.executable, *sys.argv], options))
    except kernel.Unavailable as error:
        print(f"kevre: test skipped: {error}")
        sys.exit(0)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split(":")[0], description=__doc__.split("\n\n", 1)[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="dummy")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=1024)
    parser.add_argument("--time-limit", type=float, default=300)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command or not re.fullmatch(r"none|(dummy,)?netns[1-9]\d?|dummy", options.network):
        parser.error("no command" if not command else "the network is none, dummy, netnsK or dummy,netnsK")
    try:
        return run_here(command, {"network": options.network, "cpus": options.cpus, "memory": options.memory,
                                  "time_limit": options.time_limit})
    except kernel.Unavailable as error:
        print(f"guest: {error}", file=sys.stderr)
        return UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
