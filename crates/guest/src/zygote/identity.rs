//! Acting as the container's root while still in the initial user namespace.

use crate::protocol::Privileges;
use rustix::{
    process::{Gid, Uid},
    thread::CapabilitySet,
};
use std::io;

/// Makes the container's root the effective user and group of this thread, with every capability that it may have raised
/// again, since a change away from the host's root lowers them.
///
/// What such a thread makes on an id-mapped mount belongs to the container's root. A thread that stays the host's root
/// could not make anything there: its id has no counterpart on the disk.
pub(super) fn act_as_container_root(uid_start: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid_start), Gid::from_raw(uid_start));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(None, gid, None)?;
    rustix::thread::set_thread_res_uid(None, uid, None)?;
    let mut capabilities = rustix::thread::capabilities(None)?;
    capabilities.effective = capabilities.permitted;
    Ok(rustix::thread::set_capabilities(None, capabilities)?)
}

/// Becomes the container's root for good, after its user namespace was entered.
pub(super) fn become_container_root() -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    Ok(rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?)
}

/// Lowers this process to `capabilities`, for good.
pub(super) fn keep_capabilities(capabilities: CapabilitySet) -> io::Result<()> {
    bound_capabilities(capabilities)?;
    rustix::thread::clear_ambient_capability_set()?;
    let sets = rustix::thread::CapabilitySets {
        effective: capabilities,
        permitted: capabilities,
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Makes an exec of this process give nothing that the policy forbids. Rights that it has stay until then.
pub(super) fn limit(privileges: Privileges) -> io::Result<()> {
    if privileges.no_capabilities {
        bound_capabilities(CapabilitySet::empty())?;
    }
    if privileges.no_new_privileges {
        rustix::thread::set_no_new_privs(true)?;
    }
    Ok(())
}

/// No exec gives more than `capabilities`, even to root.
fn bound_capabilities(capabilities: CapabilitySet) -> io::Result<()> {
    // Numbers that this kernel does not know give EINVAL; the highest known one differs between kernels.
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !capabilities.contains(one) {
            match rustix::thread::remove_capability_from_bounding_set(one) {
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
