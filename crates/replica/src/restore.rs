//! Rebuilding a database from files of the log.

use crate::{
    Position,
    digest::Digest,
    error::{Error, local},
    layout::Name,
    local::{self, sidecar},
    ltx::{DIGEST_UNKNOWN, Decoder, FormatError, Header, Ours, PAGE_FRAME_BYTES_MIN},
    ownership::{Entry, Writer},
    store::Store,
};
use futures::TryStreamExt;
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    pin::pin,
};

/// Files that are read from the bucket at once.
pub(crate) const READS_AT_ONCE: usize = 16;

/// The file name suffix of a database that is being rebuilt.
const RESTORING: &str = ".restoring";

/// The last file of the log, verified.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) position: Position,
    pub(crate) header: Header,
}

/// Rebuilds the database that a chain of files leads to, and puts it in the place of `db` when it is whole.
pub(crate) async fn restore(
    store: &Store,
    chain: Vec<Name>,
    db: &Path,
) -> Result<(Head, Digest), Error> {
    let path = sidecar(db, RESTORING);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(local("create", &path))?;
    let mut target = Target { path, file, state: None };
    let mut files = pin!(store.read_all(chain, READS_AT_ONCE));
    while let Some((name, bytes)) = files.try_next().await? {
        let store = store.clone();
        target = blocking(move || target.apply(&store, name, &bytes).map(|()| target)).await?;
    }
    let db = db.to_owned();
    blocking(move || target.finish(&db)).await
}

/// Runs something that reads and writes local files.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("a blocking task is never aborted"),
        },
    }
}

/// The database under construction.
struct Target {
    path: PathBuf,
    file: File,
    state: Option<(Head, Digest)>,
}

impl Target {
    fn apply(&mut self, store: &Store, name: Name, bytes: &[u8]) -> Result<(), Error> {
        let format = |source| Error::File { key: store.key(name), source };
        let mut decoder = Decoder::new(bytes).map_err(format)?;
        let header = *decoder.header();
        let mut digest = match self.state.take() {
            Some((_, digest)) => digest,
            None => Digest::new(header.page_size),
        };
        if (header.min, header.max) != (name.min, name.max)
            || header.page_size != digest.page_size()
        {
            return Err(Error::Misplaced { key: store.key(name) });
        }
        // A page is new only if it is in the file, so a page count that the file cannot explain is damage, found here before
        // memory is taken for it.
        let new_pages = header.page_count.saturating_sub(digest.page_count()) as usize;
        if new_pages > bytes.len() / PAGE_FRAME_BYTES_MIN + 1 {
            return Err(format(FormatError::Header));
        }
        digest.resize(header.page_count);
        self.resize(&header)?;
        let mut page = vec![0; header.page_size as usize];
        while let Some(number) = decoder.page(&mut page).map_err(format)? {
            digest.set(number, &page);
            self.write(number, &page)?;
        }
        let checksum = decoder.finish().map_err(format)?;
        let position = Position { txid: header.max, checksum };
        if !states(&header, &digest) {
            return Err(Error::Digest { txid: header.max });
        }
        self.state = Some((Head { position, header }, digest));
        Ok(())
    }

    /// Cuts what the transaction has cut, so that pages that come back later are zero until they are written.
    fn resize(&self, header: &Header) -> Result<(), Error> {
        let length = u64::from(header.page_count) * u64::from(header.page_size);
        self.file.set_len(length).map_err(local("resize", &self.path))
    }

    fn write(&self, number: u32, page: &[u8]) -> Result<(), Error> {
        let offset = (u64::from(number) - 1) * page.len() as u64;
        self.file.write_all_at(page, offset).map_err(local("write", &self.path))
    }

    fn finish(self, db: &Path) -> Result<(Head, Digest), Error> {
        let state = self.state.expect("a chain has at least one file");
        self.file.sync_all().map_err(local("synchronize", &self.path))?;
        local::replace(db, &self.path)?;
        Ok(state)
    }
}

/// Whether what a file says of the database agrees with this.
pub(crate) fn states(header: &Header, digest: &Digest) -> bool {
    let stated = header.ours.map_or(DIGEST_UNKNOWN, |Ours { digest, .. }| digest);
    [DIGEST_UNKNOWN, digest.value()].contains(&stated)
}

impl Head {
    /// Who wrote it.
    pub(crate) fn writer(&self) -> Writer {
        let nonce = self.header.ours.map_or(0, |ours| ours.nonce);
        Writer { epoch: self.header.node, nonce }
    }

    /// What it is to the protocol.
    pub(crate) fn entry(&self) -> Entry {
        let Position { txid, checksum } = self.position;
        Entry { txid, writer: self.writer(), checksum }
    }
}

/// Verifies the last file of a log.
pub(crate) fn verify_head(store: &Store, name: Name, bytes: &[u8]) -> Result<Head, Error> {
    let key = || store.key(name);
    let (header, checksum) =
        crate::ltx::verify(bytes).map_err(|source| Error::File { key: key(), source })?;
    if (header.min, header.max) != (name.min, name.max) {
        return Err(Error::Misplaced { key: key() });
    }
    Ok(Head { position: Position { txid: header.max, checksum }, header })
}
