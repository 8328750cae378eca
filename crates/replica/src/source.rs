//! The local database as the log sees it: what has been shipped of it, and what has not.
//!
//! ```text
//! Scan  --prepare-->  At(position) or Start  --checkpoint-->  Start
//! At, when the WAL was started again by somebody else  -->  Scan
//! ```
//!
//! The digest of each shipped page is in memory. So the state `Scan`, in which nothing is known about the WAL, costs one
//! reading of the database and ships only pages that differ.
//!
//! A pending file belongs to this state: what is prepared is taken as shipped from then on, and stays pending until the
//! bucket certainly has it, whatever becomes of the call that prepared it.

mod changes;
mod touched;

use crate::{
    Position,
    digest::{Digest, lock_page},
    error::{Error, local},
    layout::Name,
    local::sidecar,
    ltx::{self, Encoder, Header, Ours},
    note,
    ownership::Writer,
    restore::Head,
    wal::Wal,
};
use bytes::Bytes;
use changes::{Changes, Image, Next, read_image};
use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};
pub(crate) use touched::MERGED_LEVELS;
use touched::Touched;

/// Bytes at the start of a database that say what it is.
const DATABASE_HEADER_BYTES: usize = 100;

/// A database in WAL mode says so twice.
const WAL_MODE: [u8; 2] = [2, 2];

/// One database with its WAL.
pub(crate) struct Source {
    path: PathBuf,
    /// A connection of our own. While it exists, the owner's closing is not the last one, so SQLite does not move commits
    /// from the WAL into the database behind our back. Dropped before `file`, whose closing drops all locks.
    keeper: Option<Connection>,
    /// Open for as long as this lives, see the docs of the crate. `None` until the owner has created the database.
    file: Option<File>,
    /// The database as the log has it; `None` when that is unknown.
    shipped: Option<Digest>,
    next: Next,
    pending: Option<Pending>,
    touched: Touched,
}

/// A file that is on its way to the bucket.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) name: Name,
    pub(crate) bytes: Bytes,
    pub(crate) time_ms: u64,
    pub(crate) position: Position,
}

impl Pending {
    fn new(stamp: &Stamp, encoder: Encoder) -> Self {
        let (bytes, checksum) = encoder.finish();
        Self {
            name: Name::transaction(stamp.txid),
            bytes: bytes.into(),
            time_ms: stamp.time_ms,
            position: Position { txid: stamp.txid, checksum },
        }
    }

    /// A file that changes nothing in the database that the file with this header has left.
    pub(crate) fn empty(stamp: &Stamp, last: &Header) -> Self {
        let header = Header {
            min: stamp.txid,
            max: stamp.txid,
            time_ms: stamp.time_ms,
            wal_offset: 0,
            wal_size: 0,
            wal_salt: [0, 0],
            node: stamp.writer.epoch,
            ours: Some(Ours {
                digest: last.ours.map_or(ltx::DIGEST_UNKNOWN, |ours| ours.digest),
                nonce: stamp.writer.nonce,
                takeover: stamp.claim,
            }),
            ..*last
        };
        Self::new(stamp, Encoder::new(&header))
    }
}

/// What the next file says about its writer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) txid: u64,
    pub(crate) writer: Writer,
    /// It is the writer's first file.
    pub(crate) claim: bool,
    pub(crate) time_ms: u64,
}

impl Source {
    /// A database that may or may not exist, of which the log has nothing.
    pub(crate) fn new(db: &Path) -> Self {
        Self {
            path: db.to_owned(),
            keeper: None,
            file: None,
            shipped: None,
            next: Next::Scan,
            pending: None,
            touched: Touched::default(),
        }
    }

    /// A database that was just restored.
    pub(crate) fn restored(db: &Path, digest: Digest) -> Result<Self, Error> {
        let mut source = Self { shipped: Some(digest), next: Next::Start, ..Self::new(db) };
        source.attach()?;
        Ok(source)
    }

    /// The database, if it is what the head of the log holds, with or without more commits; `None` when it is something
    /// else, or damaged.
    pub(crate) fn recognize(db: &Path, head: &Head) -> Result<Option<Self>, Error> {
        let mut source = Self::new(db);
        let Some(ours) = head.header.ours else { return Ok(None) };
        if !source.open_file()? || source.page_size()? != Some(head.header.page_size) {
            return Ok(None);
        }
        let known = source.walk(head.header.page_size, ours.digest)?;
        let found = match known {
            Some((digest, next)) => {
                source.shipped = Some(digest);
                source.next = next;
                true
            }
            None => {
                note::names(db, head.position).map_err(local("read the note of", db))?
                    && source.is_sound()?
            }
        };
        if found {
            source.attach()?;
        }
        Ok(found.then_some(source))
    }

    /// Goes through the states that the database file and then each commit in the WAL lead to, and finds the last one that
    /// has the digest.
    fn walk(&self, page_size: u32, wanted: u64) -> Result<Option<(Digest, Next)>, Error> {
        let file = self.file.as_ref().expect("the caller opened it");
        let page_count = self.file_pages(page_size)?;
        let mut digest = Digest::new(page_size);
        let mut page = vec![0; page_size as usize];
        for number in 1..=page_count {
            read_image(file, None, Image::Database, number, &mut page)
                .map_err(local("read", &self.path))?;
            digest.append(&page);
        }
        let mut found = (digest.value() == wanted).then(|| (digest.clone(), Next::Start));
        let wal_path = sidecar(&self.path, "-wal");
        let Some(wal_file) = open_existing(&wal_path)? else { return Ok(found) };
        let Some(wal) = Wal::read(&wal_file).map_err(local("read", &wal_path))? else {
            return Ok(found);
        };
        if wal.page_size() != page_size {
            return Ok(None);
        }
        let mut at = wal.start();
        let mut frame = Vec::new();
        while let Some(commit) = wal.commit_at(at, &mut frame).map_err(local("read", &wal_path))? {
            digest.resize(commit.page_count);
            for &(number, offset) in
                commit.frames.iter().filter(|(number, _)| *number <= commit.page_count)
            {
                wal_file.read_exact_at(&mut page, offset).map_err(local("read", &wal_path))?;
                digest.set(number, &page);
            }
            at = commit.end;
            if digest.value() == wanted {
                found = Some((digest.clone(), Next::At(at)));
            }
        }
        Ok(found)
    }

    /// Whether SQLite finds nothing wrong with the database.
    fn is_sound(&mut self) -> Result<bool, Error> {
        let keeper = self.keeper()?;
        let check = keeper.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        match check {
            Ok(answer) => Ok(answer == "ok"),
            Err(rusqlite::Error::SqliteFailure(failure, _))
                if matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) =>
            {
                Ok(false)
            }
            Err(source) => Err(self.refused("check", source)),
        }
    }

    /// The file that is on its way, if any.
    pub(crate) fn pending(&self) -> Option<Pending> {
        self.pending.clone()
    }

    /// The bucket has the pending file.
    pub(crate) fn settle(&mut self) {
        let pending = self.pending.take().expect("only a pending file is settled");
        self.note(&[pending.position]);
    }

    /// Remembers that the database is what the log holds up to one of these, with or without more commits.
    pub(crate) fn note(&self, positions: &[Position]) {
        note::write(&self.path, positions);
    }

    /// Makes a pending file of all commits that have not been shipped. `false`: there is none.
    pub(crate) fn prepare(&mut self, stamp: &Stamp) -> Result<bool, Error> {
        assert!(self.pending.is_none(), "one file is in flight at a time");
        let wal_path = sidecar(&self.path, "-wal");
        let wal_file = open_existing(&wal_path)?;
        let Some(changes) = self.changes(wal_file.as_ref(), &wal_path)? else { return Ok(false) };
        self.attach()?;
        let known = self.shipped.as_ref();
        if known.is_some_and(|digest| digest.page_size() != changes.page_size) {
            return Err(self.unshippable("its page size has changed"));
        }
        let everything = known.is_none();
        let mut digest = known.cloned().unwrap_or_else(|| Digest::new(changes.page_size));
        let page_count_before = digest.page_count();
        let resized = page_count_before != changes.page_count;
        digest.resize(changes.page_count);
        let mut page = vec![0; changes.page_size as usize];
        let mut changed = Vec::new();
        for (&number, &image) in &changes.images {
            self.read(wal_file.as_ref(), image, number, &mut page)?;
            if digest.set(number, &page) || everything {
                changed.push((number, image));
            }
        }
        if changed.is_empty() && !resized {
            self.next = changes.next;
            return Ok(false);
        }
        let mut encoder = Encoder::new(&header(stamp, &changes, digest.value()));
        for &(number, image) in &changed {
            self.read(wal_file.as_ref(), image, number, &mut page)?;
            encoder.page(number, &page);
        }
        self.pending = Some(Pending::new(stamp, encoder));
        self.touched.add(changed.iter().map(|(number, _)| *number));
        self.touched.resize(page_count_before, changes.page_count);
        self.shipped = Some(digest);
        self.next = changes.next;
        Ok(true)
    }

    fn changes(
        &mut self,
        wal_file: Option<&File>,
        wal_path: &Path,
    ) -> Result<Option<Changes>, Error> {
        if !self.open_file()? {
            return Ok(None);
        }
        let wal = wal_file.map(Wal::read).transpose().map_err(local("read", wal_path))?.flatten();
        let from = match (self.next, &wal) {
            (Next::Start, None) => return Ok(None),
            (Next::Start, Some(wal)) => wal.start(),
            (Next::At(position), Some(wal)) if wal.start().salt == position.salt => position,
            (Next::At(_) | Next::Scan, _) => return self.scan(wal.as_ref(), wal_path),
        };
        let wal = wal.as_ref().expect("every place is in a WAL");
        let mut changes = Changes {
            page_size: wal.page_size(),
            page_count: 0,
            images: BTreeMap::new(),
            wal: None,
            next: Next::At(from),
        };
        changes.collect(wal, from).map_err(local("read", wal_path))?;
        // Until the first commit, a WAL may still be replaced by one with other salts without any loss.
        Ok(changes.wal.is_some().then_some(changes))
    }

    /// Everything that there is, to be compared with what has been shipped.
    fn scan(&self, wal: Option<&Wal<'_>>, wal_path: &Path) -> Result<Option<Changes>, Error> {
        let page_size = match wal {
            Some(wal) => wal.page_size(),
            None => match self.page_size()? {
                Some(page_size) => page_size,
                None => return Ok(None),
            },
        };
        let page_count = self.file_pages(page_size)?;
        let mut changes = Changes {
            page_size,
            page_count,
            images: BTreeMap::new(),
            wal: None,
            next: Next::Start,
        };
        if let Some(wal) = wal {
            changes.next = Next::At(wal.start());
            changes.collect(wal, wal.start()).map_err(local("read", wal_path))?;
        }
        if changes.page_count == 0 {
            return Ok(None);
        }
        for number in (1..=changes.page_count).filter(|&number| number != lock_page(page_size)) {
            changes.images.entry(number).or_insert(Image::Database);
        }
        self.check_mode(wal.is_some())?;
        Ok(Some(changes))
    }

    /// Refuses a database whose changes would not go through a WAL.
    fn check_mode(&self, has_wal: bool) -> Result<(), Error> {
        let mut header = [0; DATABASE_HEADER_BYTES];
        let file = self.file.as_ref().expect("only an open database is scanned");
        match file.read_exact_at(&mut header, 0) {
            Ok(()) if header[18..20] == WAL_MODE => Ok(()),
            Ok(()) => Err(self.unshippable("it is not in WAL mode")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && has_wal => Ok(()),
            Err(error) => Err(local("read", &self.path)(error)),
        }
    }

    /// Makes a pending file that changes nothing. Something must have been shipped.
    pub(crate) fn prepare_empty(&mut self, stamp: &Stamp) {
        assert!(self.pending.is_none(), "one file is in flight at a time");
        let digest = self.shipped.as_ref().expect("the caller has shipped something");
        let unchanged = Changes::none(digest, self.next);
        let encoder = Encoder::new(&header(stamp, &unchanged, digest.value()));
        self.pending = Some(Pending::new(stamp, encoder));
    }

    /// The whole database as it has been shipped, as a file of the level of snapshots.
    pub(crate) fn snapshot(&self, stamp: &Stamp) -> Result<Bytes, Error> {
        let digest = self.shipped.as_ref().expect("something has been shipped");
        self.collected(stamp, 1, 1..=digest.page_count())
    }

    /// What has changed since the last file of a level ended, as one file that begins with the number `min`.
    pub(crate) fn merged(&self, stamp: &Stamp, min: u64, level: u8) -> Result<Bytes, Error> {
        self.collected(stamp, min, self.touched.pages(level))
    }

    /// The bucket has a file that ends here: of this level, or a snapshot, which ends all levels.
    pub(crate) fn ended(&mut self, level: u8) {
        self.touched.clear_up_to(level);
    }

    /// Some pages as they have been shipped, in one file for the numbers from `min` on.
    fn collected(
        &self,
        stamp: &Stamp,
        min: u64,
        numbers: impl Iterator<Item = u32>,
    ) -> Result<Bytes, Error> {
        let digest = self.shipped.as_ref().expect("something has been shipped");
        let wal_path = sidecar(&self.path, "-wal");
        let wal_file = open_existing(&wal_path)?;
        let page_size = digest.page_size();
        let mut all = Changes::none(digest, self.next);
        let header = Header { min, ..header(stamp, &all, digest.value()) };
        if let (Next::At(end), Some(file)) = (self.next, &wal_file)
            && let Some(wal) = Wal::read(file).map_err(local("read", &wal_path))?
        {
            all.collect_until(&wal, wal.start(), Some(end)).map_err(local("read", &wal_path))?;
        }
        let mut encoder = Encoder::new(&header);
        let mut page = vec![0; page_size as usize];
        let there =
            |number: &u32| *number <= digest.page_count() && *number != lock_page(page_size);
        for number in numbers.filter(there) {
            let image = all.images.get(&number).copied().unwrap_or(Image::Database);
            self.read(wal_file.as_ref(), image, number, &mut page)?;
            if !digest.holds(number, &page) {
                return Err(Error::Digest { txid: stamp.txid });
            }
            encoder.page(number, &page);
        }
        Ok(encoder.finish().0.into())
    }

    /// Moves the WAL into the database and empties it, when it has grown past `wal_bytes_max`. Everything in it has been
    /// shipped. When somebody is reading, nothing happens.
    pub(crate) fn checkpoint(&mut self, wal_bytes_max: u64) -> Result<(), Error> {
        let Next::At(position) = self.next else { return Ok(()) };
        if position.offset <= wal_bytes_max || self.pending.is_some() {
            return Ok(());
        }
        let done = self
            .keeper()?
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        match done {
            Ok(0) => self.next = Next::Start,
            Ok(_) => {}
            Err(error) if is_busy(&error) => {}
            Err(source) => return Err(self.refused("checkpoint", source)),
        }
        Ok(())
    }

    /// Bytes of the database.
    pub(crate) fn bytes(&self) -> u64 {
        self.shipped
            .as_ref()
            .map_or(0, |digest| u64::from(digest.page_count()) * u64::from(digest.page_size()))
    }

    /// Makes the keeper take part in the WAL.
    fn attach(&mut self) -> Result<(), Error> {
        self.open_file()?;
        let touched =
            self.keeper()?.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
        match touched {
            Err(error) if !is_busy(&error) => Err(self.refused("attach to", error)),
            _ => Ok(()),
        }
    }

    fn keeper(&mut self) -> Result<&Connection, Error> {
        if self.keeper.is_none() {
            let keeper =
                open_keeper(&self.path).map_err(|source| self.refused("attach to", source))?;
            self.keeper = Some(keeper);
        }
        Ok(self.keeper.as_ref().expect("set above"))
    }

    fn open_file(&mut self) -> Result<bool, Error> {
        if self.file.is_none() {
            self.file = open_existing(&self.path)?;
        }
        Ok(self.file.is_some())
    }

    /// The page size that the database file states; `None` when it states none that makes sense.
    fn page_size(&self) -> Result<Option<u32>, Error> {
        let mut header = [0; DATABASE_HEADER_BYTES];
        let file = self.file.as_ref().expect("the caller opened it");
        match file.read_exact_at(&mut header, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(local("read", &self.path)(error)),
        }
        let size = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65_536,
            size => u32::from(size),
        };
        Ok((&header[..16] == b"SQLite format 3\0" && ltx::is_page_size(size)).then_some(size))
    }

    fn file_pages(&self, page_size: u32) -> Result<u32, Error> {
        let file = self.file.as_ref().expect("the caller opened it");
        let bytes = file.metadata().map_err(local("measure", &self.path))?.len();
        u32::try_from(bytes / u64::from(page_size))
            .map_err(|_| self.unshippable("it has too many pages"))
    }

    fn read(
        &self,
        wal: Option<&File>,
        image: Image,
        number: u32,
        page: &mut [u8],
    ) -> Result<(), Error> {
        let file = self.file.as_ref().expect("only an open database is read");
        read_image(file, wal, image, number, page).map_err(local("read a page of", &self.path))
    }

    fn refused(&self, action: &'static str, source: rusqlite::Error) -> Error {
        Error::Database { action, path: self.path.clone(), source }
    }

    fn unshippable(&self, reason: &'static str) -> Error {
        Error::Unshippable { path: self.path.clone(), reason }
    }
}

fn header(stamp: &Stamp, changes: &Changes, digest: u64) -> Header {
    let (wal_offset, wal_size, wal_salt) = match changes.wal {
        Some((from, to)) => (from.offset, to.offset - from.offset, to.salt),
        None => (0, 0, [0, 0]),
    };
    Header {
        page_size: changes.page_size,
        page_count: changes.page_count,
        min: stamp.txid,
        max: stamp.txid,
        time_ms: stamp.time_ms,
        wal_offset,
        wal_size,
        wal_salt,
        node: stamp.writer.epoch,
        ours: Some(Ours { digest, nonce: stamp.writer.nonce, takeover: stamp.claim }),
    }
}

fn open_existing(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(local("open", path)(error)),
    }
}

fn open_keeper(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let keeper = Connection::open_with_flags(path, flags)?;
    keeper.busy_timeout(Duration::ZERO)?;
    keeper.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(keeper)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}
