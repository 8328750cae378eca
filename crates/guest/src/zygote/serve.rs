//! The zygote's loop: one thread, one poll, no waiting on anything that a program in the container could hold up.
//!
//! A process is *starting* from its fork until its report pipe closes, which the exec does, and then *running* until it is
//! reaped. The agent hears of an exit only after it heard of the start. Processes that the zygote did not start itself are
//! orphans of the container and are only reaped.

use super::{
    child::{self, Report},
    message::{Program, Reply, Request, SignalOutcome},
};
use crate::{
    container::{SpawnError, Stdio},
    mount,
    sys::{self, Fork},
    wire::{self, Received},
};
use rustix::{
    event::{PollFd, PollFlags},
    fs::{Mode, OFlags},
    io::Errno,
    pipe::PipeFlags,
    process::{Pid, Signal, WaitOptions},
    termios::Winsize,
};
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

/// The most that a starting process may report: a path and a reason.
const REPORT_BYTES_MAX: usize = 64 * 1024;

/// Requests taken in one turn, so that exits are reported meanwhile.
const REQUESTS_PER_TURN: usize = 64;

/// Serves until the agent hangs up; the result is the zygote's exit status.
pub(super) fn serve(socket: &OwnedFd) -> i32 {
    let (Ok(children), Ok(terminals)) = (sys::child_signal(), mount::root(Path::new("/dev/pts")))
    else {
        return 1;
    };
    let mut zygote = Zygote { socket, terminals, processes: HashMap::new() };
    loop {
        match zygote.turn(&children) {
            Ok(true) => {}
            Ok(false) => return 0,
            // Only the socket to the agent can fail here, and without it the container is of no use.
            Err(_) => return 1,
        }
    }
}

struct Zygote<'a> {
    socket: &'a OwnedFd,
    /// The container's terminals. Held open, since root of the container can put anything at `/dev/ptmx`.
    terminals: OwnedFd,
    processes: HashMap<Pid, Process>,
}

struct Process {
    /// The agent's number.
    id: u64,
    state: State,
}

enum State {
    Starting {
        report: OwnedFd,
        reported: Vec<u8>,
        master: Option<OwnedFd>,
        /// Its exit code, if it was reaped already.
        exited: Option<u8>,
    },
    Running,
}

impl Zygote<'_> {
    /// Waits for something to happen and deals with it. `false`: the agent hung up.
    fn turn(&mut self, children: &OwnedFd) -> io::Result<bool> {
        let (starting, requests, exits) = self.wait(children)?;
        for pid in starting {
            self.read_report(pid)?;
        }
        if exits {
            drain(children);
            self.reap()?;
        }
        if requests { self.take_requests() } else { Ok(true) }
    }

    fn wait(&self, children: &OwnedFd) -> io::Result<(Vec<Pid>, bool, bool)> {
        let mut polled =
            vec![PollFd::new(self.socket, PollFlags::IN), PollFd::new(children, PollFlags::IN)];
        let mut pids = Vec::new();
        for (pid, process) in &self.processes {
            if let State::Starting { report, .. } = &process.state {
                polled.push(PollFd::new(report, PollFlags::IN));
                pids.push(*pid);
            }
        }
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        let (requests, exits) = (ready.next().unwrap_or(false), ready.next().unwrap_or(false));
        let starting =
            pids.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(pid, _)| pid).collect();
        Ok((starting, requests, exits))
    }

    fn take_requests(&mut self) -> io::Result<bool> {
        for _ in 0..REQUESTS_PER_TURN {
            match wire::receive(self.socket.as_fd()) {
                Ok(Some(Received { message: Ok(request), descriptors })) => {
                    self.handle(request, descriptors)?;
                }
                // A request that cannot be read has no number to answer to. The agent does not send such.
                Ok(Some(Received { message: Err(_), .. })) => {}
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(error) => return Err(error),
            }
            if !readable(self.socket.as_fd())? {
                break;
            }
        }
        Ok(true)
    }

    fn handle(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        match request {
            Request::Spawn { id, program } => match self.spawn(id, &program, descriptors) {
                Ok(()) => Ok(()),
                Err(error) => self.reply(&Reply::Failed {
                    id,
                    error: SpawnError::from_errno("start a process", &error),
                }),
            },
            Request::Signal { id, serial, signal } => {
                let outcome = self.signal(id, signal);
                self.reply(&Reply::Signalled { serial, outcome })
            }
        }
    }

    fn spawn(&mut self, id: u64, program: &Program, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let (report, report_child) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&report, true)?;
        let master = match program.stdio {
            Stdio::Pipes { .. } => None,
            Stdio::Terminal { rows, cols } => Some(open_terminal(&self.terminals, rows, cols)?),
        };
        // SAFETY: the zygote has one thread.
        match unsafe { sys::fork() }? {
            Fork::Child => child::run(program, descriptors, master, report_child),
            Fork::Parent(pid) => {
                let state = State::Starting { report, reported: Vec::new(), master, exited: None };
                self.processes.insert(pid, Process { id, state });
                Ok(())
            }
        }
    }

    /// Reads what a starting process has to say. The end of the pipe means that its program runs, or that it has given up.
    fn read_report(&mut self, pid: Pid) -> io::Result<()> {
        let Some(Process { state: State::Starting { report, reported, .. }, .. }) =
            self.processes.get_mut(&pid)
        else {
            return Ok(());
        };
        let mut bytes = [0; 4096];
        match rustix::io::read(&*report, &mut bytes) {
            Ok(0) => self.started(pid),
            Ok(len) => {
                if reported.len() < REPORT_BYTES_MAX {
                    reported.extend_from_slice(bytes.get(..len).unwrap_or_default());
                }
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(_) => self.started(pid),
        }
    }

    fn started(&mut self, pid: Pid) -> io::Result<()> {
        let Some(process) = self.processes.remove(&pid) else { return Ok(()) };
        let Process { id, state: State::Starting { reported, master, exited, .. } } = process
        else {
            return Ok(());
        };
        let resolved = match Report::last(&reported) {
            Report::Runs { resolved } => resolved,
            Report::Failed { error } => return self.reply(&Reply::Failed { id, error }),
        };
        let started = Reply::Started { id, pid: pid.as_raw_nonzero().get(), resolved };
        let master: Vec<BorrowedFd<'_>> = master.iter().map(AsFd::as_fd).collect();
        started.send(self.socket.as_fd(), &master)?;
        match exited {
            Some(code) => self.reply(&Reply::Exited { id, code }),
            None => {
                self.processes.insert(pid, Process { id, state: State::Running });
                Ok(())
            }
        }
    }

    fn reap(&mut self) -> io::Result<()> {
        // One call for each process that has ended; ECHILD or nothing ends the loop.
        while let Some((pid, status)) = reap_one() {
            // A process that failed to start has no entry any more, and an orphan never had one.
            let Some(process) = self.processes.get_mut(&pid) else { continue };
            match &mut process.state {
                State::Starting { exited, .. } => *exited = Some(status),
                State::Running => {
                    let id = process.id;
                    self.processes.remove(&pid);
                    self.reply(&Reply::Exited { id, code: status })?;
                }
            }
        }
        Ok(())
    }

    /// A process that is not reaped keeps its id, so the signal cannot hit another.
    fn signal(&self, id: u64, signal: i32) -> SignalOutcome {
        let Some(signal) = Signal::from_named_raw(signal) else { return SignalOutcome::Invalid };
        let living = self
            .processes
            .iter()
            .find(|(_, process)| process.id == id && !process.state.has_exited());
        match living.map(|(pid, _)| rustix::process::kill_process_group(*pid, signal)) {
            Some(Ok(())) => SignalOutcome::Sent,
            Some(Err(_)) | None => SignalOutcome::Ended,
        }
    }

    fn reply(&self, reply: &Reply) -> io::Result<()> {
        reply.send(self.socket.as_fd(), &[])
    }
}

impl State {
    fn has_exited(&self) -> bool {
        matches!(self, Self::Starting { exited: Some(_), .. })
    }
}

fn reap_one() -> Option<(Pid, u8)> {
    // `waitid` does not tell the id through this library, `waitpid` does.
    let (pid, status) = rustix::process::wait(WaitOptions::NOHANG).ok()??;
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 128,
    };
    Some((pid, u8::try_from(code & 0xff).unwrap_or(u8::MAX)))
}

fn open_terminal(terminals: &OwnedFd, rows: u16, cols: u16) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = rustix::fs::openat(terminals, "ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    rustix::termios::tcsetwinsize(
        &master,
        Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 },
    )?;
    Ok(master)
}

fn readable(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&now)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn drain(children: &OwnedFd) {
    let mut bytes = [0; 1024];
    while rustix::io::read(children, &mut bytes).is_ok_and(|len| len > 0) {}
}
