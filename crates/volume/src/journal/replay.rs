//! Opening a journal: what of it continues the map, and what does not.

use super::{
    Appended, FILE_HEADER_BYTES, FileHeader, Identity, Journal, JournalFile, Place, Position,
    RECORD_HEADER_BYTES, Record, RecordKind, remove,
};
use crate::{
    Settings, VolumeId,
    error::{Attempt as _, Error, ErrorKind},
    failpoint::Point,
    flush::Flush,
    recovery::JOURNAL_ASIDE,
};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// An opened journal.
#[derive(Debug)]
pub(crate) struct Opened {
    pub journal: Journal,
    /// The records that are not in the map yet, in order.
    pub unsealed: Vec<Appended>,
    /// Where a journal went that does not continue the map.
    pub set_aside: Option<PathBuf>,
}

/// A scanned journal file.
struct Scanned {
    header: FileHeader,
    file: Arc<JournalFile>,
    records: Vec<Appended>,
}

/// Opens or creates `dir/journal` for a map that stands at `map`.
///
/// The order of renames makes a crash at any point leave one complete journal: `journal-next` counts only when `journal`
/// is gone, and it is complete before `journal` goes.
pub(crate) fn open(settings: &Settings, map: Position, flush: Arc<Flush>) -> Result<Opened, Error> {
    let Settings { volume, epoch, dir, journal_file_bytes, failpoints, .. } = settings;
    let (volume, epoch, file_bytes) = (*volume, *epoch, *journal_file_bytes);
    let path = dir.join("journal");
    let next = dir.join("journal-next");
    let old = dir.join("journal-old");
    if !path.exists() && next.exists() {
        fs::rename(&next, &path).attempt("finish taking over the journal")?;
    }
    for stale in [&next, &old] {
        remove_dir(stale).attempt("remove a stale journal")?;
    }
    fs::create_dir_all(&path).attempt("create the journal directory")?;
    let mut files = scan(&path).attempt("read the journal")?;
    let mut set_aside = None;
    let overtaken = files.iter().any(|file| {
        let written = file.header.identity.epoch < settings.epoch_first;
        written && !file.records.is_empty()
    });
    if overtaken || !continues(&mut files, volume, map) {
        let aside = aside_path(dir);
        fs::rename(&path, &aside).attempt("set a journal aside")?;
        fs::create_dir_all(&path).attempt("create the journal directory")?;
        set_aside = Some(aside);
        files.clear();
    }
    if let Some(newer) =
        files.iter().map(|file| file.header.identity.epoch).find(|found| *found > epoch)
    {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("the journal is of the newer epoch {newer}"),
        ));
    }
    let same_epoch = files.first().is_none_or(|first| first.header.identity.epoch == epoch);
    if same_epoch {
        let base = files.first().map_or(map, |first| first.header.identity.base);
        let identity = Identity { volume, epoch, base };
        let empty = Journal::new((path, file_bytes), identity, flush, failpoints.clone());
        let (journal, unsealed) = resume(empty, map, files);
        return Ok(Opened { journal, unsealed, set_aside });
    }
    let identity = Identity { volume, epoch, base: map };
    let empty = Journal::new((next.clone(), file_bytes), identity, flush, failpoints.clone());
    let (mut journal, unsealed) = take_over(empty, &files)?;
    failpoints.pass(Point::TakeOverCopied).attempt("retire the old journal")?;
    fs::rename(&path, &old).attempt("retire the old journal")?;
    failpoints.pass(Point::TakeOverRetired).attempt("put the new journal in place")?;
    fs::rename(&next, &path).attempt("put the new journal in place")?;
    sync_dir(dir).attempt("sync the volume's directory")?;
    remove_dir(&old).attempt("remove the old journal")?;
    journal.dir = path;
    Ok(Opened { journal, unsealed, set_aside })
}

/// Keeps of the files what follows the map; says whether the journal belongs to this map at all.
fn continues(files: &mut Vec<Scanned>, volume: VolumeId, map: Position) -> bool {
    let Some(first) = files.first() else { return true };
    let identity = first.header.identity;
    let ours =
        files.iter().all(|file| file.header.identity == identity) && identity.volume == volume;
    if !ours || (identity.epoch != map.epoch && identity.base != map) {
        let empty = files.iter().all(|file| file.records.is_empty());
        if empty {
            files.drain(..).for_each(|file| remove(&file.file.path));
        }
        return empty;
    }
    let mut expected = map.sequence + 1;
    let mut torn = false;
    let mut before: Option<FileHeader> = None;
    for file in files.iter_mut() {
        file.records.retain(|record| record.sequence > map.sequence);
        if !torn && file.header.first > expected {
            // Behind a torn record there is only what was never flushed. The record was torn if some before it were found, or
            // if the file that held it is here. Otherwise the map may be older than what was shipped from here.
            let next_to = before.is_some_and(|before| {
                before.number + 1 == file.header.number && before.first <= expected
            });
            torn = next_to || expected > map.sequence + 1;
            if !torn {
                return false;
            }
        }
        if torn {
            file.records.clear();
        }
        expected += file.records.len() as u64;
        before = Some(file.header);
    }
    true
}

/// Goes on with a journal of the same epoch. What was torn is never appended to: the next record begins a new file.
fn resume(mut journal: Journal, map: Position, files: Vec<Scanned>) -> (Journal, Vec<Appended>) {
    journal.sequence_last = map.sequence;
    let mut unsealed = Vec::new();
    for mut scanned in files {
        journal.number_next = journal.number_next.max(scanned.header.number + 1);
        let Some(last) = scanned.records.last().map(|record| record.sequence) else {
            remove(&scanned.file.path);
            continue;
        };
        journal.sequence_last = last;
        // What survived a crash may be in the page cache only; a flush after this must cover it.
        journal.flush.appended(&scanned.file, last);
        journal.full.push_back((scanned.file, last));
        unsealed.append(&mut scanned.records);
    }
    (journal, unsealed)
}

/// Copies the unsealed records of an older epoch's journal into a new, durable one.
fn take_over(mut journal: Journal, files: &[Scanned]) -> Result<(Journal, Vec<Appended>), Error> {
    fs::create_dir_all(&journal.dir).attempt("create the journal directory")?;
    let mut unsealed = Vec::new();
    let mut data = Vec::new();
    for record in files.iter().flat_map(|file| &file.records) {
        let length = if record.kind == RecordKind::Write { record.length } else { 0 };
        data.resize(usize::try_from(length).expect("a record is at most 1 MiB"), 0);
        record.place.read(&mut data).attempt("read the old journal")?;
        let crc = crc32c::crc32c(&data);
        unsealed.push(journal.append(record.kind, record.offset, record.length, (&data, crc))?);
    }
    journal.flush.flush()?;
    sync_dir(&journal.dir).attempt("sync the journal directory")?;
    Ok((journal, unsealed))
}

/// Reads all files in the order of their numbers. Files without a whole header hold nothing that was flushed.
fn scan(dir: &Path) -> io::Result<Vec<Scanned>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut head = vec![0; FILE_HEADER_BYTES];
        let header = match file.read_exact_at(&mut head, 0) {
            Ok(()) => FileHeader::parse(&head),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => FileHeader::parse(&[]),
            Err(error) => return Err(error),
        };
        let file = Arc::new(JournalFile { file, path });
        match header {
            Ok(header) => {
                let records = scan_records(&file, &header)?;
                files.push(Scanned { header, file, records });
            }
            Err(_torn) => remove(&file.path),
        }
    }
    files.sort_by_key(|file| file.header.number);
    Ok(files)
}

/// The records of a file up to the first that is torn, old or missing.
fn scan_records(file: &Arc<JournalFile>, header: &FileHeader) -> io::Result<Vec<Appended>> {
    let mut records = Vec::new();
    let mut offset = FILE_HEADER_BYTES as u64;
    let length = file.file.metadata()?.len();
    let mut data = Vec::new();
    let mut bytes = [0; RECORD_HEADER_BYTES];
    while offset + RECORD_HEADER_BYTES as u64 <= length {
        file.file.read_exact_at(&mut bytes, offset)?;
        let Ok(record) = Record::parse(&bytes) else { break };
        let expected = header.first + records.len() as u64;
        if record.sequence != expected || record.epoch != header.identity.epoch {
            break;
        }
        let data_offset = offset + RECORD_HEADER_BYTES as u64;
        data.resize(record.data_bytes(), 0);
        if data_offset + data.len() as u64 > length {
            break;
        }
        file.file.read_exact_at(&mut data, data_offset)?;
        if crc32c::crc32c(&data) != record.data_crc {
            break;
        }
        let Record { kind, sequence, offset: block_offset, length: block_length, .. } = record;
        let place = Place { file: file.clone(), offset: data_offset };
        let bytes = (RECORD_HEADER_BYTES + data.len()) as u64;
        records.push(Appended {
            kind,
            offset: block_offset,
            length: block_length,
            sequence,
            place,
            bytes,
        });
        offset += bytes;
    }
    Ok(records)
}

fn aside_path(dir: &Path) -> PathBuf {
    let now = jiff::Timestamp::now().as_millisecond();
    dir.join(format!("{JOURNAL_ASIDE}{now}"))
}

/// The records of a journal that was set aside which follow a map that was. `None` if it does not continue that map.
pub(crate) fn read_aside(
    path: &Path,
    volume: VolumeId,
    map: Position,
) -> Result<Option<Vec<Appended>>, Error> {
    let mut files = scan(path).attempt("read a journal that was set aside")?;
    let continues = !files.is_empty() && continues(&mut files, volume, map);
    Ok(continues.then(|| files.into_iter().flat_map(|file| file.records).collect()))
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
