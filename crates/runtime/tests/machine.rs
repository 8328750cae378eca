//! Machines on a host of their own: needs root, and a Debian with `busybox-static`, `e2fsprogs`, `erofs-utils`, `iproute2`,
//! `mount` and `nftables`.
//!
//! This program is also its own launcher, zygote and agent, so it must be linked statically. Where it is not, it has cargo
//! build it so and runs that.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod agent;
mod disk;
mod stage;

use agent::{Answer, Verb};
use libtest_mimic::{Arguments, Failed, Trial};
use runtime::{Error, Exit, Host};
use stage::{Stage, until};
use std::{io::BufRead, path::Path, process::ExitCode, sync::Arc, time::Instant};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("launch") => return guest::launch::main(),
        Some("zygote") => return guest::zygote::main(),
        Some("agent") => return agent::main(),
        Some("server") => return serve_until_killed(),
        Some("ping") => return ping(),
        _ if !stage::is_static() => return stage::run_static(),
        _ => stage::enter(),
    }
    let runtime = Arc::new(Runtime::new().unwrap());
    let stage = Arc::new(runtime.block_on(Stage::prepare("7e57")));
    let mut arguments = Arguments::from_args();
    // The last test shuts the host down.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials(&runtime, &stage)).exit_code()
}

fn trials(runtime: &Arc<Runtime>, stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    macro_rules! trials {
        ($($name:ident),*) => {$({
            let (runtime, stage) = (Arc::clone(runtime), Arc::clone(stage));
            trials.push(Trial::test(stringify!($name), move || {
                runtime.block_on($name(&stage));
                Ok::<(), Failed>(())
            }));
        })*};
    }
    trials![
        the_agent_sees_its_machine_and_nothing_else,
        commands_run_in_the_container_of_the_machine,
        machines_reach_the_outside_and_nothing_else,
        a_machine_cannot_lie_about_its_address,
        low_ports_and_ping_work_without_rights,
        the_end_of_the_agent_is_the_end_of_the_machine,
        a_killed_machine_leaves_nothing,
        an_agent_that_serves_its_own_volume_can_die,
        a_frozen_volume_is_thawed_when_the_agent_dies,
        a_frozen_volume_is_thawed_when_it_takes_too_long,
        a_machine_that_cannot_start_says_why_and_leaves_nothing,
        settings_that_make_no_sense_are_refused,
        an_image_is_mounted_once,
        machines_start_quickly_at_once,
        a_killed_server_takes_its_machines_along,
        shutdown_leaves_nothing
    ];
    trials
}

async fn the_agent_sees_its_machine_and_nothing_else(stage: &Stage) {
    let (machine, mut agent) = stage.boot("sight").await;
    let names = agent.ask(Verb::List { path: "/".into() }).await.names();
    assert_eq!(names, ["base", "data", "dev", "proc", "puck-guest", "run", "sys", "tmp", "volume"]);
    assert!(!agent.ask(Verb::Exists { path: stage.secret() }).await.yes());
    let names = agent.ask(Verb::List { path: "/proc".into() }).await.names();
    let processes: Vec<_> = names.iter().filter(|name| name.parse::<u32>().is_ok()).collect();
    assert_eq!(processes.len(), 2, "the agent and the zygote: {processes:?}");
    let names = agent.ask(Verb::List { path: "/sys/class/net".into() }).await.names();
    assert_eq!(names, ["lo", "spr0"]);
    let names = agent.ask(Verb::List { path: "/dev".into() }).await.names();
    assert_eq!(names, ["full", "fuse", "loop-control", "null", "random", "tty", "urandom", "zero"]);
    let mounts = agent.ask(Verb::Read { path: "/proc/self/mountinfo".into() }).await.text();
    assert!(mounts.lines().count() < 30 && mounts.contains(" /sys ro,"), "{mounts}");
    machine.kill().await.unwrap();
}

async fn commands_run_in_the_container_of_the_machine(stage: &Stage) {
    let (machine, mut agent) = stage.boot("commands").await;
    assert_eq!(agent.run("id -u; hostname").await, "1001\nsprite-1\n");
    let (other, mut other_agent) = stage.boot("commands-2").await;
    let map = |agent: Answer| agent.text();
    let first = map(agent.ask(Verb::run("cat /proc/self/uid_map")).await);
    let second = map(other_agent.ask(Verb::run("cat /proc/self/uid_map")).await);
    assert_ne!(first, second, "each machine has its own ids");
    machine.kill().await.unwrap();
    other.kill().await.unwrap();
}

async fn machines_reach_the_outside_and_nothing_else(stage: &Stage) {
    let (machine, mut agent) = stage.boot("net-1").await;
    let (other, mut other_agent) = stage.boot("net-2").await;
    let connect = |address: &str, port: u16| format!("nc -w 3 {address} {port} < /dev/null");
    assert_eq!(
        agent.run(&connect(stage::OUTSIDE, 8000)).await,
        stage::UPLINK,
        "translated to the host's address"
    );
    other_agent
        .run("nc -ll -p 8002 -e echo reached >/dev/null 2>&1 & sleep 0.2; nc -w 3 127.0.0.1 8002")
        .await;
    let other_address = other.address().to_string();
    for (address, port) in [
        (stage::UPLINK, 8001),
        (stage::HOST_LOCAL, 8001),
        (other_address.as_str(), 8002),
        (stage::METADATA, 8000),
        ("10.0.0.2", 8001),
    ] {
        let output = agent.run(&connect(address, port)).await;
        assert_eq!(output, "", "{address}:{port} was reached");
    }
    assert!(
        stage::connects(&other_address, 8002).await,
        "the host may open connections to a machine"
    );
    machine.kill().await.unwrap();
    other.kill().await.unwrap();
}

async fn a_machine_cannot_lie_about_its_address(stage: &Stage) {
    let (machine, mut agent) = stage.boot("liar").await;
    let busybox = |arguments: &str| Verb::Execute {
        argv: ["/base/bin/busybox"]
            .into_iter()
            .chain(arguments.split(' '))
            .map(str::to_owned)
            .collect(),
    };
    agent.ask(busybox("ip address add 203.0.113.77/32 dev spr0")).await;
    // The answer could not come back anyway, so what counts is whether the packet went out.
    agent.ask(busybox("ping -c 1 -W 1 -I 203.0.113.77 198.51.100.1")).await;
    assert_eq!(stage.packets_outside_from("203.0.113.77"), 0);
    agent.ask(busybox("ping -c 1 -W 1 198.51.100.1")).await;
    assert!(stage.packets_outside_from(stage::UPLINK) > 0, "the counter counts");
    machine.kill().await.unwrap();
}

async fn low_ports_and_ping_work_without_rights(stage: &Stage) {
    let (machine, mut agent) = stage.boot("ports").await;
    let script = "nc -l -p 80 -e echo low & sleep 0.2; nc -w 3 127.0.0.1 80; probe ping 2>&1; \
        ip -o -4 address show dev spr0 | wc -l; ip route show | grep default";
    let output = agent.run(script).await;
    assert_eq!(
        output,
        format!("low\nanswered\n2\ndefault via 169.254.1.1 dev spr0  src {} \n", machine.address()),
        "{output}"
    );
    machine.kill().await.unwrap();
}

async fn the_end_of_the_agent_is_the_end_of_the_machine(stage: &Stage) {
    for (verb, expected) in [
        (Verb::Exit { status: 3 }, Exit::Status(3)),
        (Verb::Exit { status: 0 }, Exit::Status(0)),
        (Verb::Abort, ABORTED),
    ] {
        let (mut machine, mut agent) = stage.boot("ending").await;
        agent.run("sleep 1000 >/dev/null 2>&1 &").await;
        agent.tell(verb).await;
        assert_eq!(machine.wait().await, expected);
        assert!(!stage.group("ending").is_populated().unwrap(), "nothing lives on");
        assert_eq!(machine.wait().await, expected, "the same answer again");
        machine.kill().await.unwrap();
    }
}

async fn a_killed_machine_leaves_nothing(stage: &Stage) {
    let before = stage.traces();
    let (machine, mut agent) = stage.boot("traces").await;
    agent.run("trap '' TERM; sleep 1000 >/dev/null 2>&1 &").await;
    let during = stage.traces();
    assert!(during.len() >= before.len() + 3, "{during:?}");
    machine.kill().await.unwrap();
    assert_eq!(stage.traces(), before);
}

async fn an_agent_that_serves_its_own_volume_can_die(stage: &Stage) {
    // Which of the agent's threads ends last is chance.
    for _ in 0..5 {
        let (mut machine, mut agent) = stage.boot("server").await;
        stage::make_image(&stage.data("server").join("image"));
        agent.tell(Verb::MountAndAbort).await;
        let ended = tokio::time::timeout(stage::PATIENCE, machine.wait()).await;
        assert_eq!(ended, Ok(ABORTED), "the agent waits for itself");
        machine.kill().await.unwrap();
    }
}

async fn a_frozen_volume_is_thawed_when_the_agent_dies(stage: &Stage) {
    for verb in [Verb::FreezeAndAbort, Verb::FreezeWithoutAWordAndAbort] {
        let (mut machine, mut agent) = stage.boot("frozen").await;
        // A process that waits for the frozen volume cannot be killed before it is thawed.
        agent.run("(while :; do echo more > ~/file; done) >/dev/null 2>&1 &").await;
        agent.tell(verb).await;
        assert_eq!(machine.wait().await, ABORTED);
        std::fs::write(stage.data("frozen").join("after"), "thawed").unwrap();
        machine.kill().await.unwrap();
    }
}

async fn a_frozen_volume_is_thawed_when_it_takes_too_long(stage: &Stage) {
    let (machine, mut agent) = stage.boot("slow").await;
    let frozen = Instant::now();
    assert_eq!(
        agent.ask(Verb::FreezeAndWrite).await.text(),
        "the filesystem was frozen for longer than 1s and was thawed"
    );
    assert!(frozen.elapsed().as_millis() >= 900);
    assert_eq!(agent.ask(Verb::FreezeAndThaw).await.text(), "thawed in order");
    machine.kill().await.unwrap();
}

async fn a_machine_that_cannot_start_says_why_and_leaves_nothing(stage: &Stage) {
    let before = stage.traces();
    let mut spec = stage.spec("broken");
    spec.base = "/no/such/base".into();
    let error = stage.host().boot(spec).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "machine broken did not start: build the machine: bind the base image: No such file or directory (os error 2)"
    );
    assert_eq!(stage.traces(), before);
}

async fn settings_that_make_no_sense_are_refused(stage: &Stage) {
    for name in ["", "A", "a/b", "..", "a\0", &"x".repeat(33)] {
        assert!(matches!(stage.host().channel(name), Err(Error::Settings { .. })), "{name:?}");
    }
    for instance in ["", "g", "123456789", "../x"] {
        let mut settings = stage.settings();
        settings.instance = instance.into();
        assert!(
            matches!(Host::prepare(settings).await, Err(Error::Settings { .. })),
            "{instance:?}"
        );
    }
    let mut settings = stage.settings();
    settings.instance = "0".into();
    settings.agent = "/bin/ls".into();
    let error = Host::prepare(settings).await.unwrap_err();
    assert!(
        error.to_string().contains("not a statically linked program; build it with"),
        "{error}"
    );
}

async fn an_image_is_mounted_once(stage: &Stage) {
    let (first, second) = tokio::join!(stage.mount_image(), stage.mount_image());
    assert_eq!((&first, &first), (&second, &stage.base().to_owned()));
    let error = stage.host().mount_image(Path::new("/etc/passwd"), "00").await.unwrap_err();
    assert!(matches!(error, Error::Image { .. }), "{error}");
}

async fn machines_start_quickly_at_once(stage: &Stage) {
    let begin = Instant::now();
    let names: Vec<_> = (0..10).map(|number| format!("quick-{number}")).collect();
    let machines = stage::all(names.iter().map(|name| stage.boot(name))).await;
    let started = begin.elapsed();
    for (machine, mut agent) in machines {
        assert_eq!(agent.run("echo up").await, "up\n");
        machine.kill().await.unwrap();
    }
    eprintln!(
        "10 machines at once: {started:?} until all took commands, {:?} with their end",
        begin.elapsed()
    );
}

/// What `ping` does where it has no right to raw sockets; that of busybox does not.
fn ping() -> ExitCode {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};
    let socket =
        rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP)).unwrap();
    let outside = std::net::SocketAddrV4::new(stage::OUTSIDE.parse().unwrap(), 0);
    rustix::net::sendto(&socket, &[8, 0, 0, 0, 0, 0, 0, 1], SendFlags::empty(), &outside).unwrap();
    let mut answer = [0; 64];
    rustix::net::recv(&socket, &mut answer, RecvFlags::empty()).unwrap();
    assert_eq!(answer[0], 0, "an answer");
    println!("answered");
    ExitCode::SUCCESS
}

/// How a first process of a process namespace aborts: the kernel withholds SIGABRT from it, so the C library crashes it.
const ABORTED: Exit = Exit::Signal(11);

/// The program of the test that follows: a server that is killed while a machine runs.
fn serve_until_killed() -> ExitCode {
    Runtime::new().unwrap().block_on(async {
        let stage = Stage::prepare("dead").await;
        let (machine, mut agent) = stage.boot("orphan").await;
        agent.run("sleep 1000 >/dev/null 2>&1 &").await;
        println!("{}", machine.pid());
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

async fn a_killed_server_takes_its_machines_along(_: &Stage) {
    let mut server = std::process::Command::new("/proc/self/exe");
    let mut server = server.arg("server").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut pid = String::new();
    std::io::BufReader::new(server.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    let agent = Path::new("/proc").join(pid.trim());
    assert!(agent.exists());
    server.kill().unwrap();
    server.wait().unwrap();
    until("the machine is gone", || async { !agent.exists() }).await;
    assert!(!stage::traces("dead").is_empty(), "what only the next start removes");
    let stage = Stage::prepare("dead").await;
    assert_eq!(stage::traces("dead"), stage.traces_of_a_new_host());
    stage.shutdown().await;
    assert_eq!(stage::traces("dead"), Vec::<String>::new());
}

async fn shutdown_leaves_nothing(stage: &Stage) {
    // Not killed on purpose.
    let (mut machine, _agent) = stage.boot("last").await;
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");
    stage.shutdown().await;
    assert_eq!(machine.wait().await, Exit::Signal(9));
    assert_eq!(stage::traces("7e57"), Vec::<String>::new());
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "0\n");
}
