//! Paths from clients: absolute after joining with the working directory, cleaned, free of NUL.
//!
//! Cleaning removes `.` and `..` by text before anything is resolved, as clients do on their side; what remains is then
//! resolved by the kernel, which alone follows symbolic links.

use crate::api::{answer::Refusal, exec::environment::HOME};
use api::error::ErrorBody;
use axum::http::StatusCode;

/// An absolute path without `.`, `..`, empty components and NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpritePath(String);

/// Why a text is not a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidPath {
    /// No text.
    #[error("path is required")]
    Missing,
    /// With a NUL byte.
    #[error("path contains a NUL byte")]
    Nul,
}

impl InvalidPath {
    pub(super) fn refusal(self) -> Refusal {
        let mut body = ErrorBody::new(self.to_string());
        body.code = Some("EINVAL".to_owned());
        Refusal::with_body(StatusCode::BAD_REQUEST, body)
    }
}

impl SpritePath {
    /// Joins a path with the working directory, which is the home directory if none is given.
    pub(super) fn of(path: Option<&str>, working_dir: Option<&str>) -> Result<Self, InvalidPath> {
        let path = path.filter(|path| !path.is_empty()).ok_or(InvalidPath::Missing)?;
        let base = working_dir.filter(|dir| !dir.is_empty()).unwrap_or(HOME);
        if path.contains('\0') || base.contains('\0') {
            return Err(InvalidPath::Nul);
        }
        // A relative working directory is relative to the home directory.
        let whole = match (path.starts_with('/'), base.starts_with('/')) {
            (true, _) => ["", "", path],
            (false, true) => ["", base, path],
            (false, false) => [HOME, base, path],
        };
        let mut parts: Vec<&str> = Vec::new();
        for part in whole.into_iter().flat_map(|text| text.split('/')) {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        Ok(Self(format!("/{}", parts.join("/"))))
    }

    /// The text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory's path and the last component; `None` for `/`.
    pub(super) fn split(&self) -> Option<(&str, &str)> {
        let (dir, name) = self.0.rsplit_once('/')?;
        if name.is_empty() { None } else { Some((if dir.is_empty() { "/" } else { dir }, name)) }
    }

    /// The checkpoint that it leads into, by text.
    pub(super) fn checkpoint(&self) -> Option<&str> {
        let below = self.0.strip_prefix("/.sprite/checkpoints/")?;
        below.split('/').next().filter(|id| !id.is_empty())
    }

    /// Whether it lies under the home directory.
    pub(super) fn is_in_home(&self) -> bool {
        self.0.strip_prefix(HOME).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// The path of something in a directory.
pub(super) fn child(dir: &str, name: &str) -> String {
    if dir.ends_with('/') { format!("{dir}{name}") } else { format!("{dir}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::{InvalidPath, SpritePath};

    #[test]
    fn paths_join_and_are_cleaned() {
        for (path, working_dir, whole) in [
            ("/a/b", None, "/a/b"),
            ("/a/b", Some("/w"), "/a/b"),
            ("a", None, "/home/sprite/a"),
            ("a", Some(""), "/home/sprite/a"),
            ("a", Some("/"), "/a"),
            ("a", Some("/w"), "/w/a"),
            ("a", Some("w"), "/home/sprite/w/a"),
            (".", Some("/w"), "/w"),
            ("/", Some("/w"), "/"),
            ("../../../../etc/passwd", Some("/w"), "/etc/passwd"),
            ("/..", None, "/"),
            ("//a//./b/../c/", None, "/a/c"),
            ("x", Some("/w/../v"), "/v/x"),
        ] {
            let joined = SpritePath::of(Some(path), working_dir).expect("a path");
            assert_eq!(joined.as_str(), whole, "{path} in {working_dir:?}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!(SpritePath::of(None, None), Err(InvalidPath::Missing));
        assert_eq!(SpritePath::of(Some(""), Some("/")), Err(InvalidPath::Missing));
        assert_eq!(SpritePath::of(Some("a\0b"), None), Err(InvalidPath::Nul));
        assert_eq!(SpritePath::of(Some("a"), Some("/\0")), Err(InvalidPath::Nul));
    }

    #[test]
    fn a_path_splits_into_directory_and_name() {
        let split = |path| {
            SpritePath::of(Some(path), None)
                .map(|path| path.split().map(|(d, n)| (d.to_owned(), n.to_owned())))
        };
        assert_eq!(split("/"), Ok(None));
        assert_eq!(split("/a"), Ok(Some(("/".into(), "a".into()))));
        assert_eq!(split("/a/b"), Ok(Some(("/a".into(), "b".into()))));
    }

    #[test]
    fn home_is_only_what_is_under_it() {
        for (path, is_in_home) in
            [("/home/sprite/x", true), ("/home/sprite", false), ("/home/sprite2/x", false)]
        {
            assert_eq!(
                SpritePath::of(Some(path), None).map(|path| path.is_in_home()),
                Ok(is_in_home),
                "{path}"
            );
        }
    }
}
