//! Which files of a log rebuild the database: Litestream's rule, over names alone.

use crate::layout::{LEVEL_SNAPSHOTS, Name};
use std::collections::BTreeMap;

/// The files that lead furthest, or to a transaction: the newest snapshot, and then always the file that continues the chain and
/// reaches furthest.
///
/// Fails with the first missing transaction when there are later ones, or when the chain does not end at the target.
pub(crate) fn plan(files: Vec<Name>, target: Option<u64>) -> Result<Vec<Name>, u64> {
    let (chain, missing) = follow(files, target);
    let reached = chain.last().map_or(0, |name| name.max);
    match (missing, target) {
        (Some(txid), _) => Err(txid),
        (None, Some(target)) if target != reached => Err(reached + 1),
        (None, _) => Ok(chain),
    }
}

/// As [`plan`], but ends where the chain does, with the first missing transaction.
pub(crate) fn follow(mut files: Vec<Name>, target: Option<u64>) -> (Vec<Name>, Option<u64>) {
    files.retain(|name| target.is_none_or(|target| name.max <= target));
    let snapshot = files
        .iter()
        .filter(|name| name.level == LEVEL_SNAPSHOTS)
        .max_by_key(|name| name.max)
        .copied();
    let mut chain = Vec::from_iter(snapshot);
    let mut reached = snapshot.map_or(0, |name| name.max);
    files.retain(|name| name.level != LEVEL_SNAPSHOTS && name.max > reached);
    files.sort_unstable_by_key(|name| name.min);
    let mut files = files.into_iter().peekable();
    loop {
        let mut best: Option<Name> = None;
        while let Some(name) = files.next_if(|name| name.min <= reached + 1) {
            best = best.into_iter().chain([name]).max_by_key(|name| (name.max, name.level));
        }
        match best {
            Some(name) if name.max > reached => {
                chain.push(name);
                reached = name.max;
            }
            // What was passed over reaches no further than the chain already does.
            Some(_) => {}
            None => return (chain, files.peek().map(|_| reached + 1)),
        }
    }
}

/// The transactions after which the database can be rebuilt, in ascending order, each with a file that ends there.
pub(crate) fn reachable(mut files: Vec<Name>) -> BTreeMap<u64, Name> {
    files.sort_unstable_by_key(|name| (name.max, name.level));
    let mut reached: BTreeMap<u64, Name> = BTreeMap::new();
    for name in files {
        let whole = name.level == LEVEL_SNAPSHOTS || name.min == 1;
        if whole || reached.range(name.min - 1..name.max).next().is_some() {
            reached.entry(name.max).or_insert(name);
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::{Name, plan, reachable};

    fn file(level: u8, min: u64, max: u64) -> Name {
        Name { level, min, max }
    }

    fn check(files: &[(u8, u64, u64)], expected: Result<&[(u8, u64, u64)], u64>) {
        let all = |list: &[(u8, u64, u64)]| {
            list.iter().map(|&(level, min, max)| file(level, min, max)).collect()
        };
        assert_eq!(plan(all(files), None), expected.map(all), "{files:?}");
        let mut reversed: Vec<Name> = all(files);
        reversed.reverse();
        assert_eq!(plan(reversed, None), expected.map(all), "{files:?} reversed");
    }

    #[test]
    fn the_chain_is_the_shortest_that_reaches_the_end() {
        check(&[], Ok(&[]));
        check(&[(0, 1, 1), (0, 2, 2)], Ok(&[(0, 1, 1), (0, 2, 2)]));
        check(&[(9, 1, 2), (0, 1, 1), (0, 2, 2), (0, 3, 3)], Ok(&[(9, 1, 2), (0, 3, 3)]));
        check(&[(9, 1, 1), (9, 1, 3), (0, 3, 3)], Ok(&[(9, 1, 3)]));
        check(
            &[(0, 1, 1), (0, 2, 2), (1, 2, 4), (0, 4, 4), (0, 5, 5)],
            Ok(&[(0, 1, 1), (1, 2, 4), (0, 5, 5)]),
        );
    }

    #[test]
    fn a_gap_is_refused() {
        check(&[(0, 2, 2)], Err(1));
        check(&[(0, 1, 1), (0, 3, 3)], Err(2));
        check(&[(9, 1, 5), (0, 7, 7)], Err(6));
    }

    #[test]
    fn a_target_is_met_exactly_or_not_at_all() {
        let files: Vec<Name> = [(9, 1, 4), (0, 1, 1), (0, 4, 4), (0, 5, 5), (1, 5, 8), (2, 5, 12)]
            .map(|(level, min, max)| file(level, min, max))
            .to_vec();
        let to = |target| plan(files.clone(), Some(target)).map(|chain| chain.len());
        assert_eq!([to(1), to(4), to(5), to(8), to(12)], [Ok(1), Ok(1), Ok(2), Ok(2), Ok(2)]);
        assert_eq!([to(3), to(7), to(13)], [Err(2), Err(6), Err(13)]);
        let reached: Vec<u64> = reachable(files).into_keys().collect();
        assert_eq!(reached, [1, 4, 5, 8, 12]);
    }

    #[test]
    fn what_a_snapshot_left_behind_reaches_nothing() {
        let files = vec![file(0, 3, 3), file(0, 6, 6), file(0, 9, 9), file(9, 1, 8), file(1, 6, 7)];
        assert_eq!(reachable(files).into_keys().collect::<Vec<_>>(), [8, 9]);
    }
}
