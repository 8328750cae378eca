//! What goes wrong with files, as clients know it: a sentence in the style of a system call, an errno name, a path.

use crate::api::answer::Refusal;
use api::error::ErrorBody;
use axum::http::StatusCode;
use rustix::io::Errno;

/// A failed step of a file operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action} {path}: {}", text(*errno))]
pub(super) struct FileError {
    /// The step, such as `open`.
    pub(super) action: &'static str,
    /// The path as the client knows it.
    pub(super) path: String,
    /// What the kernel said.
    pub(super) errno: Errno,
}

impl FileError {
    pub(super) fn new(action: &'static str, path: impl Into<String>, errno: Errno) -> Self {
        Self { action, path: path.into(), errno }
    }

    /// An error of the standard library's I/O.
    pub(super) fn from_io(
        action: &'static str,
        path: impl Into<String>,
        error: &std::io::Error,
    ) -> Self {
        Self::new(action, path, Errno::from_io_error(error).unwrap_or(Errno::IO))
    }

    pub(super) fn into_refusal(self) -> Refusal {
        if self.errno == Errno::CANCELED {
            return Refusal::unavailable();
        }
        let (code, status, _) = describe(self.errno);
        if status.is_server_error() {
            tracing::warn!(error = %self, "file operation");
        }
        let mut body = ErrorBody::new(self.to_string());
        body.code = Some(code.to_owned());
        body.path = Some(self.path);
        Refusal::with_body(status, body)
    }
}

/// The words for an errno; those that clients recognise are spelled as they expect them.
fn text(errno: Errno) -> String {
    match describe(errno) {
        (_, _, "") => std::io::Error::from(errno).to_string(),
        (_, _, text) => text.to_owned(),
    }
}

/// The errno's name, the status that it is answered with, and its words.
fn describe(errno: Errno) -> (&'static str, StatusCode, &'static str) {
    match errno {
        Errno::ACCESS => ("EACCES", StatusCode::FORBIDDEN, "permission denied"),
        Errno::BUSY => ("EBUSY", StatusCode::CONFLICT, "device or resource busy"),
        Errno::DQUOT => ("EDQUOT", StatusCode::INSUFFICIENT_STORAGE, "disk quota exceeded"),
        Errno::EXIST => ("EEXIST", StatusCode::CONFLICT, "file exists"),
        Errno::FBIG => ("EFBIG", StatusCode::BAD_REQUEST, "file too large"),
        Errno::INVAL => ("EINVAL", StatusCode::BAD_REQUEST, "invalid argument"),
        Errno::ISDIR => ("EISDIR", StatusCode::BAD_REQUEST, "is a directory"),
        Errno::LOOP => ("ELOOP", StatusCode::BAD_REQUEST, "too many levels of symbolic links"),
        Errno::NAMETOOLONG => ("ENAMETOOLONG", StatusCode::BAD_REQUEST, "file name too long"),
        Errno::NOENT => ("ENOENT", StatusCode::NOT_FOUND, "no such file or directory"),
        Errno::NOSPC => ("ENOSPC", StatusCode::INSUFFICIENT_STORAGE, "no space left on device"),
        Errno::NOTDIR => ("ENOTDIR", StatusCode::BAD_REQUEST, "not a directory"),
        Errno::NOTEMPTY => ("ENOTEMPTY", StatusCode::CONFLICT, "directory not empty"),
        Errno::PERM => ("EPERM", StatusCode::FORBIDDEN, "operation not permitted"),
        Errno::ROFS => ("EROFS", StatusCode::FORBIDDEN, "read-only file system"),
        Errno::TXTBSY => ("ETXTBSY", StatusCode::CONFLICT, "text file busy"),
        Errno::XDEV => ("EXDEV", StatusCode::BAD_REQUEST, "invalid cross-device link"),
        _ => ("EIO", StatusCode::INTERNAL_SERVER_ERROR, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::FileError;
    use rustix::io::Errno;

    #[test]
    fn sentences_are_what_clients_look_for() {
        for (errno, sentence) in [
            (Errno::NOENT, "open /x: no such file or directory"),
            (Errno::ISDIR, "open /x: is a directory"),
            (Errno::NOTDIR, "open /x: not a directory"),
            (Errno::ACCESS, "open /x: permission denied"),
            (Errno::NOTEMPTY, "open /x: directory not empty"),
        ] {
            assert_eq!(FileError::new("open", "/x", errno).to_string(), sentence);
        }
        assert!(FileError::new("open", "/x", Errno::NFILE).to_string().starts_with("open /x: "));
    }
}
