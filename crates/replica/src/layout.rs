//! How the objects of a log are named.

use object_store::path::Path as Key;
use std::fmt;

/// The level of the files that carry one transaction number each.
pub(crate) const LEVEL_TRANSACTIONS: u8 = 0;

/// The level of the files that hold a whole database.
pub(crate) const LEVEL_SNAPSHOTS: u8 = 9;

/// Where Litestream looks for a level, which differs by the scheme of the replica's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `s3://BUCKET/PREFIX`: `PREFIX/0000/`.
    Bucket,
    /// `file://PREFIX`: `PREFIX/ltx/0/`.
    Directory,
}

impl Layout {
    /// The prefix of a level's files.
    pub(crate) fn level(self, prefix: &Key, level: u8) -> Key {
        match self {
            Self::Bucket => prefix.clone().join(format!("{level:04x}")),
            Self::Directory => prefix.clone().join("ltx").join(level.to_string()),
        }
    }

    /// The key of a file.
    pub(crate) fn key(self, prefix: &Key, name: Name) -> Key {
        self.level(prefix, name.level).join(name.to_string())
    }
}

/// Which transactions a file holds, and at which level: its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) level: u8,
    pub(crate) min: u64,
    pub(crate) max: u64,
}

impl Name {
    /// The file that carries one transaction.
    pub(crate) fn transaction(txid: u64) -> Self {
        Self { level: LEVEL_TRANSACTIONS, min: txid, max: txid }
    }

    /// The file that holds the whole database after a transaction.
    pub(crate) fn snapshot(txid: u64) -> Self {
        Self { level: LEVEL_SNAPSHOTS, min: 1, max: txid }
    }

    /// Reads back what `Display` writes, and nothing else.
    pub(crate) fn parse(level: u8, text: &str) -> Option<Self> {
        let (min, max) = text.strip_suffix(".ltx")?.split_once('-')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        let name = Self { level, min: number(min)?, max: number(max)? };
        let whole = match level {
            LEVEL_TRANSACTIONS => name.min == name.max,
            LEVEL_SNAPSHOTS => name.min == 1,
            _ => true,
        };
        (whole && name.min > 0 && name.min <= name.max && name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}.ltx", self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::{Layout, Name};
    use object_store::path::Path as Key;

    #[test]
    fn keys_are_those_of_litestream() {
        let prefix = Key::from("a/log");
        let check = |layout: Layout, name, expected: &str| {
            assert_eq!(layout.key(&prefix, name).as_ref(), expected);
        };
        check(
            Layout::Bucket,
            Name::transaction(255),
            "a/log/0000/00000000000000ff-00000000000000ff.ltx",
        );
        check(
            Layout::Bucket,
            Name::snapshot(16),
            "a/log/0009/0000000000000001-0000000000000010.ltx",
        );
        check(
            Layout::Directory,
            Name::transaction(1),
            "a/log/ltx/0/0000000000000001-0000000000000001.ltx",
        );
    }

    #[test]
    fn only_the_canonical_name_of_the_level_parses() {
        let text = Name::transaction(0xab).to_string();
        assert_eq!(Name::parse(0, &text), Some(Name::transaction(0xab)));
        assert_eq!(Name::parse(9, &text), None);
        for bad in [
            text.to_uppercase(),
            text.replace(".ltx", ""),
            text.replacen('0', "", 1),
            text.replacen('0', "+", 1),
            Name { level: 0, min: 2, max: 3 }.to_string(),
            Name::transaction(0).to_string(),
            String::new(),
        ] {
            assert_eq!(Name::parse(0, &bad), None, "{bad}");
        }
    }
}
