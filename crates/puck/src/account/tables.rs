//! The account's tables: schema and every query.

use super::{AccountError, SpriteRecord, database, tokens::Hash};
use crate::archive::ArchiveKey;
use api::{
    name::{OrgName, SpriteName},
    sprite::{SpriteId, UrlSettings},
};
use jiff::Timestamp;
use rusqlite::{
    Connection, Row, Transaction, params,
    types::{FromSql, FromSqlError, FromSqlResult, ValueRef},
};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, str::FromStr};

/// How the schema came to be, step by step; `user_version` says how many of them a database has seen. A step that was released
/// never changes. Times are microseconds since 1970; lists and maps are JSON, since nothing is ever searched in them.
const STEPS: [&str; 4] = [
    "
create table organization (
    name text not null primary key,
    id   text not null
) strict;

create table token (
    id         text not null primary key,
    hash       blob not null,
    created_at integer not null
) strict;

create table sprite (
    name                 text not null primary key,
    id                   text not null unique,
    volume               text not null unique,
    ancestors            text not null,
    image                text not null,
    url_settings         text not null,
    labels               text not null,
    environment          text not null,
    idle_timeout_seconds integer not null,
    created_at           integer not null,
    updated_at           integer not null,
    last_running_at      integer,
    last_warming_at      integer
) strict;
",
    // Sprites that were destroyed and can be had back: their names are free.
    "
create table sprite_by_id (
    id                   text not null primary key,
    name                 text not null,
    volume               text not null unique,
    ancestors            text not null,
    image                text not null,
    url_settings         text not null,
    labels               text not null,
    environment          text not null,
    idle_timeout_seconds integer not null,
    durability           text not null,
    created_at           integer not null,
    updated_at           integer not null,
    last_running_at      integer,
    last_warming_at      integer,
    destroyed_at         integer
) strict;
insert into sprite_by_id
    select id, name, volume, ancestors, image, url_settings, labels, environment, idle_timeout_seconds, 'default',
           created_at, updated_at, last_running_at, last_warming_at, null from sprite;
drop table sprite;
alter table sprite_by_id rename to sprite;
create unique index sprite_name on sprite (name) where destroyed_at is null;
",
    // With what an account marks the archives that it writes.
    "
alter table organization add column archive_key blob;
update organization set archive_key = randomblob(32);
",
    "
alter table sprite add column policies text not null default '{}';
",
];

/// Makes the tables where there are none, and returns the organization's short id.
pub(super) fn prepare(db: &mut Connection, org: &OrgName) -> Result<String, AccountError> {
    let found: i64 = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| database("read", error))?;
    let known = i64::try_from(STEPS.len()).expect("a few");
    let seen = usize::try_from(found).ok().filter(|seen| *seen <= STEPS.len());
    let seen = seen.ok_or(AccountError::Newer { found, known })?;
    let mut organization = || -> rusqlite::Result<(String, String)> {
        let transaction = db.transaction()?;
        for step in &STEPS[seen..] {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "user_version", known)?;
        if seen == 0 {
            let id = super::tokens::random_org_id();
            let archive_key: [u8; 32] = rand::random();
            transaction.execute(
                "insert into organization (name, id, archive_key) values (?, ?, ?)",
                params![org.as_str(), id, archive_key],
            )?;
        }
        let named = transaction.query_row("select name, id from organization", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        transaction.commit()?;
        Ok(named)
    };
    let (name, id) = organization().map_err(|error| database("write", error))?;
    if name == org.as_str() { Ok(id) } else { Err(AccountError::WrongOrganization(name)) }
}

/// The key of the archives.
pub(super) fn archive_key(db: &Connection) -> Result<ArchiveKey, AccountError> {
    db.query_row("select archive_key from organization", [], |row| row.get(0))
        .map(ArchiveKey)
        .map_err(|error| database("read", error))
}

/// Every token's hash, by id.
pub(super) fn tokens(db: &Connection) -> Result<BTreeMap<String, Hash>, AccountError> {
    let read = || -> rusqlite::Result<_> {
        let mut statement = db.prepare("select id, hash from token")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, Hash(row.get(1)?))))?;
        rows.collect()
    };
    read().map_err(|error| database("read", error))
}

/// Adds a token.
pub(super) fn add_token(db: &Connection, id: &str, hash: &Hash) -> Result<(), AccountError> {
    let now = Timestamp::now().as_microsecond();
    db.execute(
        "insert into token (id, hash, created_at) values (?, ?, ?)",
        params![id, hash.0, now],
    )
    .map(|_| ())
    .map_err(|error| database("write", error))
}

/// Every sprite, destroyed ones too.
pub(super) fn sprites(db: &Connection) -> Result<Vec<SpriteRecord>, AccountError> {
    let read = || -> rusqlite::Result<_> {
        let mut statement = db.prepare("select * from sprite")?;
        let rows = statement.query_map([], record)?;
        rows.collect()
    };
    read().map_err(|error| database("read", error))
}

/// Makes the row of a sprite go away.
pub(super) fn delete(transaction: &Transaction<'_>, id: SpriteId) -> rusqlite::Result<()> {
    transaction.prepare_cached("delete from sprite where id = ?")?.execute([id.to_string()])?;
    Ok(())
}

/// Adds the row of a sprite that has none.
pub(super) fn insert(transaction: &Transaction<'_>, record: &SpriteRecord) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "insert into sprite (id, name, volume, ancestors, image, url_settings, labels, environment, idle_timeout_seconds,
             durability, policies, created_at, updated_at, last_running_at, last_warming_at, destroyed_at)
         values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    insert.execute(params![
        record.id.to_string(),
        record.name.as_str(),
        record.volume.to_string(),
        json(&record.ancestors),
        record.image,
        json(&record.url_settings),
        json(&record.labels),
        json(&record.environment),
        i64::try_from(record.idle_timeout_seconds).unwrap_or(i64::MAX),
        record.durability.to_string(),
        json(&record.policies),
        record.created_at.as_microsecond(),
        record.updated_at.as_microsecond(),
        record.last_running_at.map(Timestamp::as_microsecond),
        record.last_warming_at.map(Timestamp::as_microsecond),
        record.destroyed_at.map(Timestamp::as_microsecond),
    ])?;
    Ok(())
}

fn record(row: &Row<'_>) -> rusqlite::Result<SpriteRecord> {
    Ok(SpriteRecord {
        name: row.get::<_, Text<SpriteName>>("name")?.0,
        id: row.get::<_, Text<_>>("id")?.0,
        volume: row.get::<_, Text<_>>("volume")?.0,
        ancestors: row.get::<_, Json<_>>("ancestors")?.0,
        image: row.get("image")?,
        url_settings: row.get::<_, Json<UrlSettings>>("url_settings")?.0,
        labels: row.get::<_, Json<_>>("labels")?.0,
        environment: row.get::<_, Json<_>>("environment")?.0,
        idle_timeout_seconds: row.get::<_, i64>("idle_timeout_seconds")?.unsigned_abs(),
        durability: row.get::<_, Text<_>>("durability")?.0,
        policies: row.get::<_, Json<_>>("policies")?.0,
        created_at: row.get::<_, Time>("created_at")?.0,
        updated_at: row.get::<_, Time>("updated_at")?.0,
        last_running_at: row.get::<_, Option<Time>>("last_running_at")?.map(|time| time.0),
        last_warming_at: row.get::<_, Option<Time>>("last_warming_at")?.map(|time| time.0),
        destroyed_at: row.get::<_, Option<Time>>("destroyed_at")?.map(|time| time.0),
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("lists and maps of text are always JSON")
}

/// A column with the text form of a type that is parsed.
struct Text<T>(T);

impl<T> FromSql for Text<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map(Self).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// A column with JSON.
struct Json<T>(T);

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?)
            .map(Self)
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// A column with microseconds since 1970.
struct Time(Timestamp);

impl FromSql for Time {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let time = Timestamp::from_microsecond(value.as_i64()?);
        time.map(Self).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}
