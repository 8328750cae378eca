//! Packs a directory into one erofs file.
//!
//! lz4hc in clusters of 64 KiB: half the size of an unpacked image, and no slower to start a program from, cold or warm.

use super::{Error, process};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// The filesystem's UUID is the same in all images, so that equal trees give equal files.
const UUID: &str = "7075636b-0000-4000-8000-000000000001";

/// Packs `root` into `file`. The result depends on the tree alone.
pub(super) async fn pack(root: &super::rootfs::Root, file: &Path) -> Result<PathBuf, Error> {
    let mut command = tokio::process::Command::new("mkfs.erofs");
    command.args(["--quiet", "-d0", "-zlz4hc,9", "-C65536"]);
    // The order matters: -T sets the time of the filesystem and of all files, and --preserve-mtime takes the files out again.
    // Python would compile every module anew if the times of its sources were not those that its caches remember.
    command.args([
        OsStr::new("-T"),
        OsStr::new(&root.epoch.to_string()),
        OsStr::new("--preserve-mtime"),
    ]);
    command.args([
        OsStr::new("-U"),
        OsStr::new(UUID),
        file.as_os_str(),
        root.directory.as_os_str(),
    ]);
    process::run("mkfs.erofs", &mut command, |_| {}).await?;
    Ok(file.to_owned())
}
