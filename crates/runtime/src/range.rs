//! The ids and addresses that the machines of one server may use.
//!
//! A host may run several servers, so each reserves one of [`RANGES`] ranges. The reservation is a route that throws away
//! what is sent to an address of the range that no machine has: the kernel refuses to add the same route twice, and a
//! route dies with the host. The range is written down, so that a restarted server takes the same one back.

use crate::{Error, command};
use std::{fs, net::Ipv4Addr, path::Path};

/// How many ranges there are. Ids stay below 2^31: the kernel takes no larger group in the setting that allows `ping`.
const RANGES: u32 = 28;

/// The first id of the first range, above what hosts give to people and services.
const IDS_FIRST: u32 = 1 << 28;

/// Ids in a range: 1,024 machines of 65,536.
const IDS_IN_RANGE: u32 = 1 << 26;

/// The first address of the first range.
const ADDRESSES_FIRST: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 0);

/// Addresses in a range.
const ADDRESSES_IN_RANGE: u32 = 1 << 10;

/// The length of a range's network prefix.
const PREFIX: u32 = 22;

/// The most machines of one server. Slot 0 is left out: its address is that of the network.
pub const MACHINES_MAX: u32 = 1000;

/// One range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range(u32);

impl Range {
    /// The host id of the container's root in the machine of this slot, from 1.
    pub(crate) fn uid_start(self, slot: u32) -> u32 {
        IDS_FIRST + self.0 * IDS_IN_RANGE + slot * guest::protocol::UID_COUNT
    }

    /// The address of the machine of this slot, from 1.
    pub(crate) fn address(self, slot: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network().to_bits() + slot)
    }

    fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(ADDRESSES_FIRST.to_bits() + self.0 * ADDRESSES_IN_RANGE)
    }

    /// The range in the notation of `ip` and `nft`.
    pub(crate) fn cidr(self) -> String {
        format!("{}/{PREFIX}", self.network())
    }

    fn overlaps(self, (network, prefix): (Ipv4Addr, u32)) -> bool {
        let mask = u32::MAX.checked_shl(32 - prefix.min(PREFIX)).unwrap_or(0);
        (self.network().to_bits() ^ network.to_bits()) & mask == 0
    }

    /// The range that a server of this instance wrote down, if any.
    pub(crate) fn remembered(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        text.trim().parse().ok().filter(|index| *index < RANGES).map(Self)
    }

    /// Reserves a range that nothing on this host uses, the remembered one if possible, and writes it down.
    ///
    /// # Errors
    /// When all are in use.
    pub(crate) async fn reserve(instance: &str, file: &Path) -> Result<Self, Error> {
        let routes = routes().await?;
        let first = instance
            .bytes()
            .fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let all = (0..RANGES).map(|step| Self(first.wrapping_add(step) % RANGES));
        for range in Self::remembered(file).into_iter().chain(all) {
            if routes.iter().any(|route| range.overlaps(*route)) {
                continue;
            }
            match command::run("ip", &["route", "add", "blackhole", &range.cidr()], "").await {
                Ok(_) => {
                    fs::write(file, range.0.to_string()).map_err(|source| Error::Host {
                        action: format!("write {}", file.display()),
                        source,
                    })?;
                    return Ok(range);
                }
                // Another server was quicker.
                Err(Error::Command { output, .. }) if output.contains("File exists") => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Prerequisite {
            missing: format!("all networks from {ADDRESSES_FIRST}/{PREFIX} on are in use"),
            fix: "stop other servers, or remove routes to these networks".into(),
        })
    }

    /// Gives the range back. One that is not reserved is fine.
    ///
    /// # Errors
    /// When the route cannot be removed.
    pub(crate) async fn release(self) -> Result<(), Error> {
        match command::run("ip", &["route", "delete", "blackhole", &self.cidr()], "").await {
            Err(Error::Command { output, .. }) if output.contains("No such process") => Ok(()),
            done => done.map(drop),
        }
    }
}

/// The networks of version 4 that this host has routes to.
async fn routes() -> Result<Vec<(Ipv4Addr, u32)>, Error> {
    let list = command::run("ip", &["-4", "route", "show"], "").await?;
    Ok(list.lines().filter_map(destination).collect())
}

/// The network of a line of `ip route show`: `10.0.0.0/8 via ...`, `10.1.2.3 dev ...`, `blackhole 10.0.0.0/22`. A default
/// route leads to every network and takes none.
fn destination(line: &str) -> Option<(Ipv4Addr, u32)> {
    let word = line
        .split_whitespace()
        .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    let (address, prefix) = word.split_once('/').unwrap_or((word, "32"));
    let prefix = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix))?;
    if line.starts_with("default") { None } else { Some((address.parse().ok()?, prefix)) }
}

#[cfg(test)]
mod tests {
    use super::{MACHINES_MAX, RANGES, Range, destination};

    #[test]
    fn the_last_id_and_address_of_a_range_are_below_the_next() {
        for index in 0..RANGES - 1 {
            let (range, next) = (Range(index), Range(index + 1));
            assert!(
                range.uid_start(MACHINES_MAX) + guest::protocol::UID_COUNT <= next.uid_start(0)
            );
            assert!(range.address(MACHINES_MAX) < next.address(0));
        }
        assert!(Range(RANGES - 1).uid_start(MACHINES_MAX) + guest::protocol::UID_COUNT <= 1 << 31);
    }

    #[test]
    fn a_route_takes_the_ranges_that_it_overlaps() {
        let all = |line: &str| {
            let route = destination(line);
            (0..4_u32)
                .filter(|index| route.is_some_and(|route| Range(*index).overlaps(route)))
                .collect::<Vec<_>>()
        };
        assert_eq!(all("default via 10.213.0.1 dev eth0"), Vec::<u32>::new());
        assert_eq!(all("192.0.2.0/24 dev eth0 proto kernel"), Vec::<u32>::new());
        assert_eq!(all("blackhole 10.213.4.0/22"), [1]);
        assert_eq!(all("10.213.8.7 dev pk1-2 scope link"), [2]);
        assert_eq!(all("10.0.0.0/8 via 192.0.2.1 dev tun0"), [0, 1, 2, 3]);
        assert_eq!(all("10.213.8.0/21 dev br0"), [2, 3]);
        assert_eq!(all("garbage"), Vec::<u32>::new());
    }
}
