//! The client in a pseudo-terminal: raw mode and its end, sizes, leaving and coming back.

use super::client;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, OwnedFd},
    process::{ioctl_tiocsctty, setsid},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use std::{
    fs::File,
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::Child,
};
use tempfile::TempDir;

/// How long something that is expected may take to be printed.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

struct Terminal {
    /// The side of the person.
    person: File,
    /// The side of the program, kept open so that its modes can be looked at.
    program: OwnedFd,
    child: Child,
    /// Where the client runs; removed at the end.
    _directory: TempDir,
    seen: String,
}

impl Terminal {
    fn start(arguments: &[&str]) -> Self {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a pseudo-terminal");
        grantpt(&person).expect("ours");
        unlockpt(&person).expect("ours");
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let program = ioctl_tiocgptpeer(&person, flags).expect("its other side");
        resize(&program, 33, 111);
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut command = client(directory.path(), arguments);
        let side = || program.try_clone().expect("a descriptor");
        command.stdin(side()).stdout(side()).stderr(side()).env("TERM", "xterm-256color");
        // SAFETY: between fork and exec only two system calls are made, and both are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().expect("the client starts");
        Self {
            person: File::from(person),
            program,
            child,
            _directory: directory,
            seen: String::new(),
        }
    }

    /// Reads until `text` has been printed since the last call.
    fn expect(&mut self, text: &str) {
        let mut piece = [0; 1024];
        while !self.seen.contains(text) {
            let mut readable = [PollFd::new(&self.person, PollFlags::IN)];
            let ready = poll(&mut readable, Some(&PATIENCE)).expect("poll");
            assert!(ready > 0, "{text:?} does not come after {:?}", self.seen);
            let n = self.person.read(&mut piece).expect("the terminal is open");
            self.seen.push_str(&String::from_utf8_lossy(&piece[..n]));
        }
        let end = self.seen.find(text).expect("just seen") + text.len();
        self.seen.drain(..end);
    }

    fn type_keys(&mut self, keys: &str) {
        self.person.write_all(keys.as_bytes()).expect("the terminal is open");
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.program).expect("a terminal").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().expect("our child").code()
    }
}

fn resize(terminal: &impl AsFd, rows: u16, cols: u16) {
    let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("a terminal");
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Where the test has failed the client may still run; where it has not this does nothing.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_console_is_raw_until_it_ends() {
    let mut terminal = Terminal::start(&["console", "-s", "web"]);
    terminal.expect("new\r\nsize 33x111");
    assert!(terminal.is_raw());
    terminal.type_keys("\x03");
    terminal.expect("typed \x03");
    resize(&terminal.person, 40, 120);
    terminal.expect("size 40x120");
    terminal.type_keys("x");
    assert_eq!(terminal.exit_code(), Some(7));
    assert!(!terminal.is_raw());
}

#[test]
fn leaving_says_how_to_come_back() {
    let mut terminal = Terminal::start(&["exec", "--tty", "-s", "web", "vim"]);
    terminal.expect("size 33x111");
    terminal.type_keys("\x1b[?1049h");
    terminal.expect("typed \x1b[?1049h");
    terminal.type_keys("\x1c");
    terminal.expect("\x1b[?1049l");
    terminal.expect("Detached from session 7. Come back with: puck attach 7 -s web");
    assert_eq!(terminal.exit_code(), Some(0));
    assert!(!terminal.is_raw());
    let mut terminal = Terminal::start(&["attach", "7", "-s", "web"]);
    terminal.expect("attached\r\nsize 33x111");
    terminal.type_keys("x");
    assert_eq!(terminal.exit_code(), Some(7));
}

#[test]
fn a_dropped_connection_comes_back_by_itself() {
    let mut terminal = Terminal::start(&["console", "-s", "web"]);
    terminal.expect("size 33x111");
    terminal.type_keys("d");
    terminal.expect("connection lost, reconnecting to session 7");
    terminal.expect("attached\r\nsize 33x111");
    assert!(terminal.is_raw());
    terminal.type_keys("x");
    assert_eq!(terminal.exit_code(), Some(7));
    assert!(!terminal.is_raw());
}

#[test]
fn a_list_is_a_table_and_destroying_asks() {
    let mut terminal = Terminal::start(&["list"]);
    terminal.expect("NAME  STATUS  LAST AWAKE");
    terminal.expect("web   cold");
    assert_eq!(terminal.exit_code(), Some(0));
    for (answer, code) in [("n\n", 1), ("y\n", 0)] {
        let mut terminal = Terminal::start(&["destroy", "web"]);
        terminal.expect("all its checkpoints? [y/N] ");
        terminal.type_keys(answer);
        assert_eq!(terminal.exit_code(), Some(code));
    }
}
