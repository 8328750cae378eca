//! What a terminal shows, made of what was printed to it: what a client sees that comes back to a session.
//!
//! Replayed as they were, the bytes would ask the client's terminal questions that it answers into the program's input, and would
//! draw for a size that the terminal may not have any more. So a model of a terminal reads them, and what it shows is sent:
//! the lines that have left the screen, for the client to scroll back to, then the screen.

use api::exec::TerminalSize;
use std::num::NonZeroU16;

/// The most lines that have left the screen.
const SCROLLBACK_LINES_MAX: usize = 1000;

/// The largest screen that is modelled; each cell takes memory while it is.
const SIDE_MAX: u16 = 1000;

/// Switches to the screen that full-screen programs draw on, so that their end brings the other one back.
const ALTERNATE_SCREEN: &str = "\x1b[?1049h";

/// What shows the same on another terminal as the bytes on one of this size.
pub(super) fn render(size: TerminalSize, bytes: &[u8]) -> Vec<u8> {
    let side = |length: u16| NonZeroU16::new(length.clamp(1, SIDE_MAX)).unwrap_or(NonZeroU16::MIN);
    let (rows, columns) = (side(size.rows), side(size.cols));
    let mut parser = vt100::Parser::new(rows, columns, SCROLLBACK_LINES_MAX);
    parser.process(bytes);
    let mut shown = String::new();
    let is_alternate = parser.screen().alternate_screen();
    if !is_alternate {
        let gone = parser.screen().scrollback_len();
        for line in (1..=gone).rev() {
            parser.screen_mut().set_scrollback(line);
            let first = parser.screen().rows_formatted(0, columns.get()).next();
            shown.push_str(first.as_deref().unwrap_or_default());
            shown.push_str("\x1b[m\r\n");
        }
        parser.screen_mut().set_scrollback(0);
        if gone > 0 {
            // Out of the part of the terminal that is about to be cleared.
            shown.push_str(&"\r\n".repeat(rows.get().into()));
        }
    } else {
        shown.push_str(ALTERNATE_SCREEN);
    }
    shown.push_str(&parser.screen().state_formatted());
    shown.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::render;
    use api::exec::TerminalSize;

    const SIZE: TerminalSize = TerminalSize { rows: 4, cols: 20 };

    /// What a terminal shows that is sent some bytes: the lines of its screen, and how many are above.
    fn shown(bytes: &[u8]) -> (String, usize) {
        let side = |length: u16| length.try_into().unwrap();
        let mut parser = vt100::Parser::new(side(SIZE.rows), side(SIZE.cols), 100);
        parser.process(bytes);
        (parser.screen().contents().trim_end().to_owned(), parser.screen().scrollback_len())
    }

    #[test]
    fn a_terminal_shows_the_same() {
        for bytes in [
            &b"one\r\ntwo"[..],
            b"\x1b[31mred\x1b[m plain\x1b[2;5Hthere",
            b"1\r\n2\r\n3\r\n4\r\n5\r\n6\r\n7",
            b"before\x1b[?1049h\x1b[2J\x1b[Hfull screen",
            b"before\x1b[?1049hfull\x1b[?1049l after",
            b"wide \xe6\xbc\xa2\xe5\xad\x97 and a line that is longer than the screen",
        ] {
            assert_eq!(shown(&render(SIZE, bytes)).0, shown(bytes).0, "{bytes:?}");
        }
        let lines: String = (0..50).map(|line| format!("line {line}\r\n")).collect();
        let again = render(SIZE, lines.as_bytes());
        assert!(String::from_utf8_lossy(&again).contains("line 0\x1b[m\r\nline 1\x1b[m\r\n"));
        assert!(shown(&again).1 >= 47);
    }

    #[test]
    fn questions_are_not_asked_again() {
        let asking = b"\x1b[6n\x1b[c\x1b[>c\x1b]10;?\x1b\\\x1b[5nprompt$ ";
        let again = render(SIZE, asking);
        for question in [&b"\x1b[6n"[..], b"\x1b[c", b"\x1b[>c", b";?", b"\x1b[5n"] {
            assert!(!again.windows(question.len()).any(|part| part == question), "{question:?}");
        }
        assert_eq!(shown(&again).0, "prompt$");
    }

    #[test]
    fn garbage_does_no_harm() {
        let mut state = 1u64;
        let noise: Vec<u8> = (0..1 << 20)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .collect();
        for size in [(4, 20), (1, 1), (0, 0), (1000, 1000)] {
            let (rows, cols) = size;
            render(TerminalSize { rows, cols }, &noise[..64 << 10]);
        }
        render(SIZE, &noise);
        render(SIZE, &b"\x1b[".repeat(100_000));
        render(SIZE, &b"\x1b[99999;99999H\x1b[99999S\x1b[99999L\x1b[99999@x".repeat(100));
    }
}
