//! Machines: boots, watches and ends the environment that an awake sprite runs in.
//!
//! A [`Host`] owns what all machines of one server share on this host: the id and address ranges, the nftables table, the
//! control group above them, the mounted base images. A [`Machine`] is one awake environment. In the `ns` driver it is a
//! set of Linux namespaces whose first process is the guest agent; `guest::launch` is its inside.

mod command;
mod error;
mod firewall;
mod host;
mod leftovers;
mod log;
mod machine;
mod prerequisites;
mod range;
mod slots;

pub use error::Error;
pub use host::{Host, HostSettings, INSTANCE_BYTES_MAX};
pub use machine::{Exit, Machine, MachineSpec};
pub use range::MACHINES_MAX;
