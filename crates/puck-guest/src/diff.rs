//! Which paths are different between two states of a sprite's root.
//!
//! Each state is a mounted overlay, whose upper layer holds what the sprite changed of its base image. A directory that neither
//! upper layer has is the base's in both and is not looked at, so the cost follows what was changed and not what there is.
//! Files are compared by what the filesystem says of them: both states are the same ext4 at two times, so a file that was
//! touched in between has another change time.

use api::volume::{Change, ChangeKind};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

/// A state of the root.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The mounted overlay.
    pub(crate) root: OwnedFd,
    /// Its upper layer.
    pub(crate) upper: OwnedFd,
}

/// Why two states could not be compared.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub(crate) struct DiffError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

type Entries = BTreeMap<OsString, Stat>;

/// Tells each path that is different at `to` from what it was at `from`, in the order of a walk that lists a directory before
/// what is in it. What is below a directory that came or went is told as well. Ends early when `tell` says so by `false`.
pub(crate) fn diff(
    from: &Tree,
    to: &Tree,
    mut tell: impl FnMut(Change) -> bool,
) -> Result<(), DiffError> {
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        let (before, after) = (entries(from, &directory)?, entries(to, &directory)?);
        let mut below = Vec::new();
        for (name, old) in &before {
            let path = directory.join(name);
            let new = after.get(name);
            let kind = match new {
                None => Some(ChangeKind::Removed),
                Some(new) if differs(old, new) => Some(ChangeKind::Changed),
                Some(_) => None,
            };
            if kind.is_some_and(|kind| !tell(change(&path, kind))) {
                return Ok(());
            }
            let came_or_went = new.is_none_or(|new| is_directory(new) != is_directory(old));
            let either = is_directory(old) || new.is_some_and(is_directory);
            if either && (came_or_went || is_touched(from, &path)? || is_touched(to, &path)?) {
                below.push(path);
            }
        }
        for (name, new) in after.iter().filter(|(name, _)| !before.contains_key(*name)) {
            let path = directory.join(name);
            if !tell(change(&path, ChangeKind::Added)) {
                return Ok(());
            }
            if is_directory(new) {
                below.push(path);
            }
        }
        below.sort_unstable_by(|a, b| b.cmp(a));
        waiting.append(&mut below);
    }
    Ok(())
}

fn change(path: &Path, kind: ChangeKind) -> Change {
    Change { path: format!("/{}", path.to_string_lossy()), kind }
}

/// Of a directory the times say only that something in it came or went, which is told by itself.
fn differs(old: &Stat, new: &Stat) -> bool {
    let kind = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
    let file =
        |stat: &Stat| (stat.st_ino, stat.st_size, stat.st_rdev, stat.st_ctime, stat.st_ctime_nsec);
    kind(old) != kind(new) || (!is_directory(new) && file(old) != file(new))
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Whether the upper layer has the directory.
fn is_touched(tree: &Tree, path: &Path) -> Result<bool, DiffError> {
    match open(&tree.upper, path) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(false),
        Err(errno) => Err(failed("look for", path)(errno)),
    }
}

/// What is in a directory; nothing where there is no such directory.
fn entries(tree: &Tree, path: &Path) -> Result<Entries, DiffError> {
    let directory = match open(&tree.root, path) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Entries::new()),
        Err(errno) => return Err(failed("open", path)(errno)),
    };
    let mut entries = Entries::new();
    for entry in Dir::read_from(&directory).map_err(failed("list", path))? {
        let entry = entry.map_err(failed("list", path))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("look at", path))?;
        entries.insert(name.to_owned(), stat);
    }
    Ok(entries)
}

/// Never leaves the tree, and follows no link: the tree is a tenant's.
fn open(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::openat2(
        root,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

fn failed(action: &'static str, path: &Path) -> impl Fn(Errno) -> DiffError {
    let path = Path::new("/").join(path);
    move |errno| DiffError { action, path: path.clone(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::{Tree, diff};
    use api::volume::{Change, ChangeKind};
    use std::{
        fs::{self, File},
        path::Path,
    };

    /// A state without an overlay: everything is in its upper layer.
    fn tree(path: &Path) -> Tree {
        let open = || File::open(path).expect("a directory").into();
        Tree { root: open(), upper: open() }
    }

    fn told(from: &Path, to: &Path) -> Vec<(String, ChangeKind)> {
        let mut told = Vec::new();
        diff(&tree(from), &tree(to), |Change { path, kind }| {
            told.push((path, kind));
            true
        })
        .expect("comparable");
        told
    }

    #[test]
    fn every_difference_is_told_once_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        for root in [&from, &to] {
            fs::create_dir_all(root.join("same/deep")).expect("made");
        }
        fs::write(from.join("same/deep/linked"), "x").expect("written");
        fs::hard_link(from.join("same/deep/linked"), to.join("same/deep/linked")).expect("linked");
        fs::write(from.join("same/changed"), "1").expect("written");
        fs::write(to.join("same/changed"), "2").expect("written");
        fs::create_dir_all(from.join("gone/below")).expect("made");
        fs::create_dir_all(to.join("new/below")).expect("made");
        std::os::unix::fs::symlink("/etc", to.join("same/link")).expect("linked");
        fs::write(from.join("turned"), "a file").expect("written");
        fs::create_dir_all(to.join("turned/into")).expect("made");
        let expected = [
            ("/gone", ChangeKind::Removed),
            ("/turned", ChangeKind::Changed),
            ("/new", ChangeKind::Added),
            ("/gone/below", ChangeKind::Removed),
            ("/new/below", ChangeKind::Added),
            ("/same/changed", ChangeKind::Changed),
            ("/same/link", ChangeKind::Added),
            ("/turned/into", ChangeKind::Added),
        ];
        let expected: Vec<_> =
            expected.into_iter().map(|(path, kind)| (path.to_owned(), kind)).collect();
        assert_eq!(told(&from, &to), expected);
        assert_eq!(told(&from, &from), []);
    }

    #[test]
    fn whoever_has_heard_enough_ends_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(&from).expect("made");
        fs::create_dir_all(to.join("a/b")).expect("made");
        let mut count = 0;
        diff(&tree(&from), &tree(&to), |_| {
            count += 1;
            false
        })
        .expect("comparable");
        assert_eq!(count, 1);
    }
}
