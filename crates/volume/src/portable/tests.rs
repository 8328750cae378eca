//! What is told and heard is the same volume elsewhere, and nothing else ever becomes a volume.

use super::{Export, Import, Piece};
use crate::{
    Contents, Depth, Error, ErrorKind, Keys, SecretKey, Volume, VolumeId, fork_pinned, fsck,
    testing::world::{Place, World, is_zero, noise, read, view},
};
use bytes::Bytes;
use std::path::PathBuf;

/// What was told, in memory.
#[derive(Clone)]
struct Told {
    contents: Contents,
    pieces: Vec<Piece>,
}

fn tell(world: &World, map: &std::path::Path, live: Option<&str>, keys: &Keys) -> Told {
    let export = Export::open(map, live, world.store.clone(), keys.clone()).unwrap();
    let mut pieces = Vec::new();
    export
        .run(world.runtime.handle(), |piece| {
            pieces.push(piece);
            Ok::<_, Error>(())
        })
        .unwrap();
    Told { contents: export.contents().clone(), pieces }
}

/// The map of a place as its log has it, in a file.
fn map_of(world: &World, place: &Place, name: &str) -> PathBuf {
    world.copy_of(place, name).db()
}

fn hear(world: &World, told: &Told, place: &Place) -> Result<(), Error> {
    let (db, store) = (place.db(), world.store.clone());
    std::fs::create_dir_all(db.parent().unwrap()).unwrap();
    let (volume, keys) = (place.settings.volume, place.settings.keys.clone());
    let runtime = world.runtime.handle();
    let mut import = Import::begin(&db, volume, &told.contents, store, keys)?;
    for piece in &told.pieces {
        if let Err(error) = import.piece(runtime, piece.clone()) {
            import.abandon(runtime);
            return Err(error);
        }
    }
    let finished = import.finish(runtime);
    if finished.is_err() {
        import.abandon(runtime);
    }
    finished
}

fn check(world: &World, place: &Place) {
    let (store, keys) = (world.store.clone(), place.settings.keys.clone());
    let report = world.wait(fsck(&place.db(), store, keys, Depth::Data));
    assert_eq!(report.errors, Vec::<String>::new());
}

fn key(volume: VolumeId) -> Keys {
    Keys::none().with(volume, SecretKey::from_bytes([9; 32].into()).of_volume(volume))
}

/// A volume with a history: two checkpoints, something after them, something hidden, something discarded.
fn source(world: &World, encrypted: bool) -> (Place, Volume) {
    let mut place = world.place("source");
    if encrypted {
        place.settings.keys = key(place.settings.volume);
    }
    let volume = world.open(&place);
    world.write(&volume, 0, 600, 1);
    world.checkpoint(&volume, false);
    world.write(&volume, 100, 50, 2);
    volume.discard(300 * 4096, 100 * 4096).unwrap();
    world.write(&volume, 70_000, 8, 3);
    world.checkpoint(&volume, false);
    world.wait(volume.comment("v2", "words"));
    world.write(&volume, 0, 20, 4);
    (place, volume)
}

fn is_v2(of: impl Fn(u64, usize) -> Vec<u8>) {
    assert!(of(0, 100) == noise(1, 600)[..100 * 4096]);
    assert!(of(100, 50) == noise(2, 50));
    assert!(is_zero(&of(300, 100)));
    assert!(of(400, 200) == noise(1, 600)[400 * 4096..]);
    assert!(of(70_000, 8) == noise(3, 8));
}

#[test]
fn a_volume_is_the_same_elsewhere_with_its_checkpoints_and_goes_on() {
    for (encrypted, encrypt) in [(false, false), (true, false), (false, true), (true, true)] {
        let world = World::new();
        let (place, volume) = source(&world, encrypted);
        let told = tell(&world, &map_of(&world, &place, "told"), None, &place.settings.keys);
        let at_v2 =
            tell(&world, &map_of(&world, &place, "told2"), Some("v2"), &place.settings.keys);
        drop(volume);
        let mut there = world.place("there");
        if encrypt {
            there.settings.keys = key(there.settings.volume);
        }
        hear(&world, &told, &there).unwrap();
        check(&world, &there);
        there.settings.epoch = 2;
        let volume = world.open(&there);
        assert!(read(&volume, 0, 20) == noise(4, 20));
        assert!(read(&volume, 20, 80) == noise(1, 600)[20 * 4096..100 * 4096]);
        let checkpoints = volume.checkpoints().unwrap();
        let told_of: Vec<_> =
            checkpoints.iter().map(|row| (row.id.as_str(), row.comment.as_str())).collect();
        assert_eq!(told_of, [("v2", "words"), ("v1", "")]);
        assert_eq!(volume.current_base().unwrap().as_deref(), Some("v2"));
        let v2 = volume.view("v2").unwrap();
        is_v2(|block, blocks| view(&v2, block, blocks));
        drop(v2);
        world.wait(volume.restore("v1"));
        assert!(read(&volume, 0, 600) == noise(1, 600));
        world.write(&volume, 5, 5, 6);
        assert_eq!(world.checkpoint(&volume, false).id, "v3");
        world.wait(volume.seal());
        world.wait(volume.reclaim());
        check(&world, &there);
        drop(volume);
        // And with a checkpoint as its live state.
        let mut third = world.place("third");
        hear(&world, &at_v2, &third).unwrap();
        third.settings.epoch = 2;
        let volume = world.open(&third);
        is_v2(|block, blocks| read(&volume, block, blocks));
        assert_eq!(volume.current_base().unwrap().as_deref(), Some("v2"));
    }
}

#[test]
fn a_fork_is_whole_without_its_ancestor() {
    let world = World::new();
    let (place, volume) = source(&world, false);
    let mut child = world.place("child");
    let cut = volume.cut().unwrap();
    world.wait(volume.pin(child.settings.volume, crate::ForkPoint::Cut(cut)));
    let id = child.settings.volume;
    child.ship = place.ship.branch(child.db());
    child.ship.restore();
    fork_pinned(&child.db(), id).unwrap();
    let fork = world.open(&child);
    world.write(&fork, 9000, 4, 7);
    let told = tell(&world, &map_of(&world, &child, "told"), None, &Keys::none());
    drop((fork, volume));
    for key in world.segments(place.settings.volume).into_iter().chain(world.segments(id)) {
        use object_store::ObjectStoreExt as _;
        world.runtime.block_on(world.store.delete(&key)).unwrap();
    }
    let mut there = world.place("there");
    hear(&world, &told, &there).unwrap();
    check(&world, &there);
    there.settings.epoch = 2;
    let volume = world.open(&there);
    assert!(read(&volume, 0, 20) == noise(4, 20));
    assert!(read(&volume, 9000, 4) == noise(7, 4));
}

#[test]
fn ids_of_automatic_checkpoints_go_on_within_the_same_second() {
    let world = World::new();
    let (place, volume) = source(&world, false);
    for _ in 0..3 {
        world.checkpoint(&volume, true);
    }
    let told = tell(&world, &map_of(&world, &place, "told"), None, &Keys::none());
    let mut there = world.place("there");
    hear(&world, &told, &there).unwrap();
    there.settings.epoch = 2;
    let elsewhere = world.open(&there);
    // Here and there they get the same ids, so there none is used twice.
    assert_eq!(world.checkpoint(&elsewhere, true).auto, world.checkpoint(&volume, true).auto);
    assert_eq!(elsewhere.checkpoints().unwrap().len(), 6);
}

/// A change of what was told.
type Damage = Box<dyn Fn(&mut Told)>;

/// Changes the contents by way of their text.
fn edited(from: &'static str, to: &'static str) -> Damage {
    Box::new(move |told| {
        let text = serde_json::to_string(&told.contents).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        told.contents = serde_json::from_str(&text.replacen(from, to, 1)).unwrap();
    })
}

/// Changes the bytes of a piece.
fn changed(piece: usize, change: impl Fn(&mut Vec<u8>) + 'static) -> Damage {
    Box::new(move |told| {
        let at = if piece == usize::MAX { told.pieces.len() - 1 } else { piece };
        match &mut told.pieces[at] {
            Piece::Segment(_, bytes) | Piece::Rows(bytes) => {
                let mut changed = bytes.to_vec();
                change(&mut changed);
                *bytes = Bytes::from(changed);
            }
        }
    })
}

#[test]
fn what_is_damaged_or_made_up_becomes_no_volume() {
    const ROWS: usize = usize::MAX;
    let world = World::new();
    let (place, volume) = source(&world, false);
    let told = tell(&world, &map_of(&world, &place, "told"), None, &Keys::none());
    drop(volume);
    let field = |at: usize, value: u32| {
        move |rows: &mut Vec<u8>| rows[at..at + 4].copy_from_slice(&value.to_le_bytes())
    };
    let cases: Vec<(&str, Damage)> = vec![
        ("a flipped bit in the data", changed(0, |bytes| *bytes.last_mut().unwrap() ^= 1)),
        ("a flipped bit in the head", changed(0, |bytes| bytes[70] ^= 1)),
        ("a segment that ends early", changed(0, |bytes| bytes.truncate(bytes.len() - 1))),
        ("a segment with more behind it", changed(0, |bytes| bytes.push(0))),
        ("an empty segment", changed(0, Vec::clear)),
        ("a segment that is missing", Box::new(|told| drop(told.pieces.remove(0)))),
        (
            "a segment that comes twice",
            Box::new(|told| told.pieces.insert(1, told.pieces[0].clone())),
        ),
        ("segments in another order", Box::new(|told| told.pieces.swap(0, 1))),
        ("rows before segments", Box::new(|told| told.pieces.rotate_right(1))),
        ("rows that end early", changed(ROWS, |rows| rows.truncate(rows.len() - 1))),
        ("rows that come twice", Box::new(|told| told.pieces.extend(told.pieces.last().cloned()))),
        ("a region behind the end", changed(ROWS, field(0, 102_400))),
        ("a layer that is not there", changed(ROWS, field(4, 77))),
        ("a row as long as the sky", changed(ROWS, field(8, u32::MAX))),
        ("a segment that is not there", changed(ROWS, field(16, 4711))),
        ("a block that is not there", changed(ROWS, field(20, 1_000_000))),
        ("no rows and no segments at all", Box::new(|told| told.pieces.clear())),
        ("a layer on itself", edited(r#""id":2,"parent":1"#, r#""id":2,"parent":2"#)),
        ("a layer on nothing", edited(r#""id":2,"parent":1"#, r#""id":2,"parent":9"#)),
        ("a layer twice", edited(r#""id":2,"parent":1"#, r#""id":1,"parent":null"#)),
        ("a head that is not there", edited(r#""head":3"#, r#""head":8"#)),
        ("a head below a layer", edited(r#""head":3"#, r#""head":2"#)),
        ("a checkpoint of the head", edited(r#""id":"v2","layer":2"#, r#""id":"v2","layer":3"#)),
        ("a checkpoint with a path for an id", edited(r#""id":"v2""#, r#""id":"../v2""#)),
        ("a checkpoint twice", edited(r#""id":"v2""#, r#""id":"v1""#)),
        ("a checkpoint with a number of its own", edited(r#""id":"v2""#, r#""id":"v99999999999""#)),
        ("a number that is taken", edited(r#""checkpoint_next":3"#, r#""checkpoint_next":2"#)),
        (
            "numbers that have run out",
            edited(r#""checkpoint_next":3"#, r#""checkpoint_next":4294967295"#),
        ),
        ("a base that is not there", edited(r#""base":"v2""#, r#""base":"v7""#)),
        ("segments out of order", Box::new(|told| told.contents.segments.reverse())),
    ];
    for (number, (what, damage)) in cases.into_iter().enumerate() {
        let mut told = told.clone();
        damage(&mut told);
        let there = world.place(&format!("there-{number}"));
        let error = hear(&world, &told, &there).expect_err(what);
        assert!(
            matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Corrupt),
            "{what}: {error} {:?}",
            error.kind()
        );
    }
    let there = world.place("sound");
    hear(&world, &told, &there).unwrap();
}

#[test]
fn a_bucket_that_fails_now_and_then_is_asked_again() {
    use std::sync::atomic::Ordering;
    let world = World::new();
    let (place, volume) = source(&world, false);
    let told = tell(&world, &map_of(&world, &place, "told"), None, &Keys::none());
    drop(volume);
    world.store.faults.store(300, Ordering::SeqCst);
    let there = world.place("there");
    hear(&world, &told, &there).unwrap();
    world.store.faults.store(0, Ordering::SeqCst);
    check(&world, &there);
}
