//! Checkpoints in the map: ids on frozen layers.

use super::{LayerId, Map, frozen::changed_regions, head, push_layer, resolve, stack_of};
use crate::{
    error::{Attempt as _, Error, ErrorKind},
    sync::lock,
};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use std::collections::HashMap;

/// A checkpoint as the map stores it.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointRow {
    pub id: String,
    pub layer: LayerId,
    pub created: Timestamp,
    pub comment: String,
    pub auto: bool,
    /// The comment is a person's.
    pub commented: bool,
    pub source: Option<String>,
    pub history: Vec<String>,
}

/// The columns of a new checkpoint.
#[derive(Debug)]
pub(crate) struct NewRow<'a> {
    pub layer: LayerId,
    pub created: Timestamp,
    pub comment: &'a str,
    pub auto: bool,
}

impl Map {
    /// Puts a checkpoint on a frozen layer of the live stack, which grows from it from now on.
    pub(crate) fn add_checkpoint(&self, new: &NewRow<'_>) -> Result<CheckpointRow, Error> {
        let mut connection = lock(&self.write);
        let transaction = connection.transaction().attempt("begin a transaction")?;
        let id = insert(&transaction, new)?;
        transaction.execute("UPDATE volume SET base = ?1", [&id]).attempt("move the base")?;
        transaction.commit().attempt("commit a checkpoint")?;
        checkpoint(&connection, &id)
    }

    /// All checkpoints, newest first.
    pub(crate) fn checkpoints(&self) -> Result<Vec<CheckpointRow>, Error> {
        all(&lock(&self.read).connection)
    }

    /// The checkpoint that the live state grew from.
    pub(crate) fn base(&self) -> Result<Option<String>, Error> {
        base(&lock(&self.read).connection)
    }

    /// Forgets a checkpoint; its layer is merged later.
    pub(crate) fn delete_checkpoint(&self, id: &str) -> Result<(), Error> {
        let mut connection = lock(&self.write);
        let transaction = connection.transaction().attempt("begin a transaction")?;
        if base(&transaction)?.as_deref() == Some(id) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("cannot delete the checkpoint you are on: {id}"),
            ));
        }
        if transaction
            .execute("DELETE FROM checkpoint WHERE id = ?1", [id])
            .attempt("delete a checkpoint")?
            == 0
        {
            return Err(not_found(id));
        }
        transaction.commit().attempt("commit the deletion of a checkpoint")
    }

    /// Replaces a checkpoint's comment with a person's.
    pub(crate) fn comment(&self, id: &str, comment: &str) -> Result<(), Error> {
        let changed = lock(&self.write)
            .execute(
                "UPDATE checkpoint SET comment = ?2, commented = 1 WHERE id = ?1",
                params![id, comment],
            )
            .attempt("comment a checkpoint")?;
        if changed == 1 { Ok(()) } else { Err(not_found(id)) }
    }

    /// Whether there is such a checkpoint.
    pub(crate) fn find_checkpoint(&self, id: &str) -> Result<(), Error> {
        layer_of(&lock(&self.read).connection, id).map(|_| ())
    }

    /// Keeps the frozen layer as an automatic checkpoint and puts an empty layer on the stack of `id`. Calls `stale` with
    /// the blocks of each region that are different from now on, before anyone can read them.
    pub(crate) fn restore(
        &self,
        id: &str,
        kept: &NewRow<'_>,
        mut stale: impl FnMut(u32, &[bool]),
    ) -> Result<CheckpointRow, Error> {
        let mut connection = lock(&self.write);
        let transaction = connection.transaction().attempt("begin a transaction")?;
        let layer = layer_of(&transaction, id)?;
        let old_stack = stack_of(&transaction, head(&transaction)?)?;
        let kept = insert(&transaction, kept)?;
        let new_head = push_layer(&transaction, layer)?;
        transaction
            .execute("UPDATE volume SET head = ?1, base = ?2", params![new_head.0, id])
            .attempt("move the head to the checkpoint")?;
        let new_stack = stack_of(&transaction, new_head)?;
        for region in changed_regions(&transaction, &old_stack, &new_stack)? {
            let old = resolve(&transaction, &old_stack, region)?;
            let new = resolve(&transaction, &new_stack, region)?;
            let differs: Vec<bool> =
                old.entries().zip(new.entries()).map(|(old, new)| old != new).collect();
            stale(region, &differs);
        }
        let reader = &mut *lock(&self.read);
        transaction.commit().attempt("commit a restore")?;
        reader.stack = new_stack;
        reader.regions.clear();
        checkpoint(&connection, &kept)
    }
}

pub(super) fn insert(transaction: &Transaction<'_>, new: &NewRow<'_>) -> Result<String, Error> {
    let id = if new.auto {
        next_auto_id(transaction, new.created)?
    } else {
        next_manual_id(transaction)?
    };
    let source = base(transaction)?;
    let exists: bool = transaction
        .query_row("SELECT EXISTS (SELECT 1 FROM layer WHERE id = ?1)", [new.layer.0], |row| {
            row.get(0)
        })
        .attempt("look for the layer of a checkpoint")?;
    if !exists {
        return Err(Error::new(
            ErrorKind::Internal,
            format!("layer {} was merged before its checkpoint", new.layer.0),
        ));
    }
    let created = new.created.as_microsecond();
    transaction
        .execute(
            "INSERT INTO checkpoint (id, layer, created, comment, auto, source) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![id, new.layer.0, created, new.comment, new.auto, source],
        )
        .attempt("record a checkpoint")?;
    Ok(id)
}

fn next_manual_id(transaction: &Transaction<'_>) -> Result<String, Error> {
    let number: u32 = transaction
        .query_row(
            "UPDATE volume SET checkpoint_next = checkpoint_next + 1 RETURNING checkpoint_next - 1",
            [],
            |row| row.get(0),
        )
        .attempt("take a checkpoint number")?;
    Ok(format!("v{number}"))
}

/// `auto-20261125T084500Z`, with a number behind it from the second of a second on. A clock that goes back only makes the
/// numbers go on.
fn next_auto_id(transaction: &Transaction<'_>, created: Timestamp) -> Result<String, Error> {
    let (second, count): (i64, u32) = transaction
        .query_row(
            "UPDATE volume SET auto_count = CASE WHEN auto_second >= ?1 THEN auto_count + 1 ELSE 1 END,
                               auto_second = max(auto_second, ?1)
             RETURNING auto_second, auto_count",
            [created.as_second()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .attempt("name an automatic checkpoint")?;
    let time = Timestamp::from_second(second)
        .unwrap_or(created)
        .strftime("auto-%Y%m%dT%H%M%SZ")
        .to_string();
    Ok(if count == 1 { time } else { format!("{time}-{count}") })
}

pub(super) fn base(connection: &Connection) -> Result<Option<String>, Error> {
    connection.query_row("SELECT base FROM volume", [], |row| row.get(0)).attempt("read the base")
}

fn layer_of_optional(connection: &Connection, id: &str) -> Result<Option<LayerId>, Error> {
    connection
        .query_row("SELECT layer FROM checkpoint WHERE id = ?1", [id], |row| row.get(0))
        .optional()
        .attempt("look for a checkpoint")
        .map(|layer| layer.map(LayerId))
}

pub(super) fn layer_of(connection: &Connection, id: &str) -> Result<LayerId, Error> {
    layer_of_optional(connection, id)?.ok_or_else(|| not_found(id))
}

fn not_found(id: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("no checkpoint {id}"))
}

pub(super) fn checkpoint(connection: &Connection, id: &str) -> Result<CheckpointRow, Error> {
    all(connection)?.into_iter().find(|row| row.id == id).ok_or_else(|| not_found(id))
}

fn all(connection: &Connection) -> Result<Vec<CheckpointRow>, Error> {
    let mut select = connection
        .prepare_cached(
            "SELECT id, layer, created, comment, auto, source, commented FROM checkpoint ORDER BY number DESC",
        )
        .attempt("list the checkpoints")?;
    let mut rows = select
        .query_map([], |row| {
            Ok(CheckpointRow {
                id: row.get(0)?,
                layer: LayerId(row.get(1)?),
                created: Timestamp::from_microsecond(row.get(2)?).unwrap_or(Timestamp::UNIX_EPOCH),
                comment: row.get(3)?,
                auto: row.get(4)?,
                source: row.get(5)?,
                commented: row.get(6)?,
                history: Vec::new(),
            })
        })
        .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
        .attempt("list the checkpoints")?;
    let on: HashMap<LayerId, String> = rows.iter().map(|row| (row.layer, row.id.clone())).collect();
    for row in &mut rows {
        let stack = stack_of(connection, row.layer)?;
        row.history = stack.iter().skip(1).filter_map(|layer| on.get(layer).cloned()).collect();
    }
    Ok(rows)
}
