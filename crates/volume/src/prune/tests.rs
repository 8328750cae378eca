//! Pruning thins out what is old, and never what is needed or wanted.

use super::doomed;
use crate::{
    map::{CheckpointRow, LayerId},
    testing::world::World,
};
use jiff::{SignedDuration, Timestamp};

fn row(id: &str, created: Timestamp) -> CheckpointRow {
    CheckpointRow {
        id: id.to_owned(),
        layer: LayerId(1),
        created,
        comment: String::new(),
        auto: true,
        commented: false,
        source: None,
        history: Vec::new(),
    }
}

fn minutes(count: i64) -> SignedDuration {
    SignedDuration::from_mins(count)
}

#[test]
fn a_week_of_checkpoints_every_ten_minutes_is_thinned_in_tiers() {
    let now: Timestamp = "2026-11-25T12:30:00Z".parse().unwrap();
    let all: Vec<CheckpointRow> =
        (0..10 * 24 * 6).map(|index| row(&index.to_string(), now - minutes(index * 10))).collect();
    let doomed: Vec<String> = doomed(&all, now).into_iter().map(|row| row.id).collect();
    let kept: Vec<i64> = (0..10 * 24 * 6)
        .filter(|index| !doomed.contains(&index.to_string()))
        .map(|index| index * 10)
        .collect();
    let (recent, older): (Vec<i64>, Vec<i64>) = kept.iter().partition(|age| **age <= 60);
    assert_eq!(recent, [0, 10, 20, 30, 40, 50, 60]);
    let (hourly, daily): (Vec<i64>, Vec<i64>) = older.iter().partition(|age| **age <= 24 * 60);
    assert!((23..=24).contains(&hourly.len()), "{hourly:?}");
    assert!((6..=8).contains(&daily.len()), "{daily:?}");
    assert!(kept.iter().all(|age| *age <= 7 * 24 * 60));
}

#[test]
fn pruning_bit_by_bit_keeps_a_checkpoint_of_each_hour_and_day() {
    let start: Timestamp = "2026-11-20T00:00:00Z".parse().unwrap();
    let mut all: Vec<CheckpointRow> = Vec::new();
    let mut now = start;
    for index in 0..5 * 24 * 4 {
        now = start + minutes(index * 15);
        all.insert(0, row(&index.to_string(), now));
        let gone: Vec<String> = doomed(&all, now).into_iter().map(|row| row.id).collect();
        all.retain(|row| !gone.contains(&row.id));
    }
    let ages: Vec<i64> = all.iter().map(|row| now.duration_since(row.created).as_mins()).collect();
    for pair in ages.windows(2) {
        let most = if pair[1] <= 24 * 60 { 2 * 60 } else { 2 * 24 * 60 };
        assert!(pair[1] - pair[0] <= most, "no gap from {} to {} minutes ago", pair[0], pair[1]);
    }
    assert!(ages.last().is_some_and(|oldest| *oldest > 4 * 24 * 60 - 60), "{ages:?}");
    assert!(all.len() < 5 + 26 + 6, "{}", all.len());
}

#[test]
fn what_a_person_made_or_commented_and_the_base_stay() {
    let world = World::new();
    let volume = world.open(&world.place("volume"));
    let mut made = Vec::new();
    for (block, auto) in [(0, true), (1, false), (2, true), (3, true), (4, true)] {
        world.write(&volume, block, 1, block);
        made.push(world.checkpoint(&volume, auto).id);
    }
    world.wait(volume.comment(&made[2], "before I try it"));
    let now = Timestamp::now();
    assert_eq!(world.wait(volume.prune_automatic(now)), []);
    let later = now + SignedDuration::from_hours(30 * 24);
    let pruned: Vec<String> =
        world.wait(volume.prune_automatic(later)).into_iter().map(|row| row.id).collect();
    assert_eq!(pruned, [made[3].clone(), made[0].clone()]);
    let left = volume.checkpoints().unwrap();
    let ids: Vec<&String> = left.iter().map(|row| &row.id).collect();
    assert_eq!(ids, [&made[4], &made[2], &made[1]]);
    assert_eq!(left[1].comment, "before I try it");
    // A clock that went back prunes nothing.
    let earlier = now - SignedDuration::from_hours(30 * 24);
    assert_eq!(world.wait(volume.prune_automatic(earlier)), []);
    assert!(world.runtime.block_on(volume.comment("v9", "")).is_err());
}
