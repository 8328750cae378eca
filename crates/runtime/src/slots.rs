//! Slots: which ids and which address of the range a machine has.

use crate::{Error, range::MACHINES_MAX};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The slots of one server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slots(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    used: BTreeSet<u32>,
    /// Where the search for a free slot begins, so that a slot rests before it is used again.
    next: u32,
}

impl Slots {
    /// Takes a free slot.
    ///
    /// # Errors
    /// [`Error::Full`] when there is none.
    pub(crate) fn take(&self) -> Result<Slot, Error> {
        let mut state = self.state();
        let first = state.next;
        let number = (0..MACHINES_MAX)
            .map(|step| (first + step) % MACHINES_MAX + 1)
            .find(|number| !state.used.contains(number))
            .ok_or(Error::Full { most: MACHINES_MAX })?;
        state.used.insert(number);
        state.next = number % MACHINES_MAX;
        Ok(Slot { slots: self.clone(), number })
    }

    /// No code panics while it holds the lock, so a poisoned one is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A taken slot. It stays taken when it is dropped: only [`Slot::free`] says that nothing of its machine is left.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Slots,
    pub(crate) number: u32,
}

impl Slot {
    /// Gives the slot back.
    pub(crate) fn free(self) {
        self.slots.state().used.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::{MACHINES_MAX, Slots};

    #[test]
    fn every_slot_is_given_once_and_rests_after_its_use() {
        let slots = Slots::default();
        let all: Vec<_> = (0..MACHINES_MAX).map(|_| slots.take().unwrap()).collect();
        assert_eq!(
            all.iter().map(|slot| slot.number).collect::<Vec<_>>(),
            (1..=MACHINES_MAX).collect::<Vec<_>>()
        );
        assert!(slots.take().is_err());
        let mut all = all.into_iter();
        all.next().unwrap().free();
        all.next().unwrap().free();
        assert_eq!(slots.take().unwrap().number, 1);
        assert_eq!(slots.take().unwrap().number, 2);
        assert!(slots.take().is_err(), "a dropped slot stays taken");
    }
}
