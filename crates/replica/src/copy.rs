//! Copying a log out of the bucket into a directory, from which the stock `litestream` restores it.

use crate::{
    error::{Error, local},
    layout::{Layout, Name},
    log::{Log, Tries},
    restore::{READS_AT_ONCE, blocking},
};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path as Key;
use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    pin::pin,
    time::{Duration, UNIX_EPOCH},
};

impl Log {
    /// Writes every file of the log below a directory, as `litestream restore file://DIRECTORY` finds them, and returns how
    /// many. A file's time of change is that of its last transaction, which is what `-timestamp` goes by there.
    ///
    /// A writer may go on meanwhile: what it adds later is not copied. After an error some files may be there.
    ///
    /// # Errors
    ///
    /// Also when a file is not whole: a copy that succeeds can be restored.
    pub async fn copy_to(&self, directory: &Path) -> Result<u64, Error> {
        let mut tries = Tries::new();
        loop {
            match self.try_copy_to(directory).await {
                Err(error) => tries.again_after(error)?,
                Ok(copied) => return Ok(copied),
            }
        }
    }

    async fn try_copy_to(&self, directory: &Path) -> Result<u64, Error> {
        let names: Vec<Name> =
            self.store.list_all().await?.into_iter().map(|found| found.name).collect();
        let mut copied = 0;
        let mut files = pin!(self.store.read_all(names, READS_AT_ONCE));
        while let Some((name, bytes)) = files.try_next().await? {
            let (key, directory) = (self.store.key(name), directory.to_owned());
            blocking(move || write(&directory, name, key, &bytes)).await?;
            copied += 1;
        }
        Ok(copied)
    }
}

fn write(directory: &Path, name: Name, key: Key, bytes: &Bytes) -> Result<(), Error> {
    let (header, _) =
        crate::ltx::verify(bytes).map_err(|source| Error::File { key: key.clone(), source })?;
    if (header.min, header.max) != (name.min, name.max) {
        return Err(Error::Misplaced { key });
    }
    let path = directory.join(Layout::Directory.key(&Key::default(), name).as_ref());
    let level = path.parent().expect("a file of a level");
    fs::create_dir_all(level).map_err(local("create", level))?;
    let changed = UNIX_EPOCH + Duration::from_millis(header.time_ms);
    File::create(&path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.set_modified(changed)
        })
        .map_err(local("write", &path))
}
