//! A host in namespaces of its own, with an outside that it reaches over an uplink.

use crate::agent::Client;
use guest::{
    cgroup::{Cgroup, MOUNT, Trees},
    protocol::{Boot, Limits},
};
use runtime::{Host, HostSettings, Machine, MachineSpec};
use rustix::{
    mount::{MountFlags, MountPropagationFlags},
    thread::{LinkNameSpaceType, UnshareFlags},
};
use std::{
    fs,
    future::Future,
    io::Write,
    net::TcpListener,
    os::{
        fd::AsFd,
        unix::fs::{PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// The outside, and the host's address there.
pub(crate) const OUTSIDE: &str = "198.51.100.1";
pub(crate) const UPLINK: &str = "198.51.100.2";

/// Another address of the host.
pub(crate) const HOST_LOCAL: &str = "192.0.2.9";

/// Where clouds keep credentials; here, another address of the outside.
pub(crate) const METADATA: &str = "169.254.169.254";

/// How long a condition may take to come true on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Whether this program can be an agent: it must be linked statically, since a machine holds no libraries.
pub(crate) fn is_static() -> bool {
    !fs::read_to_string("/proc/self/maps").unwrap().contains("/ld-linux")
}

/// Builds this test again, linked statically, and runs that.
pub(crate) fn run_static() -> ExitCode {
    println!("building the tests of machines again, linked statically");
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.args(["test", "--package", "runtime", "--test", "machine"]);
    cargo.args(["--target", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let status = cargo.arg("--").args(std::env::args_os().skip(1)).status().unwrap();
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Moves this process, before it has threads, into namespaces of its own, and sets up the network.
pub(crate) fn enter() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root: it builds real machines");
    assert!(
        Path::new("/bin/busybox").exists(),
        "this test needs /bin/busybox: apt-get install busybox-static"
    );
    // SAFETY: this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET) }.unwrap();
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .unwrap();
    rustix::mount::mount("run", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
    // A new network namespace takes this over from the host.
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    for command in [
        "ip netns add outside".to_owned(),
        "ip link set lo up".into(),
        format!("ip address add {HOST_LOCAL}/32 dev lo"),
        "ip link add uplink type veth peer name eth0 netns outside".into(),
        format!("ip address add {UPLINK}/24 dev uplink"),
        "ip link set uplink up".into(),
        format!("ip route add default via {OUTSIDE}"),
        "ip -n outside link set lo up".into(),
        "ip -n outside link set eth0 up".into(),
        format!("ip -n outside address add {OUTSIDE}/24 dev eth0"),
        format!("ip -n outside address add {METADATA}/32 dev eth0"),
        "ip netns exec outside nft add table ip count".into(),
        "ip netns exec outside nft add chain ip count in { type filter hook prerouting priority -300; }".into(),
        "ip netns exec outside nft add set ip count sources { type ipv4_addr; flags dynamic; }".into(),
        "ip netns exec outside nft add rule ip count in update @sources { ip saddr }".into(),
    ] {
        execute(&command);
    }
    std::thread::spawn(|| {
        let outside = fs::File::open("/run/netns/outside").unwrap();
        rustix::thread::move_into_link_name_space(
            outside.as_fd(),
            Some(LinkNameSpaceType::Network),
        )
        .unwrap();
        answer("0.0.0.0:8000");
    });
    std::thread::spawn(|| answer("0.0.0.0:8001"));
}

/// Answers each connection with the address that it came from.
fn answer(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    loop {
        let (mut stream, peer) = listener.accept().unwrap();
        let _ = write!(stream, "{}", peer.ip());
    }
}

fn execute(command: &str) {
    let words: Vec<_> = command.split(' ').collect();
    let output = std::process::Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn output(command: &str) -> String {
    let words: Vec<_> = command.split(' ').collect();
    String::from_utf8(
        std::process::Command::new(words[0]).args(&words[1..]).output().unwrap().stdout,
    )
    .unwrap()
}

pub(crate) async fn connects(address: &str, port: u16) -> bool {
    let connection = tokio::net::TcpStream::connect(format!("{address}:{port}"));
    tokio::time::timeout(Duration::from_secs(5), connection)
        .await
        .is_ok_and(|connected| connected.is_ok())
}

pub(crate) struct Stage {
    directory: tempfile::TempDir,
    settings: HostSettings,
    host: Host,
    base: PathBuf,
}

const DIGEST: &str = "ba5e";

impl Stage {
    pub(crate) async fn prepare(instance: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fill_base(&directory.path().join("base"));
        execute(&format!("mkfs.erofs --quiet {0}/image {0}/base", directory.path().display()));
        fs::write(directory.path().join("secret"), "of the host").unwrap();
        let settings = HostSettings {
            instance: instance.into(),
            run_dir: Path::new("/run").join(instance),
            agent: std::env::current_exe().unwrap(),
        };
        let host = Host::prepare(settings.clone()).await.unwrap();
        let base = host.mount_image(&directory.path().join("image"), DIGEST).await.unwrap();
        Self { directory, settings, host, base }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn settings(&self) -> HostSettings {
        self.settings.clone()
    }

    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    pub(crate) async fn mount_image(&self) -> PathBuf {
        self.host.mount_image(&self.directory.path().join("image"), DIGEST).await.unwrap()
    }

    pub(crate) fn secret(&self) -> String {
        self.directory.path().join("secret").to_str().unwrap().to_owned()
    }

    pub(crate) fn group(&self, name: &str) -> Cgroup {
        let trees = Trees::detect(Path::new(MOUNT)).unwrap();
        trees.group(&format!("puck-{}/{name}", self.settings.instance))
    }

    /// The data directory of a machine: an ext4 of its own, so that it can be frozen.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        let data = self.directory.path().join("data").join(name);
        if !data.exists() {
            let image = self.directory.path().join(name);
            fs::create_dir_all(&data).unwrap();
            fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
            execute(&format!("mkfs.ext4 -q {}", image.display()));
            execute(&format!("mount -o loop {} {}", image.display(), data.display()));
        }
        data
    }

    pub(crate) fn spec(&self, name: &str) -> MachineSpec {
        MachineSpec {
            name: name.into(),
            data: self.data(name),
            base: self.base.clone(),
            boot: Boot {
                volume: "volume".into(),
                fork_of: None,
                epoch: 1,
                image: DIGEST.into(),
                cache_bytes_max: 0,
                uid_start: 0,
                limits: Limits { memory_bytes: 256 << 20, pids: 200 },
                check: false,
                identity: None,
            },
        }
    }

    pub(crate) async fn boot(&self, name: &str) -> (Machine, Client) {
        let machine = self.host.boot(self.spec(name)).await.unwrap();
        assert_eq!(machine.channel(), self.host.channel(name).unwrap());
        let agent =
            tokio::time::timeout(PATIENCE, Client::connect(machine.channel())).await.unwrap();
        (machine, agent)
    }

    pub(crate) async fn shutdown(&self) {
        self.host.shutdown().await.unwrap();
    }

    pub(crate) fn traces(&self) -> Vec<String> {
        traces(&self.settings.instance)
    }

    /// What a host without machines has.
    pub(crate) fn traces_of_a_new_host(&self) -> Vec<String> {
        let instance = &self.settings.instance;
        let all = traces(instance);
        let expected = |trace: &&String| {
            trace.ends_with(&format!("/puck-{instance}"))
                || trace.ends_with("/keepers")
                || trace.starts_with("table")
                || trace.starts_with("blackhole")
                || trace.contains("/images/")
        };
        all.iter().filter(expected).cloned().collect()
    }

    pub(crate) fn packets_outside_from(&self, address: &str) -> usize {
        output("ip netns exec outside nft list set ip count sources").matches(address).count()
    }
}

/// Everything on the host that has to do with an instance.
pub(crate) fn traces(instance: &str) -> Vec<String> {
    let mut traces = Vec::new();
    for tree in ["unified", "memory", "pids", "cpu", "."] {
        let group = Path::new(MOUNT).join(tree).join(format!("puck-{instance}"));
        if let Ok(entries) = fs::read_dir(&group) {
            traces.push(group.display().to_string());
            let groups = entries
                .map(|entry| entry.unwrap())
                .filter(|entry| entry.file_type().unwrap().is_dir());
            traces.extend(groups.map(|entry| entry.path().display().to_string()));
        }
    }
    let lines = |text: String, part: &str| {
        text.lines().filter(|line| line.contains(part)).map(str::to_owned).collect::<Vec<_>>()
    };
    traces.extend(lines(output("nft list tables"), &format!("puck_{instance}")));
    traces.extend(lines(output("ip -o link show"), &format!("pk{instance}-")));
    // The routes of other instances are their own.
    if let Ok(range) = fs::read_to_string(Path::new("/run").join(instance).join("range")) {
        let third = 4 * range.trim().parse::<u32>().unwrap();
        traces.extend(lines(output("ip route show"), &format!("blackhole 10.213.{third}.0")));
    }
    traces.extend(lines(
        fs::read_to_string("/proc/self/mountinfo").unwrap(),
        &format!("/run/{instance}/"),
    ));
    if let Ok(machines) = fs::read_dir(Path::new("/run").join(instance).join("machines")) {
        traces.extend(machines.map(|entry| entry.unwrap().path().display().to_string()));
    }
    traces
}

impl Drop for Stage {
    fn drop(&mut self) {
        for data in fs::read_dir(self.directory.path().join("data")).into_iter().flatten().flatten()
        {
            let _ = rustix::mount::unmount(data.path(), rustix::mount::UnmountFlags::empty());
        }
    }
}

fn fill_base(base: &Path) {
    for name in ["bin", "etc", "home/sprite", "root", "tmp"] {
        fs::create_dir_all(base.join(name)).unwrap();
    }
    fs::set_permissions(base.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    chown(base.join("home/sprite"), Some(1001), Some(1001)).unwrap();
    fs::copy("/bin/busybox", base.join("bin/busybox")).unwrap();
    for applet in output("/bin/busybox --list").lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", base.join("bin").join(applet)).unwrap();
    }
    fs::copy(std::env::current_exe().unwrap(), base.join("bin/probe")).unwrap();
    fs::write(
        base.join("etc/passwd"),
        "root::0:0::/root:/bin/sh\nsprite:x:1001:1001::/home/sprite:/bin/sh\n",
    )
    .unwrap();
}

/// An empty ext4 in a file.
pub(crate) fn make_image(path: &Path) {
    let _ = fs::remove_file(path);
    fs::File::create(path).unwrap().set_len(8 << 20).unwrap();
    execute(&format!("mkfs.ext4 -q {}", path.display()));
}

/// Runs all futures at once and gives their results in order.
pub(crate) async fn all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, result) in &mut futures {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(ready) => *result = Some(ready),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    futures.into_iter().map(|(_, result)| result.unwrap()).collect()
}

pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let wait = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
}
