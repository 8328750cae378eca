//! A machine's network: a cable (veth pair) between the host and the machine.
//!
//! Inside, every machine looks the same: interface `spr0`, its own address [`INSIDE`], the agent's resolver at [`RESOLVER`], a
//! router at [`ROUTER`]. Those mean nothing outside; the machine speaks to the host with its unique address. Both ends know each
//! other's link address from the start, so neither asks for it, and the router's address need not exist anywhere.
//!
//! Version 6 of the protocol stays off on the cable; inside, the loopback interface has it.

use super::Network;
use crate::protocol::{INSIDE, RESOLVER};
use rustix::process::Pid;
use std::{
    io::{self, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The interface in the machine.
const INTERFACE: &str = "spr0";

/// The machine's router as its programs know it.
const ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The link address of the host's end, and of the machine's: locally administered, the same on every cable.
const HOST_LINK: &str = "02:00:0a:00:00:02";
const MACHINE_LINK: &str = "02:00:0a:00:00:01";

/// Lays the cable; called on the host. It disappears with the machine's network namespace.
pub(super) fn connect(network: &Network, machine: Pid) -> io::Result<()> {
    let Network { interface, address } = network;
    let pid = machine.as_raw_nonzero();
    // Either end knows the other. Nobody may be asked: a host that answers for others would let around the routes of a policy.
    // Without an address of version 6 the host's end says nothing in it.
    ip(&format!(
        "link add name {interface} address {HOST_LINK} type veth \
            peer name {INTERFACE} address {MACHINE_LINK} netns {pid}\n\
         link set dev {interface} arp off\n\
         link set dev {interface} addrgenmode none\n\
         link set dev {interface} up\n\
         neighbour replace {address} lladdr {MACHINE_LINK} dev {interface} nud permanent\n\
         route add {address}/32 dev {interface}\n"
    ))
}

/// Configures the machine's end; called in the machine's network namespace while the host's files are still there.
pub(super) fn configure(network: &Network) -> io::Result<()> {
    let address = network.address;
    set_if_there(Path::new("/proc/sys/net/ipv6/conf/spr0/disable_ipv6"), "1")?;
    // Root of a container has no right over this namespace, so what it usually may is granted to everybody in it.
    set_if_there(Path::new("/proc/sys/net/ipv4/ip_unprivileged_port_start"), "0")?;
    set_if_there(Path::new("/proc/sys/net/ipv4/ping_group_range"), "0 2147483647")?;
    ip(&format!(
        "link set dev lo up\n\
         address add {RESOLVER}/32 dev lo\n\
         address add {address}/32 dev {INTERFACE}\n\
         address add {INSIDE}/32 dev {INTERFACE}\n\
         link set dev {INTERFACE} arp off\n\
         link set dev {INTERFACE} up\n\
         neighbour replace {ROUTER} lladdr {HOST_LINK} dev {INTERFACE} nud permanent\n\
         route add {ROUTER}/32 dev {INTERFACE}\n\
         route add default via {ROUTER} dev {INTERFACE} src {address}\n"
    ))
}

/// Writes a kernel setting; one that this kernel does not have is off already.
fn set_if_there(path: &Path, value: &str) -> io::Result<()> {
    match std::fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

/// Where Debian keeps the program. Not searched for: the launcher has no environment.
const IP: [&str; 3] = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"];

fn ip(batch: &str) -> io::Result<()> {
    let program =
        IP.map(PathBuf::from).into_iter().find(|path| path.exists()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "the program `ip` is missing: install the package iproute2",
            )
        })?;
    let mut child = Command::new(program)
        .args(["-batch", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
