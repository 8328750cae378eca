//! Finding sequential streams among reads.

use std::ops::Range;

/// Finds sequential streams among reads and says how far to read ahead of them.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    next: u32,
    /// Blocks up to here were asked for.
    ahead: u32,
    window: u32,
}

/// The blocks that are read ahead at first: 128 KiB.
const WINDOW_FIRST: u32 = 32;

/// The most blocks that are read ahead: 64 MiB.
const WINDOW_MOST: u32 = 16 << 10;

/// A window that is used up becomes so many times as large: few round trips until a stream is at full speed.
const WINDOW_GROWTH: u32 = 4;

/// So many streams are told apart.
const STREAMS_MAX: usize = 16;

impl Streams {
    /// Notes a read; returns the blocks to read ahead, which may be none.
    pub(crate) fn advance(&mut self, read: &Range<u32>) -> Range<u32> {
        let Some(at) = self.streams.iter().position(|stream| stream.next == read.start) else {
            if self.streams.len() == STREAMS_MAX {
                self.streams.remove(0);
            }
            let ahead =
                (read.start + WINDOW_FIRST).clamp(read.end, crate::VOLUME_BLOCKS.max(read.end));
            self.streams.push(Stream { next: read.end, ahead, window: WINDOW_FIRST });
            return read.end..ahead;
        };
        let mut stream = self.streams.remove(at);
        stream.next = read.end;
        let from = stream.ahead.max(read.end);
        // Asking again only when half of the window is used makes few large requests of many small ones.
        let ahead = if from - read.end <= stream.window / 2 {
            stream.window = (stream.window * WINDOW_GROWTH).min(WINDOW_MOST);
            stream.ahead = (read.end + stream.window).min(crate::VOLUME_BLOCKS);
            from..stream.ahead.max(from)
        } else {
            from..from
        };
        self.streams.push(stream);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::{Streams, WINDOW_FIRST, WINDOW_MOST};
    use crate::VOLUME_BLOCKS;

    #[test]
    fn random_reads_read_a_little_ahead_and_streams_ever_more() {
        let mut streams = Streams::default();
        assert_eq!(streams.advance(&(1000..1001)), 1001..1000 + WINDOW_FIRST);
        let mut asked = 1000 + WINDOW_FIRST;
        let mut largest = 0;
        for block in 1001..60_000 {
            let ahead = streams.advance(&(block..block + 1));
            assert!(ahead.is_empty() || ahead.start == asked, "each block once");
            largest = largest.max(ahead.len());
            asked = asked.max(ahead.end);
            assert!(asked > block && asked <= block + 1 + WINDOW_MOST);
        }
        assert!(largest >= WINDOW_MOST as usize / 2, "{largest}");
    }

    #[test]
    fn never_goes_past_the_end() {
        let mut streams = Streams::default();
        let end = VOLUME_BLOCKS;
        for block in end - 100..end {
            assert!(streams.advance(&(block..block + 1)).end <= end);
        }
    }
}
