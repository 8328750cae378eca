//! The keeper: the process outside of a machine that ends it in order.
//!
//! It waits for one of three things. *The agent ends*: everything else in the machine is killed at once, since programs would
//! go on writing to a dead disk. *The server ends, or drops the machine*: the machine is killed. *The agent freezes its volume*:
//! the keeper takes a descriptor of the mount, and thaws if the agent dies or takes too long. In case the agent froze without
//! a word, the keeper also enters the machine's mount namespace at the end and thaws what is mounted at [`VOLUME`].
//!
//! Before the kernel reports the agent's end it waits for every process of the machine, and a process that waits for a frozen
//! filesystem cannot die. The end of the agent's socket comes before that, so that is what the keeper goes by. It does not come
//! while a thread of the agent waits for the volume, which shares the descriptors and waits for its own dead process: so the
//! keeper also looks, now and then, whether the agent has been killed.

use super::{Report, Step, StepError, VOLUME, connections};
use crate::{
    cgroup::Cgroup,
    freeze::{FREEZE_LIMIT, HOLD, RELEASE},
    sys::{self, Fork},
    wire,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    process::{Pid, WaitOptions},
    thread::LinkNameSpaceType,
};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

/// Keeps the machine until it has ended.
pub(super) fn keep(
    machine: &Cgroup,
    pid: Pid,
    process: &OwnedFd,
    agent: OwnedFd,
) -> Result<Report, StepError> {
    let mounts = format!("/proc/{}/ns/mnt", pid.as_raw_nonzero());
    let mounts = File::open(mounts).step("open the machine's mount namespace")?;
    let mut keeper = Keeper {
        machine,
        pid,
        mounts,
        agent: Some(agent),
        server: true,
        held: None,
        killed: false,
    };
    while !keeper.turn(process)? {}
    keeper.kill();
    let report = reap(pid);
    // Only now may the mount namespace go, see there.
    drop(keeper);
    report
}

/// Kills a machine and waits for its first process.
pub(super) fn end(machine: &Cgroup, pid: Pid) -> Result<(), StepError> {
    machine.kill().step("kill the machine")?;
    reap(pid).map(drop)
}

fn reap(pid: Pid) -> Result<Report, StepError> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Err(Errno::INTR) | Ok(None) => {}
            Err(error) => return Err(error).step("wait for the agent"),
            Ok(Some((_, status))) => {
                if let Some(status) = status.exit_status() {
                    return Ok(Report::Exited { status });
                }
                if let Some(signal) = status.terminating_signal() {
                    return Ok(Report::Killed { signal });
                }
            }
        }
    }
}

struct Keeper<'a> {
    machine: &'a Cgroup,
    /// The agent.
    pid: Pid,
    /// The machine's mount namespace, held until the agent is gone. Its end unmounts the volume, which waits for the
    /// volume's own server; if that happened in the agent's last thread, before the thread has closed the server's
    /// device, the two would wait for each other for ever.
    mounts: File,
    /// The socket to the agent, until the agent ends.
    agent: Option<OwnedFd>,
    /// Whether the server still holds the other end of standard input.
    server: bool,
    /// The frozen mount, and when it is thawed.
    held: Option<(OwnedFd, Instant)>,
    killed: bool,
}

impl Keeper<'_> {
    /// Waits for one thing and deals with it. `true`: the machine has ended.
    fn turn(&mut self, process: &OwnedFd) -> Result<bool, StepError> {
        let nothing = PollFlags::empty();
        let stdin = rustix::stdio::stdin();
        // What has ended stays ready for ever: it must not be asked again.
        let agent = self.agent.as_ref().map_or(process.as_fd(), |agent| agent.as_fd());
        let mut polled = [
            PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(
                agent,
                if self.agent.is_some() { PollFlags::IN } else { nothing },
            ),
            PollFd::from_borrowed_fd(
                if self.server { stdin } else { process.as_fd() },
                if self.server { PollFlags::IN } else { nothing },
            ),
        ];
        let thaw = self.held.as_ref().map(|(_, end)| end.saturating_duration_since(Instant::now()));
        let look = self.agent.as_ref().map(|_| LOOK_INTERVAL);
        let timeout = thaw.into_iter().chain(look).min();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).step("wait for the machine"),
        }
        let [ended, agent, server] = polled.map(|polled| !polled.revents().is_empty());
        if agent && self.agent.is_some() {
            self.hear_agent();
        }
        if self.agent.is_some() && is_killed(self.pid) {
            self.agent = None;
            self.kill();
        }
        if server && self.server && hung_up() {
            self.server = false;
            self.kill();
        }
        if self.held.as_ref().is_some_and(|(_, end)| *end <= Instant::now()) {
            self.thaw("its time is over");
        }
        Ok(ended)
    }

    fn hear_agent(&mut self) {
        let Some(agent) = &self.agent else { return };
        let mut bytes = [0; 64];
        match wire::receive_bytes(agent.as_fd(), &mut bytes) {
            Ok((0, _)) | Err(_) => {
                self.agent = None;
                self.kill();
            }
            Ok((len, mut descriptors)) => match bytes.get(..len) {
                Some(HOLD) => {
                    self.held =
                        descriptors.pop().map(|mount| (mount, Instant::now() + FREEZE_LIMIT));
                }
                Some(RELEASE) => {
                    self.held = None;
                    // An agent that does not listen any more is about to be noticed as dead.
                    drop(wire::send_bytes(agent.as_fd(), RELEASE, &[]));
                }
                _ => {}
            },
        }
    }

    /// Kills, ends what the agent serves, and thaws: what waits for the agent's own disk or for a frozen filesystem dies
    /// only then.
    fn kill(&mut self) {
        if self.killed {
            return;
        }
        self.killed = true;
        if let Err(error) = self.machine.kill() {
            complain(&error);
        }
        if let Err(error) = connections::abort(self.pid) {
            complain(&error);
        }
        if self.held.is_some() {
            self.thaw("the machine ends");
        }
        if let Err(error) = thaw_inside(&self.mounts) {
            complain(&error);
        }
    }

    fn thaw(&mut self, why: &str) {
        let Some((mount, _)) = self.held.take() else { return };
        match sys::freeze(mount.as_fd(), false) {
            Ok(()) => complain(&io::Error::other(format!("thawed the volume: {why}"))),
            // It was thawed in order, or the freeze has not happened yet.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => complain(&error),
        }
    }
}

/// Whether a process was killed, or its first thread has ended, though some thread of it may live on.
fn is_killed(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))
        .is_ok_and(|status| tells_death(&status))
}

/// Whether a `/proc/PID/status` says so: a zombie, or `SIGKILL` pending. A thread that can die takes it at once, so it is
/// seen pending only where a thread cannot.
fn tells_death(status: &str) -> bool {
    status.lines().any(|line| match line.split_once(':') {
        Some(("State", state)) => state.trim_start().starts_with('Z'),
        Some(("SigPnd" | "ShdPnd", set)) => {
            u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set >> (libc::SIGKILL - 1) & 1 == 1)
        }
        _ => false,
    })
}

/// Thaws what is mounted at [`VOLUME`] in this mount namespace, if it is frozen. A process of its own does it, since the
/// keeper has to stay on the host.
fn thaw_inside(mounts: &File) -> io::Result<()> {
    // SAFETY: the keeper has one thread.
    match unsafe { sys::fork() }? {
        Fork::Child => {
            let thawed = rustix::thread::move_into_link_name_space(
                mounts.as_fd(),
                Some(LinkNameSpaceType::Mount),
            )
            .map_err(io::Error::from)
            .and_then(|()| File::open(VOLUME))
            .and_then(|volume| sys::freeze(volume.as_fd(), false));
            if thawed.is_ok() {
                complain(&io::Error::other(
                    "thawed a volume that the agent had frozen without a word",
                ));
            }
            // Nearly always it was not frozen.
            sys::exit_now(0)
        }
        Fork::Parent(child) => {
            rustix::process::waitpid(Some(child), WaitOptions::empty())?;
            Ok(())
        }
    }
}

/// Whether the server's end of standard input is closed. What it might say is of no interest.
fn hung_up() -> bool {
    let mut bytes = [0; 64];
    !matches!(
        rustix::io::read(rustix::stdio::stdin(), &mut bytes),
        Ok(1..) | Err(Errno::INTR | Errno::AGAIN)
    )
}

fn complain(error: &dyn std::error::Error) {
    // The log is the only one to tell.
    drop(writeln!(io::stderr(), "keeper: {error}"));
}

/// How often the keeper looks whether the agent has been killed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::{is_killed, tells_death};
    use rustix::process::{Pid, WaitId, WaitIdOptions};
    use std::process::Command;

    #[test]
    fn a_killed_process_is_told_from_a_living_one() {
        let living =
            "State:\tD (disk sleep)\nSigPnd:\t0000000000004000\nShdPnd:\t0000000000000000\n";
        assert!(!tells_death(living));
        assert!(tells_death(&living.replace("0000000000004000", "0000000000000100")));
        assert!(tells_death(&living.replace("D (disk sleep)", "Z (zombie)")));
        assert!(!tells_death("SigPnd:\tnonsense\nwithout a colon\n"));
    }

    #[test]
    fn a_zombie_counts_as_killed_until_it_is_reaped() {
        assert!(!is_killed(rustix::process::getpid()));
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(!is_killed(pid));
        child.kill().unwrap();
        let dead = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(pid), dead).unwrap();
        assert!(is_killed(pid));
        child.wait().unwrap();
        assert!(!is_killed(pid));
    }
}
