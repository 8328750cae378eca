use super::{Decoder, Encoder, FormatError, Header, Ours, verify};

const PAGE_SIZE: usize = 4096;

fn header(min: u64, page_count: u32) -> Header {
    Header {
        page_size: PAGE_SIZE as u32,
        page_count,
        min,
        max: min,
        time_ms: 1_795_600_000_000,
        wal_offset: 32,
        wal_size: 4120,
        wal_salt: [7, 8],
        node: 9,
        ours: Some(Ours { digest: 1 << 63 | 5, nonce: 6, takeover: true }),
    }
}

fn page(number: u32) -> Vec<u8> {
    (0..PAGE_SIZE).map(|i| (i as u32 * number / 64) as u8).collect()
}

fn file(min: u64, page_count: u32, numbers: &[u32]) -> Vec<u8> {
    let mut encoder = Encoder::new(&header(min, page_count));
    for &number in numbers {
        encoder.page(number, &page(number));
    }
    encoder.finish().0
}

fn decode(bytes: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, FormatError> {
    let mut decoder = Decoder::new(bytes)?;
    let mut pages = Vec::new();
    let mut buffer = vec![0; PAGE_SIZE];
    while let Some(number) = decoder.page(&mut buffer)? {
        pages.push((number, buffer.clone()));
    }
    decoder.finish()?;
    Ok(pages)
}

#[test]
fn what_was_written_is_read() {
    for numbers in [&[][..], &[1], &[2, 3, 100], &[1, 2, 300]] {
        let bytes = file(2, 300, numbers);
        let expected: Vec<_> = numbers.iter().map(|&number| (number, page(number))).collect();
        assert_eq!(decode(&bytes), Ok(expected));
        assert_eq!(verify(&bytes).expect("whole").0, header(2, 300));
    }
    assert!(decode(&file(1, 3, &[1, 2, 3])).is_ok());
}

#[test]
fn a_file_without_pages_has_131_bytes() {
    assert_eq!(file(2, 5, &[]).len(), 131);
}

#[test]
fn every_flipped_bit_is_refused() {
    let good = file(2, 300, &[1, 7, 300]);
    let untouched = decode(&good).expect("whole");
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // A few bits of an LZ4 block have no meaning; then the file still says what it said.
        if let Ok(pages) = decode(&bad) {
            assert_eq!(pages, untouched, "bit {bit}");
            assert!(bit / 8 > super::HEADER_BYTES, "bit {bit}");
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let good = file(2, 300, &[1, 7, 300]);
    for length in 0..good.len() {
        assert!(decode(&good[..length]).is_err(), "length {length}");
    }
    let mut longer = good;
    longer.push(0);
    assert_eq!(decode(&longer), Err(FormatError::Checksum));
}

#[test]
fn pages_out_of_place_are_refused() {
    for (min, page_count, numbers, after) in [
        (2, 10, &[3, 2][..], 3),
        (2, 10, &[3, 3], 3),
        (2, 10, &[11], 0),
        (1, 3, &[1, 3], 1),
        (1, 3, &[2, 3], 0),
        (1, 3, &[1, 2], 2),
        (2, 400_000, &[262_145], 0),
    ] {
        assert_eq!(
            decode(&file(min, page_count, numbers)),
            Err(FormatError::Page { after }),
            "{numbers:?}"
        );
    }
}

#[test]
fn noise_does_not_panic() {
    let good = file(2, 300, &[1, 7, 300]);
    for seed in 0..2000u32 {
        let mut bad = good.clone();
        for round in 0..=seed % 8 {
            let at =
                (seed.wrapping_mul(2_654_435_761).wrapping_add(round * 977) as usize) % bad.len();
            bad[at] = bad[at].wrapping_add((seed >> 3) as u8 | 1);
        }
        drop(decode(&bad));
    }
}
