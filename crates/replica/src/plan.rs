//! Which files of a log rebuild the database: Litestream's rule, over names alone.

use crate::layout::{LEVEL_SNAPSHOTS, Name};

/// The newest snapshot, and then always the file that continues the chain and reaches furthest.
///
/// Fails with the first missing transaction when there are later ones.
pub(crate) fn plan(mut files: Vec<Name>) -> Result<Vec<Name>, u64> {
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
            None if files.peek().is_some() => return Err(reached + 1),
            None => return Ok(chain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Name, plan};

    fn file(level: u8, min: u64, max: u64) -> Name {
        Name { level, min, max }
    }

    fn check(files: &[(u8, u64, u64)], expected: Result<&[(u8, u64, u64)], u64>) {
        let all = |list: &[(u8, u64, u64)]| {
            list.iter().map(|&(level, min, max)| file(level, min, max)).collect()
        };
        assert_eq!(plan(all(files)), expected.map(all), "{files:?}");
        let mut reversed: Vec<Name> = all(files);
        reversed.reverse();
        assert_eq!(plan(reversed), expected.map(all), "{files:?} reversed");
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
}
