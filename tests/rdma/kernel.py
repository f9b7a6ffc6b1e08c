"""The guest's kernel: Debian's own package, fetched once, checked, unpacked, never installed.

Soft-RoCE (rdma_rxe) has a socket per network namespace only since Linux 7, so the first choice is trixie-backports; the older
ones serve one namespace. The packages come through apt with sources and state of its own: the system's are neither read nor
changed, and Debian's archive key is checked. ~/.cache/kevre-guest/VERSION/ (KEVRE_GUEST_CACHE names another folder) keeps
vmlinux and the modules in load order, so a second run needs no network; every build folder uses the same one.

Used by guest.py; `kernel.py` alone fetches and prints the folder.
"""

import fcntl
import glob
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

MIRROR = os.environ.get("KEVRE_DEBIAN_MIRROR", "http://deb.debian.org/debian")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = ("trixie-backports", "bookworm-backports", "bookworm")
MODULES = ("virtio_pci virtio_console 9pnet_virtio 9p overlay dummy veth bridge crc32_generic crc32c_generic "
           "ib_uverbs rdma_ucm rdma_rxe").split()


class Unavailable(Exception):
    """No kernel is to be had here; says why."""


def cache_folder():
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("KEVRE_GUEST_CACHE") or os.path.join(home, "kevre-guest")


def version_key(folder):
    return [int(n) for n in re.findall(r"\d+", os.path.basename(folder))]


def cached():
    found = [os.path.dirname(path) for path in glob.glob(os.path.join(cache_folder(), "[0-9]*", "vmlinux"))]
    return max(found, key=version_key, default=None)


def get():
    """The folder with vmlinux and modules/; fetches when there is none. Raises Unavailable."""
    os.makedirs(cache_folder(), exist_ok=True)
    with open(os.path.join(cache_folder(), "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once: one fetches
        return cached() or fetch()


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL, **options)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise Unavailable(f"{command[0]}: {last}")
    return done.stdout


def fetch():
    for tool, package in (("depmod", "kmod"), ("zstd", "zstd"), ("dpkg-deb", "dpkg"), ("apt-get", "apt")):
        if not shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin"):
            raise Unavailable(f"no {tool} command: apt-get install {package}")
    if not os.path.exists(KEYRING):
        raise Unavailable(f"no {KEYRING}: apt-get install debian-archive-keyring")
    reasons = []
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="fetch-") as work:
        for suite in SUITES:
            try:
                root = download(suite, os.path.join(work, suite))
                return keep(root, work)
            except (Unavailable, subprocess.TimeoutExpired, OSError) as error:
                reasons.append(f"{suite}: {error}")
    raise Unavailable("no kernel with rdma_rxe could be fetched: " + "; ".join(reasons))


def download(suite, work):
    """Fetches and unpacks the newest linux-image-amd64 of the suite; returns the folder that it was unpacked to."""
    for folder in ("lists/partial", "archives/partial", "log", "root"):
        os.makedirs(os.path.join(work, folder))
    with open(os.path.join(work, "status"), "w"), open(os.path.join(work, "sources.list"), "w") as sources:
        sources.write(f"deb [signed-by={KEYRING} arch=amd64] {MIRROR} {suite} main\n")
    with open(os.path.join(work, "apt.conf"), "w") as file:  # read behind the system's: a proxy named there is obeyed
        file.write(f'Dir::State "{work}"; Dir::State::status "{work}/status"; Dir::State::lists "{work}/lists";\n'
                   f'Dir::Cache "{work}"; Dir::Cache::archives "{work}/archives"; Dir::Log "{work}/log";\n'
                   f'Dir::Etc::sourcelist "{work}/sources.list"; Dir::Etc::sourceparts "-";\n'
                   'Dir::Etc::preferences "-"; Dir::Etc::preferencesparts "-";\n'
                   '#clear APT::Update::Pre-Invoke; #clear APT::Update::Post-Invoke; #clear APT::Update::Post-Invoke-Success;\n'
                   'APT::Architecture "amd64"; APT::Architectures {"amd64";}; APT::Default-Release "";\n'
                   'Acquire::Languages "none"; Acquire::Retries "2"; Acquire::http::Timeout "20";\n'
                   'APT::Get::AllowUnauthenticated "false"; Acquire::AllowInsecureRepositories "false";\n'
                   + ('APT::Sandbox::User "root";\n' if os.geteuid() == 0 else ""))
    options = ("-c", os.path.join(work, "apt.conf"))
    run("apt-get", *options, "-o", "APT::Update::Error-Mode=any", "update", cwd=work)
    needed = run("apt-cache", *options, "depends", "--recurse", "linux-image-amd64", cwd=work)
    packages = sorted(set(re.findall(r"^linux-(?:image|binary|modules|base)-\d\S*-amd64$", needed, re.M)))
    if not packages:
        raise Unavailable("has no linux-image-amd64")
    print(f"guest: fetching {' '.join(packages)} from {suite}", file=sys.stderr, flush=True)
    run("apt-get", *options, "download", *packages, cwd=work)
    for package in glob.glob(os.path.join(work, "*.deb")):
        run("dpkg-deb", "-x", package, os.path.join(work, "root"))
    return os.path.join(work, "root")


def keep(root, work):
    images = glob.glob(f"{root}/usr/lib/modules/*/vmlinuz") + glob.glob(f"{root}/boot/vmlinuz-*")
    folders = glob.glob(f"{root}/usr/lib/modules/*") + glob.glob(f"{root}/lib/modules/*")
    if not images or not folders:
        raise Unavailable("the packages hold no kernel")
    version = os.path.basename(folders[0])
    made = os.path.join(work, "made")
    os.makedirs(os.path.join(made, "modules"))
    with open(images[0], "rb") as image, open(os.path.join(made, "vmlinux"), "wb") as out:
        out.write(unpack_image(image.read()))
    if not os.path.exists(f"{root}/lib"):
        os.symlink("usr/lib", f"{root}/lib")
    run("depmod", "-b", root, version, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})
    paths = []
    for module in MODULES:  # built in, or not of this version: modprobe names no file
        shown = subprocess.run(("modprobe", "-d", root, "-S", version, "--show-depends", module), capture_output=True, text=True,
                               env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})
        paths += [line.split()[1] for line in shown.stdout.splitlines() if line.startswith("insmod ")]
    if not any("rdma_rxe" in path for path in paths):
        raise Unavailable(f"{version} has no rdma_rxe")
    for number, path in enumerate(dict.fromkeys(paths)):
        with (lzma.open if path.endswith(".xz") else open)(path, "rb") as module:
            name = os.path.basename(path).removesuffix(".xz")
            with open(os.path.join(made, "modules", f"{number:03}-{name}"), "wb") as out:
                out.write(module.read())
    target = os.path.join(cache_folder(), version)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(made, target)
    return target


def unpack_image(image):
    """The ELF kernel inside a bzImage: QEMU starts it at once, while the image's own unpacker takes long under emulation."""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[(setup_sectors + 1) * 512 + offset:][:length]
    if payload.startswith(b"\xfd7zXZ"):
        kernel = lzma.LZMADecompressor().decompress(payload)  # four bytes of length follow
    else:
        kernel = subprocess.run(("zstd", "-dcq"), input=payload, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    if not kernel.startswith(b"\x7fELF"):
        raise Unavailable("the kernel image is packed in a way that is not known here")
    return kernel


if __name__ == "__main__":
    try:
        print(get())
    except Unavailable as error:
        sys.exit(f"kernel.py: {error}")
