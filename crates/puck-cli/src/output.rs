//! What is printed on standard output, and in which of three forms: a table on a terminal, bare names into a pipe, JSON
//! when asked for.
//!
//! A closed standard output is no failure: it becomes [`OutputError::Closed`], which ends the process without a word.

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// Why standard output did not take the text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// Whoever read it is gone.
    #[error("standard output is closed")]
    Closed,
    /// The text cannot be written as JSON.
    #[error("write JSON")]
    Encode(#[source] serde_json::Error),
    /// Writing failed in another way, as on a full disk.
    #[error("write standard output")]
    Write(#[source] io::Error),
}

/// The form of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// What the API says.
    Json,
    /// The first column, one a line.
    Names,
    /// For people.
    Table,
}

impl Format {
    /// The form for this process's standard output.
    pub(crate) fn choose(json: bool) -> Self {
        match (json, io::stdout().is_terminal()) {
            (true, _) => Self::Json,
            (false, true) => Self::Table,
            (false, false) => Self::Names,
        }
    }
}

/// Prints `text` as it is.
pub(crate) fn print(text: &str) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => OutputError::Closed,
        _ => OutputError::Write(error),
    })
}

/// Prints one line.
pub(crate) fn line(text: &str) -> Result<(), OutputError> {
    print(&format!("{text}\n"))
}

/// Prints a remark on standard error. Where nobody reads it nothing is lost.
pub(crate) fn note(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

/// A value as JSON for people and programs, with a line end.
pub(crate) fn json(value: &impl Serialize) -> Result<String, OutputError> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(OutputError::Encode)
}

/// A list in the wanted form. Each row's first cell is its name.
pub(crate) fn list<T: Serialize>(
    format: Format,
    items: &[T],
    header: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<String, OutputError> {
    let rows =
        items.iter().map(|item| row(item).iter().map(|cell| clean(cell)).collect::<Vec<_>>());
    match format {
        Format::Json => json(&items),
        Format::Names => {
            Ok(rows.filter_map(|row| row.into_iter().next()).map(|name| name + "\n").collect())
        }
        Format::Table => Ok(table(header, rows)),
    }
}

/// The text with every control character made a space, so that nothing a server sends can command the terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// How long ago, in the largest unit that fits.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second());
    match seconds {
        ..=0 => "now".into(),
        1..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86_400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// A time to the second, and how long ago it was.
pub(crate) fn time(then: Timestamp, now: Timestamp) -> String {
    format!("{} ({})", then.strftime("%Y-%m-%d %H:%M:%S UTC"), ago(then, now))
}

/// A number of bytes for people: `512 B`, `1.50 kB`, `10.00 GB`.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::DecimalBytes(count).to_string()
}

/// `key: value` lines with the values in one column.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 1;
    pairs
        .iter()
        .map(|(key, value)| format!("{:width$}  {}\n", format!("{key}:"), clean(value)))
        .collect()
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied()).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::{Format, ago, clean, list, pairs, time};
    use jiff::Timestamp;

    fn check(format: Format, expected: &str) {
        let items = ["web\u{1b}c", "db"];
        let text = list(format, &items, &["NAME", "LENGTH"], |item| {
            vec![(*item).into(), item.len().to_string()]
        });
        assert_eq!(text.expect("plain text"), expected);
    }

    #[test]
    fn one_list_has_three_forms() {
        check(Format::Table, "NAME   LENGTH\nweb c  5\ndb     2\n");
        check(Format::Names, "web c\ndb\n");
        check(Format::Json, "[\n  \"web\\u001bc\",\n  \"db\"\n]\n");
    }

    #[test]
    fn times_are_told_in_the_largest_unit() {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        for (seconds, text) in [
            (-5, "now"),
            (0, "now"),
            (59, "59s ago"),
            (61, "1m ago"),
            (7200, "2h ago"),
            (90_000, "1d ago"),
        ] {
            assert_eq!(
                ago(Timestamp::from_second(1_000_000 - seconds).expect("in range"), now),
                text
            );
        }
    }

    #[test]
    fn pairs_line_up() {
        assert_eq!(
            pairs(&[("Name", "web".into()), ("Status", "cold".into())]),
            "Name:    web\nStatus:  cold\n"
        );
        let then = Timestamp::from_second(1_000_000).expect("in range");
        assert_eq!(time(then, then), "1970-01-12 13:46:40 UTC (now)");
        assert_eq!(clean("a\tb\u{9b}c"), "a b c");
    }
}
