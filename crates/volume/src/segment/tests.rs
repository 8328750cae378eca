//! A whole segment is parsed back from its own bytes, and every damaged one is refused.

use super::{BlockEntry, Contents, HEADER_BYTES, MAGIC, Run, RunWriter, SegmentName};
use super::{StoredRuns, VERSION, decrypt_head, encode, encode_head, head_crc, parse_runs};
use crate::{
    BLOCK_BYTES, VolumeId,
    decode::{DecodeError, Fields},
    keys::{Keys, SecretKey},
};

/// More blocks than any segment has.
const BLOCKS_MAX: u32 = 1 << 16;

/// Everything that a segment says about itself: what rebuilding a map from segments alone needs.
struct Parsed {
    epoch: u64,
    sequence: u64,
    blocks: Vec<BlockEntry>,
    zeros: Vec<(u32, u32)>,
    runs: Vec<Run>,
}

fn parse(bytes: &[u8]) -> Result<Parsed, DecodeError> {
    let mut fields = Fields::new(bytes);
    if &fields.array::<8>()? != MAGIC {
        return Err(DecodeError::Magic);
    }
    let version = fields.u32()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let [blocks, runs, zeros] = [fields.u32()?, fields.u32()?, fields.u32()?];
    if blocks > BLOCKS_MAX || zeros > 1 << 20 || runs > blocks {
        return Err(DecodeError::Value("count"));
    }
    let volume = VolumeId(base::__uuid::Uuid::from_bytes(fields.array()?));
    let (epoch, sequence, crc) = (fields.u64()?, fields.u64()?, fields.u32()?);
    let name = SegmentName { volume, epoch, sequence };
    let tables = blocks as usize * 8 + zeros as usize * 8 + runs as usize * 12;
    let head = bytes.get(..HEADER_BYTES + tables).ok_or(DecodeError::Truncated)?;
    if head_crc(head) != crc {
        return Err(DecodeError::Checksum("header"));
    }
    let blocks = (0..blocks)
        .map(|_| Ok(BlockEntry { block: fields.u32()?, crc: fields.u32()? }))
        .collect::<Result<_, DecodeError>>()?;
    let zeros = (0..zeros)
        .map(|_| Ok((fields.u32()?, fields.u32()?)))
        .collect::<Result<_, DecodeError>>()?;
    let runs = parse_runs(fields.bytes(runs as usize * 12)?, u32::try_from(head.len()).unwrap())?;
    for run in &runs {
        let range = run.range();
        let stored =
            bytes.get(range.start as usize..range.end as usize).ok_or(DecodeError::Truncated)?;
        run.decode((&name, 0), stored, &Keys::none())?;
    }
    Ok(Parsed { epoch, sequence, blocks, zeros, runs })
}

/// A name, blocks and their bytes.
fn blocks() -> (SegmentName, Contents, Vec<u8>) {
    let name = SegmentName { volume: VolumeId::now(), epoch: 3, sequence: 0x1_0000_0001 };
    let mut contents = Contents { zeros: vec![7..9, 100..4_000_000], ..Contents::default() };
    let mut data = Vec::new();
    for block in 0..40u32 {
        // Half of the blocks compress well, the others not at all.
        let mut state = u64::from(block) + 1;
        let bytes: Vec<u8> = (0..BLOCK_BYTES)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                if block < 20 { 5 } else { (state >> 24) as u8 }
            })
            .collect();
        contents.blocks.push(BlockEntry { block: block * 3, crc: crc32c::crc32c(&bytes) });
        data.extend(bytes);
    }
    (name, contents, data)
}

fn runs_of(data: &[u8]) -> StoredRuns {
    let mut runs = RunWriter::new(data.len()).unwrap();
    data.chunks(BLOCK_BYTES).for_each(|block| runs.push(block).unwrap());
    runs.finish().unwrap()
}

/// A segment and the bytes of its blocks.
fn sample() -> (SegmentName, Contents, Vec<u8>, Vec<u8>) {
    let (name, contents, data) = blocks();
    let runs = runs_of(&data);
    let mut bytes = encode_head(&name, &contents, &runs);
    bytes.extend_from_slice(&runs.data());
    (name, contents, bytes, data)
}

#[test]
fn round_trips() {
    let (name, contents, bytes, written) = sample();
    let parsed = parse(&bytes).unwrap();
    assert_eq!((parsed.epoch, parsed.sequence), (name.epoch, name.sequence));
    assert_eq!(parsed.blocks, contents.blocks);
    assert_eq!(parsed.zeros, [(7, 2), (100, 3_999_900)]);
    let data: Vec<u8> = parsed
        .runs
        .iter()
        .flat_map(|run| {
            let stored = &bytes[run.range().start as usize..run.range().end as usize];
            run.decode((&name, 0), stored, &Keys::none()).unwrap()
        })
        .collect();
    assert!(data == written);
    assert!(bytes.len() < written.len() * 3 / 4, "the runs of one byte shrink");
}

#[test]
fn any_flipped_byte_is_refused() {
    let (_, _, bytes, _) = sample();
    for at in (0..bytes.len()).step_by(13).chain(0..HEADER_BYTES) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x41;
        assert!(parse(&damaged).is_err(), "byte {at}");
    }
}

#[test]
fn any_truncation_is_refused() {
    let (_, _, bytes, _) = sample();
    for length in (0..bytes.len()).step_by(97).chain(bytes.len() - 3..bytes.len()) {
        assert!(parse(&bytes[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn keys_carry_epoch_and_sequence() {
    let (name, ..) = sample();
    let key = name.key().to_string();
    let prefix = format!("volumes/{}/segments/", name.volume);
    let rest = key.strip_prefix(&prefix).unwrap();
    assert_eq!(rest.len(), 2 + 1 + 16 + 1 + 16);
    assert!(rest.ends_with("/0000000000000003-0000000100000001"), "{rest}");
}

/// Contents with the bytes of their blocks.
fn encrypted() -> (SegmentName, (Contents, Vec<u8>), Keys, super::Encoded) {
    let (name, contents, data) = blocks();
    let keys = Keys::none().with(name.volume, SecretKey::from_bytes([3; 32].into()));
    let encoded = encode(&name, &contents, &runs_of(&data), &keys);
    (name, (contents, data), keys, encoded)
}

fn decode(
    name: &SegmentName,
    keys: &Keys,
    encoded: &super::Encoded,
) -> Result<Vec<u8>, DecodeError> {
    let mut data = Vec::new();
    for (number, run) in (0..).zip(parse_runs(&encoded.table, 0)?) {
        let range = run.range();
        let stored = encoded
            .data
            .get(range.start as usize..range.end as usize)
            .ok_or(DecodeError::Truncated)?;
        data.extend(run.decode((name, number), stored, keys)?);
    }
    Ok(data)
}

#[test]
fn an_encrypted_segment_round_trips_and_shows_nothing() {
    let (name, (contents, written), keys, encoded) = encrypted();
    assert!(decode(&name, &keys, &encoded).unwrap() == written);
    let head = decrypt_head(&name, &encoded.head, &keys).unwrap();
    let first = &head[HEADER_BYTES..HEADER_BYTES + 8];
    assert_eq!(first[..4], contents.blocks[0].block.to_le_bytes());
    assert!(!encoded.head.windows(8).any(|window| window == first), "no block list in clear");
    let noise = &written[30 * BLOCK_BYTES..30 * BLOCK_BYTES + 32];
    assert!(!encoded.data.windows(32).any(|window| window == noise), "no block in clear");
    let again = encode(&name, &contents, &runs_of(&written), &keys);
    assert!(again.data == encoded.data && again.head == encoded.head, "our own is recognised");
}

#[test]
fn another_key_another_name_and_another_place_are_refused() {
    let (name, (contents, written), keys, encoded) = encrypted();
    assert_eq!(decode(&name, &Keys::none(), &encoded).unwrap_err(), DecodeError::NoKey);
    let wrong = Keys::none().with(name.volume, SecretKey::from_bytes([4; 32].into()));
    assert_eq!(decode(&name, &wrong, &encoded).unwrap_err(), DecodeError::WrongKey);
    assert_eq!(decrypt_head(&name, &encoded.head, &wrong).unwrap_err(), DecodeError::WrongKey);
    let moved = SegmentName { sequence: name.sequence + 1, ..name };
    assert_eq!(decode(&moved, &keys, &encoded).unwrap_err(), DecodeError::WrongKey);
    let runs = parse_runs(&encoded.table, 0).unwrap();
    let range = runs[1].range();
    let stored = &encoded.data[range.start as usize..range.end as usize];
    let swapped = runs[1].decode((&name, 0), stored, &keys);
    assert_eq!(swapped.unwrap_err(), DecodeError::WrongKey);
    for at in (0..encoded.head.len()).step_by(7) {
        let mut damaged = encoded.head.to_vec();
        damaged[at] ^= 1;
        assert!(decrypt_head(&name, &damaged, &keys).is_err(), "byte {at}");
    }
    let plain = encode(&name, &contents, &runs_of(&written), &Keys::none());
    assert_eq!(decrypt_head(&name, &plain.head, &keys).unwrap_err(), DecodeError::Plain);
}
