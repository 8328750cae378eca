//! What a worker and the guest agent of a machine agree on, and the inside of a machine: its root, its container, its
//! processes.
//!
//! The host's side of a machine is the crate `runtime`. [`launch`] and [`zygote`] are programs of their own, run from the
//! agent's executable: the first turns a process into a machine, the second a part of the machine into a container.

pub mod cgroup;
pub mod container;
pub mod freeze;
pub mod launch;
pub mod protocol;
pub mod zygote;

mod mount;
mod sys;
mod wire;
