//! A volume on its way to another place: told piece by piece, and made of such pieces anew, under another id.
//!
//! The pieces are [`Contents`], then every segment that a state can read, then the rows of the map. Segments travel
//! decrypted and compressed as they are. A new volume names them as its own, so nothing of it depends on where it came from.
//!
//! # Trust
//!
//! Pieces may come from anywhere. Everything is checked before it is used: counts, layers, names, every block's CRC32C, and
//! that every row names what is there. What nobody can check here is the filesystem in the blocks; see
//! `docs/design/portable.md`.
//!
//! # Failure
//!
//! An [`Import`] that does not come to its end leaves objects under the new volume's prefix, for its caller to remove after
//! [`Import::abandon`].

use crate::{
    VolumeId,
    decode::DecodeError,
    error::{Attempt as _, Error, ErrorKind},
    fsck,
    keys::Keys,
    map::{Contents, Heard, NewSegment, Row, Told},
    segment::{Encoded, SegmentName, Whole},
};
use base::backoff::Backoff;
use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use object_store::{ObjectStore, PutMode, PutOptions, PutPayload};
use std::{collections::VecDeque, path::Path, sync::Arc, time::Duration};
use tokio::{runtime::Handle, task::JoinHandle};

/// Segments that are on their way at the same time, in either direction.
const SEGMENTS_AT_ONCE: usize = 4;

/// A piece of rows is about this long.
const ROWS_BYTES: usize = 1 << 20;

/// The longest piece. Segments are of 8 MiB, compacted ones of up to twice that.
pub const PIECE_BYTES_MAX: u64 = 64 << 20;

/// The epoch in the names of imported segments. Whoever opens the volume claims its log, which the import has begun, and so
/// has a later one.
const EPOCH: u64 = 1;

/// The waits between tries to put a segment, and how many there are.
const RETRY_WAIT: Duration = Duration::from_millis(100);
const RETRY_WAIT_MOST: Duration = Duration::from_secs(5);
const RETRIES_MAX: u32 = 12;

/// A part of a portable volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A segment, which rows call by this number.
    Segment(u32, Bytes),
    /// Some rows, one after the other: `region u32 | layer u32 | length u32 | entries`, little-endian.
    Rows(Bytes),
}

/// Tells a volume.
pub struct Export {
    told: Told,
    contents: Contents,
    store: Arc<dyn ObjectStore>,
    keys: Keys,
}

impl Export {
    /// Reads a map in a file that nobody changes meanwhile. With `live`, the live state that is told is that checkpoint.
    /// Blocks the thread.
    pub fn open(
        map_db: &Path,
        live: Option<&str>,
        store: Arc<dyn ObjectStore>,
        keys: Keys,
    ) -> Result<Self, Error> {
        let (told, contents) = Told::open(map_db, live)?;
        Ok(Self { told, contents, store, keys })
    }

    /// What comes before all pieces.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Calls `each` with every piece in order, until it fails. Blocks the thread, which must not be one of the runtime's own.
    pub fn run<E: From<Error>>(
        &self,
        runtime: &Handle,
        mut each: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut segments = futures::stream::iter(&self.contents.segments)
            .map(|id| async move { Ok((*id, self.segment(*id).await?)) })
            .buffered(SEGMENTS_AT_ONCE)
            .boxed_local();
        while let Some(segment) = runtime.block_on(segments.next()) {
            let (id, bytes) = segment.map_err(|error: Error| error)?;
            each(Piece::Segment(id, bytes))?;
        }
        let mut rows = Vec::with_capacity(ROWS_BYTES);
        let mut failed = None;
        let told = self.told.rows(&mut |row| {
            for field in [row.region, row.layer, length(&row.entries)] {
                rows.extend_from_slice(&field.to_le_bytes());
            }
            rows.extend_from_slice(&row.entries);
            if rows.len() < ROWS_BYTES {
                return Ok(());
            }
            each(Piece::Rows(std::mem::take(&mut rows).into())).map_err(|error| {
                failed = Some(error);
                Error::closed()
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        told?;
        if rows.is_empty() { Ok(()) } else { each(Piece::Rows(rows.into())) }
    }

    async fn segment(&self, id: u32) -> Result<Bytes, Error> {
        let (name, data_offset) = self.told.segment(id)?;
        let key = name.key();
        let (object, _) = fsck::read(&self.store, &key, PIECE_BYTES_MAX)
            .await?
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("{key} is not in the bucket")))?;
        let whole = Whole::read(&name, &object, data_offset, &self.keys)
            .map_err(|error| damaged(&key, error))?;
        let Encoded { head, data, .. } = whole.encode(&name, &Keys::none());
        Ok([head, data].concat().into())
    }
}

/// Makes a new volume of pieces. The pieces must come in the order in which [`Export::run`] tells them.
pub struct Import {
    heard: Heard,
    volume: VolumeId,
    store: Arc<dyn ObjectStore>,
    keys: Keys,
    expected: VecDeque<u32>,
    sequence: u64,
    puts: VecDeque<JoinHandle<Result<(), Error>>>,
}

impl Import {
    /// Begins a volume that there never was, whose map will be in a new file. `Invalid` if no volume can be made of the
    /// contents. With a key of the volume, its segments are encrypted. Blocks the thread.
    pub fn begin(
        map_db: &Path,
        volume: VolumeId,
        contents: &Contents,
        store: Arc<dyn ObjectStore>,
        keys: Keys,
    ) -> Result<Self, Error> {
        let heard = Heard::begin(map_db, volume, contents)?;
        let expected = contents.segments.iter().copied().collect();
        Ok(Self { heard, volume, store, keys, expected, sequence: 0, puts: VecDeque::new() })
    }

    /// Takes the next piece. `Invalid` or `Corrupt` if it is not what may come now. Blocks the thread, which must not be one of
    /// the runtime's own.
    pub fn piece(&mut self, runtime: &Handle, piece: Piece) -> Result<(), Error> {
        match piece {
            Piece::Segment(id, bytes) => self.segment(runtime, id, &bytes),
            Piece::Rows(rows) => self.rows(rows),
        }
    }

    /// Ends the map. The bucket has every segment then; the log does not have the map. Nothing more may come.
    pub fn finish(&mut self, runtime: &Handle) -> Result<(), Error> {
        self.all_segments_came()?;
        while let Some(put) = self.puts.pop_front() {
            join(runtime, put)?;
        }
        self.heard.finish(self.sequence + 1)
    }

    /// Gives up. When it returns, nothing is put any more, and what is there can be removed.
    pub fn abandon(self, runtime: &Handle) {
        for put in self.puts {
            // How it went does not matter any more.
            drop(join(runtime, put));
        }
    }

    fn segment(&mut self, runtime: &Handle, id: u32, bytes: &[u8]) -> Result<(), Error> {
        if self.expected.pop_front() != Some(id) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("segment {id} was not to come now"),
            ));
        }
        let whole =
            Whole::parse(bytes).map_err(|error| damaged(&format!("segment {id}"), error))?;
        self.sequence += 1;
        let name = SegmentName { volume: self.volume, epoch: EPOCH, sequence: self.sequence };
        let Encoded { head, data, table } = whole.encode(&name, &self.keys);
        let segment = NewSegment {
            name,
            bytes: (head.len() + data.len()) as u64,
            data_offset: length(&head),
            runs: table,
        };
        self.heard.segment(id, &segment, whole.blocks().len())?;
        if self.puts.len() >= SEGMENTS_AT_ONCE
            && let Some(put) = self.puts.pop_front()
        {
            join(runtime, put)?;
        }
        self.puts.push_back(runtime.spawn(put(self.store.clone(), name, [head, data])));
        Ok(())
    }

    fn rows(&mut self, mut rows: Bytes) -> Result<(), Error> {
        self.all_segments_came()?;
        let short = || Error::new(ErrorKind::Invalid, "a row ends early");
        while rows.has_remaining() {
            let mut field = || rows.try_get_u32_le().map_err(|_| short());
            let (region, layer, length) = (field()?, field()?, field()? as usize);
            let entries = rows.get(..length).ok_or_else(short)?.to_vec();
            rows.advance(length);
            self.heard.row(&Row { region, layer, entries })?;
        }
        Ok(())
    }

    fn all_segments_came(&self) -> Result<(), Error> {
        match self.expected.front() {
            Some(id) => Err(Error::new(ErrorKind::Invalid, format!("segment {id} did not come"))),
            None => Ok(()),
        }
    }
}

fn join(runtime: &Handle, put: JoinHandle<Result<(), Error>>) -> Result<(), Error> {
    runtime
        .block_on(put)
        .map_err(|error| Error::with(ErrorKind::Internal, "put a segment", error))?
}

async fn put(
    store: Arc<dyn ObjectStore>,
    name: SegmentName,
    parts: [Bytes; 2],
) -> Result<(), Error> {
    let key = name.key();
    let mut waits = Backoff::new(RETRY_WAIT, RETRY_WAIT_MOST, RETRIES_MAX);
    let mut again = false;
    loop {
        let payload: PutPayload = parts.iter().cloned().collect();
        match store.put_opts(&key, payload, PutOptions::from(PutMode::Create)).await {
            Ok(_) => return Ok(()),
            // Nobody else knows the volume, so it is there because a try before was done without an answer.
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) if again => return Ok(()),
            Err(error) => match waits.next() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error).attempt("put a segment"),
            },
        }
        again = true;
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a piece is bounded")
}

fn damaged(what: &dyn std::fmt::Display, error: DecodeError) -> Error {
    Error::with(error.kind(), format!("{what} is damaged"), error)
}

#[cfg(test)]
mod tests;
