//! What a machine remembers beside a database: under which epochs and nonces it has written the log, or may have.
//!
//! ```text
//! DATABASE-writer    first EPOCH
//!                    EPOCH NONCE        the writer of the head, then those that may have become it since
//!                    ...
//! ```
//!
//! The log's head names its writer. If it is one of these, nobody else has written since, and what only this machine has
//! continues the log. If not, what it has is of an earlier time and must be set aside, even if the database looks the same.
//! A writer is noted, durably, before its claim is sent: a claim that reached the bucket just before a crash must be
//! recognized.
//!
//! `first` begins the row of epochs, up to the newest, that were all this machine's. The volume needs it for what it keeps
//! beside the database: what is of an earlier epoch is out of date.

use crate::{
    error::{Error, local},
    local::{sidecar, sync_directory},
    ownership::Writer,
};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};
use tracing::warn;

const SUFFIX: &str = "-writer";
const SUFFIX_NEW: &str = "-writer.new";

/// Claims in a row whose fate is unknown that are remembered. Another one would have to arrive after all of these were sent.
const WRITERS_MAX: usize = 16;

/// What was noted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Note {
    /// The first epoch of the unbroken row.
    pub(crate) first: u64,
    pub(crate) writers: Vec<Writer>,
}

impl Note {
    /// What was noted beside a database; empty when nothing was, or nothing legible.
    pub(crate) fn read(db: &Path) -> Result<Self, Error> {
        let path = sidecar(db, SUFFIX);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
            Err(error) => return Err(local("read", &path)(error)),
        };
        Ok(Self::parse(&text).unwrap_or_else(|| {
            warn!(path = %path.display(), "what this machine wrote last is not legible");
            Self::default()
        }))
    }

    /// What to note before `writer` claims a log whose head is of `head`.
    pub(crate) fn claiming(&self, head: Option<Writer>, writer: Writer) -> Self {
        let known = match head {
            // What came before the head can never become it again.
            Some(head) => self.writers.iter().position(|known| *known == head),
            None => (!self.writers.is_empty()).then_some(0),
        };
        let Some(at) = known else { return Self { first: writer.epoch, writers: vec![writer] } };
        let mut writers = self.writers[at..].to_vec();
        if writers.len() == WRITERS_MAX {
            writers.remove(1);
        }
        writers.push(writer);
        Self { first: self.first, writers }
    }

    /// Makes it durable.
    pub(crate) fn write(&self, db: &Path) -> Result<(), Error> {
        let (path, new) = (sidecar(db, SUFFIX), sidecar(db, SUFFIX_NEW));
        let written = File::create(&new)
            .and_then(|mut file| {
                file.write_all(self.text().as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| sync_directory(db));
        written.map_err(local("write", &path))
    }

    fn text(&self) -> String {
        let writer = |writer: &Writer| format!("{:016x} {:016x}\n", writer.epoch, writer.nonce);
        let writers: String = self.writers.iter().map(writer).collect();
        format!("first {:016x}\n{writers}", self.first)
    }

    fn parse(text: &str) -> Option<Self> {
        let number = |digits: &str| u64::from_str_radix(digits, 16).ok();
        let mut lines = text.lines();
        let first = number(lines.next()?.strip_prefix("first ")?)?;
        let writer = |line: &str| {
            let (epoch, nonce) = line.split_once(' ')?;
            Some(Writer { epoch: number(epoch)?, nonce: number(nonce)? })
        };
        let note = Self { first, writers: lines.map(writer).collect::<Option<_>>()? };
        (note.text() == text).then_some(note)
    }
}

#[cfg(test)]
mod tests {
    use super::{Note, WRITERS_MAX};
    use crate::ownership::Writer;

    fn writer(epoch: u64) -> Writer {
        Writer { epoch, nonce: epoch << 32 | 5 }
    }

    #[test]
    fn what_was_noted_is_read_and_anything_else_is_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let db = directory.path().join("a.db");
        assert_eq!(Note::read(&db).expect("no file"), Note::default());
        let note = Note::default().claiming(None, writer(1)).claiming(Some(writer(1)), writer(2));
        note.write(&db).expect("a write");
        assert_eq!(Note::read(&db).expect("a file"), note);
        for bad in ["", "first 1\n", "first 0000000000000001\n1 2\n", "\u{0}"] {
            std::fs::write(directory.path().join("a.db-writer"), bad).expect("a write");
            assert_eq!(Note::read(&db).expect("a file"), Note::default(), "{bad:?}");
        }
    }

    #[test]
    fn a_row_of_own_epochs_goes_on_until_another_writes() {
        let mut note = Note::default().claiming(Some(writer(4)), writer(5));
        assert_eq!(note, Note { first: 5, writers: vec![writer(5)] });
        note = note.claiming(Some(writer(5)), writer(6));
        // The claim of 6 has not arrived yet, or never will.
        note = note.claiming(Some(writer(5)), Writer { nonce: 1, ..writer(6) });
        assert_eq!(note.writers.len(), 3);
        let arrived = note.claiming(Some(writer(6)), writer(7));
        assert_eq!((arrived.first, arrived.writers.len()), (5, 3));
        let overtaken = note.claiming(Some(Writer { nonce: 2, ..writer(6) }), writer(7));
        assert_eq!(overtaken, Note { first: 7, writers: vec![writer(7)] });
    }

    #[test]
    fn the_writer_of_the_head_is_never_forgotten() {
        let mut note = Note::default().claiming(None, writer(1));
        for epoch in 2..100 {
            note = note.claiming(Some(writer(1)), writer(epoch));
        }
        assert_eq!(note.writers.len(), WRITERS_MAX);
        assert_eq!(note.writers[0], writer(1));
        assert_eq!(note.writers[WRITERS_MAX - 1], writer(99));
    }
}
