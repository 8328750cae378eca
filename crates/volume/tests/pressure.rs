//! A bucket that is away, seen through the block device and in memory. Needs root, `/dev/fuse` and loop devices.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use async_trait::async_trait;
use object_store::{
    ObjectStore,
    memory::InMemory,
    throttle::{ThrottleConfig, ThrottledStore},
};
use rustix::fs::OFlags;
use std::{
    error::Error,
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use volume::{BLOCK_BYTES, Device, Settings, Ship, State, Volume, VolumeId};

const MIB: usize = 1 << 20;

/// The most memory that a MiB of unsealed random writes of one block may take, in KiB, besides what the sealer holds while
/// the bucket is away: a full tail of 1 GiB takes at most 24 MiB.
const MEMORY_KIB_PER_MIB: u64 = 24;

/// A log that can be away, which keeps everything in the journal.
struct AwayShip(Arc<AtomicBool>);

#[async_trait]
impl Ship for AwayShip {
    async fn ship(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        if self.0.load(Ordering::SeqCst) { Err("the bucket is away".into()) } else { Ok(()) }
    }
}

struct World {
    runtime: tokio::runtime::Runtime,
    away: Arc<AtomicBool>,
    volume: Volume,
    dir: tempfile::TempDir,
}

impl World {
    fn new(tail_bytes_max: u64, store: Arc<dyn ObjectStore>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::new(VolumeId::now(), 1, dir.path().join("volume"));
        settings.tail_bytes_max = tail_bytes_max;
        settings.retry_wait = Duration::from_millis(1);
        let away = Arc::new(AtomicBool::new(false));
        let ship = Box::new(AwayShip(away.clone()));
        let opened = Volume::open(settings, store, ship);
        let volume = runtime.block_on(opened).unwrap();
        Self { runtime, away, volume, dir }
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// A buffer as direct I/O wants it: the caller takes the part that begins at a block's border in memory.
fn aligned(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    buffer.resize(length + BLOCK_BYTES, 0);
    let skip = buffer.as_ptr().align_offset(BLOCK_BYTES);
    &mut buffer[skip..skip + length]
}

fn open_direct(path: &Path) -> File {
    let flags = OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

#[test]
fn reads_and_flushes_go_on_while_writers_are_blocked() {
    assert!(rustix::process::geteuid().is_root(), "this test attaches a device: run it as root");
    let world = World::new(16 << 20, Arc::new(InMemory::new()));
    let fuse = world.dir.path().join("fuse");
    fs::create_dir(&fuse).unwrap();
    let device = Device::attach(world.volume.clone(), &fuse, 1).unwrap();
    let path = device.path().to_owned();
    let mut buffer = Vec::new();
    let block = aligned(&mut buffer, BLOCK_BYTES);
    block.fill(7);
    open_direct(&path).write_all_at(block, 1 << 30).unwrap();
    world.runtime.block_on(world.volume.seal()).unwrap();

    world.away.store(true, Ordering::SeqCst);
    // Many more writers than the device has threads.
    let writers: Vec<_> = (0..64u64)
        .map(|number| {
            let file = open_direct(&path);
            std::thread::spawn(move || {
                let mut buffer = Vec::new();
                let data = aligned(&mut buffer, MIB);
                data.fill(u8::try_from(number + 1).unwrap());
                file.write_all_at(data, number << 20).unwrap();
            })
        })
        .collect();
    wait_until("writers are blocked", || matches!(world.volume.state(), State::Blocked(_)));
    wait_until("all have written", || world.volume.lag().bytes >= 64 << 20);
    assert!(writers.iter().filter(|writer| !writer.is_finished()).count() > 8);

    let reader = {
        let file = open_direct(&path);
        std::thread::spawn(move || {
            let mut buffer = Vec::new();
            let block = aligned(&mut buffer, BLOCK_BYTES);
            for (offset, byte) in [(1 << 30, 7), (0, 1), (63 << 20, 64)] {
                file.read_exact_at(block, offset).unwrap();
                assert!(block.iter().all(|read| *read == byte), "at {offset}");
            }
            file.sync_data().unwrap();
        })
    };
    wait_until("reads and a flush are answered", || reader.is_finished());
    reader.join().unwrap();
    assert!(writers.iter().any(|writer| !writer.is_finished()));

    world.away.store(false, Ordering::SeqCst);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    world.runtime.block_on(world.volume.seal()).unwrap();
    assert_eq!(world.volume.state(), State::Settled);
    device.detach().unwrap();
}

#[test]
fn a_tail_of_small_writes_takes_little_memory() {
    const MIB_MORE: u64 = 160;
    // A bucket that takes nothing, so that everything stays in the tail.
    let never = Duration::from_secs(3600);
    let config = ThrottleConfig { wait_put_per_call: never, ..ThrottleConfig::default() };
    let world = World::new(4 << 30, Arc::new(ThrottledStore::new(InMemory::new(), config)));
    let mut numbers = 1;
    // What the sealer and its buffers take does not grow with the tail.
    write_randomly(&world.volume, 64, &mut numbers);
    let before = resident_kib();
    write_randomly(&world.volume, MIB_MORE, &mut numbers);
    let taken = resident_kib().saturating_sub(before);
    println!("{before} KiB, and {taken} KiB more for {MIB_MORE} MiB of unsealed blocks");
    assert!(taken / MIB_MORE <= MEMORY_KIB_PER_MIB, "{taken} KiB for {MIB_MORE} MiB");
    wait_until("it says so", || matches!(world.volume.state(), State::Behind(_)));
}

fn write_randomly(volume: &Volume, mib: u64, state: &mut u64) {
    let mut block = vec![0; BLOCK_BYTES];
    for _ in 0..mib * MIB as u64 / BLOCK_BYTES as u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        block[..8].copy_from_slice(&state.to_le_bytes());
        let number = *state % (volume::VOLUME_BYTES / BLOCK_BYTES as u64);
        volume.write(number * BLOCK_BYTES as u64, &block).unwrap();
    }
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
