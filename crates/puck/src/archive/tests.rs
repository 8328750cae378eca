//! An archive is read as it was written, and not at all when anything of it is different.

use super::{ArchiveError, ArchiveKey, Manifest, Origin, Reader, Writer};
use volume::Piece;

const KEY: ArchiveKey = ArchiveKey([7; 32]);

fn manifest() -> Manifest {
    let text = r#"{"format":1,"name":"web","written_at":"2026-01-01T00:00:00Z","image":"sha","labels":["a"],
        "environment":{"A":"1"},"idle_timeout_seconds":30,"durability":"default","disk":{"layers":[{"id":1,"parent":null}],
        "head":1,"base":null,"checkpoint_next":1,"auto_second":0,"auto_count":0,"checkpoints":[],"segments":[3,5]}}"#;
    serde_json::from_str(text).unwrap()
}

fn pieces() -> Vec<Piece> {
    vec![
        Piece::Segment(3, b"three".to_vec().into()),
        Piece::Segment(5, vec![5; 2000].into()),
        Piece::Rows(b"rows".to_vec().into()),
        Piece::Rows(b"more".to_vec().into()),
    ]
}

fn written(key: Option<ArchiveKey>) -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), key, &manifest()).unwrap();
    for piece in pieces() {
        writer.piece(&piece).unwrap();
    }
    writer.finish().unwrap()
}

fn read(bytes: &[u8]) -> Result<(Manifest, Origin, Vec<Piece>), ArchiveError> {
    let mut tar = tar::Archive::new(bytes);
    let (mut reader, manifest) = Reader::begin(&mut tar, &KEY)?;
    let mut pieces = Vec::new();
    while let Some(piece) = reader.piece()? {
        pieces.push(piece);
    }
    Ok((manifest, reader.origin(), pieces))
}

#[test]
fn an_archive_comes_back_and_says_who_wrote_it() {
    for (key, origin) in [
        (Some(KEY), Origin::Here),
        (Some(ArchiveKey([8; 32])), Origin::Elsewhere),
        (None, Origin::Elsewhere),
    ] {
        assert_eq!(read(&written(key)).unwrap(), (manifest(), origin, pieces()));
    }
}

#[test]
fn every_shorter_archive_is_refused() {
    let whole = written(Some(KEY));
    // The last two blocks of 512 bytes are only the padding of the format.
    let content = whole.len() - 1024;
    for length in (0..content).step_by(37).chain([content - 512, content - 1]) {
        let error = read(&whole[..length]).expect_err("shorter");
        assert!(
            matches!(error, ArchiveError::Short | ArchiveError::Foreign),
            "{length}: {error:?}"
        );
    }
}

#[test]
fn every_changed_byte_that_says_something_is_found() {
    let whole = written(Some(KEY));
    let mut unnoticed = 0;
    for at in (0..whole.len()).step_by(3) {
        let mut changed = whole.clone();
        changed[at] ^= 0x11;
        match read(&changed) {
            Err(_) => {}
            // Padding behind members, and what the format has for times and owners, is nobody's content.
            Ok(found) => {
                assert_eq!(found, (manifest(), Origin::Here, pieces()), "byte {at}");
                unnoticed += 1;
            }
        }
    }
    assert!(unnoticed < whole.len() / 3, "most bytes matter");
}

/// Where the first segment begins.
fn front_bytes(archive: &[u8]) -> usize {
    archive.windows(11).position(|part| part == b"segments/3\0").unwrap()
}

/// A member, with the mark of a regular file or another one.
fn member(name: &str, content: &[u8], kind: tar::EntryType) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_entry_type(kind);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    tar.append(&header, content).unwrap();
    let mut bytes = tar.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes
}

#[test]
fn members_that_may_not_come_are_refused_by_name() {
    let whole = written(None);
    let start = &whole[..front_bytes(&whole)];
    for (name, kind) in [
        ("../../etc/passwd", tar::EntryType::Regular),
        ("segments/../3", tar::EntryType::Regular),
        ("segments/03", tar::EntryType::Regular),
        ("segments/4294967296", tar::EntryType::Regular),
        ("rows/1", tar::EntryType::Regular),
        ("sprite.json", tar::EntryType::Regular),
        ("segments/3", tar::EntryType::Symlink),
        ("segments/3", tar::EntryType::GNULongName),
    ] {
        let bytes = [start, &member(name, b"x", kind)].concat();
        let error = read(&bytes).expect_err(name);
        assert!(
            matches!(&error, ArchiveError::Member { found, .. } if found == name),
            "{name}: {error}"
        );
    }
    let other = member("hello", b"x", tar::EntryType::Regular);
    for foreign in [&b""[..], b"hello", &[0; 4096], &[0xff; 4096], &other] {
        assert!(matches!(read(foreign), Err(ArchiveError::Foreign)), "{:?}", read(foreign));
    }
}

#[test]
fn sizes_are_believed_only_as_far_as_bytes_come() {
    let mut lie = member("sprite.json", b"{}", tar::EntryType::Regular);
    let mut header = tar::Header::from_byte_slice(&lie[..512]).clone();
    header.set_size(10 << 20);
    header.set_cksum();
    lie[..512].copy_from_slice(header.as_bytes());
    assert!(matches!(read(&lie), Err(ArchiveError::Foreign | ArchiveError::Short)));
    header.set_size(1 << 40);
    header.set_cksum();
    lie[..512].copy_from_slice(header.as_bytes());
    assert!(matches!(read(&lie), Err(ArchiveError::Long(name)) if name == "sprite.json"));
}

#[test]
fn a_newer_format_says_so() {
    let mut newer = manifest();
    newer.format = 2;
    let writer = Writer::begin(Vec::new(), None, &newer).unwrap();
    assert!(matches!(read(&writer.finish().unwrap()), Err(ArchiveError::Format(2))));
}

#[test]
fn a_front_of_ours_does_not_vouch_for_another_end() {
    let (ours, theirs) = (written(Some(KEY)), written(None));
    let mixed = [&ours[..front_bytes(&ours)], &theirs[front_bytes(&theirs)..]].concat();
    assert!(matches!(read(&mixed), Err(ArchiveError::Changed)));
}
