//! The block device with a real kernel: FUSE, loop, ext4. Needs root, `/dev/fuse`, loop devices and e2fsprogs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

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

/// The suffix and the bytes of each file of a database.
type Copies = Vec<(&'static str, Vec<u8>)>;

/// A log that keeps the newest copy of the database.
#[derive(Clone)]
struct CopyShip {
    db: PathBuf,
    shipped: Arc<Mutex<Copies>>,
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
            // A test that failed says so itself.
            rustix::mount::unmount(&self.mount, UnmountFlags::empty()).ok();
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
    assert_eq!(stats.logical_bytes % volume::BLOCK_BYTES as u64, 0);
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
    write_many(&mounted.mount);
    // The unmount below would fail if a syncer left a descriptor behind.
    let syncer = volume::Syncer::new(fs::File::open(&mounted.mount).unwrap()).unwrap();
    syncer.sync().unwrap();
    drop(syncer);
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
    check_many(&mounted.mount);
    mounted.end();
    runtime.block_on(volume.close()).unwrap();
    no_mount_left(scratch.path());
}

fn write_many(mount: &Path) {
    fs::create_dir(mount.join("many")).unwrap();
    for number in 0..200u64 {
        fs::write(mount.join(format!("many/{number}")), pattern(number, 5000)).unwrap();
    }
}

fn check_many(mount: &Path) {
    for number in 0..200u64 {
        let found = fs::read(mount.join(format!("many/{number}"))).unwrap();
        assert!(found == pattern(number, 5000), "{number}");
    }
}

fn is_bound(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    Path::new(&format!("/sys/block/{name}/loop/backing_file")).exists()
}

/// What the victim of the next test finds in its environment.
const VICTIM: &str = "PUCK_VICTIM_DIR";

/// A bucket that takes so many objects and then none.
#[derive(Debug)]
struct Failing(InMemory, std::sync::atomic::AtomicBool);

impl std::fmt::Display for Failing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Failing")
    }
}

#[async_trait]
impl ObjectStore for Failing {
    async fn put_opts(
        &self,
        location: &object_store::path::Path,
        payload: object_store::PutPayload,
        options: object_store::PutOptions,
    ) -> object_store::Result<object_store::PutResult> {
        if self.1.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(object_store::Error::Generic { store: "failing", source: "away".into() });
        }
        self.0.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &object_store::path::Path,
        options: object_store::PutMultipartOptions,
    ) -> object_store::Result<Box<dyn object_store::MultipartUpload>> {
        self.0.put_multipart_opts(location, options).await
    }

    async fn get_opts(
        &self,
        location: &object_store::path::Path,
        options: object_store::GetOptions,
    ) -> object_store::Result<object_store::GetResult> {
        self.0.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: futures::stream::BoxStream<
            'static,
            object_store::Result<object_store::path::Path>,
        >,
    ) -> futures::stream::BoxStream<'static, object_store::Result<object_store::path::Path>> {
        self.0.delete_stream(locations)
    }

    fn list(
        &self,
        prefix: Option<&object_store::path::Path>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<object_store::ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&object_store::path::Path>,
    ) -> object_store::Result<object_store::ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &object_store::path::Path,
        to: &object_store::path::Path,
        options: object_store::CopyOptions,
    ) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

/// The process that the next test kills: it waits in a sync of its own disk, which the bucket holds up.
#[test]
fn a_victim_waits_for_its_own_disk() {
    let Some(dir) = std::env::var_os(VICTIM).map(PathBuf::from) else { return };
    // What it mounts must go with it.
    // SAFETY: Only the mount namespace of this process changes; no descriptor is shared in a new way.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    let flags =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = Arc::new(Failing(InMemory::new(), false.into()));
    let mut settings = Settings::new(VolumeId::now(), 1, dir.join("local"));
    settings.tail_bytes_max = 4 << 20;
    let ship = CopyShip { db: dir.join("local/map.db"), shipped: Arc::default() };
    let volume = runtime.block_on(Volume::open(settings, store.clone(), Box::new(ship))).unwrap();
    runtime.block_on(blank::create(&volume, &dir.join("mkfs"))).unwrap();
    let mounted = Mounted::new(&volume, &dir, 1);
    assert!(mounted.device.as_ref().unwrap().connection() > 0);
    fs::write(mounted.mount.join("file"), pattern(3, 16 << 20)).unwrap();
    let syncer = volume::Syncer::new(fs::File::open(&mounted.mount).unwrap()).unwrap();
    store.1.store(true, std::sync::atomic::Ordering::SeqCst);
    fs::write(dir.join("waiting"), "").unwrap();
    panic!("the sync ended: {:?}", syncer.sync());
}

#[test]
fn a_process_that_waits_for_its_own_disk_can_be_killed() {
    require_root();
    let scratch = tempfile::tempdir().unwrap();
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_victim_waits_for_its_own_disk", "--nocapture"])
        .env(VICTIM, scratch.path())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let in_sync = |pid: u32| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut waits =
            tasks.map(|task| fs::read_to_string(task.path().join("stat")).unwrap_or_default());
        waits.any(|stat| stat.contains("(volume-sync) D"))
    };
    while !(scratch.path().join("waiting").exists() && in_sync(victim.id())) {
        assert!(std::time::Instant::now() < deadline, "the victim never waited");
        assert!(victim.try_wait().unwrap().is_none(), "the victim ended by itself");
        std::thread::yield_now();
    }
    victim.kill().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while victim.try_wait().unwrap().is_none() {
        assert!(std::time::Instant::now() < deadline, "process {} cannot be killed", victim.id());
        std::thread::yield_now();
    }
}

/// The loop device's last request and the unmount meet in every possible order.
#[test]
fn a_device_that_comes_and_goes_again_and_again_ends_cleanly() {
    require_root();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("volume");
    let ship = CopyShip { db: dir.join("map.db"), shipped: Arc::default() };
    let settings = Settings::new(VolumeId::now(), 1, dir);
    let store = Arc::new(InMemory::new());
    let volume = runtime.block_on(Volume::open(settings, store, Box::new(ship))).unwrap();
    let fuse = scratch.path().join("fuse");
    fs::create_dir_all(&fuse).unwrap();
    for generation in 0..1000 {
        let device = Device::attach(volume.clone(), &fuse, generation).unwrap();
        let mut block = [1; 4096];
        fs::File::open(device.path()).unwrap().read_exact(&mut block).unwrap();
        assert_eq!(block, [0; 4096]);
        device.detach().unwrap_or_else(|error| panic!("round {generation}: {error:?}"));
    }
    runtime.block_on(volume.close()).unwrap();
    no_mount_left(scratch.path());
}
