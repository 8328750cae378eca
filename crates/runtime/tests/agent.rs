//! The agent of the tests: a container on `/base` and `/data/volume`, and a socket on which a test asks for things.

use guest::{
    cgroup::{MOUNT, Trees},
    container::{Command, Container, ContainerSpec, ProcessIo, RUN, Stdio, User},
    freeze::Freezer,
    launch::VOLUME,
    protocol::{AGENT_SOCKET, BASE, BOOT_FILE, Boot, CHANNEL, DATA},
};
use serde::{Deserialize, Serialize};
use std::{fs, io::Read, path::Path, process::ExitCode};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Verb {
    Run { script: String },
    Execute { argv: Vec<String> },
    List { path: String },
    Read { path: String },
    Exists { path: String },
    Exit { status: i32 },
    Abort,
    MountAndAbort,
    FreezeAndAbort,
    FreezeWithoutAWordAndAbort,
    FreezeAndWrite,
    FreezeAndThaw,
}

impl Verb {
    pub(crate) fn run(script: &str) -> Self {
        Self::Run { script: script.into() }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Text(String),
    Names(Vec<String>),
    Yes(bool),
}

impl Answer {
    pub(crate) fn text(self) -> String {
        let Self::Text(text) = self else { panic!("{self:?}") };
        text
    }

    pub(crate) fn names(self) -> Vec<String> {
        let Self::Names(names) = self else { panic!("{self:?}") };
        names
    }

    pub(crate) fn yes(self) -> bool {
        let Self::Yes(yes) = self else { panic!("{self:?}") };
        yes
    }
}

/// A test's connection to an agent.
pub(crate) struct Client(BufReader<UnixStream>);

impl Client {
    pub(crate) async fn connect(channel: &Path) -> Self {
        let socket = channel.join(AGENT_SOCKET);
        loop {
            if let Ok(stream) = UnixStream::connect(&socket).await {
                return Self(BufReader::new(stream));
            }
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn tell(&mut self, verb: Verb) {
        let line = serde_json::to_string(&verb).unwrap() + "\n";
        self.0.get_mut().write_all(line.as_bytes()).await.unwrap();
    }

    pub(crate) async fn ask(&mut self, verb: Verb) -> Answer {
        self.tell(verb).await;
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The output of a script as the user `sprite`.
    pub(crate) async fn run(&mut self, script: &str) -> String {
        self.ask(Verb::run(script)).await.text()
    }
}

pub(crate) fn main() -> ExitCode {
    // SAFETY: this is the only place that takes the descriptor.
    let freezer = unsafe { Freezer::inherit() }.unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(freezer))
}

async fn serve(mut freezer: Freezer) -> ExitCode {
    let boot: Boot = serde_json::from_slice(&fs::read(BOOT_FILE).unwrap()).unwrap();
    let volume = Path::new(DATA).join("volume");
    fs::create_dir_all(&volume).unwrap();
    let spec = ContainerSpec {
        base: BASE.into(),
        volume,
        run: RUN.into(),
        cgroup: Trees::detect(Path::new(MOUNT)).unwrap().group(""),
        uid_start: boot.uid_start,
        hostname: "sprite-1".into(),
        dns: Vec::new(),
        logs: None,
        limits: boot.limits,
    };
    let container = Container::start(spec).await.unwrap();
    let listener = UnixListener::bind(Path::new(CHANNEL).join(AGENT_SOCKET)).unwrap();
    loop {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap() > 0 {
            let answer = match serde_json::from_str(&line).unwrap() {
                Verb::Exit { status } => return ExitCode::from(u8::try_from(status).unwrap()),
                verb => answer(&container, &mut freezer, verb).await,
            };
            let answer = serde_json::to_string(&answer).unwrap() + "\n";
            stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
            line.clear();
        }
    }
}

async fn answer(container: &Container, freezer: &mut Freezer, verb: Verb) -> Answer {
    match verb {
        Verb::Run { script } => Answer::Text(run(container, &script).await),
        Verb::Execute { argv } => {
            let output =
                tokio::process::Command::new(&argv[0]).args(&argv[1..]).output().await.unwrap();
            Answer::Text(String::from_utf8(output.stdout).unwrap())
        }
        Verb::List { path } => {
            let names = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.collect();
            names.sort();
            Answer::Names(names)
        }
        Verb::Read { path } => Answer::Text(fs::read_to_string(path).unwrap()),
        Verb::Exists { path } => Answer::Yes(Path::new(&path).exists()),
        Verb::Exit { .. } | Verb::Abort => std::process::abort(),
        Verb::FreezeWithoutAWordAndAbort => {
            rustix::mount::mount_bind(DATA, VOLUME).unwrap();
            // SAFETY: FIFREEZE touches no memory of ours.
            unsafe { rustix::ioctl::ioctl(data(), rustix::ioctl::NoArg::<FIFREEZE>::new()) }
                .unwrap();
            std::process::abort()
        }
        Verb::MountAndAbort => {
            crate::disk::mount(&Path::new(DATA).join("image"), VOLUME);
            fs::write(Path::new(VOLUME).join("file"), "not written back yet").unwrap();
            std::process::abort()
        }
        Verb::FreezeAndAbort => {
            let data = data();
            let _frozen = freezer.freeze(&data).unwrap();
            // Time for a process of the container to run into the frozen filesystem.
            let _ = rustix::thread::nanosleep(&rustix::thread::Timespec {
                tv_sec: 0,
                tv_nsec: 500_000_000,
            });
            std::process::abort()
        }
        Verb::FreezeAndWrite => {
            let data = data();
            let frozen = freezer.freeze(&data).unwrap();
            // Returns when the keeper thaws.
            fs::write(Path::new(DATA).join("file"), "text").unwrap();
            Answer::Text(frozen.thaw().unwrap_err().to_string())
        }
        Verb::FreezeAndThaw => {
            freezer.freeze(&data()).unwrap().thaw().unwrap();
            fs::write(Path::new(DATA).join("file"), "text").unwrap();
            Answer::Text("thawed in order".into())
        }
    }
}

const FIFREEZE: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<i32>(b'X', 119);

fn data() -> fs::File {
    fs::File::open(DATA).unwrap()
}

async fn run(container: &Container, script: &str) -> String {
    let env =
        [("PATH", "/bin"), ("HOME", "/home/sprite")].map(|(key, value)| (key.into(), value.into()));
    let command = Command {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        path: None,
        env: env.to_vec(),
        dir: None,
        user: User::Sprite,
        stdio: Stdio::Pipes { stdin: false },
    };
    let (process, io) = container.spawn(command).await.unwrap();
    let ProcessIo::Pipes { stdout, stderr, .. } = io else { panic!("pipes were asked for") };
    let read = |pipe: std::os::fd::OwnedFd| {
        rustix::io::ioctl_fionbio(&pipe, false).unwrap();
        let mut text = String::new();
        fs::File::from(pipe).read_to_string(&mut text).unwrap();
        text
    };
    let out = tokio::task::spawn_blocking(move || (read(stdout), read(stderr))).await.unwrap();
    process.wait().await;
    eprint!("{}", out.1);
    out.0
}
