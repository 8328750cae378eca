//! Pins in the map: frozen layers that forks begin with.
//!
//! # Invariant
//!
//! What is visible through a pinned layer is the same entries for as long as the pin exists: its layer is not merged away,
//! and no entry of its stack is repointed. A fork's own map was copied from this one after the pin was shipped, so every
//! segment that the fork can read is named here as well, and is not garbage.

use super::{LayerId, Map, checkpoints::layer_of, push_bottom, stack_of};
use crate::{
    VolumeId,
    error::{Attempt as _, Error, ErrorKind},
    sync::lock,
};
use base::__uuid::Uuid;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};
use std::collections::BTreeSet;

/// A layer that a fork begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The fork.
    pub child: VolumeId,
    /// When it was pinned.
    pub created: Timestamp,
    pub(crate) layer: u32,
}

/// What is pinned.
#[derive(Debug, Clone)]
pub(crate) enum Pinned {
    Checkpoint(String),
    Layer(LayerId),
}

impl Map {
    /// Pins a layer for a fork. The same pin again is no change.
    pub(crate) fn pin(
        &self,
        child: VolumeId,
        pinned: &Pinned,
        created: Timestamp,
    ) -> Result<Pin, Error> {
        let mut connection = lock(&self.write);
        let transaction = connection.transaction().attempt("begin a transaction")?;
        let layer = match pinned {
            Pinned::Checkpoint(id) => layer_of(&transaction, id)?,
            Pinned::Layer(layer) => *layer,
        };
        if let Some(pin) = pin_of(&transaction, child)? {
            return if pin.layer == layer.0 {
                Ok(pin)
            } else {
                Err(Error::new(ErrorKind::Conflict, format!("{child} is a fork of another state")))
            };
        }
        transaction
            .execute(
                "INSERT INTO pin (child, layer, created) VALUES (?1, ?2, ?3)",
                params![child.0.as_bytes(), layer.0, created.as_microsecond()],
            )
            .attempt("record a pin")?;
        transaction.commit().attempt("commit a pin")?;
        pin_of(&connection, child)?.ok_or_else(|| no_pin(child))
    }

    /// Forgets the pin of a fork that is gone. Without one it changes nothing.
    pub(crate) fn unpin(&self, child: VolumeId) -> Result<(), Error> {
        lock(&self.write)
            .execute("DELETE FROM pin WHERE child = ?1", [child.0.as_bytes()])
            .attempt("forget a pin")
            .map(drop)
    }

    /// All pins, oldest first.
    pub(crate) fn pins(&self) -> Result<Vec<Pin>, Error> {
        all_pins(&lock(&self.read).connection)
    }

    /// Drops the live state and all checkpoints: the head is a new, empty layer on nothing. Pins stay.
    pub(crate) fn retire(&self) -> Result<(), Error> {
        let mut connection = lock(&self.write);
        let transaction = connection.transaction().attempt("begin a transaction")?;
        let head = push_bottom(&transaction)?;
        transaction
            .execute("DELETE FROM checkpoint", [])
            .and_then(|_| transaction.execute("UPDATE volume SET head = ?1, base = NULL", [head.0]))
            .attempt("drop the live state")?;
        let reader = &mut *lock(&self.read);
        transaction.commit().attempt("commit the end of the live state")?;
        reader.stack = vec![head];
        reader.regions.clear();
        Ok(())
    }
}

/// The pin of a fork.
pub(super) fn pin_of(connection: &Connection, child: VolumeId) -> Result<Option<Pin>, Error> {
    connection
        .query_row(
            "SELECT child, layer, created FROM pin WHERE child = ?1",
            [child.0.as_bytes()],
            parse,
        )
        .optional()
        .attempt("look for a pin")
}

pub(super) fn no_pin(child: VolumeId) -> Error {
    Error::new(ErrorKind::Conflict, format!("the map has no pin for {child}"))
}

pub(super) fn all_pins(connection: &Connection) -> Result<Vec<Pin>, Error> {
    let mut select = connection
        .prepare_cached("SELECT child, layer, created FROM pin ORDER BY created, child")
        .attempt("list the pins")?;
    select.query_map([], parse).and_then(Iterator::collect).attempt("list the pins")
}

/// All layers that are visible through a pin.
pub(super) fn pinned_layers(connection: &Connection) -> Result<BTreeSet<LayerId>, Error> {
    let mut layers = BTreeSet::new();
    for pin in all_pins(connection)? {
        layers.extend(stack_of(connection, LayerId(pin.layer))?);
    }
    Ok(layers)
}

fn parse(row: &rusqlite::Row<'_>) -> rusqlite::Result<Pin> {
    let created = Timestamp::from_microsecond(row.get(2)?).unwrap_or(Timestamp::UNIX_EPOCH);
    Ok(Pin { child: VolumeId(Uuid::from_bytes(row.get(0)?)), layer: row.get(1)?, created })
}
