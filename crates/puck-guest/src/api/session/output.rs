//! A session's output: read from descriptors into ready-made frames, kept in a bounded ring, read by any number of clients.
//!
//! Invariants: the ring holds at most [`RING_BYTES_MAX`] (counting an overhead per frame, so that a process that prints single
//! bytes cannot fill the memory). A frame that an attached reader has not taken is never dropped: the writer waits instead,
//! which in turn stops the process. Without a reader the oldest frames go. After the end nothing is appended.

use super::descriptor;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{Notify, watch},
    time::Instant,
};

/// The most bytes of output that are kept for readers to come, and that a slow reader may be behind.
pub(super) const RING_BYTES_MAX: usize = 1024 * 1024;

/// What a frame costs beside its bytes.
const FRAME_OVERHEAD: usize = 64;

/// The most bytes that a reader takes at once.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Frames are cut from pieces of memory of this size.
const ARENA_BYTES: usize = 256 * 1024;

/// The wanted size of an output pipe: fewer wake-ups than the 64 KiB that it has by default.
const PIPE_BYTES: usize = 256 * 1024;

/// The stretch of time that the output rate is averaged over.
const RATE_SECONDS: f64 = 5.0;

/// The ring.
#[derive(Debug)]
pub(super) struct Output {
    ring: Mutex<Ring>,
    /// The writer waits here for readers; there is one writer, so one stored permit is enough.
    room: Notify,
    viewers: watch::Sender<usize>,
}

#[derive(Debug)]
struct Ring {
    frames: VecDeque<Bytes>,
    /// Bytes of each frame that are no output: its stream id.
    prefix: usize,
    /// Bytes of output in the frames that are kept no more.
    passed: u64,
    /// The number of the oldest frame.
    first: u64,
    weight: usize,
    readers: BTreeMap<u64, Place>,
    next_reader: u64,
    end: Option<u8>,
    rate: Rate,
    last: Timestamp,
}

#[derive(Debug)]
struct Place {
    /// The number of the next frame to read.
    next: u64,
    news: Arc<Notify>,
}

/// An average that forgets exponentially.
#[derive(Debug)]
struct Rate {
    bytes_per_second: f64,
    at: Instant,
}

/// How output flows at the moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Flow {
    pub(super) bytes_per_second: f64,
    pub(super) is_active: bool,
    pub(super) last: Timestamp,
}

/// A client's place in the ring. Dropping it gives the place up.
#[derive(Debug)]
pub(crate) struct Reader {
    output: Arc<Output>,
    id: u64,
    news: Arc<Notify>,
}

/// What a reader gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// There are frames in the batch.
    Frames,
    /// Everything has been read, and the process has ended with this code.
    End(u8),
}

impl Output {
    /// For frames of which `prefix` bytes are no output.
    pub(super) fn new(prefix: usize) -> Arc<Self> {
        let ring = Ring {
            frames: VecDeque::new(),
            prefix,
            passed: 0,
            first: 0,
            weight: 0,
            readers: BTreeMap::new(),
            next_reader: 0,
            end: None,
            rate: Rate { bytes_per_second: 0.0, at: Instant::now() },
            last: Timestamp::UNIX_EPOCH,
        };
        Arc::new(Self {
            ring: Mutex::new(ring),
            room: Notify::new(),
            viewers: watch::Sender::new(0),
        })
    }

    /// Appends a frame as soon as the slowest reader leaves room for it.
    pub(super) async fn append(&self, frame: Bytes) {
        while !self.ring().make_room(frame.len()) {
            self.room.notified().await;
        }
        self.push(frame);
    }

    /// Appends a frame without asking for room.
    pub(super) fn push(&self, frame: Bytes) {
        self.ring().push(frame);
    }

    /// Nothing more will come.
    pub(super) fn end(&self, code: u8) {
        let mut ring = self.ring();
        ring.end = Some(code);
        ring.tell();
    }

    /// The exit code, once nothing more will come.
    pub(super) fn ended(&self) -> Option<u8> {
        self.ring().end
    }

    /// A reader that begins with the oldest frame that is kept.
    pub(super) fn attach(this: &Arc<Self>) -> Reader {
        let mut ring = this.ring();
        let id = ring.next_reader;
        ring.next_reader += 1;
        let news = Arc::new(Notify::new());
        let next = ring.first;
        ring.readers.insert(id, Place { next, news: Arc::clone(&news) });
        this.viewers.send_replace(ring.readers.len());
        Reader { output: Arc::clone(this), id, news }
    }

    /// A reader that begins with what comes next, what is kept of what came before, and how many bytes came.
    pub(super) fn attach_live(this: &Arc<Self>) -> (Reader, Vec<Bytes>, u64) {
        let reader = Self::attach(this);
        let mut ring = this.ring();
        // The new reader has kept them all from being dropped.
        let kept: Vec<Bytes> = ring.frames.iter().cloned().collect();
        ring.skip(reader.id, kept.len());
        let offset = ring.passed + kept.iter().map(|frame| ring.payload(frame)).sum::<u64>();
        drop(ring);
        (reader, kept, offset)
    }

    /// A reader that goes on at a byte of the output, or at the nearest that there is: what is left of the frame which that
    /// byte is in, and the offset of the first byte that it gets.
    pub(super) fn attach_at(this: &Arc<Self>, offset: u64) -> (Reader, Vec<Bytes>, u64) {
        let reader = Self::attach(this);
        let mut ring = this.ring();
        let (mut at, mut behind, mut rest) = (ring.passed, 0, Vec::new());
        for frame in &ring.frames {
            let next = at + ring.payload(frame);
            if next > offset {
                if offset > at {
                    let seen = usize::try_from(offset - at).unwrap_or(usize::MAX);
                    rest.push(without(frame, ring.prefix, seen));
                    (at, behind) = (offset, behind + 1);
                }
                break;
            }
            (at, behind) = (next, behind + 1);
        }
        ring.skip(reader.id, behind);
        drop(ring);
        (reader, rest, at)
    }

    /// Waits until there has been no reader for `limit`.
    pub(super) async fn unwatched_for(&self, limit: Duration) {
        let mut viewers = self.viewers.subscribe();
        loop {
            // The sender lives in `self`, so neither wait can fail.
            if viewers.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            if tokio::time::timeout(limit, viewers.wait_for(|count| *count > 0)).await.is_err() {
                return;
            }
        }
    }

    /// How output flows at the moment.
    pub(super) fn flow(&self) -> Flow {
        let ring = self.ring();
        let bytes_per_second = ring.rate.now();
        let is_active = !ring.readers.is_empty() || bytes_per_second >= 1.0;
        Flow { bytes_per_second, is_active, last: ring.last }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// Drops old frames for a new one. False if a reader still needs the oldest.
    fn make_room(&mut self, bytes: usize) -> bool {
        let slowest = self.readers.values().map(|place| place.next).min().unwrap_or(u64::MAX);
        while self.weight + bytes + FRAME_OVERHEAD > RING_BYTES_MAX {
            if slowest <= self.first {
                // A frame larger than the whole ring passes once the ring is empty.
                return self.frames.is_empty();
            }
            let Some(oldest) = self.frames.pop_front() else { return true };
            self.first += 1;
            self.passed += self.payload(&oldest);
            self.weight -= oldest.len() + FRAME_OVERHEAD;
        }
        true
    }

    fn push(&mut self, frame: Bytes) {
        self.weight += frame.len() + FRAME_OVERHEAD;
        self.rate.add(frame.len());
        self.last = Timestamp::now();
        self.frames.push_back(frame);
        self.tell();
    }

    /// Bytes of output in a frame.
    fn payload(&self, frame: &Bytes) -> u64 {
        frame.len().saturating_sub(self.prefix) as u64
    }

    /// A reader does not need its next frames.
    fn skip(&mut self, reader: u64, frames: usize) {
        if let Some(place) = self.readers.get_mut(&reader) {
            place.next += frames as u64;
        }
    }

    fn tell(&self) {
        for place in self.readers.values() {
            place.news.notify_one();
        }
    }

    /// Takes what a reader has not read yet, up to a batch.
    fn take(&mut self, reader: u64, batch: &mut Vec<Bytes>) -> Option<Step> {
        let place = self.readers.get_mut(&reader)?;
        let mut bytes = 0;
        // Frames are only dropped behind every reader, so the difference is the place in the queue.
        let start = usize::try_from(place.next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        for frame in self.frames.iter().skip(start) {
            if bytes > 0 && bytes + frame.len() > BATCH_BYTES_MAX {
                break;
            }
            bytes += frame.len();
            batch.push(frame.clone());
        }
        place.next += batch.len() as u64;
        if batch.is_empty() { self.end.map(Step::End) } else { Some(Step::Frames) }
    }
}

/// A frame that lacks the first `seen` bytes of its output.
fn without(frame: &Bytes, prefix: usize, seen: usize) -> Bytes {
    let (id, output) = frame.split_at(prefix.min(frame.len()));
    [id, output.get(seen..).unwrap_or_default()].concat().into()
}

impl Rate {
    fn now(&self) -> f64 {
        self.bytes_per_second * (-self.at.elapsed().as_secs_f64() / RATE_SECONDS).exp()
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate is for people")]
    fn add(&mut self, bytes: usize) {
        self.bytes_per_second = self.now() + bytes as f64 / RATE_SECONDS;
        self.at = Instant::now();
    }
}

impl Reader {
    /// Puts the next frames into the empty `batch`, waiting for them if need be. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self, batch: &mut Vec<Bytes>) -> Step {
        loop {
            let step = self.output.ring().take(self.id, batch);
            if let Some(step) = step {
                self.output.room.notify_one();
                return step;
            }
            self.news.notified().await;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut ring = self.output.ring();
        ring.readers.remove(&self.id);
        self.output.viewers.send_replace(ring.readers.len());
        self.output.room.notify_one();
    }
}

/// The descriptors that a session's output comes from.
pub(super) struct Sources {
    first: Source,
    second: Option<Source>,
}

struct Source {
    fd: AsyncFd<OwnedFd>,
    /// The stream id that begins every frame; none for a terminal.
    id: Option<u8>,
    payload_max: usize,
    arena: BytesMut,
    is_open: bool,
}

impl Sources {
    /// Standard output and standard error, in frames with a stream id.
    pub(super) fn pipes(stdout: OwnedFd, stderr: OwnedFd, payload_max: usize) -> io::Result<Self> {
        if let Err(error) = rustix::pipe::fcntl_setpipe_size(&stdout, PIPE_BYTES) {
            tracing::debug!(%error, "enlarge a pipe");
        }
        Ok(Self {
            first: Source::new(stdout, Some(1), payload_max)?,
            second: Some(Source::new(stderr, Some(2), payload_max)?),
        })
    }

    /// A terminal, in frames of plain bytes.
    pub(super) fn terminal(master: OwnedFd, payload_max: usize) -> io::Result<Self> {
        Ok(Self { first: Source::new(master, None, payload_max)?, second: None })
    }

    /// The next frame of any of them; `None` when all have ended. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            let second_open = self.second.as_ref().is_some_and(|second| second.is_open);
            let frame = tokio::select! {
                frame = self.first.next(), if self.first.is_open => frame,
                frame = next_of(self.second.as_mut()), if second_open => frame,
                else => return None,
            };
            if frame.is_some() {
                return frame;
            }
        }
    }

    /// How many bytes can be read at once.
    pub(super) fn pending(&self) -> u64 {
        std::iter::once(&self.first).chain(&self.second).map(Source::pending).sum()
    }
}

async fn next_of(source: Option<&mut Source>) -> Option<Bytes> {
    match source {
        Some(source) => source.next().await,
        None => None,
    }
}

impl Source {
    fn new(fd: OwnedFd, id: Option<u8>, payload_max: usize) -> io::Result<Self> {
        let fd = descriptor::watch(fd, Interest::READABLE)?;
        Ok(Self { fd, id, payload_max, arena: BytesMut::new(), is_open: true })
    }

    fn pending(&self) -> u64 {
        if self.is_open { rustix::io::ioctl_fionread(self.fd.get_ref()).unwrap_or(0) } else { 0 }
    }

    /// The next frame; `None` at the end, after which the source is not open any more.
    async fn next(&mut self) -> Option<Bytes> {
        let Self { fd, id, payload_max, arena, is_open } = self;
        loop {
            let read = match fd.readable().await {
                Ok(mut ready) => {
                    match ready.try_io(|fd| read_frame(fd.get_ref(), *id, *payload_max, arena)) {
                        Ok(read) => read,
                        Err(_would_block) => continue,
                    }
                }
                Err(error) => Err(error),
            };
            match read {
                Ok(Some(frame)) => return Some(frame),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal whose last process is gone answers EIO, which is its end of file.
                Ok(None) | Err(_) => {
                    *is_open = false;
                    return None;
                }
            }
        }
    }
}

/// Reads into the arena and cuts a frame off. The frame shares the arena's memory; nothing is copied.
fn read_frame(
    fd: &OwnedFd,
    id: Option<u8>,
    payload_max: usize,
    arena: &mut BytesMut,
) -> io::Result<Option<Bytes>> {
    let frame_max = payload_max + 1;
    if arena.capacity() < frame_max {
        // `reserve` would move the arena's unread rest; there is none, so a new piece of memory costs nothing.
        *arena = BytesMut::with_capacity(ARENA_BYTES.max(frame_max));
    }
    let prefix = id.as_slice();
    arena.extend_from_slice(prefix);
    let spare = arena.spare_capacity_mut();
    let room = spare.len().min(payload_max);
    match rustix::io::read(fd, &mut spare[..room]) {
        Ok((filled, _)) if !filled.is_empty() => {
            let len = prefix.len() + filled.len();
            // SAFETY: the first bytes are the id that was pushed above, and the kernel has just filled the others.
            unsafe { arena.set_len(len) };
            Ok(Some(arena.split().freeze()))
        }
        Ok(_) => Ok(None),
        Err(error) => {
            arena.clear();
            Err(error.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Output, RING_BYTES_MAX, Sources, Step};
    use bytes::Bytes;
    use std::{io::Write, time::Duration};

    fn frame(byte: u8, len: usize) -> Bytes {
        vec![byte; len].into()
    }

    async fn read_all(output: &std::sync::Arc<Output>) -> (Vec<Bytes>, u8) {
        let mut reader = Output::attach(output);
        let mut all = Vec::new();
        loop {
            let mut batch = Vec::new();
            match reader.next(&mut batch).await {
                Step::Frames => all.append(&mut batch),
                Step::End(code) => return (all, code),
            }
        }
    }

    #[tokio::test]
    async fn every_reader_reads_everything_and_then_the_end() {
        let output = Output::new(1);
        output.append(frame(1, 3)).await;
        output.append(frame(2, 3)).await;
        output.end(7);
        for _ in 0..2 {
            assert_eq!(read_all(&output).await, (vec![frame(1, 3), frame(2, 3)], 7));
        }
    }

    #[tokio::test]
    async fn without_a_reader_the_oldest_output_is_forgotten() {
        let output = Output::new(1);
        for byte in 0..10 {
            output.append(frame(byte, RING_BYTES_MAX / 4)).await;
        }
        output.end(0);
        let (kept, _) = read_all(&output).await;
        assert_eq!(kept.iter().map(|frame| frame[0]).collect::<Vec<_>>(), [7, 8, 9]);
    }

    #[tokio::test]
    async fn a_reader_goes_on_at_any_byte_that_is_kept() {
        let output = Output::new(1);
        for text in ["\x01abc", "\x02de", "\x01fgh"] {
            output.append(text.into()).await;
        }
        output.end(0);
        for (offset, from, frames) in [
            (0, 0, &["\x01abc", "\x02de", "\x01fgh"][..]),
            (1, 1, &["\x01bc", "\x02de", "\x01fgh"]),
            (3, 3, &["\x02de", "\x01fgh"]),
            (4, 4, &["\x02e", "\x01fgh"]),
            (7, 7, &["\x01h"]),
            (8, 8, &[]),
            (u64::MAX, 8, &[]),
        ] {
            let (mut reader, mut read, start) = Output::attach_at(&output, offset);
            let mut batch = Vec::new();
            while reader.next(&mut batch).await == Step::Frames {
                read.append(&mut batch);
            }
            assert_eq!(
                (start, read.as_slice()),
                (from, &frames.iter().map(|f| Bytes::from(*f)).collect::<Vec<_>>()[..])
            );
        }
    }

    #[tokio::test]
    async fn a_reader_of_what_is_forgotten_is_told_where_it_begins() {
        let output = Output::new(1);
        for byte in 0..10 {
            output.append(frame(byte, RING_BYTES_MAX / 4)).await;
        }
        let payload = RING_BYTES_MAX as u64 / 4 - 1;
        let (reader, rest, start) = Output::attach_at(&output, 5);
        assert_eq!((rest, start), (Vec::new(), 7 * payload));
        drop(reader);
        let (_, kept, end) = Output::attach_live(&output);
        assert_eq!((kept.len(), end), (3, 10 * payload));
    }

    #[tokio::test]
    async fn single_bytes_cost_their_overhead() {
        let output = Output::new(1);
        for _ in 0..RING_BYTES_MAX {
            output.append(frame(0, 1)).await;
        }
        assert!(output.ring().frames.len() < RING_BYTES_MAX / 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_stops_the_writer_and_a_vanished_one_does_not() {
        let output = Output::new(1);
        let mut reader = Output::attach(&output);
        let writer = tokio::spawn({
            let output = output.clone();
            async move {
                for byte in 0..100 {
                    output.append(frame(byte, RING_BYTES_MAX / 8)).await;
                }
            }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!writer.is_finished());
        let mut batch = Vec::new();
        assert_eq!(reader.next(&mut batch).await, Step::Frames);
        assert_eq!(batch[0][0], 0);
        drop(reader);
        writer.await.expect("the writer goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn unwatched_counts_from_the_last_reader() {
        let output = Output::new(1);
        let start = tokio::time::Instant::now();
        let reader = Output::attach(&output);
        let unwatched = output.unwatched_for(Duration::from_secs(10));
        let come_and_go = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            drop(reader);
            tokio::time::sleep(Duration::from_secs(5)).await;
            let reader = Output::attach(&output);
            tokio::time::sleep(Duration::from_secs(100)).await;
            drop(reader);
        };
        tokio::join!(unwatched, come_and_go);
        assert_eq!(start.elapsed().as_secs(), 135);
    }

    #[tokio::test]
    async fn two_pipes_become_frames_with_their_ids() {
        let (out, mut out_writer) = std::io::pipe().expect("pipe");
        let (err, mut err_writer) = std::io::pipe().expect("pipe");
        let mut sources = Sources::pipes(out.into(), err.into(), 4).expect("sources");
        out_writer.write_all(b"hello").expect("write");
        assert_eq!(sources.pending(), 5);
        assert_eq!(sources.next().await.as_deref(), Some(&b"\x01hell"[..]));
        assert_eq!(sources.next().await.as_deref(), Some(&b"\x01o"[..]));
        err_writer.write_all(b"e").expect("write");
        drop((out_writer, err_writer));
        assert_eq!(sources.next().await.as_deref(), Some(&b"\x02e"[..]));
        assert_eq!(sources.next().await, None);
    }
}
