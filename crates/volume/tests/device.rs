//! The block device with a real kernel: FUSE, loop, ext4. Needs root, `/dev/fuse`, loop devices and e2fsprogs.

use async_trait::async_trait;
use object_store::{ObjectStore, memory::InMemory};
use rustix::mount::{MountFlags, UnmountFlags};
use std::{
    error::Error,
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use volume::{Device, NewCheckpoint, Settings, Ship, Volume, VolumeId, blank, fork};

/// A log that keeps the newest copy of the database.
#[derive(Clone)]
struct CopyShip {
    db: PathBuf,
    shipped: Arc<Mutex<Vec<(&'static str, Vec<u8>)>>>,
}

impl CopyShip {
    fn restore(&self) {
        for (suffix, bytes) in self.shipped.lock().unwrap().iter() {
            fs::write(format!("{}{suffix}", self.db.display()), bytes).unwrap();
        }
    }
}

#[async_trait]
impl Ship for CopyShip {
    async fn ship(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let copies = ["", "-wal"].into_iter().filter_map(|suffix| {
            Some((suffix, fs::read(format!("{}{suffix}", self.db.display())).ok()?))
        });
        *self.shipped.lock().unwrap() = copies.collect();
        Ok(())
    }
}

/// A mounted volume. Dropped in a failing test, it unmounts.
struct Mounted {
    device: Option<Device>,
    mount: PathBuf,
}

impl Mounted {
    fn new(volume: &Volume, dir: &Path, generation: u64) -> Self {
        let (fuse, mount) = (dir.join(format!("fuse-{generation}")), dir.join("mount"));
        fs::create_dir_all(&fuse).unwrap();
        fs::create_dir_all(&mount).unwrap();
        let device = Device::attach(volume.clone(), &fuse, generation).unwrap();
        rustix::mount::mount(device.path(), &mount, "ext4", MountFlags::empty(), c"discard")
            .unwrap();
        Self { device: Some(device), mount }
    }

    fn end(mut self) -> PathBuf {
        rustix::mount::unmount(&self.mount, UnmountFlags::empty()).unwrap();
        let device = self.device.take().unwrap();
        let path = device.path().to_owned();
        device.detach().unwrap();
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.device.is_some() {
            drop(rustix::mount::unmount(&self.mount, UnmountFlags::empty()));
        }
    }
}

fn require_root() {
    assert!(
        rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
        "this test needs root and /dev/fuse: run it as root on a host with the fuse and loop modules (`modprobe fuse loop`)"
    );
}

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(length)
    .collect()
}

fn no_mount_left(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(dir.to_str().unwrap()), "{mounts}");
}

#[test]
fn ext4_survives_detaching_checkpoints_and_the_loss_of_the_local_directory() {
    require_root();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let scratch = tempfile::tempdir().unwrap();
    let open = |id, epoch, dir: &Path, ship: &CopyShip| {
        let settings = Settings::new(id, epoch, dir.to_owned());
        runtime.block_on(Volume::open(settings, store.clone(), Box::new(ship.clone()))).unwrap()
    };

    // The blank volume, and a fork of it from its log.
    let (blank_id, id) = (VolumeId::now(), VolumeId::now());
    let blank_dir = scratch.path().join("blank");
    let blank_ship = CopyShip { db: blank_dir.join("map.db"), shipped: Arc::default() };
    let blank_volume = open(blank_id, 1, &blank_dir, &blank_ship);
    runtime.block_on(blank::create(&blank_volume, &scratch.path().join("mkfs"))).unwrap();
    let stats = blank_volume.stats().unwrap();
    assert!(stats.stored_bytes < 4 << 20, "a blank volume is small: {stats:?}");
    runtime.block_on(blank_volume.close()).unwrap();
    let dir = scratch.path().join("volume");
    fs::create_dir_all(&dir).unwrap();
    let ship = CopyShip { db: dir.join("map.db"), shipped: blank_ship.shipped.clone() };
    ship.restore();
    fork(&ship.db, id).unwrap();

    // Files, a checkpoint, damage.
    let volume = open(id, 1, &dir, &ship);
    let mounted = Mounted::new(&volume, scratch.path(), 1);
    let big = pattern(1, 20 << 20);
    fs::write(mounted.mount.join("big"), &big).unwrap();
    fs::create_dir(mounted.mount.join("many")).unwrap();
    for number in 0..200u64 {
        fs::write(mounted.mount.join(format!("many/{number}")), pattern(number, 5000)).unwrap();
    }
    rustix::fs::syncfs(fs::File::open(&mounted.mount).unwrap()).unwrap();
    let cut = volume.cut().unwrap();
    let new = NewCheckpoint { comment: "good".into(), auto: false };
    let checkpoint = runtime.block_on(volume.checkpoint(cut, new)).unwrap();
    assert_eq!(checkpoint.id, "v1");
    fs::remove_dir_all(mounted.mount.join("many")).unwrap();
    fs::write(mounted.mount.join("big"), b"gone").unwrap();
    mounted.end();

    // Back to the checkpoint, with a new device.
    let kept = runtime.block_on(volume.restore("v1")).unwrap();
    assert!(kept.auto, "{kept:?}");
    let mounted = Mounted::new(&volume, scratch.path(), 2);
    assert!(fs::read(mounted.mount.join("big")).unwrap() == big);
    assert_eq!(fs::read_dir(mounted.mount.join("many")).unwrap().count(), 200);
    let mut file = fs::OpenOptions::new().write(true).open(mounted.mount.join("big")).unwrap();
    file.seek(SeekFrom::Start(5 << 20)).unwrap();
    file.write_all(b"after the restore").unwrap();
    file.sync_all().unwrap();
    drop(file);
    let path = mounted.end();
    assert!(
        fs::OpenOptions::new().read(true).open(&path).is_err() || !is_bound(&path),
        "{} is free",
        path.display()
    );
    runtime.block_on(volume.close()).unwrap();

    // Everything local is lost.
    fs::remove_dir_all(&dir).unwrap();
    fs::create_dir_all(&dir).unwrap();
    ship.restore();
    let volume = open(id, 2, &dir, &ship);
    let mounted = Mounted::new(&volume, scratch.path(), 3);
    let mut expected = big;
    expected[5 << 20..][..17].copy_from_slice(b"after the restore");
    let mut found = Vec::new();
    fs::File::open(mounted.mount.join("big")).unwrap().read_to_end(&mut found).unwrap();
    assert!(found == expected);
    for number in 0..200u64 {
        assert!(
            fs::read(mounted.mount.join(format!("many/{number}"))).unwrap()
                == pattern(number, 5000)
        );
    }
    mounted.end();
    runtime.block_on(volume.close()).unwrap();
    no_mount_left(scratch.path());
}

fn is_bound(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    Path::new(&format!("/sys/block/{name}/loop/backing_file")).exists()
}
