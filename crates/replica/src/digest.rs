//! The digest of a whole database, kept up to date page by page.
//!
//! It is the rolling checksum of the LTX format: the exclusive or of each page's CRC-64 over its number and its bytes, with
//! the highest bit set. Replacing one page costs one CRC, so every log file can state the digest of the database after it.
//! It finds accidents, not adversaries.

use crc::{CRC_64_GO_ISO, Crc, Table};

/// The checksum of the LTX format.
pub(crate) static CRC64: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_GO_ISO);

/// The bit that is set in every checksum of the LTX format, so that none is zero.
pub(crate) const CHECKSUM_FLAG: u64 = 1 << 63;

/// The byte of a database that SQLite locks and never stores anything at.
const LOCK_BYTE: u64 = 0x4000_0000;

/// The page that is never stored, with pages of `page_size` bytes.
pub(crate) fn lock_page(page_size: u32) -> u32 {
    u32::try_from(LOCK_BYTE / u64::from(page_size)).expect("a page has at least 512 bytes") + 1
}

/// One checksum per page, and their sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digest {
    page_size: u32,
    pages: Vec<u64>,
    sum: u64,
}

impl Digest {
    /// The digest of an empty database.
    pub(crate) fn new(page_size: u32) -> Self {
        Self { page_size, pages: Vec::new(), sum: 0 }
    }

    /// The digest as log files state it.
    pub(crate) fn value(&self) -> u64 {
        self.sum | CHECKSUM_FLAG
    }

    /// Bytes of a page.
    pub(crate) fn page_size(&self) -> u32 {
        self.page_size
    }

    /// How many pages the database has.
    pub(crate) fn page_count(&self) -> u32 {
        u32::try_from(self.pages.len()).expect("resized with a u32")
    }

    /// Cuts or grows the database. New pages hold zeros until they are set.
    pub(crate) fn resize(&mut self, page_count: u32) {
        for sum in self.pages.drain((page_count as usize).min(self.pages.len())..) {
            self.sum ^= sum;
        }
        if self.page_count() < page_count {
            let zeros = vec![0; self.page_size as usize];
            for number in self.page_count() + 1..=page_count {
                let sum = self.page_sum(number, &zeros);
                self.pages.push(sum);
                self.sum ^= sum;
            }
        }
    }

    /// Adds a page at the end.
    pub(crate) fn append(&mut self, page: &[u8]) {
        let sum = self.page_sum(self.page_count() + 1, page);
        self.pages.push(sum);
        self.sum ^= sum;
    }

    /// Replaces a page that the database has; tells whether it changed.
    pub(crate) fn set(&mut self, number: u32, page: &[u8]) -> bool {
        let sum = self.page_sum(number, page);
        let old = std::mem::replace(&mut self.pages[number as usize - 1], sum);
        self.sum ^= old ^ sum;
        old != sum
    }

    /// Whether the database has this page with these bytes.
    pub(crate) fn holds(&self, number: u32, page: &[u8]) -> bool {
        self.pages.get(number as usize - 1) == Some(&self.page_sum(number, page))
    }

    fn page_sum(&self, number: u32, page: &[u8]) -> u64 {
        if number == lock_page(self.page_size) {
            return 0;
        }
        let mut crc = CRC64.digest();
        crc.update(&number.to_be_bytes());
        crc.update(page);
        crc.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::{CHECKSUM_FLAG, Digest};

    #[test]
    fn order_of_changes_does_not_matter_and_cutting_undoes_growing() {
        let (a, b) = (vec![1; 512], vec![2; 512]);
        let mut one = Digest::new(512);
        one.resize(2);
        one.set(1, &a);
        one.set(2, &b);
        let mut other = Digest::new(512);
        other.resize(3);
        other.set(3, &a);
        other.set(2, &a);
        other.set(2, &b);
        other.resize(2);
        assert!(other.set(1, &a));
        assert!(!other.set(1, &a));
        assert_eq!(one, other);
        other.resize(0);
        assert_eq!(other.value(), CHECKSUM_FLAG);
    }

    #[test]
    fn pages_are_told_apart_by_their_number() {
        let page = vec![7; 512];
        let mut digest = Digest::new(512);
        digest.resize(2);
        digest.set(1, &page);
        assert!(digest.holds(1, &page));
        assert!(!digest.holds(2, &page));
        assert!(!digest.holds(3, &page));
    }
}
