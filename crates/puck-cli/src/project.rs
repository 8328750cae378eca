//! The `.sprite` file, which says which sprite a directory and all below it work with.
//!
//! It is looked for from the working directory upward. A *directory* of that name is something else and is passed over when
//! searching; it stands in the way only of writing a file there.

use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The file's name.
const FILE_NAME: &str = ".sprite";

/// A larger file is not one of ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Project {
    /// The organization that the sprite belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) organization: Option<String>,
    /// The sprite's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sprite: Option<String>,
}

/// Why a `.sprite` file cannot be used. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProjectError {
    /// A directory of that name is in the way.
    #[error("{} is a directory, so the choice cannot be kept there: pass -s NAME instead, or choose in another directory", .0.display())]
    Directory(PathBuf),
    /// The content is not what `puck use` writes.
    #[error("{} is not a project file: `puck use NAME` writes a new one", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    /// The file is there but cannot be read.
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file cannot be removed.
    #[error("remove {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    /// The file is far too large.
    #[error("{} is not a project file: it is larger than {FILE_BYTES_MAX} bytes", .0.display())]
    TooLarge(PathBuf),
    /// The file cannot be written.
    #[error("write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// The nearest project file at or above `start`, and where it is.
pub(crate) fn find(start: &Path) -> Result<Option<(PathBuf, Project)>, ProjectError> {
    for directory in start.ancestors() {
        let path = directory.join(FILE_NAME);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) =>
            {
                continue;
            }
            Err(source) => return Err(ProjectError::Read { path, source }),
        };
        if metadata.is_dir() {
            continue;
        }
        if metadata.len() > FILE_BYTES_MAX {
            return Err(ProjectError::TooLarge(path));
        }
        let text =
            fs::read(&path).map_err(|source| ProjectError::Read { path: path.clone(), source })?;
        let project = serde_json::from_slice(&text)
            .map_err(|source| ProjectError::Parse { path: path.clone(), source })?;
        return Ok(Some((path, project)));
    }
    Ok(None)
}

/// Writes the choice for `directory` and says where.
pub(crate) fn write(directory: &Path, project: &Project) -> Result<PathBuf, ProjectError> {
    let path = directory.join(FILE_NAME);
    if path.is_dir() {
        return Err(ProjectError::Directory(path));
    }
    let text = serde_json::to_string_pretty(project).expect("two strings are JSON") + "\n";
    fs::write(&path, text).map_err(|source| ProjectError::Write { path: path.clone(), source })?;
    Ok(path)
}

/// Forgets the choice for `directory`. Says whether there was one.
pub(crate) fn remove(directory: &Path) -> Result<bool, ProjectError> {
    let path = directory.join(FILE_NAME);
    if path.is_dir() {
        return Ok(false);
    }
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ProjectError::Remove { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::{FILE_NAME, Project, ProjectError, find, remove, write};
    use std::fs;

    fn project(sprite: &str) -> Project {
        Project { organization: Some("acme".into()), sprite: Some(sprite.into()) }
    }

    #[test]
    fn the_nearest_file_upward_counts() {
        let root = tempfile::tempdir().expect("temporary directory");
        let deep = root.path().join("a/b/c");
        fs::create_dir_all(&deep).expect("directories");
        let outer = write(root.path(), &project("outer")).expect("writable");
        assert_eq!(find(&deep).expect("readable"), Some((outer, project("outer"))));
        let inner = write(&root.path().join("a/b"), &project("inner")).expect("writable");
        assert_eq!(find(&deep).expect("readable"), Some((inner, project("inner"))));
    }

    #[test]
    fn a_directory_of_that_name_is_passed_over() {
        let root = tempfile::tempdir().expect("temporary directory");
        let below = root.path().join("below");
        fs::create_dir_all(below.join(FILE_NAME)).expect("directories");
        write(root.path(), &project("outer")).expect("writable");
        assert_eq!(
            find(&below).expect("readable").map(|(_, project)| project),
            Some(project("outer"))
        );
        assert!(matches!(write(&below, &project("x")), Err(ProjectError::Directory(_))));
        assert!(!remove(&below).expect("nothing to do"));
    }

    #[test]
    fn anything_else_in_the_file_is_an_error_with_its_path() {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path().join(FILE_NAME);
        for bad in ["", "web", "[1]", r#"{"sprite":7}"#] {
            fs::write(&path, bad).expect("writable");
            let error = find(root.path()).expect_err("not a project");
            assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
        }
        fs::write(&path, " ".repeat(70_000)).expect("writable");
        assert!(matches!(find(root.path()), Err(ProjectError::TooLarge(_))));
    }

    #[test]
    fn a_choice_can_be_forgotten() {
        let root = tempfile::tempdir().expect("temporary directory");
        write(root.path(), &project("web")).expect("writable");
        assert!(remove(root.path()).expect("removable"));
        assert!(!remove(root.path()).expect("nothing to do"));
    }
}
