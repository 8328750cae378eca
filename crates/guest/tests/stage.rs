//! A base image of busybox, an ext4 volume in a file, and a container on both.

use guest::{
    cgroup::{Cgroup, Trees},
    container::{Command, Container, ContainerSpec, ProcessIo, Stdio, User},
    protocol::Limits,
};
use rustix::{
    mount::{MountPropagationFlags, UnmountFlags},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType},
    thread::UnshareFlags,
};
use std::{
    fs,
    future::Future,
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    },
    path::Path,
    time::Duration,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Ids that nothing else on a host uses.
pub(crate) const UID_START: u32 = 0x1000_0000;

/// Limits that no test reaches by accident.
pub(crate) const LIMITS: Limits = Limits { memory_bytes: 512 << 20, pids: 600 };

/// How long a condition may take to come true on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Moves this process, before it has threads, into namespaces of its own.
pub(crate) fn enter() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root: it builds a real container"
    );
    assert!(
        Path::new("/bin/busybox").exists(),
        "this test needs /bin/busybox: apt-get install busybox-static"
    );
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWUTS;
    // SAFETY: this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .unwrap();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

pub(crate) struct Stage {
    directory: tempfile::TempDir,
    cgroup: Cgroup,
    spec: ContainerSpec,
    container: Option<Container>,
}

impl Stage {
    pub(crate) async fn start(name: &str, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (base, volume) = (directory.path().join("base"), directory.path().join("volume"));
        fill_base(&base);
        make_volume(directory.path(), &volume);
        let trees = Trees::detect(Path::new(guest::cgroup::MOUNT)).unwrap();
        let cgroup = trees.group(&format!("puck-test-{}-{name}", std::process::id()));
        cgroup.create().unwrap();
        cgroup.delegate().unwrap();
        fs::write(directory.path().join("secret"), "of the host").unwrap();
        let spec = ContainerSpec {
            base,
            volume,
            run: directory.path().join("run"),
            cgroup: cgroup.clone(),
            uid_start: UID_START,
            hostname: "sprite-1".into(),
            dns: vec!["192.0.2.53".parse().unwrap()],
            logs: None,
            limits,
        };
        let container = Some(Container::start(spec.clone()).await.unwrap());
        Self { directory, cgroup, spec, container }
    }

    pub(crate) fn container(&self) -> &Container {
        self.container.as_ref().unwrap()
    }

    pub(crate) async fn bounce(self) -> Self {
        self.bounce_after(|_| ()).await
    }

    /// Stops the container, unmounts and mounts the volume, changes it, and starts another container.
    pub(crate) async fn bounce_after(mut self, change: impl FnOnce(&Path)) -> Self {
        self.container.take().unwrap().stop().await.unwrap();
        self.unmount().await;
        mount_volume(self.directory.path(), &self.spec.volume);
        change(&self.spec.volume);
        self.container = Some(Container::start(self.spec.clone()).await.unwrap());
        self
    }

    pub(crate) async fn stop(mut self) {
        self.container.take().unwrap().stop().await.unwrap();
        self.unmount().await;
        self.cgroup.remove().unwrap();
        let directory = self.directory.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(directory), "mounts are left: {mounts}");
    }

    async fn unmount(&self) {
        // Another namespace's copy of the mount dies a moment after its processes.
        until("the volume can be unmounted", || async {
            rustix::mount::unmount(&self.spec.volume, UnmountFlags::empty()).is_ok()
        })
        .await;
    }

    pub(crate) fn host_file(&self) -> String {
        self.directory.path().join("secret").to_str().unwrap().to_owned()
    }

    pub(crate) fn owner_on_disk(&self, path: &str) -> u32 {
        fs::metadata(self.spec.volume.join(path)).unwrap().uid()
    }

    /// The user id outside of the process with this command line, once there is one: a process that was just spawned may
    /// not have the line yet.
    pub(crate) async fn outside_uid(&self, command_line: &str) -> u32 {
        let mut uid = None;
        until(&format!("a process with the command line {command_line}"), || {
            uid = self.uid_of(command_line);
            std::future::ready(uid.is_some())
        })
        .await;
        uid.unwrap()
    }

    fn uid_of(&self, command_line: &str) -> Option<u32> {
        let door = self.container().cgroup().doors().remove(0);
        fs::read_to_string(door).unwrap().lines().find_map(|pid| {
            let process = Path::new("/proc").join(pid);
            let line = fs::read_to_string(process.join("cmdline")).ok()?;
            let uid = fs::metadata(process).ok()?.uid();
            line.replace('\0', " ").contains(command_line).then_some(uid)
        })
    }
}

impl Drop for Stage {
    /// A test that failed leaves nothing either.
    fn drop(&mut self) {
        let _ = self.cgroup.kill();
        let _ = self.cgroup.wait_empty(PATIENCE);
        let _ = self.cgroup.remove();
    }
}

fn fill_base(base: &Path) {
    for name in [
        "bin",
        "dev",
        "etc",
        "home/sprite",
        "mnt",
        "opt/from-base",
        "proc",
        "root",
        "srv",
        "sys",
        "tmp",
        "var/lib",
    ] {
        fs::create_dir_all(base.join(name)).unwrap();
    }
    fs::set_permissions(base.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    chown(base.join("home/sprite"), Some(1001), Some(1001)).unwrap();
    fs::copy("/bin/busybox", base.join("bin/busybox")).unwrap();
    let applets = std::process::Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout)
        .unwrap()
        .lines()
        .filter(|applet| !["busybox", "su"].contains(applet))
    {
        symlink("busybox", base.join("bin").join(applet)).unwrap();
    }
    fs::copy("/bin/busybox", base.join("bin/su")).unwrap();
    fs::set_permissions(base.join("bin/su"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(base.join("opt/from-base/file"), "").unwrap();
    fs::write(
        base.join("etc/passwd"),
        "root::0:0::/root:/bin/sh\nsprite:x:1001:1001::/home/sprite:/bin/sh\n",
    )
    .unwrap();
    fs::write(base.join("etc/group"), "root:x:0:\nsudo:x:27:sprite\nsprite:x:1001:\n").unwrap();
}

fn make_volume(directory: &Path, volume: &Path) {
    let image = directory.join("volume.img");
    fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
    let made = std::process::Command::new("mkfs.ext4").arg("-q").arg(&image).status().unwrap();
    assert!(made.success());
    fs::create_dir(volume).unwrap();
    mount_volume(directory, volume);
}

fn mount_volume(directory: &Path, volume: &Path) {
    let mounted = std::process::Command::new("mount")
        .args(["-o", "loop"])
        .arg(directory.join("volume.img"))
        .arg(volume)
        .status();
    assert!(mounted.unwrap().success());
}

/// A shell script as the user `sprite`, without standard input.
pub(crate) fn shell(script: &str) -> Command {
    let env = [("PATH", "/usr/bin:/bin"), ("HOME", "/home/sprite")]
        .map(|(key, value)| (key.into(), value.into()));
    Command {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        path: None,
        env: env.to_vec(),
        dir: None,
        user: User::Sprite,
        stdio: Stdio::Pipes { stdin: false },
    }
}

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: u8,
    pub(crate) out: String,
    #[expect(dead_code, reason = "shown by a failing assertion")]
    err: String,
}

pub(crate) async fn run(stage: &Stage, script: &str) -> Output {
    run_as(stage, User::Sprite, script).await
}

pub(crate) async fn run_as(stage: &Stage, user: User, script: &str) -> Output {
    let (process, io) = stage.container().spawn(Command { user, ..shell(script) }).await.unwrap();
    let (out, err) = finish(io, None).await;
    Output { code: process.wait().await, out, err }
}

/// Writes the input, if any, and reads both outputs to their end.
pub(crate) async fn finish(io: ProcessIo, input: Option<&str>) -> (String, String) {
    let ProcessIo::Pipes { stdin, stdout, stderr } = io else {
        panic!("no terminal was asked for")
    };
    if let Some(input) = input {
        rustix::io::write(stdin.unwrap(), input.as_bytes()).unwrap();
    }
    tokio::join!(read_all(stdout), read_all(stderr))
}

pub(crate) async fn first_line(io: ProcessIo) -> String {
    let ProcessIo::Pipes { stdout, .. } = io else { panic!("no terminal was asked for") };
    let mut bytes = [0; 100];
    let len = rustix::io::read(&stdout, &mut bytes).unwrap();
    String::from_utf8(bytes[..len].to_vec()).unwrap().trim().to_owned()
}

async fn read_all(pipe: OwnedFd) -> String {
    // SAFETY: the pipe stays open until it is dropped.
    let pipe = unsafe { AsyncFd::register_with_interest(fs::File::from(pipe), Interest::READABLE) }
        .unwrap();
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let len =
            pipe.async_io(Interest::READABLE, |mut pipe| pipe.read(&mut buffer)).await.unwrap();
        if len == 0 {
            return String::from_utf8(bytes).unwrap();
        }
        bytes.extend_from_slice(&buffer[..len]);
    }
}

pub(crate) struct Terminal {
    master: AsyncFd<OwnedFd>,
    text: String,
}

impl Terminal {
    pub(crate) fn new(io: ProcessIo) -> Self {
        let ProcessIo::Terminal { master } = io else { panic!("a terminal was asked for") };
        // SAFETY: the terminal stays open until it is dropped.
        Self { master: unsafe { AsyncFd::register(master) }.unwrap(), text: String::new() }
    }

    pub(crate) async fn read_until(&mut self, end: &str) -> String {
        while !self.text.contains(end) {
            let mut buffer = [0; 4096];
            let read = |master: &OwnedFd| Ok(rustix::io::read(master.as_fd(), &mut buffer[..])?);
            let len = self.master.async_io(Interest::READABLE, read).await.unwrap();
            self.text.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
        }
        self.text.clone()
    }

    pub(crate) async fn write(&mut self, text: &str) {
        let write = |master: &OwnedFd| Ok(rustix::io::write(master.as_fd(), text.as_bytes())?);
        self.master.async_io(Interest::WRITABLE, write).await.unwrap();
    }
}

/// Runs all futures at once.
pub(crate) async fn all(futures: Vec<impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
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

/// This process's ends of its sockets to zygotes.
pub(crate) fn zygote_sockets() -> Vec<OwnedFd> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let number = entry.unwrap().file_name().into_string().unwrap().parse().unwrap();
        // SAFETY: only borrowed for two calls, which fail if the descriptor is closed meanwhile.
        let socket = unsafe { BorrowedFd::borrow_raw(number) };
        if rustix::net::sockopt::socket_type(socket) == Ok(SocketType::SEQPACKET) {
            sockets.extend(rustix::io::fcntl_dupfd_cloexec(socket, 3));
        }
    }
    assert!(!sockets.is_empty());
    sockets
}

/// Sends a packet of any kind.
pub(crate) fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let sent = rustix::net::sendmsg(
        socket,
        &[std::io::IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    // The zygote of another test may have ended meanwhile.
    assert!(matches!(sent, Ok(_) | Err(rustix::io::Errno::PIPE)), "{sent:?}");
}
