//! The blank volume: an empty, formatted disk that every new volume forks, so that creating one runs no mkfs.

use crate::{
    BLOCK_BYTES, Error, ErrorKind, VOLUME_BYTES, Volume, error::Attempt as _, seal::blocking,
};
use rustix::fs::{SeekFrom, seek};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// The label of the filesystem, which tells a volume of this product on any machine.
const LABEL: &str = "puck";

/// What is read and written at once.
const COPY_BYTES: usize = 1 << 20;

/// Formats an empty volume with ext4 and seals it. `scratch` is a path for a sparse file, which is removed again.
///
/// mkfs writes to the sparse file, and only what is not zero in it becomes part of the volume: a few MB of metadata. The
/// journal of the filesystem is 64 MiB, allocated but all zero. Inode tables are laid out now, not later by a kernel
/// thread, so that an idle volume stays idle. 64 KiB per inode give 1.6 million files, at a fixed cost that is a quarter of
/// what the default ratio takes; blocks of 4 KiB are the volume's own; nothing is reserved for root.
pub async fn create(volume: &Volume, scratch: &Path) -> Result<(), Error> {
    let (filling, scratch) = (volume.clone(), scratch.to_owned());
    blocking(move || {
        let scratch = Scratch(scratch);
        format(&scratch.0)?;
        import(&filling, &scratch.0)
    })
    .await?;
    volume.seal().await
}

/// A file that is removed in the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "a scratch file stays");
        }
    }
}

fn format(path: &Path) -> Result<(), Error> {
    let file = File::create(path).attempt("create the scratch file")?;
    file.set_len(VOLUME_BYTES).attempt("size the scratch file")?;
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-i", "65536", "-L", LABEL, "-J", "size=64"])
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"])
        .arg(path)
        .output()
        .attempt("run mkfs.ext4, of Debian's package e2fsprogs")?;
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr);
    Err(Error::new(ErrorKind::Internal, format!("mkfs.ext4 failed: {}", said.trim())))
}

/// Writes what is not zero in the file to the volume.
fn import(volume: &Volume, path: &Path) -> Result<(), Error> {
    let file = File::open(path).attempt("open the scratch file")?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while let Some((start, end)) =
        next_data(&file, at).attempt("look for data in the scratch file")?
    {
        let mut offset = start - start % BLOCK_BYTES as u64;
        while offset < end {
            let length = (COPY_BYTES as u64)
                .min(VOLUME_BYTES - offset)
                .min((end - offset).next_multiple_of(BLOCK_BYTES as u64));
            let part = &mut buffer[..usize::try_from(length).expect("at most 1 MiB")];
            file.read_exact_at(part, offset).attempt("read the scratch file")?;
            write_nonzero(volume, offset, part)?;
            offset += length;
        }
        at = end;
    }
    Ok(())
}

fn write_nonzero(volume: &Volume, offset: u64, data: &[u8]) -> Result<(), Error> {
    let zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let blocks: Vec<&[u8]> = data.chunks(BLOCK_BYTES).collect();
    let mut at = offset;
    for group in blocks.chunk_by(|a, b| zero(a) == zero(b)) {
        if !group.first().is_some_and(|block| zero(block)) {
            volume.write(at, &group.concat())?;
        }
        at += (group.len() * BLOCK_BYTES) as u64;
    }
    Ok(())
}

/// The next range of a sparse file that has data.
fn next_data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    Ok(Some((start, seek(file, SeekFrom::Hole(start))?)))
}
