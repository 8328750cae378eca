//! Serves a volume as a block device until its standard input ends, with a directory as the bucket. For measuring by hand:
//!
//! ```sh
//! cargo run --release -p volume --example serve -- /tmp/volume      # prints /dev/loopN
//! mount /dev/loopN /mnt                                             # in another terminal
//! ```

use async_trait::async_trait;
use object_store::{ObjectStore, local::LocalFileSystem};
use std::{error::Error, fs, io::Read as _, path::PathBuf, sync::Arc};
use volume::{Device, Settings, Ship, Volume, VolumeId, blank};

/// The map stays where it is; nothing is shipped.
struct Nowhere;

#[async_trait]
impl Ship for Nowhere {
    async fn ship(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("which directory?")?);
    let (local, bucket, fuse) = (dir.join("local"), dir.join("bucket"), dir.join("fuse"));
    for dir in [&local, &bucket, &fuse] {
        fs::create_dir_all(dir)?;
    }
    let id_path = dir.join("id");
    let new = !id_path.exists();
    if new {
        fs::write(&id_path, VolumeId::now().to_string())?;
    }
    let id: VolumeId = fs::read_to_string(&id_path)?.parse()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(&bucket)?);
    let volume =
        runtime.block_on(Volume::open(Settings::new(id, 1, local), store, Box::new(Nowhere)))?;
    if new {
        runtime.block_on(blank::create(&volume, &dir.join("mkfs")))?;
    }
    let device = Device::attach(volume.clone(), &fuse, 1)?;
    println!("{}", device.path().display());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    device.detach()?;
    println!("{:?} {:?}", volume.lag(), volume.stats()?);
    runtime.block_on(volume.close())?;
    Ok(())
}
