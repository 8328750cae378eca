//! Memory that begins at a page, which is what the kernel can write past its page cache.

const PAGE_BYTES: usize = 4096;

/// A buffer at a page.
#[derive(Debug)]
pub(crate) struct PageBuffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl PageBuffer {
    /// So many zero bytes.
    pub(crate) fn new(length: usize) -> Self {
        let memory = vec![0; length + PAGE_BYTES];
        let start = memory.as_ptr().align_offset(PAGE_BYTES);
        Self { memory, start, length }
    }

    /// The bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// Whether data begins at a page.
pub(super) fn is_page_aligned(data: &[u8]) -> bool {
    data.as_ptr().addr().is_multiple_of(PAGE_BYTES)
}
