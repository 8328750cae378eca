//! A checkpoint's filesystem, mounted read-only beside the live one. Needs root, `/dev/fuse`, loop devices and e2fsprogs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use async_trait::async_trait;
use object_store::memory::InMemory;
use rustix::mount::{MountFlags, UnmountFlags};
use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use volume::{Device, NewCheckpoint, Settings, Ship, Volume, VolumeId, blank};

/// A log that nobody reads.
struct Unread;

#[async_trait]
impl Ship for Unread {
    async fn ship(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

/// A mounted device. Dropped in a failing test, it unmounts.
struct Mounted {
    device: Option<Device>,
    mount: PathBuf,
}

impl Mounted {
    fn new(dir: &Path, attach: impl FnOnce(&Path) -> Device, options: &std::ffi::CStr) -> Self {
        let (fuse, mount) = (dir.join("fuse"), dir.join("mount"));
        fs::create_dir_all(&fuse).unwrap();
        fs::create_dir_all(&mount).unwrap();
        let device = attach(&fuse);
        let flags = if options.to_bytes().starts_with(b"noload") {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        rustix::mount::mount(device.path(), &mount, "ext4", flags, options).unwrap();
        Self { device: Some(device), mount }
    }

    fn end(mut self) {
        rustix::mount::unmount(&self.mount, UnmountFlags::empty()).unwrap();
        self.device.take().unwrap().detach().unwrap();
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

#[test]
fn a_checkpoint_is_browsed_while_the_disk_goes_on() {
    assert!(
        rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
        "this test needs root and /dev/fuse: run it as root on a host with the fuse and loop modules (`modprobe fuse loop`)"
    );
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings::new(VolumeId::now(), 1, scratch.path().join("local"));
    let store = Arc::new(InMemory::new());
    let volume = runtime.block_on(Volume::open(settings, store, Box::new(Unread))).unwrap();
    runtime.block_on(blank::create(&volume, &scratch.path().join("mkfs"))).unwrap();
    let attach = |dir: &Path| Device::attach(volume.clone(), dir, 1).unwrap();
    let live = Mounted::new(&scratch.path().join("live"), attach, c"discard");
    for number in 0..50 {
        fs::write(live.mount.join(format!("file-{number}")), vec![number; 30_000]).unwrap();
    }
    let filesystem = fs::File::open(&live.mount).unwrap();
    rustix::fs::syncfs(&filesystem).unwrap();
    drop(filesystem);
    let new = NewCheckpoint { comment: String::new(), auto: false };
    runtime.block_on(volume.checkpoint(volume.cut().unwrap(), new)).unwrap();
    for number in 0..50 {
        fs::remove_file(live.mount.join(format!("file-{number}"))).unwrap();
        fs::write(live.mount.join(format!("other-{number}")), vec![99; 30_000]).unwrap();
    }

    let view = volume.view("v1").unwrap();
    let attach = |dir: &Path| Device::attach_view(view.clone(), dir, 2).unwrap();
    let frozen = Mounted::new(&scratch.path().join("frozen"), attach, c"noload");
    for number in 0..50 {
        let found = fs::read(frozen.mount.join(format!("file-{number}"))).unwrap();
        assert!(found == vec![number; 30_000], "{number}");
        assert!(!frozen.mount.join(format!("other-{number}")).exists());
    }
    let refused = fs::write(frozen.mount.join("new"), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let device = frozen.device.as_ref().unwrap().path().file_name().unwrap().to_owned();
    let read_only = fs::read_to_string(Path::new("/sys/block").join(device).join("ro")).unwrap();
    assert_eq!(read_only.trim(), "1", "the loop device refuses writes too");
    // The live disk does not notice.
    assert!(fs::read(live.mount.join("other-7")).unwrap() == vec![99; 30_000]);
    frozen.end();
    live.end();
    drop(view);
    runtime.block_on(volume.close()).unwrap();
}
