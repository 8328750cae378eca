//! Making the map of a new volume from a copy of another's.
//!
//! The fork's stack is the source's, with what is above and beside it dropped; its entries keep naming the source's
//! segments, under the source's prefix. A fork never deletes those: `segment.origin` is not its own, and it cannot know
//! who else names them. They are the source's to delete, which keeps them while the fork is pinned there.

use super::{
    LayerId, Rows,
    frozen::regions_of,
    head,
    pins::{no_pin, pin_of},
    push_layer, schema, stack_of,
};
use crate::{
    VolumeId,
    error::{Attempt as _, Error},
};
use base::__uuid::Uuid;
use rusqlite::{Transaction, params};
use std::{collections::BTreeSet, path::Path};

/// Turns a local copy of another volume's map into the start of a new volume, with the source's live state.
///
/// Only for a source that is never changed or destroyed, like the blank volume: nothing pins what the fork shares with it.
/// The copy must not be open elsewhere. After an error it is as before.
pub fn fork(db: &Path, target: VolumeId) -> Result<(), Error> {
    begin(db, target, |transaction| head(transaction))
}

/// Turns a local copy of another volume's map into the start of a new volume that begins with what the source has pinned
/// for it. `Conflict` if the copy has no such pin, because it is older than the pin.
///
/// The copy must not be open elsewhere. After an error it is as before.
pub fn fork_pinned(db: &Path, target: VolumeId) -> Result<(), Error> {
    begin(db, target, |transaction| {
        let pin = pin_of(transaction, target)?.ok_or_else(|| no_pin(target))?;
        push_layer(transaction, LayerId(pin.layer))
    })
}

/// The volumes that hold segments which a map names: whoever reads the volume must be able to read theirs.
pub fn origins(db: &Path) -> Result<Vec<VolumeId>, Error> {
    let connection = schema::existing(db)?;
    let mut select = connection
        .prepare("SELECT DISTINCT origin FROM segment")
        .attempt("list whose segments the map names")?;
    select
        .query_map([], |row| row.get(0).map(|id| VolumeId(Uuid::from_bytes(id))))
        .and_then(Iterator::collect)
        .attempt("list whose segments the map names")
}

fn begin(
    db: &Path,
    target: VolumeId,
    choose_head: impl FnOnce(&Transaction<'_>) -> Result<LayerId, Error>,
) -> Result<(), Error> {
    let mut connection = schema::existing(db)?;
    schema::upgrade(&mut connection)?;
    let transaction = connection.transaction().attempt("fork the map")?;
    let head = choose_head(&transaction)?;
    drop_all_but(&transaction, &stack_of(&transaction, head)?)?;
    transaction
        .execute_batch(
            "DELETE FROM checkpoint; DELETE FROM pin; DELETE FROM segment WHERE refs = 0;",
        )
        .attempt("drop what is the source's alone")?;
    transaction
        .execute(
            "UPDATE volume SET id = ?1, head = ?2, epoch = 0, sequence = 0, segment_next = 1, base = NULL,
                               checkpoint_next = 1, deleted_until = NULL",
            params![target.0.as_bytes(), head.0],
        )
        .attempt("name the fork")?;
    transaction.commit().attempt("fork the map")?;
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()))
        .attempt("put the fork into one file")
}

/// Drops the layers that are not in the stack, with their rows.
fn drop_all_but(transaction: &Transaction<'_>, stack: &[LayerId]) -> Result<(), Error> {
    let kept: BTreeSet<LayerId> = stack.iter().copied().collect();
    let all: Vec<LayerId> = transaction
        .prepare("SELECT id FROM layer")
        .and_then(|mut select| select.query_map([], |row| row.get(0).map(LayerId))?.collect())
        .attempt("list the layers")?;
    let mut rows = Rows::new(transaction);
    for layer in all.into_iter().filter(|layer| !kept.contains(layer)) {
        for region in regions_of(transaction, layer)? {
            let old = rows.load(region, layer)?;
            rows.put(region, layer, old.as_ref(), None)?;
        }
        transaction
            .execute("DELETE FROM layer WHERE id = ?1", [layer.0])
            .attempt("drop a layer")?;
    }
    rows.count()
}
