//! The cache holds what it was given, within its bound, and nothing after a change of the map.

use super::{Cache, DIRECT_BYTES_MIN, PageBuffer, Tag};
use crate::{BLOCK_BYTES, VolumeId, journal::Position, map::LayerId};
use std::os::unix::fs::MetadataExt as _;

fn tag() -> Tag {
    Tag { volume: VolumeId::now(), position: Position { epoch: 1, sequence: 1 }, head: LayerId(1) }
}

fn blocks(first: u8, count: usize) -> Vec<u8> {
    (0..count).flat_map(|index| vec![first + u8::try_from(index).unwrap(); BLOCK_BYTES]).collect()
}

fn read(cache: &Cache, range: std::ops::Range<u32>) -> Vec<(u32, u8)> {
    let mut buffer = vec![0; range.len() * BLOCK_BYTES];
    let runs = cache.read(range.clone(), &mut buffer);
    runs.into_iter()
        .flatten()
        .map(|block| (block, buffer[(block - range.start) as usize * BLOCK_BYTES]))
        .collect()
}

#[test]
fn returns_what_is_present_and_skips_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 1 << 20, &tag()).unwrap();
    assert!(cache.fill(cache.ticket(), 14, &blocks(1, 4)));
    assert!(cache.fill(cache.ticket(), 30, &blocks(9, 1)));
    assert_eq!(read(&cache, 0..64), [(14, 1), (15, 2), (16, 3), (17, 4), (30, 9)]);
    cache.remove(std::iter::once(15..17));
    assert_eq!(read(&cache, 0..64), [(14, 1), (17, 4), (30, 9)]);
    assert!(cache.has(14) && !cache.has(15));
}

#[test]
fn a_fill_from_before_a_removal_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 1 << 20, &tag()).unwrap();
    let ticket = cache.ticket();
    cache.remove(std::iter::once(5..6));
    assert!(!cache.fill(ticket, 5, &blocks(1, 1)));
    assert_eq!(read(&cache, 0..16), []);
}

#[test]
fn a_large_fill_is_there_whatever_was_in_the_page_cache() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 1 << 24, &tag()).unwrap();
    // Small fills are in the page cache and not yet on the disk when the large one goes past it.
    for block in 0..256 {
        assert!(cache.fill(cache.ticket(), block, &blocks(1, 1)));
    }
    let mut page = PageBuffer::new(DIRECT_BYTES_MIN);
    page.bytes_mut().fill(7);
    assert!(cache.fill(cache.ticket(), 100, page.bytes_mut()));
    let found = read(&cache, 0..256);
    assert_eq!(found.len(), 256);
    for (block, byte) in found {
        assert_eq!(byte, if (100..164).contains(&block) { 7 } else { 1 }, "block {block}");
    }
}

#[test]
fn a_fill_that_begins_inside_a_page_of_memory_is_no_worse() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 1 << 24, &tag()).unwrap();
    let mut page = PageBuffer::new(DIRECT_BYTES_MIN + 1);
    page.bytes_mut().fill(7);
    assert!(cache.fill(cache.ticket(), 3, &page.bytes_mut()[1..]));
    assert_eq!(read(&cache, 0..256).len(), DIRECT_BYTES_MIN / BLOCK_BYTES);
}

#[test]
fn never_holds_more_than_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let bound = 64 * BLOCK_BYTES as u64;
    let cache = Cache::open(dir.path(), bound, &tag()).unwrap();
    for extent in 0..100 {
        assert!(cache.fill(cache.ticket(), extent * 16, &blocks(1, 16)));
    }
    let present = read(&cache, 0..1600).len() as u64 * BLOCK_BYTES as u64;
    assert!(present <= bound && present > bound / 2, "{present}");
    let allocated = std::fs::metadata(dir.path().join("cache.img")).unwrap().blocks() * 512;
    assert!(allocated <= bound + (64 << 10), "{allocated}");
}

#[test]
fn content_survives_a_clean_close_only() {
    let dir = tempfile::tempdir().unwrap();
    let tag = tag();
    let cache = Cache::open(dir.path(), 1 << 20, &tag).unwrap();
    assert!(cache.fill(cache.ticket(), 3, &blocks(7, 2)));
    cache.save(&tag).unwrap();
    drop(cache);
    let cache = Cache::open(dir.path(), 1 << 20, &tag).unwrap();
    assert_eq!(read(&cache, 0..16), [(3, 7), (4, 8)]);
    drop(cache);
    let cache = Cache::open(dir.path(), 1 << 20, &tag).unwrap();
    assert_eq!(read(&cache, 0..16), [], "it was not closed cleanly");
}

#[test]
fn a_discard_of_everything_is_quick_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 1 << 20, &tag()).unwrap();
    assert!(cache.fill(cache.ticket(), 3, &blocks(7, 2)));
    cache.remove(std::iter::once(0..crate::VOLUME_BLOCKS));
    assert_eq!(read(&cache, 0..16), []);
}
