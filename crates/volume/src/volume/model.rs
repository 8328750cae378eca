//! A volume against a model of it, on thousands of seeds: histories of everything that it can do, with a bucket that
//! misbehaves and processes that die between any two durable steps.
//!
//! After every death the volume is opened again, and two things must hold:
//!
//! - The volume is the model. With the process alone nothing is lost. With the power, whatever was written since the last
//!   flush may be, but what is left is a prefix of the writes in their order.
//! - The bucket alone is the disk at one instant, not older than the last acknowledged seal: a second volume, opened from
//!   the shipped log in an empty directory, reads as one of the states since then.
//!
//! `PUCK_SEEDS` says how many seeds, `PUCK_SEED` repeats one. Of a seed that fails, the shortest history that still fails is
//! printed. The history of a seed is always the same; how the tasks of a process interleave is not.
//!
//! The checker itself is checked: a bucket that acknowledges segments before it has them must be found out.

mod harness;
mod history;

use crate::failpoint::Point;
use harness::Harness;
use history::{Step, history};
use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Seeds of an ordinary run of the tests.
const SEEDS: u64 = 2000;

/// Seeds within which a lying bucket must be found out.
const LIES_SEEDS: u64 = 40;

/// Histories that are tried to make a failing one shorter.
const SHRINK_MAX: usize = 120;

/// Plays a history. Returns where processes died, or what was wrong.
fn play(seed: u64, steps: &[Step], lies: bool) -> Result<BTreeSet<Point>, String> {
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut harness = Harness::new(seed, lies);
        for step in steps {
            harness.step(step);
        }
        harness.finish()
    }));
    played.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without words".to_owned())
    })
}

/// Leaves steps out for as long as the rest still fails.
fn shrink(seed: u64, mut steps: Vec<Step>, mut reason: String) -> (Vec<Step>, String) {
    let mut tries = 0;
    let mut part = steps.len() / 2;
    while part > 0 {
        let mut at = 0;
        while at < steps.len() && tries < SHRINK_MAX {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + part).min(steps.len()));
            tries += 1;
            match play(seed, &fewer, false) {
                Err(still) => (steps, reason) = (fewer, still),
                Ok(_) => at += part,
            }
        }
        part /= 2;
    }
    (steps, reason)
}

fn check(seed: u64) -> BTreeSet<Point> {
    let steps = history(seed);
    match play(seed, &steps, false) {
        Ok(points) => points,
        Err(reason) => {
            let count = steps.len();
            let (steps, shrunk) = shrink(seed, steps, reason.clone());
            let listed: String = steps.iter().map(|step| format!("\n  {step:?}")).collect();
            panic!(
                "seed {seed}: {reason}\nRun it alone with PUCK_SEED={seed}. {} of {count} steps suffice ({shrunk}):{listed}",
                steps.len()
            );
        }
    }
}

#[test]
fn agrees_with_the_model_under_faults_and_deaths() {
    if let Ok(seed) = std::env::var("PUCK_SEED") {
        check(seed.parse().expect("a number"));
        return;
    }
    let seeds = std::env::var("PUCK_SEEDS").map_or(SEEDS, |seeds| seeds.parse().expect("a number"));
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let died_at = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    match catch_unwind(|| check(seed)) {
                        Ok(points) => died_at.lock().unwrap().extend(points),
                        Err(panic) => {
                            failed.store(true, Ordering::Relaxed);
                            std::panic::resume_unwind(panic);
                        }
                    }
                }
            });
        }
    });
    if seeds >= SEEDS {
        let died_at = died_at.into_inner().unwrap();
        let never: Vec<_> = Point::ALL.iter().filter(|point| !died_at.contains(point)).collect();
        assert!(never.is_empty(), "no process died at {never:?}");
    }
}

#[test]
fn a_bucket_that_acknowledges_what_it_does_not_have_is_found_out() {
    let found = (0..LIES_SEEDS).any(|seed| play(seed, &history(seed), true).is_err());
    assert!(found, "a log that names segments which are not there went unnoticed");
}
