//! The `Range` header, as far as the guest uses it: one range of bytes.

use object_store::GetRange;

/// One range. `None` for anything else, also for several ranges and for a range that ends before it starts.
pub(super) fn parse(header: &[u8]) -> Option<GetRange> {
    let text = std::str::from_utf8(header).ok()?.strip_prefix("bytes=")?;
    let number = |text: &str| {
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten()
    };
    match text.split_once('-')? {
        ("", last) => number(last).filter(|last| *last > 0).map(GetRange::Suffix),
        (first, "") => number(first).map(GetRange::Offset),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then(|| GetRange::Bounded(first..last.saturating_add(1)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use object_store::GetRange;

    #[test]
    fn one_range_parses() {
        assert_eq!(parse(b"bytes=0-9"), Some(GetRange::Bounded(0..10)));
        assert_eq!(parse(b"bytes=7-"), Some(GetRange::Offset(7)));
        assert_eq!(parse(b"bytes=-5"), Some(GetRange::Suffix(5)));
    }

    #[test]
    fn anything_else_does_not() {
        for bad in [
            "",
            "bytes=",
            "bytes=-",
            "bytes=9-0",
            "bytes=0-1,3-4",
            "bytes=+1-2",
            "bytes=-0",
            "items=0-1",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse(b"bytes=\xff-1"), None);
    }
}
