//! Machines: boots, watches and ends the environment that an awake sprite runs in.
//!
//! A [`Host`] owns what all machines of one server share on this host: the id and address ranges, the nftables table, the
//! cgroup above them, the mounted base images. A [`Machine`] is one awake environment. In the `ns` driver it is a set of
//! Linux namespaces whose first process is the guest agent (ARCHITECTURE.md draws it).

mod error;
mod host;
mod machine;

pub use error::Error;
pub use host::{Host, HostSettings};
pub use machine::{Exit, Machine, MachineSpec};
