//! The protocol in every order of events within bounds, and in random orders beyond them.

use super::{
    Answer, Claimant, Entry, LEASE_MARGIN, Next, Ownership, Rules, Step, Writer,
    model::{Bounds, Broken, Event, Violation, World},
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use std::{
    collections::{HashSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    time::Duration,
};

/// Where a search has come to.
#[derive(Debug, Default)]
struct Reached {
    states: usize,
    owners: usize,
    acknowledged: usize,
}

/// A violation, and how it came to it.
type Found = (Violation, Vec<Event>);

/// Goes through every order of events.
fn search(bounds: &Bounds) -> Result<Reached, Found> {
    let mut seen = HashSet::new();
    let mut reached = Reached::default();
    let first = World::new(bounds);
    let mut path: Vec<(World, Vec<Event>)> = vec![(first.clone(), first.events(bounds))];
    let mut trail = Vec::new();
    while let Some((world, events)) = path.last_mut() {
        let Some(event) = events.pop() else {
            path.pop();
            trail.pop();
            continue;
        };
        let mut next = world.clone();
        trail.push(event);
        if let Err(violation) = next.step(event, bounds) {
            return Err((violation, trail));
        }
        let mut hasher = DefaultHasher::new();
        next.hash(&mut hasher);
        if !seen.insert(hasher.finish()) {
            trail.pop();
            continue;
        }
        reached.owners = reached.owners.max(next.owners());
        reached.acknowledged = reached.acknowledged.max(next.acknowledged());
        let events = next.events(bounds);
        path.push((next, events));
    }
    reached.states = seen.len();
    Ok(reached)
}

/// Takes one random event after another, from many seeds.
fn walk(bounds: &Bounds, seeds: std::ops::Range<u64>) -> Result<Reached, (u64, Found)> {
    let mut reached = Reached::default();
    for seed in seeds {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut world = World::new(bounds);
        let mut trail = Vec::new();
        loop {
            let events = world.events(bounds);
            if events.is_empty() {
                break;
            }
            let event = events[random.random_range(0..events.len())];
            trail.push(event);
            world.step(event, bounds).map_err(|violation| (seed, (violation, trail.clone())))?;
        }
        reached.states += trail.len();
        reached.owners = reached.owners.max(world.owners());
        reached.acknowledged = reached.acknowledged.max(world.acknowledged());
    }
    Ok(reached)
}

/// Leases, with one lost answer.
const LEASED: Bounds = Bounds {
    workers: 2,
    lease: Some(1),
    time: 3,
    log: 3,
    starts: 2,
    crashes: 0,
    silences: 1,
    duplicates: 0,
    deletions: 0,
    kept: 1000,
    broken: Broken::Nothing,
};

/// Three workers, with one lost answer.
const THREE: Bounds = Bounds { workers: 3, lease: None, time: 0, starts: 3, ..LEASED };

/// A crash and requests that arrive twice.
const CRASHING: Bounds = Bounds { workers: 2, starts: 3, crashes: 1, duplicates: 1, ..THREE };

/// Old files are deleted.
const DELETING: Bounds =
    Bounds { workers: 2, time: 2, deletions: 1, kept: 2, silences: 0, ..THREE };

/// Too many for a search; for walks.
const MANY: Bounds = Bounds {
    workers: 3,
    lease: Some(3),
    time: 24,
    log: 10,
    starts: 8,
    crashes: 4,
    silences: 6,
    duplicates: 3,
    deletions: 3,
    kept: 6,
    broken: Broken::Nothing,
};

#[test]
fn no_order_of_events_breaks_a_lease() {
    check(&LEASED, 2);
}

#[test]
fn no_order_of_events_breaks_the_chain_of_three_workers() {
    check(&THREE, 3);
}

#[test]
fn no_crash_and_no_late_request_breaks_the_chain() {
    check(&CRASHING, 3);
}

#[test]
fn no_deletion_of_old_files_breaks_the_chain() {
    check(&DELETING, 3);
}

/// Nothing is violated, though the log changes hands and is filled.
fn check(bounds: &Bounds, owners: usize) {
    let reached = search(bounds).expect("no violation");
    assert!(reached.states > 10_000, "{reached:?}");
    assert!(reached.owners >= owners && reached.acknowledged == bounds.log, "{reached:?}");
}

#[test]
fn no_long_history_breaks_anything() {
    let reached = walk(&MANY, 0..3000).expect("no violation");
    assert!(reached.owners >= 4 && reached.acknowledged >= 8, "{reached:?}");
    walk(&Bounds { lease: None, ..MANY }, 0..2000).expect("no violation");
}

#[test]
fn a_search_finds_what_each_rule_is_for() {
    let check = |broken, bounds, expected: Violation| {
        let (violation, trail) = search(&Bounds { broken, ..bounds }).expect_err("a violation");
        assert!(violation.starts_with(expected), "{violation}, not {expected}: {trail:?}");
    };
    check(Broken::NoNonceCheck, THREE, "an acknowledged append is not in the chain");
    check(Broken::SharedNonce, THREE, "two workers have one number acknowledged");
    check(Broken::NoWait, LEASED, "a flush was acknowledged");
    check(Broken::LeaseFromAnswer, LEASED, "a flush was acknowledged");
    check(Broken::ClaimsDeleted, DELETING, "an acknowledged append is not in the chain");
    check(Broken::LateClaims, DELETING, "an acknowledged append is not in the chain");
}

fn entry(txid: u64, epoch: u64) -> Entry {
    Entry { txid, writer: Writer { epoch, nonce: 100 + epoch }, checksum: txid }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn claimed(next: Next) -> Ownership {
    match next {
        Next::Claim(ownership) => ownership,
        Next::Wait { until } => panic!("waits until {until:?}"),
    }
}

/// A claimer with a nonce of 7 and a lease in seconds.
fn claimant(own: Vec<Writer>, lease: Option<u64>) -> Claimant {
    Claimant::new(7, own, Rules { lease: lease.map(seconds), claim_time_max: seconds(100) })
}

#[test]
fn a_claimer_waits_for_a_head_that_stays() {
    let mut claimant = claimant(vec![], Some(5));
    let mut saw = |txid, at| claimant.saw(Some(entry(txid, 1)), seconds(0), seconds(at));
    let until = |at| Next::Wait { until: seconds(at) + seconds(5) + LEASE_MARGIN };
    assert_eq!(saw(3, 10), until(10));
    assert_eq!(saw(4, 15), until(15));
    assert_eq!(saw(4, 20), until(15));
    assert_eq!(claimed(saw(4, 21)).writer(), Writer { epoch: 2, nonce: 7 });
}

#[test]
fn nobody_waits_for_itself_or_without_a_lease_or_for_nothing() {
    let own = entry(3, 4).writer;
    for (own, lease, head, epoch) in [
        (vec![own], Some(5), Some(entry(3, 4)), 5),
        (vec![], None, Some(entry(3, 4)), 5),
        (vec![], Some(5), None, 1),
    ] {
        let ownership = claimed(claimant(own, lease).saw(head, seconds(0), seconds(0)));
        assert_eq!(ownership.writer().epoch, epoch);
    }
}

#[test]
fn the_lease_runs_from_the_first_sending_of_what_succeeded() {
    let mut ownership = claimed(claimant(vec![], Some(4)).saw(None, seconds(0), seconds(0)));
    let sent = ownership.append(1, seconds(10)).expect("no owner yet");
    assert!(!ownership.may_acknowledge(seconds(10)), "the claim is not in the log");
    assert_eq!(ownership.answered(Answer::Unknown, seconds(11)), Step::Again);
    assert_eq!(ownership.append(1, seconds(12)), Ok(sent));
    assert_eq!(ownership.answered(Answer::Created, seconds(13)), Step::Settled);
    assert_eq!(ownership.renew_at(), Some(seconds(12)));
    assert!(ownership.may_acknowledge(seconds(13)));
    assert!(!ownership.may_acknowledge(seconds(14)));
}

#[test]
fn what_stands_at_the_number_decides() {
    let start = || claimed(claimant(vec![], None).saw(Some(entry(3, 1)), seconds(0), seconds(0)));
    let taken = |ownership: &mut Ownership| {
        let sent = ownership.append(9, seconds(0)).expect("not fenced");
        assert_eq!(ownership.answered(Answer::Taken, seconds(0)), Step::Look);
        sent
    };
    let mut ownership = start();
    let sent = taken(&mut ownership);
    assert_eq!(ownership.found(sent, seconds(100)), Step::Settled);
    assert!(ownership.may_acknowledge(seconds(1000)));
    let sent = taken(&mut ownership);
    assert_eq!(ownership.found(Entry { checksum: 8, ..sent }, seconds(0)), Step::Fenced);
    assert!(!ownership.may_acknowledge(seconds(0)));
    assert_eq!(ownership.append(9, seconds(0)).expect_err("fenced for good").txid, 5);

    for (there, late, step) in [
        (Some(entry(4, 1)), 0, Step::Outrun),
        (Some(entry(4, 2)), 0, Step::Fenced),
        (None, 101, Step::Outrun),
    ] {
        let mut ownership = start();
        let sent = taken(&mut ownership);
        assert_eq!(ownership.found(there.unwrap_or(sent), seconds(late)), step);
        assert!(ownership.append(9, seconds(0)).is_err());
    }
}
