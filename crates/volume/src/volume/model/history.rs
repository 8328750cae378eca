//! What happens to a volume: a list of steps from a seed. Numbers in a step choose among what there is when it is taken.

use crate::failpoint::Point;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

/// One step. Steps are plain so that a history can be printed, and any part of one is a history.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Write some blocks in a row; `zeros` says which of them are all zero.
    Write {
        at: usize,
        blocks: usize,
        zeros: u32,
    },
    Discard {
        at: usize,
        blocks: u32,
    },
    DiscardAll,
    Flush,
    Seal,
    Strict(bool),
    Checkpoint {
        auto: bool,
        write_between: bool,
    },
    Restore(usize),
    Delete(usize),
    /// Read everything.
    Look,
    /// Fork what the bucket has, read the fork and write to it.
    Fork,
    /// The process ends in order.
    Close(Next),
    /// The process dies.
    Die(Next),
    /// The process dies, and with it every sector that was not synced may be lost, as the number says.
    LosePower(u64, Next),
    /// The process dies and the local directory is gone.
    LoseEverything(Next),
    /// The process dies, another worker takes the volume from the bucket, writes, and gives it back.
    Elsewhere(Next),
}

/// The process after that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Next {
    /// It has a new epoch.
    pub new_epoch: bool,
    /// It takes the map from the log, although there is one here.
    pub map_of_the_log: bool,
    /// It seals all the time, not only when it is asked.
    pub eager: bool,
    /// The most bytes of its cache.
    pub cache_bytes_max: u64,
    /// Where it dies, at the so-many-th time.
    pub dies: Option<(Point, u32)>,
}

impl Next {
    pub(super) fn first(seed: u64) -> Self {
        next(&mut SmallRng::seed_from_u64(!seed))
    }
}

fn next(rng: &mut SmallRng) -> Next {
    let point = Point::ALL[rng.random_range(0..Point::ALL.len())];
    let passes = if rng.random() { 0 } else { rng.random_range(0..6) };
    Next {
        new_epoch: rng.random(),
        map_of_the_log: rng.random(),
        eager: rng.random(),
        cache_bytes_max: [0, 64 << 10, 1 << 30][rng.random_range(0..3)],
        dies: rng.random::<bool>().then_some((point, passes)),
    }
}

/// The history of a seed.
pub(super) fn history(seed: u64) -> Vec<Step> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let length = rng.random_range(10..36);
    (0..length).map(|_| step(&mut rng)).collect()
}

fn step(rng: &mut SmallRng) -> Step {
    match rng.random_range(0..100) {
        0..34 => Step::Write {
            at: rng.random_range(0..1000),
            blocks: rng.random_range(1..30),
            zeros: if rng.random() { 0 } else { rng.random() },
        },
        34..40 => Step::Discard { at: rng.random_range(0..1000), blocks: rng.random_range(1..20) },
        40 => Step::DiscardAll,
        41..50 => Step::Flush,
        50..57 => Step::Seal,
        57..60 => Step::Strict(rng.random()),
        60..66 => {
            Step::Checkpoint { auto: rng.random_range(0..3) == 0, write_between: rng.random() }
        }
        66..70 => Step::Restore(rng.random_range(0..100)),
        70..74 => Step::Delete(rng.random_range(0..100)),
        74..79 => Step::Look,
        79 => Step::Fork,
        80..84 => Step::Close(next(rng)),
        84..90 => Step::Die(next(rng)),
        90..95 => Step::LosePower(rng.random(), next(rng)),
        95..98 => Step::LoseEverything(next(rng)),
        _ => Step::Elsewhere(next(rng)),
    }
}
