//! The container, built for real: needs root, and a Debian with `busybox-static`, `e2fsprogs` and `mount`.
//!
//! This program is its own zygote, as the agent is: it starts itself again with the argument `zygote`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod stage;

use guest::container::{Command, SignalError, SpawnError, Stdio, User};
use guest::protocol::Limits;
use libtest_mimic::{Arguments, Failed, Trial};
use stage::{Stage, run, run_as, shell};
use std::{os::fd::AsFd, process::ExitCode, sync::Arc, time::Instant};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("zygote") {
        return guest::zygote::main();
    }
    stage::enter();
    let runtime = Arc::new(Runtime::new().unwrap());
    let shared = Arc::new(runtime.block_on(Stage::start("shared", stage::LIMITS)));
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials(&runtime, &shared));
    let shared = Arc::into_inner(shared).unwrap();
    runtime.block_on(shared.stop());
    conclusion.exit_code()
}

fn trials(runtime: &Arc<Runtime>, shared: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    macro_rules! shared {
        ($($name:ident),*) => {$({
            let (runtime, shared) = (Arc::clone(runtime), Arc::clone(shared));
            trials.push(Trial::test(stringify!($name), move || {
                runtime.block_on($name(&shared));
                Ok::<(), Failed>(())
            }));
        })*};
    }
    macro_rules! alone {
        ($($name:ident),*) => {$({
            let runtime = Arc::clone(runtime);
            trials.push(Trial::test(stringify!($name), move || {
                runtime.block_on($name());
                Ok::<(), Failed>(())
            }));
        })*};
    }
    shared![
        a_command_gives_its_output_and_its_path,
        exit_codes_are_those_of_a_shell,
        a_terminal_has_its_size_and_its_name,
        users_are_mapped_to_ids_of_nobody,
        two_hundred_commands_at_once,
        long_arguments_arrive_whole,
        the_exit_comes_although_children_keep_the_pipes,
        signals_reach_the_group_and_never_a_stranger,
        set_user_id_programs_work,
        the_host_cannot_be_seen_or_changed,
        the_root_is_a_normal_disk,
        the_host_name_can_be_changed_from_outside,
        a_command_takes_little_time
    ];
    alone![
        fork_bombs_end_at_the_limit,
        memory_hogs_die_alone,
        stopping_leaves_nothing_and_keeps_the_disk,
        links_in_the_root_lead_nowhere,
        a_kill_from_outside_is_noticed,
        nonsense_does_not_hurt_the_zygote
    ];
    trials
}

async fn a_command_gives_its_output_and_its_path(stage: &Stage) {
    let mut command = shell("echo out; echo err >&2; cat");
    command.stdio = Stdio::Pipes { stdin: true };
    let (process, io) = stage.container().spawn(command).await.unwrap();
    assert_eq!(process.resolved(), "/bin/sh");
    let (out, err) = stage::finish(io, Some("in\n")).await;
    assert_eq!((out.as_str(), err.as_str(), process.wait().await), ("out\nin\n", "err\n", 0));
    assert_eq!(process.wait().await, 0, "the same answer again");
}

async fn exit_codes_are_those_of_a_shell(stage: &Stage) {
    assert_eq!(run(stage, "exit 7").await.code, 7);
    assert_eq!(run(stage, "kill -TERM $$").await.code, 128 + 15);
    let mut command = shell("");
    command.argv = vec!["no-such-program".into()];
    let error = stage.container().spawn(command.clone()).await.unwrap_err();
    assert_eq!(
        (error.exit_code(), &error),
        (127, &SpawnError::NotFound { program: "no-such-program".into() })
    );
    command.argv = vec!["/etc/passwd".into()];
    let error = stage.container().spawn(command.clone()).await.unwrap_err();
    assert!(matches!(error, SpawnError::NotExecutable { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 126);
    command.argv = vec!["/etc".into()];
    assert!(matches!(
        stage.container().spawn(command.clone()).await,
        Err(SpawnError::NotExecutable { .. })
    ));
    command.argv = vec!["true".into(), "a\0b".into()];
    assert!(matches!(
        stage.container().spawn(command.clone()).await,
        Err(SpawnError::Invalid { .. })
    ));
    command.argv = vec!["true".into()];
    command.dir = Some("/no/such".into());
    assert!(matches!(stage.container().spawn(command.clone()).await, Err(SpawnError::Dir { .. })));
    command.argv = Vec::new();
    assert!(matches!(stage.container().spawn(command).await, Err(SpawnError::Invalid { .. })));
}

async fn a_terminal_has_its_size_and_its_name(stage: &Stage) {
    let mut command =
        shell("tty; stty size; read line; stty size; id -u; exec 3</dev/tty && echo own");
    command.stdio = Stdio::Terminal { rows: 24, cols: 80 };
    let (process, io) = stage.container().spawn(command).await.unwrap();
    let mut terminal = stage::Terminal::new(io);
    terminal.read_until("24 80").await;
    process.resize(50, 132).unwrap();
    terminal.write("\n").await;
    let text = terminal.read_until("own").await;
    assert_eq!(process.wait().await, 0);
    assert!(
        text.contains("/dev/pts/") && text.contains("50 132") && text.contains("1001"),
        "{text}"
    );
}

async fn users_are_mapped_to_ids_of_nobody(stage: &Stage) {
    for (user, inside) in [(User::Sprite, 1001), (User::Root, 0)] {
        let output = run_as(
            stage,
            user,
            "id -u; id -G; grep ^Cap /proc/self/status; cat /proc/self/uid_map",
        )
        .await;
        let mut lines = output.out.lines();
        assert_eq!(lines.next(), Some(inside.to_string().as_str()), "{output:?}");
        if user == User::Sprite {
            assert_eq!(lines.next(), Some("1001 27"), "the groups of /etc/group");
        }
        // Other tests sleep too.
        let sleep = format!("sleep 9{inside}");
        let (process, io) =
            stage.container().spawn(Command { user, ..shell(&sleep) }).await.unwrap();
        let outside = stage.outside_uid(&sleep).await;
        assert_eq!(outside, stage::UID_START + inside);
        process.signal_group(9).await.unwrap();
        assert_eq!(process.wait().await, 137);
        drop(io);
    }
}

async fn two_hundred_commands_at_once(stage: &Stage) {
    let one = async |n: i32| {
        let output = run(stage, &format!("echo {n}; exit {}", n % 100)).await;
        assert_eq!((output.out, i32::from(output.code)), (format!("{n}\n"), n % 100));
    };
    stage::all((0..200).map(one).collect()).await;
}

async fn long_arguments_arrive_whole(stage: &Stage) {
    let mut command = shell("shift; cat >/dev/null; echo $# ${#1} ${#4}");
    command.argv.push("sh".into());
    command.argv.extend((0..5).map(|_| "x".repeat(100_000)));
    let (process, io) = stage.container().spawn(command.clone()).await.unwrap();
    let (out, _) = stage::finish(io, None).await;
    assert_eq!((out.as_str(), process.wait().await), ("4 100000 100000\n", 0));
    command.argv.extend((0..100).map(|_| "x".repeat(100_000)));
    let error = stage.container().spawn(command).await.unwrap_err();
    assert!(matches!(error, SpawnError::Exhausted { .. }), "{error:?}");
}

async fn the_exit_comes_although_children_keep_the_pipes(stage: &Stage) {
    let (process, io) =
        stage.container().spawn(shell("sleep 1000 & echo $!; exit 3")).await.unwrap();
    assert_eq!(process.wait().await, 3);
    let child = stage::first_line(io).await;
    assert_eq!(run(stage, &format!("kill -9 {child}")).await.code, 0, "the child lives on");
}

async fn signals_reach_the_group_and_never_a_stranger(stage: &Stage) {
    let (process, io) =
        stage.container().spawn(shell("sleep 1000 & sleep 1000; wait")).await.unwrap();
    assert!(matches!(process.signal_group(4096).await, Err(SignalError::Invalid { signal: 4096 })));
    process.signal_group(15).await.unwrap();
    assert_eq!(process.wait().await, 143);
    // The pipes close only when the child in the background is gone too.
    stage::finish(io, None).await;
    assert!(matches!(process.signal_group(15).await, Err(SignalError::Ended)));
}

async fn set_user_id_programs_work(stage: &Stage) {
    let output = run(stage, "/bin/su -c 'id -u; touch /root/by-root && echo made'").await;
    assert_eq!(output.out, "0\nmade\n", "{output:?}");
}

async fn the_host_cannot_be_seen_or_changed(stage: &Stage) {
    let host_file = stage.host_file();
    for (user, script) in [
        (User::Root, format!("test -e {host_file}")),
        (User::Root, "mount -t tmpfs none /mnt".into()),
        (User::Root, "umount /proc".into()),
        (User::Root, "unshare -U true".into()),
        (User::Sprite, "unshare -U true".into()),
        (User::Root, "unshare -m true".into()),
        (User::Root, "mknod /tmp/disk b 7 0".into()),
        (User::Root, "hostname other".into()),
        (User::Root, "ip link add dummy0 type dummy".into()),
        (User::Root, "ip link set lo mtu 1000".into()),
        (User::Root, "dmesg".into()),
        (User::Root, "echo b > /proc/sysrq-trigger".into()),
        (User::Root, "echo 1 > /proc/sys/kernel/panic".into()),
        (User::Root, "echo 1 > /sys/fs/cgroup/memory/cgroup.procs".into()),
        (User::Root, "ls /sys/block | grep .".into()),
        (User::Root, "cat /proc/kallsyms | grep .".into()),
        (User::Root, "cat /proc/1/environ | grep .".into()),
        (User::Root, "ls -l /proc/1/fd | grep socket".into()),
        (User::Root, "kill -9 1 && sleep 0.1 && ! true".into()),
        (User::Root, "chroot /proc/1/root test -e /lib64".into()),
    ] {
        let output = run_as(stage, user, &script).await;
        assert_ne!(output.code, 0, "`{script}` as {user:?}: {output:?}");
    }
    let output = run(stage, "ls -d /proc/[0-9]* | wc -l").await;
    assert!(
        output.out.trim().parse::<u32>().unwrap() < 50,
        "only the container's processes: {output:?}"
    );
    let output = run(stage, "ls /dev; cat /proc/1/comm; grep Seccomp: /proc/self/status").await;
    assert_eq!(
        output.out.split_whitespace().collect::<Vec<_>>().join(" "),
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero zygote Seccomp: 2"
    );
}

async fn the_root_is_a_normal_disk(stage: &Stage) {
    let script = "set -e; cd /home/sprite; echo data > file; ln file hard; mkdir -p a/b; mv a c; test -d c/b; \
        mv /opt/from-base /opt/renamed; test -f /opt/renamed/file; rm -r /opt/renamed; chown 1001:1001 /srv; \
        mkfifo /tmp/pipe; df / | tail -1; cat /etc/resolv.conf; ls /.sprite; cat /proc/self/oom_score_adj";
    let output = run_as(stage, User::Root, script).await;
    assert_eq!(output.code, 0, "{output:?}");
    for expected in ["nameserver 192.0.2.53", "version.txt", "500"] {
        assert!(output.out.contains(expected), "{expected}: {output:?}");
    }
    let output = run_as(stage, User::Root, "touch /.sprite/version.txt").await;
    assert_ne!(output.code, 0, "read-only");
    // Ids on the disk are the container's own, so the disk can move to another machine.
    assert_eq!(stage.owner_on_disk("root/upper/srv"), 1001);
    assert_eq!(stage.owner_on_disk("root/upper/home/sprite/file"), 0);
    assert_eq!(
        std::fs::read(stage.container().root().join("home/sprite/file")).unwrap(),
        b"data\n"
    );
}

async fn the_host_name_can_be_changed_from_outside(stage: &Stage) {
    stage.container().set_hostname("other-name").await.unwrap();
    assert_eq!(run(stage, "hostname; cat /etc/hostname").await.out, "other-name\nother-name\n");
    for bad in ["", "a b", "a/b", "a\nb", &"x".repeat(65)] {
        assert!(stage.container().set_hostname(bad).await.is_err(), "{bad:?}");
    }
    stage.container().set_hostname("sprite-1").await.unwrap();
    assert_eq!(run(stage, "hostname").await.out, "sprite-1\n");
}

async fn a_command_takes_little_time(stage: &Stage) {
    let mut times = Vec::new();
    for _ in 0..50 {
        let begin = Instant::now();
        let (process, _io) = stage.container().spawn(shell("exit 0")).await.unwrap();
        process.wait().await;
        times.push(begin.elapsed());
    }
    times.sort();
    // About 1.5 ms where nothing else runs; the limit only catches what waits for a timer or a retry.
    assert!(times[25].as_millis() < 100, "median {:?}", times[25]);
    eprintln!("spawn to exit: median {:?}, worst {:?}", times[25], times[49]);
}

async fn fork_bombs_end_at_the_limit() {
    let limit = 40;
    let stage = Stage::start("forks", Limits { pids: limit, ..stage::LIMITS }).await;
    let (bomb, _io) =
        stage.container().spawn(shell("bomb() { bomb | bomb & sleep 1000; }; bomb")).await.unwrap();
    for _ in 0..20 {
        let spawned = stage.container().spawn(shell("exit 0")).await;
        assert!(matches!(spawned, Ok(_) | Err(SpawnError::Exhausted { .. })), "{spawned:?}");
    }
    let stage = stage.bounce().await;
    drop(bomb);
    let mut held = Vec::new();
    let error = loop {
        match stage.container().spawn(shell("exec sleep 1000")).await {
            Ok(process) => held.push(process),
            Err(error) => break error,
        }
    };
    // The zygote counts too.
    assert_eq!(held.len(), 39, "{error:?}");
    assert!(matches!(error, SpawnError::Exhausted { .. }), "{error:?}");
    held[0].0.signal_group(9).await.unwrap();
    held[0].0.wait().await;
    assert_eq!(run(&stage, "exit 5").await.code, 5);
    stage.stop().await;
}

async fn memory_hogs_die_alone() {
    let stage = Stage::start("memory", Limits { memory_bytes: 48 << 20, ..stage::LIMITS }).await;
    let output = run(&stage, "dd if=/dev/zero of=/dev/null bs=300M count=1").await;
    assert_eq!(output.code, 137, "{output:?}");
    assert_eq!(run(&stage, "echo alive").await.out, "alive\n");
    stage.stop().await;
}

async fn stopping_leaves_nothing_and_keeps_the_disk() {
    let stage = Stage::start("stop", stage::LIMITS).await;
    assert_eq!(run(&stage, "echo kept > ~/file").await.code, 0);
    let (process, _io) = stage.container().spawn(shell("trap '' TERM; sleep 1000")).await.unwrap();
    let stage = stage.bounce().await;
    assert_eq!(process.wait().await, 137);
    assert!(process.signal_group(9).await.is_err());
    assert_eq!(run(&stage, "cat ~/file").await.out, "kept\n");
    stage.stop().await;
}

async fn links_in_the_root_lead_nowhere() {
    let stage = Stage::start("links", stage::LIMITS).await;
    let script = "rm -rf /opt /srv /mnt; ln -s / /opt; mv /etc /elsewhere; ln -s /elsewhere /etc; cp /etc/passwd /tmp";
    run_as(&stage, User::Root, script).await;
    let stage = stage
        .bounce_after(|volume| {
            let upper = volume.join("root/upper");
            for name in ["proc", "var"] {
                let _ = std::fs::remove_dir_all(upper.join(name));
                std::os::unix::fs::symlink("/../../../../tmp", upper.join(name)).unwrap();
            }
        })
        .await;
    assert!(!std::path::Path::new("/tmp/self").exists(), "/proc was mounted outside");
    assert_eq!(run(&stage, "echo works").await.out, "works\n");
    stage.stop().await;
}

async fn a_kill_from_outside_is_noticed() {
    let stage = Stage::start("killed", stage::LIMITS).await;
    let (process, _io) = stage.container().spawn(shell("sleep 1000")).await.unwrap();
    stage.container().cgroup().kill().unwrap();
    stage.container().died().await;
    assert_eq!(process.wait().await, 137);
    let error = stage.container().spawn(shell("true")).await.unwrap_err();
    assert!(matches!(error, SpawnError::Container { .. }), "{error:?}");
    stage.stop().await;
}

async fn nonsense_does_not_hurt_the_zygote() {
    let stage = Stage::start("nonsense", stage::LIMITS).await;
    for socket in stage::zygote_sockets() {
        let descriptors = [socket.as_fd(), socket.as_fd(), socket.as_fd()];
        for (bytes, count) in [
            (b"{".as_slice(), 0),
            (b"null", 0),
            (b"@", 0),
            (b"@", 1),
            (b"{\"Spawn\":{\"id\":1}}", 3),
            (b"{\"Signal\":{\"id\":1,\"serial\":1,\"signal\":-1}}", 0),
            (&[0xff; 20_000], 0),
        ] {
            stage::send(&socket, bytes, &descriptors[..count]);
        }
        // Streams are missing, or are not what they should be.
        let spawn = |stdio: &str| {
            format!(
                "{{\"Spawn\":{{\"id\":999999,\"program\":{{\"argv\":[\"true\"],\"path\":null,\"env\":[],\"dir\":null,\
             \"user\":\"Sprite\",\"stdio\":{stdio}}}}}}}"
            )
        };
        stage::send(&socket, spawn("{\"Pipes\":{\"stdin\":true}}").as_bytes(), &descriptors[..1]);
        stage::send(&socket, spawn("{\"Terminal\":{\"rows\":0,\"cols\":65535}}").as_bytes(), &[]);
    }
    for _ in 0..10 {
        assert_eq!(run(&stage, "echo alive").await.out, "alive\n");
    }
    stage.stop().await;
}
