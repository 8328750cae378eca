//! What a worker and the guest agent of a machine agree on, and the inside of a machine: its root, its container, its
//! processes.

pub mod container;
pub mod protocol;
