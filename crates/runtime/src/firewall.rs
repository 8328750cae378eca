//! The nftables table of one server: what machines may reach, and the translation of their addresses.
//!
//! Machines reach the outside and nothing else: not the host, not each other (nor those of other servers on this host), not
//! link-local addresses, where clouds keep credentials. Only the host may open connections to a machine. A packet whose
//! source is not the address of the machine it comes from is dropped.

use crate::{Error, command, range::Range};
use std::{fs, path::Path};

/// Every cable of every server on this host begins so.
pub(crate) const INTERFACES: &str = "pk";

/// The setting that makes the kernel forward packets.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// That a server of this host has turned forwarding on. In a directory that does not survive a restart of the host,
/// as the setting does not. All servers share it: the last one turns forwarding off.
const FORWARD_MARK: &str = "/run/puck-ip-forward";

/// The beginning of the names of interfaces of one server.
pub(crate) fn interface_prefix(instance: &str) -> String {
    format!("{INTERFACES}{instance}-")
}

fn table(instance: &str) -> String {
    format!("puck_{instance}")
}

/// Makes the table, in place of an older one, and turns forwarding on.
///
/// # Errors
/// When the kernel refuses.
pub(crate) async fn raise(instance: &str, range: Range) -> Result<(), Error> {
    let (table, ours, network) = (table(instance), interface_prefix(instance), range.cidr());
    let rules = format!(
        "table inet {table}
        delete table inet {table}
        table inet {table} {{
            chain input {{
                type filter hook input priority filter - 10; policy accept;
                iifname \"{ours}*\" ct state established,related accept
                iifname \"{ours}*\" drop
            }}
            chain forward {{
                type filter hook forward priority filter - 10; policy accept;
                iifname \"{ours}*\" jump from_machine
                oifname \"{ours}*\" ct state established,related accept
                oifname \"{ours}*\" drop
            }}
            chain from_machine {{
                meta nfproto != ipv4 drop
                fib saddr . iif oif missing drop
                oifname \"{INTERFACES}*\" drop
                ip daddr 169.254.0.0/16 drop
                ct state invalid drop
            }}
            chain translate {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {network} oifname != \"{INTERFACES}*\" masquerade
            }}
        }}\n"
    );
    command::run("nft", &["-f", "-"], &rules).await?;
    if read(FORWARD)?.trim() == "0" {
        write(FORWARD_MARK, "0\n")?;
        write(FORWARD, "1")?;
    }
    Ok(())
}

/// Removes the table, and turns forwarding off if a server had turned it on and this was the last one. A table that is
/// not there is fine.
///
/// # Errors
/// When the kernel refuses.
pub(crate) async fn lower(instance: &str) -> Result<(), Error> {
    let table = table(instance);
    command::run("nft", &["-f", "-"], &format!("table inet {table}\ndelete table inet {table}\n"))
        .await?;
    let others = command::run("nft", &["list", "tables"], "").await?.contains("inet puck_");
    if others || !Path::new(FORWARD_MARK).exists() {
        return Ok(());
    }
    write(FORWARD, "0")?;
    fs::remove_file(FORWARD_MARK)
        .map_err(|source| Error::Host { action: format!("remove {FORWARD_MARK}"), source })
}

fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(path)
        .map_err(|source| Error::Host { action: format!("read {path}"), source })
}

fn write(path: &str, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(|source| Error::Host { action: format!("write {path}"), source })
}
