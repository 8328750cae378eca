//! The terminal in front of the user: raw mode, its size, and what has to be put right before it is given back.
//!
//! Raw mode ends on every way out: [`RawMode`] ends it when dropped, and a hook ends it before a panic prints its message.
//! Ending it twice does no harm.

use api::exec::TerminalSize;
use crossterm::terminal;
use std::{
    collections::BTreeSet,
    env,
    io::{self, IsTerminal},
    panic,
    sync::Once,
};

/// The key that leaves a session without ending it: Ctrl and backslash.
const DETACH_KEY: u8 = 0x1c;

/// The same key as a terminal in the extended keyboard mode reports it.
const DETACH_KEY_EXTENDED: &[u8] = b"\x1b[92;5u";

/// The terminals that a plain Debian knows. Another one is called by the name of the closest.
const KNOWN_TERMINALS: [&str; 13] = [
    "ansi",
    "dumb",
    "linux",
    "rxvt",
    "rxvt-unicode",
    "rxvt-unicode-256color",
    "screen",
    "screen-256color",
    "tmux",
    "tmux-256color",
    "vt220",
    "xterm",
    "xterm-256color",
];

/// What a program in the sprite is told when its terminal is not known there.
const TERMINAL_DEFAULT: &str = "xterm-256color";

/// The terminal's keys come one by one and uninterpreted while this lives.
pub(crate) struct RawMode(());

impl RawMode {
    /// Switches to raw mode, if standard input is a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let report = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                leave();
                report(panic);
            }));
        });
        terminal::enable_raw_mode()?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        leave();
    }
}

fn leave() {
    // A terminal that is gone cannot be put right, and nobody looks at it.
    drop(terminal::disable_raw_mode());
}

/// The terminal's size, or the usual one where there is no terminal.
pub(crate) fn size() -> TerminalSize {
    match terminal::window_size() {
        Ok(window) if window.columns > 0 && window.rows > 0 => {
            TerminalSize { rows: window.rows, cols: window.columns }
        }
        _ => TerminalSize::default(),
    }
}

/// What a program needs to know about this terminal and its user's language.
pub(crate) fn environment() -> Vec<(String, String)> {
    let variable =
        |name: &str| env::var(name).ok().filter(|value| !value.is_empty() && !value.contains('\0'));
    let named = variable("TERM").filter(|name| KNOWN_TERMINALS.contains(&name.as_str()));
    let mut pairs = vec![("TERM".to_owned(), named.unwrap_or_else(|| TERMINAL_DEFAULT.into()))];
    pairs.extend(variable("COLORTERM").map(|value| ("COLORTERM".to_owned(), value)));
    pairs
}

/// Where in what was typed the detach key is.
pub(crate) fn detach_position(typed: &[u8]) -> Option<usize> {
    let plain = typed.iter().position(|b| *b == DETACH_KEY);
    let extended =
        typed.windows(DETACH_KEY_EXTENDED.len()).position(|window| window == DETACH_KEY_EXTENDED);
    plain.into_iter().chain(extended).min()
}

/// The modes that a program has switched on in the terminal, read from its output.
///
/// A program that is left running cannot switch them off itself, so whoever leaves it writes [`Modes::reset`]. A pure
/// reader of `ESC [ ? numbers h` and `l`; a sequence may come in pieces.
#[derive(Debug, Default)]
pub(crate) struct Modes {
    on: BTreeSet<u16>,
    parser: Parser,
    numbers: Vec<u16>,
    last: Option<u8>,
}

/// How far into a sequence the reader is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Parser {
    #[default]
    Text,
    Escape,
    Bracket,
    Numbers,
}

/// The modes that are put right: cursor keys, mouse, focus, the other screen, bracketed paste. 25, a visible cursor, is kept
/// here while it is *hidden*, since visible is its normal state.
const TRACKED_MODES: [u16; 13] =
    [1, 25, 47, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 1047, 1049, 2004];

/// The mode whose normal state is on.
const CURSOR_VISIBLE: u16 = 25;

/// More numbers in one sequence than any program sends.
const NUMBERS_MAX: usize = 16;

impl Modes {
    /// Whether the last thing that was printed ended a line.
    pub(crate) fn is_at_line_start(&self) -> bool {
        self.last.is_none_or(|last| last == b'\n')
    }

    /// Reads a piece of output.
    pub(crate) fn read(&mut self, output: &[u8]) {
        self.last = output.last().copied().or(self.last);
        for byte in output {
            self.parser = match (self.parser, byte) {
                (_, 0x1b) => Parser::Escape,
                (Parser::Escape, b'[') => Parser::Bracket,
                (Parser::Bracket, b'?') => {
                    self.numbers = vec![0];
                    Parser::Numbers
                }
                (Parser::Numbers, digit @ b'0'..=b'9') => {
                    if let Some(number) = self.numbers.last_mut() {
                        *number = number.saturating_mul(10).saturating_add(u16::from(digit - b'0'));
                    }
                    Parser::Numbers
                }
                (Parser::Numbers, b';') if self.numbers.len() < NUMBERS_MAX => {
                    self.numbers.push(0);
                    Parser::Numbers
                }
                (Parser::Numbers, b'h' | b'l') => {
                    self.switch(*byte == b'h');
                    Parser::Text
                }
                _ => Parser::Text,
            };
        }
    }

    /// What brings the terminal back to its normal state. Empty if it is in it.
    pub(crate) fn reset(&mut self) -> String {
        let modes = std::mem::take(&mut self.on);
        let reset =
            |mode: u16| format!("\x1b[?{mode}{}", if mode == CURSOR_VISIBLE { 'h' } else { 'l' });
        let colours = if modes.is_empty() { "" } else { "\x1b[0m" };
        modes.into_iter().map(reset).collect::<String>() + colours
    }

    fn switch(&mut self, on: bool) {
        for mode in self.numbers.drain(..).filter(|mode| TRACKED_MODES.contains(mode)) {
            if on == (mode == CURSOR_VISIBLE) {
                self.on.remove(&mode);
            } else {
                self.on.insert(mode);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Modes, detach_position};

    #[test]
    fn what_a_program_left_on_is_switched_off() {
        for (output, reset) in [
            (&["plain \x1b[31mred"][..], ""),
            (&["\x1b[?1049h\x1b[?25l"], "\x1b[?25h\x1b[?1049l\x1b[0m"),
            (&["\x1b[?10", "49h", "\x1b[?1049l"], ""),
            (&["\x1b[?1;2004h"], "\x1b[?1l\x1b[?2004l\x1b[0m"),
            (&["\x1b[?7h\x1b[?99999999h\x1b[?;;;;;;;;;;;;;;;;;;;;;;h"], ""),
            (&["\x1b", "[", "?", "2", "5", "l"], "\x1b[?25h\x1b[0m"),
        ] {
            let mut modes = Modes::default();
            output.iter().for_each(|piece| modes.read(piece.as_bytes()));
            assert_eq!(modes.reset(), reset, "{output:?}");
            assert_eq!(modes.reset(), "");
        }
    }

    #[test]
    fn an_unfinished_line_is_known() {
        let mut modes = Modes::default();
        for (output, is_at_line_start) in
            [("", true), ("$ ", false), ("", false), ("exit\r\n", true)]
        {
            modes.read(output.as_bytes());
            assert_eq!(modes.is_at_line_start(), is_at_line_start, "{output:?}");
        }
    }

    #[test]
    fn the_detach_key_is_found_in_either_form() {
        assert_eq!(detach_position(b"ls\r"), None);
        assert_eq!(detach_position(b"ls\x1c\r"), Some(2));
        assert_eq!(detach_position(b"a\x1b[92;5ub\x1c"), Some(1));
    }
}
