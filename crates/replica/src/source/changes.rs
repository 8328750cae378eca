//! Which images of pages may differ from what has been shipped, and where they are.

use crate::{
    digest::Digest,
    wal::{Wal, WalPosition},
};
use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt};

/// Where the newest image of a page is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Image {
    Database,
    Wal(u64),
}

/// Where what has not been shipped begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Within this use of the WAL.
    At(WalPosition),
    /// Unknown: everything is compared.
    Scan,
    /// At the start of whatever WAL there is: the database file holds what has been shipped.
    Start,
}

/// The images that may differ from what has been shipped.
pub(super) struct Changes {
    pub(super) page_size: u32,
    pub(super) page_count: u32,
    pub(super) images: BTreeMap<u32, Image>,
    pub(super) wal: Option<(WalPosition, WalPosition)>,
    pub(super) next: Next,
}

impl Changes {
    /// Nothing differs from what has been shipped.
    pub(super) fn none(shipped: &Digest, next: Next) -> Self {
        Self {
            page_size: shipped.page_size(),
            page_count: shipped.page_count(),
            images: BTreeMap::new(),
            wal: None,
            next,
        }
    }

    pub(super) fn collect(&mut self, wal: &Wal<'_>, from: WalPosition) -> io::Result<()> {
        self.collect_until(wal, from, None)
    }

    /// Adds the pages of all commits from a place on, up to another or to the last commit.
    pub(super) fn collect_until(
        &mut self,
        wal: &Wal<'_>,
        from: WalPosition,
        until: Option<WalPosition>,
    ) -> io::Result<()> {
        let mut at = from;
        let mut frame = Vec::new();
        while until != Some(at)
            && let Some(commit) = wal.commit_at(at, &mut frame)?
        {
            self.images.extend(
                commit.frames.into_iter().map(|(number, offset)| (number, Image::Wal(offset))),
            );
            self.page_count = commit.page_count;
            at = commit.end;
        }
        if at != from {
            self.images.split_off(&self.page_count.saturating_add(1));
            self.wal = Some((from, at));
            self.next = Next::At(at);
        }
        Ok(())
    }
}

/// Reads one page.
pub(super) fn read_image(
    file: &File,
    wal: Option<&File>,
    image: Image,
    number: u32,
    page: &mut [u8],
) -> io::Result<()> {
    match image {
        Image::Wal(offset) => {
            wal.expect("images in a WAL come from an open one").read_exact_at(page, offset)
        }
        Image::Database => {
            let offset = (u64::from(number) - 1) * page.len() as u64;
            match file.read_exact_at(page, offset) {
                // A page behind the end that no commit has written is one of zeros.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    page.fill(0);
                    Ok(())
                }
                other => other,
            }
        }
    }
}
