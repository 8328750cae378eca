//! Whom a file operation acts as.
//!
//! Each operation runs on a thread of its own that first becomes a user of the container: it takes that user's ids (the
//! kernel keeps credentials per thread) and for the container's root some capabilities over files, and it ends with the
//! operation, so no thread ever has to turn back. Real and saved ids stay the agent's: nothing in the container may signal
//! or trace the thread.

use super::FileError;
use guest::protocol::SPRITE_UID;
use rustix::{
    io::Errno,
    process::{Gid, Uid},
    thread::{
        CapabilitySet, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};
use std::{sync::Arc, thread};
use tokio::sync::{Semaphore, oneshot};

/// A user of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Actor {
    /// The container's root.
    Root,
    /// The user that commands run as.
    Sprite,
}

/// What the container's root may do with files that are not its own.
const ROOT_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID);

impl Actor {
    /// Whom a call that does or does not say `asRoot` acts as.
    pub(super) fn of(as_root: bool) -> Self {
        if as_root { Self::Root } else { Self::Sprite }
    }

    /// The id outside of the container, of the user as of its group.
    pub(super) fn id(self, uid_start: u32) -> u32 {
        match self {
            Self::Root => uid_start,
            Self::Sprite => uid_start.saturating_add(SPRITE_UID),
        }
    }

    /// Turns the calling thread into this user, for good.
    fn assume(self, uid_start: u32) -> Result<(), Errno> {
        let id = self.id(uid_start);
        if id == 0 {
            // The host's root would be let through everywhere.
            return Err(Errno::PERM);
        }
        set_thread_groups(&[])?;
        set_thread_res_gid(None, Gid::from_raw(id), None)?;
        set_thread_res_uid(None, Uid::from_raw(id), None)?;
        let mut sets = capabilities(None)?;
        sets.inheritable = CapabilitySet::empty();
        sets.effective = match self {
            Self::Root => sets.permitted & ROOT_CAPABILITIES,
            Self::Sprite => CapabilitySet::empty(),
        };
        set_capabilities(None, sets)
    }
}

/// Does `work` as `actor`, on a thread of its own.
pub(super) async fn act<T: Send + 'static>(
    operations: &Arc<Semaphore>,
    actor: Actor,
    uid_start: u32,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FileError> {
    let failed = |errno| FileError::new("act", format!("as {actor:?}").to_lowercase(), errno);
    let permit =
        Arc::clone(operations).acquire_owned().await.map_err(|_| failed(Errno::CANCELED))?;
    let (tell, told) = oneshot::channel();
    thread::Builder::new()
        .name("files".to_owned())
        .spawn(move || {
            let _permit = permit;
            let result = actor.assume(uid_start).map(|()| work());
            if tell.send(result).is_err() {
                tracing::debug!("nobody waits for a file operation any more");
            }
        })
        .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)))?;
    told.await.map_err(|_| failed(Errno::IO))?.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::{Actor, act};
    use rustix::io::Errno;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn an_actor_is_that_user_with_those_capabilities_only_on_its_thread() {
        let operations = Arc::new(Semaphore::new(1));
        for (actor, id, may_override) in
            [(Actor::Sprite, 101_001, false), (Actor::Root, 100_000, true)]
        {
            let seen = act(&operations, actor, 100_000, || {
                let status = std::fs::read_to_string("/proc/thread-self/status").expect("status");
                let line = |name: &str| {
                    status
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .expect("a line")
                        .trim()
                        .to_owned()
                };
                (line("Uid:"), line("Gid:"), line("Groups:"), line("CapEff:"))
            })
            .await
            .expect("the test runs as root");
            let ids = format!("0\t{id}\t0\t{id}");
            let capabilities = if may_override { "000000000000001f" } else { "0000000000000000" };
            assert_eq!(seen, (ids.clone(), ids, String::new(), capabilities.to_owned()));
        }
        assert!(rustix::process::geteuid().is_root());
    }

    #[tokio::test]
    async fn nobody_acts_as_the_hosts_root() {
        let operations = Arc::new(Semaphore::new(1));
        let error = act(&operations, Actor::Root, 0, || ()).await.expect_err("refused");
        assert_eq!(error.errno, Errno::PERM);
    }
}
