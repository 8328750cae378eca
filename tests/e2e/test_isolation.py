"""A user in a sprite tries to see what is not theirs. As root of the sprite, since that is one `sudo` away."""

import socket
import threading
from pathlib import Path

import pytest


@pytest.fixture
def root(sprite):
    """Runs a script as the sprite's root; gives (code, output)."""

    def run(script: str, timeout: float = 60) -> tuple[int, str]:
        done = sprite.run("sudo", "bash", "-c", script, capture_output=True, timeout=timeout)
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")

    return run


def agents(server) -> list[Path]:
    """The agents of this server's machines, seen from the host."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"puck-guest" in (entry / "cmdline").read_bytes():
                found.append(entry)
        except OSError:
            continue
    return found


def test_root_of_a_sprite_is_nobody_on_the_host(server, sprite, root):
    sprite.run("sudo", "bash", "-c", "exec -a find-me-on-the-host sleep 300 >/dev/null 2>&1 </dev/null & disown", check=True)
    processes = [
        entry for entry in Path("/proc").glob("[0-9]*") if b"find-me-on-the-host" in safe_read(entry / "cmdline").split(b"\0")[0]
    ]
    assert processes
    for process in processes:
        uid = int(safe_read(process / "status").decode().split("Uid:")[1].split()[0])
        assert uid >= 65_536, f"uid {uid} on the host"


def safe_read(path: Path) -> bytes:
    """The file, or nothing when its process has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_host_files_are_not_there(server, sprite, root):
    marker = Path("/var/tmp/puck-e2e-host-marker")
    marker.write_text("host")
    try:
        for path in [marker, server.data, Path("/work"), Path(__file__)]:
            for prefix in ["", "/proc/1/root", "/proc/self/root", "/proc/1/cwd/../../../.."]:
                code, said = root(f"ls -d {prefix}{path}")
                assert code != 0, (prefix, path, said)
        code, found = root(f"timeout 50 find / -xdev -name '{marker.name}' 2>/dev/null")
        assert marker.name not in found
        code, mounts = root("cat /proc/self/mountinfo")
        assert str(server.data) not in mounts
    finally:
        marker.unlink()


def test_another_sprites_processes_and_files_are_not_there(server, client, sprite, root, name):
    other = client.create_sprite(f"{name}-other")
    try:
        other.run("bash", "-c", "echo secret > /home/sprite/theirs; exec -a their-process sleep 300 >/dev/null 2>&1 & disown", check=True)
        assert "their-process" not in root("cat /proc/*/cmdline | tr '\\0' ' '")[1]
        assert root("ls /home/sprite/theirs")[0] != 0
        assert root("kill -0 -1; for n in $(seq 2 4000); do kill -0 $n 2>/dev/null && cat /proc/$n/comm; done")[1].count("their") == 0
    finally:
        other.destroy()


def test_another_sprites_network_is_out_of_reach(server, client, sprite, root, name):
    other = client.create_sprite(f"{name}-net")
    try:
        other.run("bash", "-c", "python3 -m http.server 8123 >/dev/null 2>&1 </dev/null & disown", check=True)
        other.run("bash", "-c", "until curl -s localhost:8123 >/dev/null; do sleep 0.1; done", check=True, timeout=30)
        addresses = other.run("hostname", "-I", capture_output=True, check=True).stdout.decode().split()
        assert addresses
        for address in addresses:
            host = f"[{address}]" if ":" in address else address
            code, said = root(f"curl -s -m 3 http://{host}:8123/")
            assert code != 0 and "<" not in said, f"{address} answered"
            assert root(f"ping -c1 -W2 {address}")[0] != 0 or address in root("hostname -I")[1]
    finally:
        other.destroy()


def test_the_hosts_ports_are_out_of_reach(server, sprite, root):
    """Neither the API on the host's loopback nor a service on any of its addresses."""
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", 0))
    listener.listen()
    port = listener.getsockname()[1]
    reached = []
    accepting = threading.Thread(target=lambda: accept(listener, reached), daemon=True)
    accepting.start()
    try:
        code, routes = root("ip route; ip -6 route 2>/dev/null")
        gateways = {word for line in routes.splitlines() for previous, word in zip(line.split(), line.split()[1:]) if previous == "via"}
        hosts = {"127.0.0.1", "localhost", *gateways, *host_addresses()}
        for host in hosts:
            for target in (port, server.port):
                wrapped = f"[{host}]" if ":" in host else host
                code, said = root(f"curl -s -m 2 http://{wrapped}:{target}/v1/sprites")
                assert code != 0, f"{host}:{target} answered {said}"
        assert not reached
    finally:
        listener.close()


def accept(listener: socket.socket, reached: list) -> None:
    """Counts who comes."""
    try:
        while True:
            connection, address = listener.accept()
            reached.append(address)
            connection.close()
    except OSError:
        pass


def host_addresses() -> set[str]:
    """The host's own addresses, of IPv4."""
    import subprocess

    listed = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout
    return {address for address in listed.split() if not address.startswith("fe80")}


def test_no_keys_in_sight(server, sprite, root):
    secret = server.token.split("/")[-1]
    code, everything = root("cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; env; find / -xdev -name '*.json' -path '*puck*' 2>/dev/null")
    assert secret not in everything
    assert "AWS_" not in everything
    assert root("ls /run/puck /data /base /volume 2>/dev/null")[1].strip() == ""
    # The kernel names sockets of the machine's network namespace, but a path that is not there leads nowhere.
    code, sockets = root("find / -xdev -type s 2>/dev/null")
    assert "agent.sock" not in sockets and "gateway.sock" not in sockets
    connect = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    code, said = root(f"awk '$8 ~ /sock/ {{print $8}}' /proc/net/unix | sort -u | while read s; do python3 -c '{connect}' $s 2>/dev/null && echo reached $s; done")
    assert "reached" not in said


def test_the_agent_is_not_to_be_seen_or_touched(server, sprite, root):
    code, processes = root("ps -eo pid,args; cat /proc/*/comm")
    assert "puck-guest" not in processes.replace("puck-guest init", "")
    attempts = {
        "memory of process 1": "python3 -c \"open('/proc/1/mem','rb').read(1)\"",
        "maps of the outside": "ls -l /proc/1/exe | grep -q puck-guest && head -c1 /proc/1/mem",
        "kernel memory": "head -c1 /dev/mem || head -c1 /dev/kmem || head -c1 /proc/kcore",
        "other machines' processes": "test $(ls -d /proc/[0-9]* | wc -l) -gt 100",
        "a trace of process 1": "python3 - <<'E'\nimport ctypes\nr = ctypes.CDLL(None).ptrace(16, 1, 0, 0)\nraise SystemExit(0 if r == 0 else 1)\nE",
        "leaving by setns": "nsenter -t 1 -a true && nsenter -t 1 -m ls /base",
    }
    for what, script in attempts.items():
        code, said = root(script)
        assert code != 0, (what, said)


@pytest.mark.parametrize(
    "what, script",
    [
        ("make a device", "mknod /tmp/sda b 8 0 && dd if=/tmp/sda of=/dev/null bs=1 count=1"),
        ("open a made device", "mknod /root/vda b 254 0; head -c1 /root/vda"),
        ("open FUSE", "test -c /dev/fuse && exec 3<>/dev/fuse"),
        ("open loop devices", "exec 3</dev/loop-control || exec 3</dev/loop0 || ls /sys/block/loop0/loop/backing_file"),
        ("open KVM", "test -c /dev/kvm && exec 3<>/dev/kvm"),
        ("see disks", "ls /dev/vda /dev/sda /dev/nvme0n1 2>/dev/null | grep ."),
        ("mount a disk", "mkdir -p /mnt/x; mount -t ext4 /dev/vda /mnt/x"),
        ("mount cgroups", "mkdir -p /mnt/c; mount -t cgroup2 none /mnt/c && echo 1 > /mnt/c/cgroup.procs"),
        ("remount the root read-write elsewhere", "mount --bind / /mnt && ls /mnt/base"),
        ("write a sysctl", "echo 1 > /proc/sys/kernel/panic || sysctl -w vm.drop_caches=3"),
        ("write core_pattern", "echo '|/tmp/x' > /proc/sys/kernel/core_pattern"),
        ("trigger sysrq", "echo h > /proc/sysrq-trigger"),
        ("load a module", "modprobe dummy || insmod /tmp/x.ko"),
        ("read the kernel log", "dmesg"),
        ("read kernel symbols", "awk '$1 !~ /^0+$/ {print; exit}' /proc/kallsyms | grep ."),
        ("change the clock", "date -s '2001-01-01'"),
        ("reboot", "python3 -c \"import ctypes; raise SystemExit(0 if ctypes.CDLL(None).reboot(0x4321fedc) == 0 else 1)\" && kill -9 1"),
        ("raise the priority", "chrt -f 50 true"),
        ("load BPF", "python3 -c \"import ctypes,sys; r=ctypes.CDLL(None).syscall(321,5,ctypes.create_string_buffer(128),128); sys.exit(0 if r>=0 else 1)\""),
        ("use the kernel's keyring", "python3 -c \"import ctypes,sys; r=ctypes.CDLL(None).syscall(248,b'user',b'puck-test',b'x',1,-4); sys.exit(0 if r>=0 else 1)\""),
        ("open by handle", "python3 -c \"import ctypes,sys; h=(ctypes.c_char*24)(8,0,0,0,1,0,0,0,2); r=ctypes.CDLL(None).syscall(304,-100,h,0); sys.exit(0 if r>=0 else 1)\""),
        ("change the host name of the host", "hostname puck-e2e-changed && false"),
        ("make a namespace with mounts of the outside", "unshare -m -p -f --mount-proc ls /proc/1/root/base"),
    ],
)
def test_root_may_not(root, what, script):
    host_name = socket.gethostname()
    code, said = root(script)
    assert code != 0, f"could {what}: {said}"
    assert socket.gethostname() == host_name


def test_what_is_written_in_proc_and_sys_is_refused(root):
    code, said = root("find /proc/sys -type f -perm /222 2>/dev/null | while read f; do v=$(cat $f 2>/dev/null) && "
                      "(echo \"$v\" > $f) 2>/dev/null && echo $f; done | grep -v '^/proc/sys/\\(net\\|user\\|kernel/\\(hostname\\|domainname\\|shm\\|sem\\|msg\\)\\|fs/mqueue\\)'")
    assert said.strip() == "", f"writable: {said}"
    code, said = root("for f in /sys/kernel/uevent_helper /sys/kernel/mm/transparent_hugepage/enabled /sys/power/state; do echo x > $f && echo wrote $f; done 2>/dev/null")
    assert "wrote" not in said


def test_a_fork_bomb_and_a_memory_hog_hurt_nobody_else(server, client, sprite, root, name):
    other = client.create_sprite(f"{name}-calm")
    try:
        sprite.run("bash", "-c", "for n in $(seq 20000); do sleep 20 & done 2>/dev/null; true", capture_output=True, timeout=120)
        assert other.run("echo", "calm", capture_output=True, timeout=30).stdout == b"calm\n"
        sprite.run("pkill", "sleep", timeout=60)
        done = sprite.run("python3", "-c", "x = bytearray(64 << 30)", capture_output=True, timeout=120)
        assert done.returncode != 0
        assert other.run("echo", "calm", capture_output=True, timeout=30).stdout == b"calm\n"
        assert sprite.run("echo", "back", capture_output=True, timeout=60).stdout == b"back\n"
    finally:
        other.destroy()


def test_sockets_that_know_no_network_policy_are_not_to_be_had(sprite, root):
    script = """
import errno, socket
for family, kind in ((40, 1), (38, 5), (17, 3), (29, 3), (31, 1), (21, 5), (2**31 + 40, 1)):
    try:
        socket.socket(family, kind)
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", errno.EAFNOSUPPORT) == errno.EAFNOSUPPORT:
            continue
        raise SystemExit(f"{family}: {error}")
    raise SystemExit(f"{family} is there")
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
    socket.socket(family, socket.SOCK_DGRAM)
socket.socketpair()
print("fine")
"""
    assert root(f"python3 -c '{script}'") == (0, "fine\n")
    done = sprite.run("python3", "-c", script, capture_output=True)
    assert done.stdout == b"fine\n", done.stderr
